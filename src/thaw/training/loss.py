"""How a loss weights classes, and by which figure the best epoch is chosen, where classes are uneven."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from thaw.data.balance import ClassWeights, Counts, class_weights, is_uneven
from thaw.errors import UsageError
from thaw.quoting import shown

Score = Literal["accuracy", "balanced_accuracy"]
Select = Literal["auto", "accuracy", "balanced_accuracy"]


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What makes up for classes of different sizes.

    Attributes:
        class_weights: weight of an image's loss by its class (`thaw.data.balance.class_weights`): "none", "balanced"
            (N / (K n_k)), "sqrt" (proportional to the square root of that), or "auto" ("sqrt" where the largest class
            has more than 1.5 times the training images of the smallest, else "none").
        select: the validation figure that chooses the best epoch and the int8 network: "accuracy",
            "balanced_accuracy" (the mean recall over classes), or "auto" (the latter where classes are as uneven).
    """

    class_weights: ClassWeights = "none"
    select: Select = "auto"

    def __post_init__(self) -> None:
        for name, choices in {"class_weights": get_args(ClassWeights), "select": get_args(Select)}.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"loss.{name} {shown(getattr(self, name))}: expected one of {', '.join(choices)}")

    def weights(self, counts: Counts) -> npt.NDArray[np.float32] | None:
        """The weights for training images int64 [K] of each class, float32 [K]; None where all are 1."""
        return class_weights(counts, self.class_weights)

    def score(self, counts: Counts) -> Score:
        """The figure that chooses, for training images int64 [K] of each class."""
        if self.select == "auto":
            return "balanced_accuracy" if is_uneven(counts) else "accuracy"
        return self.select
