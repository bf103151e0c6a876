"""Conversion of a trained network to int8: the `quantize` section of a recipe."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from pydantic import Field

from thaw.plain import Count, Real, checked_dataclass
from thaw.training.qat import QatSettings


@checked_dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """Conversion of a trained network to int8."""

    calibration_images: Count = 1000
    """Number of training images that activation ranges are measured on; all if there are fewer."""
    qat_threshold: Annotated[Real, Field(ge=0)] = 0.3
    """Loss of validation accuracy, in percentage points, above which the int8 network is fine-tuned by
    quantization-aware training. Balanced accuracy if that selects the best epoch. 100 for never."""
    qat: QatSettings = field(default_factory=QatSettings)
    """The quantization-aware training."""
