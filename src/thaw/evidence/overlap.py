"""What a measurement says when some of the images were used in training: only the others are held out.

Shapes: N images.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.evidence.quality import wilson_interval


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Images that a model was measured on and had been trained on, or chosen by.

    Attributes:
        train: images that are training images.
        validation: images that are validation images, and no training images.
        others: images that are neither.
        accuracy: share of these others that were labeled rightly, 0 to 1; None where there are none.
        accuracy_ci95: Wilson's 95 % interval of it; None where there are none.
    """

    train: int
    validation: int
    others: int
    accuracy: float | None
    accuracy_ci95: tuple[float, float] | None

    @property
    def used(self) -> int:
        """Images that had a part in making the model."""
        return self.train + self.validation

    def __str__(self) -> str:
        total = self.used + self.others
        if not self.used:
            return f"none of the {total:,} images is, pixel for pixel, one that was used in training or validation"
        told = f"{self.used:,} of {total:,} images were used in training ({self.train:,}) or validation"
        told += f" ({self.validation:,})"
        if self.accuracy is None or self.accuracy_ci95 is None:
            return f"{told}: this is no measure of other images"
        low, high = self.accuracy_ci95
        return (
            f"{told}; accuracy on the other {self.others:,}: {self.accuracy:.2%} "
            f"(95 % interval {low:.2%} to {high:.2%})"
        )

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        interval = None if self.accuracy_ci95 is None else list(self.accuracy_ci95)
        return {**asdict(self), "accuracy_ci95": interval}


def overlap(
    correct: npt.NDArray[np.bool_], in_train: npt.NDArray[np.bool_], in_validation: npt.NDArray[np.bool_]
) -> Overlap:
    """Count right answers on held-out images apart.

    Args:
        correct: bool [N], whether each image was labeled rightly.
        in_train: bool [N], whether it is a training image.
        in_validation: bool [N], whether it is a validation image, and no training image.
    """
    hits = correct[~(in_train | in_validation)]
    others = len(hits)
    return Overlap(
        train=int(in_train.sum()),
        validation=int(in_validation.sum()),
        others=others,
        accuracy=float(hits.mean()) if others else None,
        accuracy_ci95=wilson_interval(int(hits.sum()), others) if others else None,
    )
