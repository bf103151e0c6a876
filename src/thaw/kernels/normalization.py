"""Batch normalization fused with the ReLU and addition after it.

On a CPU, networks this small spend more of a training step in normalization, ReLU and addition than in convolutions,
since each is a separate pass over memory. `normalization.c` needs two passes forward and two backward. Its results
equal those of torch up to rounding: it rounds to bfloat16 once, not after each of the three operations.

Shapes: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from thaw.kernels.library import FLOAT, INT, POINTER, SIZE, Signatures, load_library
from thaw.kernels.memory import map_like

After = Literal["nothing", "relu", "add relu", "relu add"]
"""The operations after a normalization; "add" adds a shortcut. The C numbers them in this order."""

NUMBERS: dict[After, int] = {"nothing": 0, "relu": 1, "add relu": 2, "relu add": 3}
_MOST_CHANNELS = 4096
_DTYPES = (torch.float32, torch.bfloat16)
_SIGNATURES: Signatures = {
    "thaw_norm_forward": [*[POINTER] * 3, SIZE, SIZE, *[POINTER] * 4, FLOAT, FLOAT, INT, POINTER],
    "thaw_norm_backward": [*[POINTER] * 5, SIZE, SIZE, INT, *[POINTER] * 3],
    "thaw_norm_constants": [POINTER, SIZE, SIZE, *[POINTER] * 4, FLOAT, FLOAT, POINTER],
    "thaw_norm_apply": [*[POINTER] * 3, SIZE, SIZE, INT, POINTER],
    "thaw_norm_sums": [*[POINTER] * 3, SIZE, SIZE, INT, *[POINTER] * 2],
    "thaw_norm_back": [POINTER, SIZE, SIZE, *[POINTER] * 4],
}


@dataclass(frozen=True)
class Running:
    """Running statistics of a normalization.

    Attributes:
        mean: float32 [C].
        variance: float32 [C], the unbiased estimate.
        momentum: weight of a batch's statistics in the update, 0 to 1.
        epsilon: added to the variance before the square root.
    """

    mean: Tensor
    variance: Tensor
    momentum: float
    epsilon: float


@lru_cache(maxsize=len(_DTYPES))
def compiled(dtype: torch.dtype) -> ctypes.CDLL:
    """The C for maps of `dtype`, compiled for this machine on the first call, in about a second.

    Raises:
        MissingDependencyError: without a C compiler that can compile it.
    """
    flags = ["-DTHAW_BFLOAT16"] if dtype == torch.bfloat16 else []
    return load_library("normalization.c", _SIGNATURES, flags)


def can_fuse(x: Tensor, shortcut: Tensor | None) -> bool:
    """Whether `normalize` supports these: [B, C, H, W] on the CPU, channels-last, float32 or bfloat16, of one kind."""
    return (
        x.device.type == "cpu"
        and x.dtype in _DTYPES
        and x.ndim == 4
        and 0 < x.shape[1] <= _MOST_CHANNELS
        and x.numel() > x.shape[1]  # torch refuses a single value, which has no variance
        and x.is_contiguous(memory_format=torch.channels_last)
        and (
            shortcut is None
            or (
                shortcut.dtype == x.dtype
                and shortcut.shape == x.shape
                and shortcut.is_contiguous(memory_format=torch.channels_last)
            )
        )
    )


def normalize(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: Running,
    after: After,
    shortcut: Tensor | None,
) -> Tensor:
    """Batch normalization in training mode (arXiv 1502.03167) and the operations after it: [B, C, H, W] -> same shape.

    Args:
        x: an input that `can_fuse` accepts.
        weight: float32 [C].
        bias: float32 [C].
        running: running statistics, updated in place.
        after: the operations after it.
        shortcut: [B, C, H, W] if `after` adds one.
    """
    result: Tensor = _Normalize.apply(x, weight, bias, shortcut, running, after)  # type: ignore[no-untyped-call]
    return result


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        shortcut: Tensor | None,
        running: Running,
        after: After,
    ) -> Tensor:
        channels = x.shape[1]
        y = map_like(x)
        kept = torch.empty(4, channels, dtype=torch.float32, device=x.device)
        compiled(x.dtype).thaw_norm_forward(
            x.data_ptr(),
            None if shortcut is None else shortcut.data_ptr(),
            y.data_ptr(),
            x.numel() // channels,
            channels,
            weight.data_ptr(),
            bias.data_ptr(),
            running.mean.data_ptr(),
            running.variance.data_ptr(),
            running.momentum,
            running.epsilon,
            NUMBERS[after],
            kept.data_ptr(),
        )
        ctx.after = after
        # Only here does the backward pass need the output, for the mask of the ReLU.
        ctx.save_for_backward(x, kept, *([y] if after == "add relu" else []))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, *rest = ctx.saved_tensors
        after: After = ctx.after
        channels = x.shape[1]
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = map_like(x)
        dshortcut = map_like(x) if after == "add relu" else dy if after == "relu add" else None
        dweight, dbias = torch.empty(2, channels, dtype=torch.float32, device=x.device)
        compiled(x.dtype).thaw_norm_backward(
            dy.data_ptr(),
            x.data_ptr(),
            (rest[0] if rest else x).data_ptr(),
            dx.data_ptr(),
            dshortcut.data_ptr() if dshortcut is not None and after == "add relu" else None,
            x.numel() // channels,
            channels,
            NUMBERS[after],
            kept.data_ptr(),
            dweight.data_ptr(),
            dbias.data_ptr(),
        )
        return dx, dweight, dbias, dshortcut, None, None
