"""Views of images in compiled C: flip, shift, resampling, brightness, cutout and normalization in one pass.

`thaw.data.augment` draws all random numbers, and its torch operations are the reference. Results are equal up to
rounding; where only whole pixels move, they are equal.

Shapes: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from thaw.kernels.library import POINTER, Scratch, Signatures, load_library
from thaw.kernels.memory import new_map

FILLS = ("zeros", "border", "reflection")
"""Pixels outside of an image; the C numbers them in this order."""

_SIGNATURES: Signatures = {"thaw_views_work": [POINTER] * 2, "thaw_views": [POINTER] * 10}
_scratch = Scratch()


class _Views(ctypes.Structure):
    """`views` of `augmentation.c`."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("count", "height", "width", "channels")),
        ("fill", ctypes.c_int),
        ("square", ctypes.c_int32),
    ]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Random changes of B images, in the order in which they are made; None for a change that is switched off.

    Attributes:
        frames: int32 [B, 3]: shift down and across by whole pixels, and whether the image is mirrored before (0 or 1).
        theta: float32 [B, 2, 3], as `torch.nn.functional.affine_grid` reads it.
        lights: float32 [B], added to all pixels.
        centers: int32 [B, 2], row and column of the center of a square of the mean color.
        square: side of that square in pixels.
        fill: one of `FILLS`.
    """

    frames: Tensor | None = None
    theta: Tensor | None = None
    lights: Tensor | None = None
    centers: Tensor | None = None
    square: int = 0
    fill: str = "zeros"


@cache
def compiled() -> ctypes.CDLL:
    """The C, compiled for this machine on the first call.

    Raises:
        MissingDependencyError: without a C compiler that can compile it.
    """
    return load_library("augmentation.c", _SIGNATURES, ["-fno-trapping-math"])


def views(pixels: Tensor, changes: Changes, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images uint8 [B, H, W, C] with these changes, normalized: float32 [B, C, H, W], channels last in memory.

    Pixels are in 0..1 when they are changed; then each channel becomes (x - mean) / std.
    """
    batch, height, width, channels = pixels.shape
    made = new_map((batch, channels, height, width), torch.float32)
    settings = _Views(batch, height, width, channels, FILLS.index(changes.fill), changes.square)
    floats = ctypes.c_size_t()
    library = compiled()
    library.thaw_views_work(ctypes.byref(settings), ctypes.byref(floats))
    # Variables keep the arrays alive during the call.
    arrays = [pixels.contiguous(), changes.frames, _in_pixels(changes.theta, height, width), changes.lights]
    arrays += [changes.centers, torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32), made]
    library.thaw_views(
        ctypes.byref(settings),
        *(None if array is None else array.data_ptr() for array in arrays),
        _scratch.pointer(floats.value),
    )
    return made


def _in_pixels(theta: Tensor | None, height: int, width: int) -> Tensor | None:
    """Maps of coordinates from -1 to 1, [B, 2, 3], as maps of pixels: by x, by y and constant, for x and y, [B, 6]."""
    if theta is None:
        return None
    sides = torch.tensor([width, height], dtype=torch.float64)
    linear, shift = theta[:, :, :2].double(), theta[:, :, 2].double()
    # Pixel x has the coordinate (2 x + 1) / W - 1.
    by_pixel = linear * sides[:, None] / sides
    first = (by_pixel.sum(2) - linear.sum(2) * sides + shift * sides + sides - 1.0) / 2.0
    return torch.cat([by_pixel, first[:, :, None]], dim=2).reshape(-1, 6).to(torch.float32)
