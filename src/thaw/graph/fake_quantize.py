"""Fake quantization in torch: the integer arithmetic of `fixed_point` on tensors that have gradients.

Integers are stored exactly in floats. Rounding passes gradients straight through; clipped values pass none.

Shapes: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thaw.graph.tensors import Quantization, least_number

# Numbers that are rescaled at a time: 512 KiB of int64, which stay in a core's cache.
_CHUNK = 1 << 16


def multiply_by_quantized_multiplier(x: Tensor, multiplier: Tensor | int, shift: Tensor | int) -> Tensor:
    """`fixed_point.multiply_by_quantized_multiplier` for int64 [..., C'], in place; multiplier and shift by channel."""
    shifts = torch.as_tensor(shift, device=x.device)
    left, right = shifts.clamp(min=0), (-shifts).clamp(min=0)
    if bool(left.any()):
        x <<= left
    x *= multiplier
    x += 1 << 30
    x >>= 31
    if not bool(right.any()):
        return x
    # Adds half a step to a number of at least 0 and slightly less to one below 0, so that halves round away from 0.
    nudge = (x >> 63) * (right > 0)
    x += (1 << right) >> 1
    x += nudge
    x >>= right
    return x


def straight_through(smooth: Tensor, exact: Tensor) -> Tensor:
    """The value of `exact` with the gradient of `smooth`."""
    made: Tensor = _StraightThrough.apply(smooth, exact)  # type: ignore[no-untyped-call]
    return made


def moved(x: Tensor, read: Quantization, written: Quantization) -> Tensor:
    """Numbers converted to another scale, relative to its zero point, neither rounded nor clipped, with a gradient."""
    return (x - read.zero_point) * (read.scale / written.scale)


def clamped(smooth: Tensor, exact: Tensor, written: Quantization, activation: str = "none") -> Tensor:
    """Add the zero point and clip to the range: the value of `exact` with the gradient of `smooth`."""
    low = least_number(written, activation)
    shifted = (smooth + written.zero_point).clamp(low, 127)
    return straight_through(shifted, (exact + written.zero_point).clamp_(low, 127))


@dataclass(frozen=True)
class OutputScaling:
    """How sums [..., C'] become int8 outputs.

    Attributes:
        bias: int64 [C'].
        multipliers: int64 [C'].
        shifts: int64 [C'].
        factors: float32 [C'], the real value of multiplier and shift.
        zero_point: zero point of the output.
        least: the smallest output.
    """

    bias: Tensor
    multipliers: Tensor
    shifts: Tensor
    factors: Tensor
    zero_point: int
    least: int


def scale_sums(sums: Tensor, bias: Tensor, scaling: OutputScaling) -> Tensor:
    """Bias, rescaling and activation of sums [B, C', H, W] or [B, C'].

    Args:
        sums: integers in floats.
        bias: float32 [C'], which receives the gradient of `scaling.bias`.
        scaling: the exact numbers.
    """
    made: Tensor = _ScaleSums.apply(sums, bias, scaling)  # type: ignore[no-untyped-call]
    return made


class _ScaleSums(torch.autograd.Function):
    """The arithmetic of the reference interpreter with the gradient of the real function."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, bias: Tensor, scaling: OutputScaling) -> Tensor:  # noqa: ARG004 - for its gradient
        """Sums [B, C', H, W] or [B, C'] -> int8 numbers of the same shape, float32."""
        rows = _channels_at_the_end(sums)
        made = torch.empty(rows.shape, dtype=torch.float32, device=sums.device)
        outside = torch.empty(rows.shape, dtype=torch.bool, device=sums.device)
        step = max(1, _CHUNK // rows.shape[1]) if sums.device.type == "cpu" else len(rows)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            # `quantize` keeps sums within int32, so that nothing wraps around.
            numbers = rows[part].to(torch.int64).add_(scaling.bias)
            numbers = multiply_by_quantized_multiplier(numbers, scaling.multipliers, scaling.shifts)
            numbers.add_(scaling.zero_point)
            torch.logical_or(numbers < scaling.least, numbers > 127, out=outside[part])
            made[part] = numbers.clamp_(scaling.least, 127)
        ctx.save_for_backward(outside, scaling.factors)
        return _channels_second(made, sums)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradient is the factor of the channel; 0 for clipped values."""
        outside, factors = ctx.saved_tensors
        gradient = gradients[0]
        rows = (_channels_at_the_end(gradient) * factors).masked_fill_(outside, 0.0)
        return _channels_second(rows, gradient), rows.sum(0), None


class _StraightThrough(torch.autograd.Function):
    """The value of one tensor with the gradient of another."""

    @staticmethod
    def forward(ctx: Any, smooth: Tensor, exact: Tensor) -> Tensor:  # noqa: ARG004 - torch's signature
        """`exact`."""
        return exact.to(smooth.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004 - torch's signature
        """Pass the gradient to `smooth`, unchanged."""
        return gradients[0], None


def _channels_at_the_end(x: Tensor) -> Tensor:
    """[B, C, H, W] or [B, C] -> [rows, C], contiguous; a view if channels are last in memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]) if x.ndim == 4 else x.contiguous()


def _channels_second(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_channels_at_the_end` for a tensor of the shape of `like`."""
    if like.ndim == 2:
        return rows
    batch, channels, height, width = like.shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
