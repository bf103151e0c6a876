"""3x3 convolution, 2x2 max pooling and ReLU as one operation.

On a CPU, torch's operations are made for many channels and large maps. The C computes these three together for any
number of channels, without the positions that no pooling reads, and uses in the backward pass that pooling passes each
gradient to one position only. Its results equal those of torch in float32 up to rounding.

Shapes: B batch, C channels, H rows, W columns, F filters, H' = (H - 2) // 2, W' = (W - 2) // 2.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from thaw.kernels.library import POINTER, SIZE, Signatures, load_library

_LEAST_SIDE = 4
_FORWARD: Signatures = {"thaw_conv_relu_pool_forward": [POINTER] * 8}
_BACKWARD: Signatures = {"thaw_conv_relu_pool_backward": [POINTER] * 11}
# Contraction makes one instruction of a product and a sum, which doubles the speed.
_FLAGS = ["-ffp-contract=fast"]
_FOUR = SIZE * 4


class _Shape(ctypes.Structure):
    _fields_ = (("images", SIZE), ("height", SIZE), ("width", SIZE), ("channels", SIZE), ("filters", SIZE))


@cache
def compiled_forward() -> ctypes.CDLL:
    """The C of the forward pass, compiled for this machine on the first call, in about half a second.

    Raises:
        MissingDependencyError: without a C compiler that can compile it.
    """
    library = load_library("conv_relu_pool.c", _FORWARD, _FLAGS)
    for name in ("thaw_conv_relu_pool_codes", "thaw_conv_relu_pool_forward_scratch"):
        getattr(library, name).restype = SIZE
    return library


@cache
def compiled_backward() -> ctypes.CDLL:
    """The C of the backward pass; otherwise as `compiled_forward`."""
    library = load_library("conv_relu_pool_backward.c", _BACKWARD, _FLAGS)
    library.thaw_conv_relu_pool_backward_scratch.restype = SIZE
    return library


def can_compute(x: Tensor, weight: Tensor) -> bool:
    """Whether `conv_relu_pool` supports these: float32 on the CPU, at least 4x4 pixels, and no autocast."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.ndim == 4
        and min(x.shape[2:]) >= _LEAST_SIDE
        and not torch.is_autocast_enabled("cpu")
    )


def conv_relu_pool(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`relu(max_pool2d(conv2d(x, weight, bias), 2))`: [B, C, H, W] -> [B, F, H', W'], channels last in memory.

    Args:
        x: float32, an input that `can_compute` accepts; fastest if it is channels last in memory.
        weight: float32 [F, C, 3, 3], in any memory format.
        bias: float32 [F].
    """
    result: Tensor = _ConvReluPool.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result


class _ConvReluPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, bias = x.contiguous(memory_format=torch.channels_last), bias.contiguous()
        images, channels, height, width = x.shape
        filters = weight.shape[0]
        library, shape = compiled_forward(), _Shape(images, height, width, channels, filters)
        size = (images, filters, (height - 2) // 2, (width - 2) // 2)
        y = torch.empty(size, dtype=torch.float32, memory_format=torch.channels_last)
        codes = torch.empty(library.thaw_conv_relu_pool_codes(ctypes.byref(shape)), dtype=torch.int32)
        # Tensors are aligned to 64 bytes.
        scratch = torch.empty(library.thaw_conv_relu_pool_forward_scratch(ctypes.byref(shape)), dtype=torch.float32)
        library.thaw_conv_relu_pool_forward(
            ctypes.byref(shape),
            x.data_ptr(),
            weight.data_ptr(),
            _FOUR(*weight.stride()),
            bias.data_ptr(),
            y.data_ptr(),
            codes.data_ptr(),
            scratch.data_ptr(),
        )
        ctx.shape = shape
        ctx.save_for_backward(x, weight, codes)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, codes = ctx.saved_tensors
        if dy.stride(2) != dy.shape[3] * dy.stride(3):
            dy = dy.contiguous()
        of_x, *of_parameters = ctx.needs_input_grad
        dx = torch.empty_like(x) if of_x else None
        dweight = torch.empty_like(weight) if any(of_parameters) else None
        dbias = weight.new_empty(weight.shape[0]) if any(of_parameters) else None
        library = compiled_backward()
        size = library.thaw_conv_relu_pool_backward_scratch(ctypes.byref(ctx.shape))
        scratch = torch.empty(size, dtype=torch.float32)
        library.thaw_conv_relu_pool_backward(
            ctypes.byref(ctx.shape),
            x.data_ptr(),
            weight.data_ptr(),
            _FOUR(*weight.stride()),
            dy.data_ptr(),
            _FOUR(*dy.stride()),
            codes.data_ptr(),
            dx if dx is None else dx.data_ptr(),
            dweight if dweight is None else dweight.data_ptr(),
            dbias if dbias is None else dbias.data_ptr(),
            scratch.data_ptr(),
        )
        return dx, dweight, dbias
