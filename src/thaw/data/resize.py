"""Resizing and gray conversion in integers: one definition for training, prediction and generated code.

Shapes: N images, H rows, W columns, C channels (1 gray, 3 RGB) of the source; h, w, c of the target.

Values of more than 8 bits are first converted to bytes (`thaw.data.scaling`). The next steps, in this order:

1. *Window.* "stretch" uses the whole image; "crop" uses the largest centered window with the target's aspect ratio
   (`window`).
2. *Gray*, if the target has one channel and the source three: `(77 R + 150 G + 29 B + 128) >> 8`. The weights sum to
   256, so that a pixel with R = G = B keeps its value.
3. *Columns*, then *rows*: each target position is a weighted sum of neighboring source positions (`axis_taps`), with
   integer weights that sum to `total`. The column pass keeps 8 fractional bits, the row pass rounds to bytes:

       column pass:  v[x] = (256 * sum(weight * pixel) + total // 2) // total          0 to 65,280, fits 16 bits
       row pass:     p[y] = (sum(weight * v) + 128 * total) // (256 * total)           0 to 255

   A source row can be discarded once its column pass is added to the rows that need it, so that code for a
   microcontroller needs memory for the target only.
4. *Replication*, if the target has three channels and the source one.

An axis that shrinks is averaged over the area that a target position covers; an axis that grows is interpolated
linearly between pixel centers; an axis of equal length is unchanged (both rules give the identity).

Bounds: with source sides up to 32,768 and target sides up to 8,192, `total` is at most 32,768, so every intermediate
value is at most 255 * 256 * 32,768 + 128 * 32,768 = 2,143,289,344, which is below 2**31; the products that place the
taps stay below 2**29. The position of a tap before the first pixel is negative only if an axis grows; 0 in its place
gives the same weights. In C, `int32_t` and `/` suffice; in JavaScript, `Math.floor(a / b)` is exact for integers of
this size. The code below is the same in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import numpy as np
import numpy.typing as npt

from thaw.data.images import Fit, InputSpec
from thaw.data.scaling import Values, scale
from thaw.errors import DataError

MAX_SOURCE_SIDE = 32_768

GRAY_WEIGHTS = (77, 150, 29)
"""ITU-R BT.601 luma (0.299, 0.587, 0.114) in 256ths, rounded so that they sum to 256."""

# Images are resized in blocks of about this many intermediate values, which fit the processor's cache.
_BLOCK_VALUES = 1 << 20


@dataclass(frozen=True)
class Taps:
    """The source positions and weights of each position of a target axis.

    Attributes:
        index: int32 [target, taps], source positions.
        weight: int32 [target, taps], 0 for unused taps.
        total: the sum of the weights of each target position.
    """

    index: npt.NDArray[np.int32]
    weight: npt.NDArray[np.int32]
    total: int


@lru_cache(maxsize=256)
def axis_taps(source: int, target: int) -> Taps:
    """The weights that resize an axis from `source` to `target` positions.

    Shrinking: if a source pixel is `target` units long and a target pixel `source` units, the weight is the length of
    their overlap.

    Growing: the center of target pixel i lies at ((2 i + 1) * source - target) / (2 * target) on the source axis; its
    two neighbors are weighted linearly, and edge pixels are repeated outward.
    """
    position = np.arange(target, dtype=np.int64)[:, None]
    if target <= source:
        first = position * source // target
        index = first + np.arange(source // target + 2)
        left = np.maximum(index * target, position * source)
        right = np.minimum((index + 1) * target, (position + 1) * source)
        weight, total = np.maximum(right - left, 0), source
    else:
        numerator = (2 * position + 1) * source - target
        below = numerator // (2 * target)
        part = numerator - below * 2 * target
        index, weight, total = below + np.arange(2), np.concatenate([2 * target - part, part], axis=1), 2 * target
    # A common factor of weights and total does not affect the result; without it, fewer bits suffice.
    common = gcd(total, *(int(value) for value in np.unique(weight)))
    used = np.flatnonzero(weight.any(axis=0))
    index = np.clip(index[:, used], 0, source - 1).astype(np.int32)
    return Taps(index, (weight[:, used] // common).astype(np.int32), total // common)


def window(height: int, width: int, target_height: int, target_width: int, fit: Fit) -> tuple[int, int, int, int]:
    """The part of a source image that is used: (top, left, height, width).

    "crop" shortens one side to `other side * target side // other target side` (at least 1) and centers the window,
    rounded down.
    """
    if fit == "crop" and width * target_height > height * target_width:
        used = max(1, height * target_width // target_height)
        return (0, (width - used) // 2, height, used)
    if fit == "crop" and width * target_height < height * target_width:
        used = max(1, width * target_height // target_width)
        return ((height - used) // 2, 0, used, width)
    return (0, 0, height, width)


def to_gray(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Color to gray: uint8 [..., 3] -> uint8 [..., 1], by `GRAY_WEIGHTS`."""
    red, green, blue = (images[..., channel].astype(np.uint16) for channel in range(3))
    # 256 * 255 + 128 = 65,408 fits 16 bits.
    return ((GRAY_WEIGHTS[0] * red + GRAY_WEIGHTS[1] * green + GRAY_WEIGHTS[2] * blue + 128) >> 8).astype(np.uint8)[
        ..., None
    ]


def resize(values: Values, input_spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Convert images of one size to the form of an input specification.

    Args:
        values: uint8 or uint16 [H, W, C] or [N, H, W, C], C = 1 or 3, sides from 1 to `MAX_SOURCE_SIDE`; uint16 is
            scaled by the range of the input specification.
        input_spec: height, width, channels, fit and range of the target.

    Returns:
        uint8 [h, w, c] or [N, h, w, c]; the input array itself if nothing has to change.

    Raises:
        DataError: for another dtype, number of axes or of channels, or a side outside the bounds.
    """
    if values.dtype not in (np.uint8, np.uint16) or values.ndim not in (3, 4) or values.shape[-1] not in (1, 3):
        found, expected = f"{values.dtype} {list(values.shape)}", "uint8 or uint16 [H, W, C] or [N, H, W, C]"
        raise DataError(f"images to resize are {found}: expected {expected} with C = 1 or 3", code="data-arrays")
    height, width = values.shape[-3:-1]
    if not (1 <= height <= MAX_SOURCE_SIDE and 1 <= width <= MAX_SOURCE_SIDE):
        message = f"image of {height}x{width} pixels: expected sides from 1 to {MAX_SOURCE_SIDE}"
        raise DataError(message, code="data-arrays")
    images = scale(values, input_spec.range)
    if images.ndim == 3:
        return _resize_block(images, input_spec)
    if images.shape[1:] == input_spec.shape or not len(images):
        return images if images.shape[1:] == input_spec.shape else np.zeros((0, *input_spec.shape), dtype=np.uint8)
    values = max(height * input_spec.width, input_spec.height * input_spec.width) * 3
    block = max(1, _BLOCK_VALUES // values)
    result = np.empty((len(images), *input_spec.shape), dtype=np.uint8)
    for start in range(0, len(images), block):
        result[start : start + block] = _resize_block(images[start : start + block], input_spec)
    return result


def _resize_block(images: npt.NDArray[np.uint8], input_spec: InputSpec) -> npt.NDArray[np.uint8]:
    source_height, source_width = images.shape[-3:-1]
    top, left, height, width = window(source_height, source_width, input_spec.height, input_spec.width, input_spec.fit)
    images = images[..., top : top + height, left : left + width, :]
    if input_spec.channels == 1 and images.shape[-1] == 3:
        images = to_gray(images)
    if width != input_spec.width or height != input_spec.height:
        columns, rows = axis_taps(width, input_spec.width), axis_taps(height, input_spec.height)
        wide = (256 * _weighted_sum(images, columns, -2) + columns.total // 2) // columns.total
        tall = (_weighted_sum(wide, rows, -3) + 128 * rows.total) // (256 * rows.total)
        images = tall.astype(np.uint8)
    if images.shape[-1] != input_spec.channels:
        images = np.repeat(images, input_spec.channels, axis=-1)
    return images


def _weighted_sum(
    values: npt.NDArray[np.uint8] | npt.NDArray[np.int32], taps: Taps, axis: int
) -> npt.NDArray[np.int32]:
    """The weighted sums of the taps along `axis`: int32, with the length of the target along that axis."""
    spread = tuple(-1 if place == axis else 1 for place in range(axis, 0))
    result: npt.NDArray[np.int32] | None = None
    for index, weight in zip(taps.index.T, taps.weight.T, strict=True):
        term = values.take(index, axis=axis).astype(np.int32, copy=False)
        if (weight != 1).any():
            term *= weight.reshape(spread)
        result = term if result is None else np.add(result, term, out=result)
    if result is None:
        raise AssertionError("an axis has at least one tap")
    return result
