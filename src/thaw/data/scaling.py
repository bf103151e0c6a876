"""Values of more than 8 bits to bytes: the one definition, for training, prediction and emitted code alike.

A camera of 10, 12 or 16 bits uses a part of 0 to 65,535, so a model has a range (low, high), which is part of its input
input specification. A value v becomes a byte before anything else happens to it (`scale`):

    v <= low   0
    v >= high  255
    else       ((v - low) * 510 + (high - low)) // (2 * (high - low))

which is (v - low) * 255 / (high - low), rounded half up; no intermediate value exceeds 65,535 * 510 + 65,535 =
33,488,385. 8-bit pixels are bytes already, and no range applies to them.

Where nobody names a range, it is found on the training images. In each image (`value_span`)

1. a value counts only as far as one of its eight neighbors reaches it too, so that a single dead or hot pixel does not
   count (in an image of one row or one column every value counts),
2. pixels that are fully transparent do not count,
3. of what counts, sorted, the lowest and the highest `count // 1000` values are left out.

The range goes from the lowest value that is left in any training image to the highest.
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
"""What 16-bit values are scaled by where no range is known."""

_LEFT_OUT = 1000
_HELD_PERCENT = 99
# NumPy makes 64-bit indices of values before it looks them up: so many at a time.
_BLOCK_VALUES = 1 << 22

Wide = npt.NDArray[np.uint16]
Values = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""Pixels as they are decoded: bytes, or values of more than 8 bits, which are not scaled yet."""


def check_range(value: Any) -> ValueRange:
    """Two whole numbers as a range.

    Raises:
        UsageError: unless they are 0 <= low < high <= 65,535.
    """
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    if not is_pair or not all(isinstance(end, int | np.integer) and not isinstance(end, bool) for end in value):
        raise UsageError(f"range {shown(value)}: expected two whole numbers, low and high, such as 0,1023")
    low, high = int(value[0]), int(value[1])
    if not 0 <= low < high <= LARGEST_VALUE:
        raise UsageError(f"range {low} to {high}: expected low below high, both from 0 to {LARGEST_VALUE}")
    return low, high


def parse_range(text: str) -> ValueRange:
    """'29500,30300' -> (29500, 30300).

    Raises:
        UsageError: for anything but two whole numbers in range with a comma between them.
    """
    parts = [part.strip() for part in text.strip("[]() ").split(",")]
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) <= 5 for part in parts):
        raise UsageError(f'range {shown(text)}: expected "auto", or two numbers up to {LARGEST_VALUE} such as 0,1023')
    return check_range([int(part) for part in parts])


@lru_cache(maxsize=16)
def _table(value_range: ValueRange) -> npt.NDArray[np.uint8]:
    low, high = value_range
    above = np.clip(np.arange(LARGEST_VALUE + 1, dtype=np.int64) - low, 0, high - low)
    table = ((above * 510 + (high - low)) // (2 * (high - low))).astype(np.uint8)
    table.flags.writeable = False
    return table


def scale(values: Values, value_range: ValueRange | None) -> npt.NDArray[np.uint8]:
    """Values [...] as bytes uint8 [...]: uint16 by the range, None standing for `FULL_RANGE`; uint8 is handed back."""
    if values.dtype == np.uint8:
        return cast("npt.NDArray[np.uint8]", values)
    table = _table(value_range or FULL_RANGE)
    result = np.empty(values.shape, dtype=np.uint8)
    flat, scaled = values.reshape(-1), result.reshape(-1)
    for start in range(0, len(flat), _BLOCK_VALUES):
        scaled[start : start + _BLOCK_VALUES] = table[flat[start : start + _BLOCK_VALUES]]
    return result


def value_span(pixels: Wide, alpha: Wide | None = None) -> tuple[int, int]:
    """The lowest and the highest value that count in an image, by the rules above.

    Args:
        pixels: uint16 [H, W, C].
        alpha: uint16 [H, W, 1]; where it is 0, pixels do not count.

    Returns:
        (low, high), low at most high; (65535, 0) where no pixel counts.
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
    """The least (or greatest) of the eight neighbors of each pixel, uint16 [H, W, C], H and W at least 2."""
    height, width, _ = pixels.shape
    edge = LARGEST_VALUE if pick is np.minimum else 0
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), constant_values=edge)
    result: Wide = np.full_like(pixels, edge)
    for down, across in product(range(3), repeat=2):
        if (down, across) != (1, 1):
            pick(result, padded[down : down + height, across : across + width], out=result)
    return result


class Use(NamedTuple):
    """What an image makes of a range.

    Attributes:
        kept: levels that hold 99 % of its values after `scale`, the most frequent first, so that a few outliers do not
            make an image look rich.
        native: the same before.
        outside: share of its values, 0 to 1, that lie below or above the range.
    """

    kept: int
    native: int
    outside: float


def range_use(pixels: Wide, value_range: ValueRange | None) -> Use:
    """How an image, uint16 [H, W, C], uses a range; None stands for `FULL_RANGE`."""
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
