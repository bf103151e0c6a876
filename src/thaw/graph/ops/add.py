"""Addition of two tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from thaw.graph import fixed_point
from thaw.graph.ops.operation import Activation, Int8Builder, Operation, OutputScale
from thaw.graph.rounding import rounded, shift_slack
from thaw.graph.tensors import Array, Interval, Quantization, Tensor, clamp

if TYPE_CHECKING:
    import torch

_SLACK = 2.0**-11
"""In steps of the coarser term. XNNPACK scales terms (up to 255) by multipliers of 20 bits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Operation):
    """The sum of two tensors of the same shape, and the activation.

    Attributes:
        activation: "relu" or "none".
        quantization: quantization of the output; None in a float graph.
    """

    kind: ClassVar[str] = "add"
    output_scale: ClassVar[OutputScale] = "chosen"
    works_in_place: ClassVar[bool] = True

    activation: Activation = "none"
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_activation(self.activation)

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """Two tensors of the same dtype and shape -> one."""
        if len(inputs) != 2:
            self._refuse(f"it reads {len(inputs)} tensors: expected 2")
        first, second = (self._only([read], None) for read in inputs)
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            self._refuse(
                f"it reads {first.dtype} {first.shape} and {second.dtype} {second.shape}: expected one dtype and shape"
            )
        return self._computed(first.shape, first, self.quantization)

    def multipliers(self, reads: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
        """(multiplier, shift) of the two terms and of their sum, in an int8 graph."""
        first, second, written = reads[0].scale(), reads[1].scale(), self._scale()
        twice_largest = 2.0 * max(first.scale, second.scale)
        return (
            fixed_point.quantize_multiplier(first.scale / twice_largest),
            fixed_point.quantize_multiplier(second.scale / twice_largest),
            fixed_point.quantize_multiplier(twice_largest / (2**fixed_point.ADD_LEFT_SHIFT * written.scale)),
        )

    def execute(self, reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
        """Any shape -> the same."""
        if self.quantization is None:
            total = arrays[0] + arrays[1]
            return np.maximum(total, np.float32(0.0)) if self.activation == "relu" else total
        *terms, last = self.multipliers(reads)
        multiply = fixed_point.multiply_by_quantized_multiplier
        scaled = [
            multiply((array.astype(np.int64) - read.scale().zero_point) << fixed_point.ADD_LEFT_SHIFT, *term)
            for array, read, term in zip(arrays, reads, terms, strict=True)
        ]
        total = multiply(scaled[0] + scaled[1], *last)
        return clamp(total + self.quantization.zero_point, self.quantization, self.activation)

    def fake_quantize(self, reads: Sequence[Tensor], arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """Any shape -> the same."""
        import torch

        from thaw.graph import fake_quantize

        first, second, written = reads[0].scale(), reads[1].scale(), self._scale()
        *terms, last = self.multipliers(reads)
        multiply = fake_quantize.multiply_by_quantized_multiplier
        scaled = [
            multiply((array.detach().to(torch.int64) - read.zero_point) << fixed_point.ADD_LEFT_SHIFT, *term)
            for array, read, term in zip(arrays, (first, second), terms, strict=True)
        ]
        smooth = fake_quantize.moved(arrays[0], first, written) + fake_quantize.moved(arrays[1], second, written)
        exact = multiply(scaled[0] + scaled[1], *last)
        return fake_quantize.clamped(smooth, exact, written, self.activation)

    def admitted(self, reads: Sequence[Tensor], lows: Sequence[Array], highs: Sequence[Array]) -> Interval:
        """Sums whose terms and result are rounded in any way."""
        scales, written = [read.scale() for read in reads], self._scale()
        *_, (_, shift) = self.multipliers(reads)
        factors = [scale.scale / written.scale for scale in scales]
        low, high = (
            sum(
                (array.astype(np.float64) - scale.zero_point) * factor
                for array, scale, factor in zip(arrays, scales, factors, strict=True)
            )
            for arrays in (lows, highs)
        )
        slack = _SLACK * max(factors) + shift_slack(shift)
        return rounded(np.asarray(low), np.asarray(high), slack, written, self.activation)

    def quantize(self, builder: Int8Builder) -> None:
        """Choose a scale that the multiplier of the sum can represent."""
        largest = max(builder.scale_of(name).scale for name in self.inputs)
        least_scale = largest / 2.0 ** (fixed_point.ADD_LEFT_SHIFT - 2)
        builder.append(replace(self, quantization=builder.choose_scale(self.output, least_scale)))

    def _scale(self) -> Quantization:
        if self.quantization is None:
            self._refuse("has no scale: expected an operation of an int8 graph")
        return self.quantization
