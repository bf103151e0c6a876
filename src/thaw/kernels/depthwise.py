"""Depthwise convolution, forward and both gradients, in compiled C.

torch's kernels are made for many channels per group. Its bfloat16 gradient of a 7x7 depthwise convolution takes ten
times as long as that of a full 3x3 convolution. `depthwise.c` keeps a block of channels and several results in vector
registers. Results equal those of torch up to rounding; sums are float32, in an order that depends only on shapes.

Shapes: B batch, C channels, H rows, W columns, K side of the kernel.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from thaw.kernels.library import POINTER, Scratch, Signatures, load_library
from thaw.kernels.memory import map_like, new_map

_DTYPES = (torch.float32, torch.bfloat16)
_SIGNATURES: Signatures = {
    "thaw_depthwise_work": [POINTER] * 2,
    "thaw_depthwise_forward": [POINTER] * 6,
    "thaw_depthwise_backward": [POINTER] * 11,
}
_scratch = Scratch()


class _Shape(ctypes.Structure):
    """`shape` of `depthwise.c`."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("images", "rows", "columns", "channels")]


@cache
def compiled(dtype: torch.dtype, kernel: int, stride: int) -> ctypes.CDLL:
    """The C for maps of `dtype` and one kind of convolution, compiled for this machine on the first call.

    Raises:
        MissingDependencyError: without a C compiler that can compile it.
    """
    flags = ["-ffp-contract=fast", f"-DTHAW_KERNEL={kernel}", f"-DTHAW_STRIDE={stride}"]
    return load_library("depthwise.c", _SIGNATURES, [*flags, *(["-DTHAW_BFLOAT16"] if dtype == torch.bfloat16 else [])])


def can_convolve(x: Tensor) -> bool:
    """Whether `depthwise` supports this: [B, C, H, W] on the CPU, channels-last, float32 or bfloat16, not empty."""
    return (
        x.device.type == "cpu"
        and x.dtype in _DTYPES
        and x.ndim == 4
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def depthwise(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Depthwise convolution with padding K // 2: [B, C, H, W] -> [B, C, ceil(H / stride), ceil(W / stride)].

    Args:
        x: an input that `can_convolve` accepts.
        weight: float32 [C, 1, K, K], with odd K.
        stride: of rows and columns.
    """
    result: Tensor = _Depthwise.apply(x, weight.contiguous(), stride)  # type: ignore[no-untyped-call]
    return result


def forward(x: Tensor, weight: Tensor, stride: int, statistics: Tensor | None = None) -> Tensor:
    """`depthwise` without autograd; `statistics`, float64 [2, C], receives the mean and the variance of the result."""
    library, shape, work = _prepared(x, weight, stride)
    batch, channels, height, width = x.shape
    size = (batch, channels, -(-height // stride), -(-width // stride))
    y = new_map(size, x.dtype)
    library.thaw_depthwise_forward(
        shape,
        x.data_ptr(),
        weight.data_ptr(),
        y.data_ptr(),
        None if statistics is None else statistics.data_ptr(),
        work,
    )
    return y


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    *,
    normalized: tuple[Tensor, Tensor, Tensor] | None = None,
    also: Tensor | None = None,
    needs_dx: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """The gradients (dx, dweight) of `forward`.

    Args:
        dy: the gradient of the result, channels-last.
        x: the input.
        weight: float32 [C, 1, K, K].
        stride: of rows and columns.
        normalized: if dy is the gradient after a normalization of the result y: y, and the constants of the
            normalization's forward and backward step, float32 [4, C] and [2, C] (see `normalization.c`).
        also: a gradient of the same shape as x, added to dx.
        needs_dx: whether to compute dx.
    """
    library, shape, work = _prepared(x, weight, stride)
    y, constants, back = normalized or (None, None, None)
    dx = map_like(x) if needs_dx else None
    dweight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    library.thaw_depthwise_backward(
        shape,
        dy.data_ptr(),
        x.data_ptr(),
        None if y is None else y.data_ptr(),
        weight.data_ptr(),
        None if constants is None else constants.data_ptr(),
        None if back is None else back.data_ptr(),
        None if also is None else also.data_ptr(),
        None if dx is None else dx.data_ptr(),
        dweight.data_ptr(),
        work,
    )
    return dx, dweight


def _prepared(x: Tensor, weight: Tensor, stride: int) -> tuple[ctypes.CDLL, Any, int]:
    """The library, the shape, and the address of its scratch memory."""
    library = compiled(x.dtype, weight.shape[-1], stride)
    batch, channels, height, width = x.shape
    shape = ctypes.byref(_Shape(batch, height, width, channels))
    floats = ctypes.c_size_t()
    library.thaw_depthwise_work(shape, ctypes.byref(floats))
    return library, shape, _scratch.pointer(floats.value)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.stride = stride
        ctx.save_for_backward(x, weight)
        return forward(x, weight, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        return *backward(dy, x, weight, ctx.stride, needs_dx=ctx.needs_input_grad[0]), None
