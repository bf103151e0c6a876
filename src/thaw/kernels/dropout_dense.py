"""Dropout and a dense layer as one operation.

Random numbers are most of the time of a small dense layer. Here a mask is a hash of the features' numbers and of one
random number per batch, so it is computed in a few instructions per vector, and in any order of memory.

Shapes: B batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from thaw.kernels.library import FLOAT, POINTER, SIZE, Signatures, load_library

KEYS = 2**32
"""Keys of masks are 0 to KEYS - 1."""

_SIGNATURES: Signatures = {
    "thaw_dropout_dense_forward": [POINTER] * 9,
    "thaw_dropout_dense_backward": [POINTER] * 10,
}
_LEVELS = 2**24
_FACTOR = 0x045D9F3B
_FOUR = SIZE * 4


@dataclass(frozen=True)
class Drop:
    """A dropout of one batch.

    Attributes:
        probability: of a value to be dropped, 0 to below 1.
        key: selects the mask.
    """

    probability: float
    key: int

    @property
    def threshold(self) -> int:
        """Hashes below it are dropped."""
        return threshold_of(self.probability)


def threshold_of(probability: float) -> int:
    """The number of hashes, of 2^24, that mean that a value is dropped."""
    return round(probability * _LEVELS)


def kept(shape: torch.Size, probability: float, key: Tensor) -> Tensor:
    """Which values of a tensor a dropout keeps, bool of `shape`, on the device of `key`.

    Args:
        shape: values are numbered in the order of a contiguous tensor of this shape.
        probability: of a value to be dropped, 0 to below 1.
        key: int64 scalar, 0 to KEYS - 1, selects the mask.
    """
    hashes = (torch.arange(shape.numel(), device=key.device) + key).bitwise_and_(KEYS - 1)
    for _ in range(2):
        hashes = (hashes ^ (hashes >> 16)).mul_(_FACTOR).bitwise_and_(KEYS - 1)
    hashes ^= hashes >> 16
    return (hashes >> 8).ge_(threshold_of(probability)).to(torch.bool).view(shape)


class _Shape(ctypes.Structure):
    _fields_ = tuple((name, SIZE) for name in ("images", "channels", "height", "width", "classes"))


class _Dropout(ctypes.Structure):
    _fields_ = (("key", ctypes.c_uint32), ("threshold", ctypes.c_uint32), ("scale", FLOAT))


@cache
def compiled() -> ctypes.CDLL:
    """The C, compiled for this machine on the first call.

    Raises:
        MissingDependencyError: without a C compiler that can compile it.
    """
    library = load_library("dropout_dense.c", _SIGNATURES, ["-ffp-contract=fast"])
    for name in ("thaw_dropout_dense_scratch", "thaw_dropout_dense_kept"):
        getattr(library, name).restype = SIZE
    return library


def can_compute(x: Tensor, weight: Tensor) -> bool:
    """Whether `dropout_dense` supports these: float32 on the CPU, and no autocast."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.ndim == weight.ndim == 4
        and x.shape[1:] == weight.shape[1:]
        and not torch.is_autocast_enabled("cpu")
    )


def dropout_dense(x: Tensor, weight: Tensor, bias: Tensor, drop: Drop | None) -> Tensor:
    """A dense layer on all features of an image, after dropout: [B, C, H, W] -> logits [B, K].

    Args:
        x: float32, an input that `can_compute` accepts; fastest if it is channels last in memory.
        weight: float32 [K, C, H, W], in any memory format.
        bias: float32 [K].
        drop: the dropout; None for none.
    """
    result: Tensor = _DropoutDense.apply(x, weight, bias, drop)  # type: ignore[no-untyped-call]
    return result


class _DropoutDense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, drop: Drop | None) -> Tensor:
        x, bias = x.contiguous(memory_format=torch.channels_last), bias.contiguous()
        ctx.shape = _Shape(*x.shape, weight.shape[0])
        ctx.drop = _Dropout(0, 0, 1.0)
        if drop is not None and drop.threshold:
            ctx.drop = _Dropout(drop.key, drop.threshold, 1.0 / (1.0 - drop.probability))
        shape = ctypes.byref(ctx.shape)
        masked = torch.empty(compiled().thaw_dropout_dense_kept(shape), dtype=torch.float32)
        logits = torch.empty((x.shape[0], weight.shape[0]), dtype=torch.float32)
        scratch = torch.empty(compiled().thaw_dropout_dense_scratch(shape), dtype=torch.float32)
        compiled().thaw_dropout_dense_forward(
            shape,
            ctypes.byref(ctx.drop),
            x.data_ptr(),
            weight.data_ptr(),
            _FOUR(*weight.stride()),
            bias.data_ptr(),
            masked.data_ptr(),
            logits.data_ptr(),
            scratch.data_ptr(),
        )
        ctx.save_for_backward(masked, weight)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlogits: Tensor) -> tuple[Tensor | None, ...]:
        masked, weight = ctx.saved_tensors
        dlogits = dlogits.contiguous()
        of_x, *of_parameters, _ = ctx.needs_input_grad
        size = (ctx.shape.images, *weight.shape[1:])
        dx = torch.empty(size, dtype=torch.float32, memory_format=torch.channels_last) if of_x else None
        dweight = torch.empty_like(weight) if any(of_parameters) else None
        dbias = weight.new_empty(weight.shape[0]) if any(of_parameters) else None
        scratch = torch.empty(compiled().thaw_dropout_dense_scratch(ctypes.byref(ctx.shape)), dtype=torch.float32)
        compiled().thaw_dropout_dense_backward(
            ctypes.byref(ctx.shape),
            ctypes.byref(ctx.drop),
            masked.data_ptr(),
            weight.data_ptr(),
            _FOUR(*weight.stride()),
            dlogits.data_ptr(),
            dx if dx is None else dx.data_ptr(),
            dweight if dweight is None else dweight.data_ptr(),
            dbias if dbias is None else dbias.data_ptr(),
            scratch.data_ptr(),
        )
        return dx, dweight, dbias, None
