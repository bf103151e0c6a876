"""How a trained network becomes int8: the `quantize` section of a recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from thaw.errors import UsageError
from thaw.quoting import shown
from thaw.training.qat import QatSettings


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """How a trained network becomes int8.

    Attributes:
        calibration_images: training images that ranges are taken from; all where there are fewer.
        qat_threshold: percentage points of validation accuracy (of balanced accuracy where that chooses), from 0. Where
            the int8 network lies further than this below the float one, it is trained on in int8 arithmetic; 100 for
            never.
        qat: how it is then trained.
    """

    calibration_images: int = 1000
    qat_threshold: float = 0.3
    qat: QatSettings = field(default_factory=QatSettings)

    def __post_init__(self) -> None:
        if self.calibration_images < 1:
            raise UsageError(f"quantize.calibration_images {shown(self.calibration_images)}: expected at least 1")
        if not 0.0 <= self.qat_threshold < math.inf:
            raise UsageError(f"quantize.qat_threshold {shown(self.qat_threshold)}: expected a finite number from 0")
