"""Class weights of the loss, and the metric that selects the best epoch, for imbalanced classes."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from thaw.data.balance import ClassWeights, Counts, class_weights, is_uneven
from thaw.plain import checked_dataclass

Score = Literal["accuracy", "balanced_accuracy"]
Select = Literal["auto", "accuracy", "balanced_accuracy"]


@checked_dataclass(frozen=True, kw_only=True)
class LossSettings:
    """How class imbalance is compensated."""

    class_weights: ClassWeights = "none"
    """Weight of an image's loss by its class: "none", "balanced" (N / (K n_k) for n_k of N images in one of K
    classes), "sqrt" (proportional to the square root of that), or "auto" ("sqrt" if the largest class has more than
    1.5 times the training images of the smallest, else "none")."""
    select: Select = "auto"
    """Validation metric that selects the best epoch and the int8 network: "accuracy", "balanced_accuracy" (mean recall
    over classes), or "auto" (the latter if the classes are imbalanced as for "class_weights")."""

    def weights(self, counts: Counts) -> npt.NDArray[np.float32] | None:
        """The weights for training images int64 [K] of each class, float32 [K]; None where all are 1."""
        return class_weights(counts, self.class_weights)

    def score(self, counts: Counts) -> Score:
        """The figure that chooses, for training images int64 [K] of each class."""
        if self.select == "auto":
            return "balanced_accuracy" if is_uneven(counts) else "accuracy"
        return self.select
