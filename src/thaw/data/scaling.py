"""Scaling of values of more than 8 bits to bytes: one definition for training, prediction and generated code.

A camera of 10, 12 or 16 bits uses a part of 0 to 65,535, so the input specification of a model has a range (low, high).
A value v is first converted to a byte (`scale`):

    v <= low   0
    v >= high  255
    else       ((v - low) * 510 + (high - low)) // (2 * (high - low))

which is (v - low) * 255 / (high - low), rounded half up; no intermediate value exceeds 65,535 * 510 + 65,535 =
33,488,385. The range does not apply to 8-bit pixels.

Without a given range, it is found on the training images. In each image (`value_span`)

1. a value counts only up to the most extreme of its eight neighbors, so that a single dead or hot pixel has no effect
   (in an image of one row or one column every value counts),
2. fully transparent pixels do not count,
3. the lowest and the highest `count // 1000` values are ignored.

The range extends from the lowest remaining value of any training image to the highest.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from thaw.errors import UsageError
from thaw.quoting import shown

ValueRange = tuple[int, int]
"""(low, high), 0 <= low < high <= 65,535."""

LARGEST_VALUE = 65_535
FULL_RANGE: ValueRange = (0, LARGEST_VALUE)
"""The range of 16-bit values if none is known."""

_LEFT_OUT = 1000
_HELD_PERCENT = 99
# NumPy converts values to 64-bit indices before a lookup, so large images are processed in blocks.
_BLOCK_VALUES = 1 << 22

Wide = npt.NDArray[np.uint16]
Values = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""Decoded pixels: bytes, or values of more than 8 bits that are not scaled yet."""


def check_range(value: Any) -> ValueRange:
    """Two integers as a range.

    Raises:
        UsageError: unless they are 0 <= low < high <= 65,535.
    """
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    if not is_pair or not all(isinstance(end, int | np.integer) and not isinstance(end, bool) for end in value):
        raise UsageError(
            f"range {shown(value)}: expected two integers, low and high, such as 0,1023", code="usage-range"
        )
    low, high = int(value[0]), int(value[1])
    if not 0 <= low < high <= LARGEST_VALUE:
        message = f"range {low} to {high}: expected low < high, both from 0 to {LARGEST_VALUE}"
        raise UsageError(message, code="usage-range")
    return low, high


def parse_range(text: str) -> ValueRange:
    """'29500,30300' -> (29500, 30300).

    Raises:
        UsageError: for anything but two valid integers separated by a comma.
    """
    parts = [part.strip() for part in text.strip("[]() ").split(",")]
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) <= 5 for part in parts):
        message = f'range {shown(text)}: expected "auto", or two integers up to {LARGEST_VALUE} such as 0,1023'
        raise UsageError(message, code="usage-range")
    return check_range([int(part) for part in parts])


@lru_cache(maxsize=16)
def _table(value_range: ValueRange) -> npt.NDArray[np.uint8]:
    low, high = value_range
    above = np.clip(np.arange(LARGEST_VALUE + 1, dtype=np.int64) - low, 0, high - low)
    table = ((above * 510 + (high - low)) // (2 * (high - low))).astype(np.uint8)
    table.flags.writeable = False
    return table


def scale(values: Values, value_range: ValueRange | None) -> npt.NDArray[np.uint8]:
    """Scale values [...] to uint8 [...]: uint16 by the range, or `FULL_RANGE` for None; uint8 is returned unchanged."""
    if values.dtype == np.uint8:
        return cast("npt.NDArray[np.uint8]", values)
    table = _table(value_range or FULL_RANGE)
    result = np.empty(values.shape, dtype=np.uint8)
    flat, scaled = values.reshape(-1), result.reshape(-1)
    for start in range(0, len(flat), _BLOCK_VALUES):
        scaled[start : start + _BLOCK_VALUES] = table[flat[start : start + _BLOCK_VALUES]]
    return result


def value_span(pixels: Wide, alpha: Wide | None = None) -> tuple[int, int]:
    """The lowest and the highest relevant value of an image, by the rules above.

    Args:
        pixels: uint16 [H, W, C].
        alpha: uint16 [H, W, 1]; pixels with alpha 0 do not count.

    Returns:
        (low, high), low at most high; (65535, 0) if no pixel counts.
    """
    lows = highs = pixels
    if alpha is not None:
        hidden = np.broadcast_to(alpha == 0, pixels.shape)
        lows, highs = np.where(hidden, np.uint16(LARGEST_VALUE), pixels), np.where(hidden, np.uint16(0), pixels)
    if min(pixels.shape[:2]) > 1:
        lows, highs = np.maximum(lows, _neighbors(lows, np.minimum)), np.minimum(highs, _neighbors(highs, np.maximum))
    count = pixels.size
    if alpha is not None:
        count = int((alpha != 0).sum()) * pixels.shape[2]
    if not count:
        return (LARGEST_VALUE, 0)
    out = count // _LEFT_OUT
    low = int(np.partition(lows, out, axis=None)[out])
    high = int(np.partition(highs, highs.size - 1 - out, axis=None)[highs.size - 1 - out])
    return (low, high) if low <= high else (high, low)


def _neighbors(pixels: Wide, pick: np.ufunc) -> Wide:
    """The minimum (or maximum) of the eight neighbors of each pixel, uint16 [H, W, C], H and W at least 2."""
    height, width, _ = pixels.shape
    edge = LARGEST_VALUE if pick is np.minimum else 0
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), constant_values=edge)
    result: Wide = np.full_like(pixels, edge)
    for down, across in product(range(3), repeat=2):
        if (down, across) != (1, 1):
            pick(result, padded[down : down + height, across : across + width], out=result)
    return result


class Use(NamedTuple):
    """How an image uses a range.

    Attributes:
        kept: number of the most frequent levels that hold 99 % of its values after `scale`; outliers do not count.
        native: the same before `scale`.
        outside: share of its values outside the range, 0 to 1.
    """

    kept: int
    native: int
    outside: float


def range_use(pixels: Wide, value_range: ValueRange | None) -> Use:
    """How an image, uint16 [H, W, C], uses a range; None means `FULL_RANGE`."""
    low, high = value_range or FULL_RANGE
    counts = np.zeros(LARGEST_VALUE + 1, dtype=np.int64)
    flat = pixels.reshape(-1)
    for start in range(0, len(flat), _BLOCK_VALUES):
        counts += np.bincount(flat[start : start + _BLOCK_VALUES], minlength=LARGEST_VALUE + 1)
    kept = np.bincount(_table((low, high)), weights=counts).astype(np.int64)
    outside = int(counts[:low].sum() + counts[high + 1 :].sum())
    return Use(_levels(kept), _levels(counts), outside / len(flat))


def _levels(counts: npt.NDArray[np.int64]) -> int:
    most = np.cumsum(np.sort(counts[counts > 0])[::-1])
    return int(np.searchsorted(most * 100, _HELD_PERCENT * most[-1])) + 1
