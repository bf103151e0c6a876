"""Accuracy on the held-out images alone, when some of the measured images were used in training.

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
    """Counts of measured images that were used in training or validation.

    Attributes:
        train: training images.
        validation: validation images that are not training images.
        others: all other images.
        accuracy: fraction of the others that were classified correctly, 0 to 1; None if there are none.
        accuracy_ci95: Wilson's 95 % interval of `accuracy`; None if there are none.
    """

    train: int
    validation: int
    others: int
    accuracy: float | None
    accuracy_ci95: tuple[float, float] | None

    @property
    def used(self) -> int:
        """Images that were used in training or validation."""
        return self.train + self.validation

    def __str__(self) -> str:
        total = self.used + self.others
        if not self.used:
            return f"none of the {total:,} images is, pixel for pixel, one that was used in training or validation"
        summary = f"{self.used:,} of {total:,} images were used in training ({self.train:,}) or validation"
        summary += f" ({self.validation:,})"
        if self.accuracy is None or self.accuracy_ci95 is None:
            return f"{summary}: this does not measure performance on new images"
        low, high = self.accuracy_ci95
        return (
            f"{summary}; accuracy on the other {self.others:,}: {self.accuracy:.2%} "
            f"(95 % interval {low:.2%} to {high:.2%})"
        )

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        interval = None if self.accuracy_ci95 is None else list(self.accuracy_ci95)
        return {**asdict(self), "accuracy_ci95": interval}


def overlap(
    correct: npt.NDArray[np.bool_], in_train: npt.NDArray[np.bool_], in_validation: npt.NDArray[np.bool_]
) -> Overlap:
    """Count correct predictions on held-out images separately.

    Args:
        correct: bool [N], whether each image was classified correctly.
        in_train: bool [N], whether it is a training image.
        in_validation: bool [N], whether it is a validation image and not a training image.
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
