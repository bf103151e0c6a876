"""Change of scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from thaw.graph import fixed_point
from thaw.graph.ops.operation import Operation, OutputScale
from thaw.graph.rounding import rounded, shift_slack
from thaw.graph.tensors import Array, Interval, Quantization, Tensor, clamp

if TYPE_CHECKING:
    import torch

_SLACK = 2.0**-9
"""Relative to the number. XNNPACK's multiplier from one scale to another has 8 fractional bits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Requantize(Operation):
    """The same real values on another scale: uint8 or int8 -> int8, any shape. Int8 graphs read raw pixels with it.

    Attributes:
        quantization: quantization of the output.
    """

    kind: ClassVar[str] = "requantize"
    output_scale: ClassVar[OutputScale] = "fixed"
    works_in_place: ClassVar[bool] = True

    quantization: Quantization

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """Any shape -> the same, int8."""
        read = self._only(inputs, None, ("uint8", "int8"))
        if read.quantization is None:
            self._refuse("it reads pixels without a scale: expected those of an int8 graph")
        return self._written(read.shape, "int8", self.quantization)

    def multiplier(self, read: Tensor) -> tuple[int, int]:
        """(multiplier, shift) from the scale of `read` to that of the output."""
        return fixed_point.quantize_multiplier(read.scale().scale / self.quantization.scale)

    def execute(self, reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
        """Any shape -> the same."""
        numbers = arrays[0].astype(np.int64) - reads[0].scale().zero_point
        scaled = fixed_point.multiply_by_quantized_multiplier(numbers, *self.multiplier(reads[0]))
        return clamp(scaled + self.quantization.zero_point, self.quantization)

    def fake_quantize(self, reads: Sequence[Tensor], arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """Any shape -> the same."""
        import torch

        from thaw.graph import fake_quantize

        read = reads[0].scale()
        numbers = arrays[0].detach().to(torch.int64) - read.zero_point
        exact = fake_quantize.multiply_by_quantized_multiplier(numbers, *self.multiplier(reads[0]))
        smooth = fake_quantize.moved(arrays[0], read, self.quantization)
        return fake_quantize.clamped(smooth, exact, self.quantization)

    def admitted(self, reads: Sequence[Tensor], lows: Sequence[Array], highs: Sequence[Array]) -> Interval:
        """Numbers that are rescaled and rounded in any way."""
        read = reads[0].scale()
        factor = read.scale / self.quantization.scale
        low, high = (end.astype(np.float64) - read.zero_point for end in (lows[0], highs[0]))
        slack = _SLACK * np.maximum(np.abs(low), np.abs(high)) + shift_slack(self.multiplier(reads[0])[1])
        return rounded(low * factor, high * factor, slack, self.quantization)
