"""A depthwise-separable block in training, forward and backward, with few passes over memory.

The block is: depthwise convolution, normalization, ReLU, pointwise convolution, normalization, ReLU, and optionally the
addition of its input. Computed one by one these are eight passes over memory forward and thirteen backward, and memory,
not arithmetic, limits the speed. Here each convolution computes the statistics of its result, and the normalization is
applied where the next operation reads it: three passes forward and three backward.

Shapes: B batch, C channels in, D channels out, H rows, W columns, K side of the kernel.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from thaw.kernels import depthwise, normalization
from thaw.kernels.library import POINTER, Scratch, Signatures, load_library
from thaw.kernels.memory import map_like, new_map
from thaw.kernels.normalization import NUMBERS, Running

_SIGNATURES: Signatures = {
    "thaw_pointwise_work": [POINTER] * 2,
    "thaw_pointwise_forward": [POINTER] * 7,
    "thaw_pointwise_backward": [POINTER] * 12,
}
_scratch = Scratch()


class _Shape(ctypes.Structure):
    """`shape` of `pointwise.c`."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("rows", "inputs", "outputs")]


@dataclass(frozen=True)
class Learned:
    """The parameters of a convolution and of the normalization after it.

    Attributes:
        convolution: float32 [C, 1, K, K] or [D, C, 1, 1].
        weight: float32, by channel.
        bias: float32, by channel.
        running: running statistics, updated in place.
    """

    convolution: Tensor
    weight: Tensor
    bias: Tensor
    running: Running


@cache
def compiled(dtype: torch.dtype) -> ctypes.CDLL:
    """The C of the pointwise convolution for maps of `dtype`, compiled for this machine on the first call.

    Raises:
        MissingDependencyError: without a C compiler that can compile it.
    """
    flags = ["-DTHAW_BFLOAT16"] if dtype == torch.bfloat16 else []
    return load_library("pointwise.c", _SIGNATURES, ["-ffp-contract=fast", *flags])


def can_fuse(x: Tensor) -> bool:
    """Whether `separable` supports this input: [B, C, H, W] on the CPU, channels-last, float32 or bfloat16."""
    return depthwise.can_convolve(x) and normalization.can_fuse(x, None)


def separable(x: Tensor, first: Learned, second: Learned, *, shortcut: bool) -> Tensor:
    """The block in training mode: [B, C, H, W] -> [B, D, H, W].

    Args:
        x: an input that `can_fuse` accepts.
        first: depthwise convolution.
        second: pointwise convolution.
        shortcut: whether to add x to the result; then D = C.
    """
    tensors = [tensor for part in (first, second) for tensor in (part.convolution, part.weight, part.bias)]
    settings = _Settings(first.running, second.running, shortcut)
    result: Tensor = _Separable.apply(settings, x, *tensors)  # type: ignore[no-untyped-call]
    return result


@dataclass(frozen=True)
class _Settings:
    """The arguments of `_Separable` without gradients."""

    running_a: Running
    running_b: Running
    shortcut: bool


class _Separable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: _Settings, x: Tensor, *tensors: Tensor) -> Tensor:
        taps, weight_a, bias_a, matrix, weight_b, bias_b = tensors
        statistics = torch.empty(2, taps.shape[0], dtype=torch.float64)
        a = depthwise.forward(x, taps, 1, statistics)
        constants_a = _constants(a, statistics, weight_a, bias_a, settings.running_a)
        batch, _, height, width = x.shape
        size = (batch, matrix.shape[0], height, width)
        b = new_map(size, x.dtype)
        statistics = torch.empty(2, matrix.shape[0], dtype=torch.float64)
        shape, work = _prepared(a, matrix)
        compiled(x.dtype).thaw_pointwise_forward(shape, *_pointers(a, constants_a, matrix, b, statistics), work)
        constants_b = _constants(b, statistics, weight_b, bias_b, settings.running_b)
        y = map_like(b)
        after = NUMBERS["relu add" if settings.shortcut else "relu"]
        rows, channels = _rows(b)
        normalization.compiled(x.dtype).thaw_norm_apply(
            *_pointers(b, x, y), rows, channels, after, constants_b.data_ptr()
        )
        ctx.shortcut = settings.shortcut
        ctx.save_for_backward(x, a, b, constants_a, constants_b, taps, matrix)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, constants_a, constants_b, taps, matrix = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        norm = normalization.compiled(x.dtype)
        rows, channels = _rows(b)
        sums = torch.empty(2, channels, dtype=torch.float64)
        norm.thaw_norm_sums(*_pointers(dy, b, b), rows, channels, NUMBERS["relu"], *_pointers(constants_b, sums))
        dweight_b, dbias_b, back_b = _back(norm, b, sums, constants_b)
        da, dmatrix = map_like(a), torch.empty_like(matrix, memory_format=torch.contiguous_format)
        sums = torch.empty(2, taps.shape[0], dtype=torch.float64)
        shape, work = _prepared(a, matrix)
        compiled(x.dtype).thaw_pointwise_backward(
            shape, *_pointers(dy, a, b, constants_a, constants_b, back_b, matrix, da, sums, dmatrix), work
        )
        dweight_a, dbias_a, back_a = _back(norm, a, sums, constants_a)
        dx, dtaps = depthwise.backward(
            da,
            x,
            taps,
            1,
            normalized=(a, constants_a, back_a),
            also=dy if ctx.shortcut else None,
            needs_dx=ctx.needs_input_grad[1],
        )
        return None, dx, dtaps, dweight_a, dbias_a, dmatrix, dweight_b, dbias_b


def _pointers(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _rows(x: Tensor) -> tuple[int, int]:
    """Rows and channels of [B, C, H, W]."""
    channels = x.shape[1]
    return x.numel() // channels, channels


def _prepared(a: Tensor, matrix: Tensor) -> tuple[Any, int]:
    """The shape, and the address of its scratch memory."""
    rows, inputs = _rows(a)
    shape = ctypes.byref(_Shape(rows, inputs, matrix.shape[0]))
    floats = ctypes.c_size_t()
    compiled(a.dtype).thaw_pointwise_work(shape, ctypes.byref(floats))
    return shape, _scratch.pointer(floats.value)


def _constants(x: Tensor, statistics: Tensor, weight: Tensor, bias: Tensor, running: Running) -> Tensor:
    """The constants of a normalization of `x` with these statistics, float32 [4, C]; updates the running statistics."""
    rows, channels = _rows(x)
    constants = torch.empty((4, channels), dtype=torch.float32)
    normalization.compiled(x.dtype).thaw_norm_constants(
        statistics.data_ptr(),
        rows,
        channels,
        *_pointers(weight, bias, running.mean, running.variance),
        running.momentum,
        running.epsilon,
        constants.data_ptr(),
    )
    return constants


def _back(norm: ctypes.CDLL, x: Tensor, sums: Tensor, constants: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a normalization's weight and bias, [C] each, and the constants of its backward step, [2, C]."""
    rows, channels = _rows(x)
    dweight, dbias = torch.empty((2, channels), dtype=torch.float32)
    back = torch.empty((2, channels), dtype=torch.float32)
    norm.thaw_norm_back(sums.data_ptr(), rows, channels, *_pointers(constants, dweight, dbias, back))
    return dweight, dbias, back
