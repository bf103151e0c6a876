"""An image file as the pixels that the model takes; needs NumPy and Pillow.

The same whole-number definition of grey and of resizing by which the training images were made, in short.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps


def read_image(path: str | Path) -> npt.NDArray[np.uint8]:
    """The colours of an image file, upright, on white where it is transparent: uint8 [height, width, 3]."""
    with Image.open(path) as opened:
        opened.load()  # which turns some formats upright itself
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16"):
        high_bytes = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(high_bytes[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ValueError(f"{path}: expected 8 or 16 bits a channel, not 32")
    rgba = np.asarray(image.convert("RGBA")).astype(np.int64)
    colour, alpha = rgba[..., :3], rgba[..., 3:]
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def printable(name: str) -> str:
    """A class name without control characters, which could steer the terminal that it is shown on."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def fit(pixels: npt.NDArray[np.uint8], contract: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """An image as the model takes it.

    Args:
        pixels: uint8 [height, width, 1 or 3], of any size.
        contract: the model's "height", "width", "channels" and "fit" ("stretch" or "crop").

    Returns:
        uint8 [contract's height, width, channels].
    """
    height, width, channels = (int(contract[key]) for key in ("height", "width", "channels"))
    if contract["fit"] == "crop":
        pixels = _centre(pixels, height, width)
    values = pixels.astype(np.int64)
    if channels == 1 and pixels.shape[2] == 3:
        values = (values @ np.array([77, 150, 29]) + 128 >> 8)[..., None]
    rows, columns = (_weights(*sizes) for sizes in ((pixels.shape[0], height), (pixels.shape[1], width)))
    total = int(columns[0].sum())
    values = (256 * _sums("xw,hwc->hxc", columns, values) + total // 2) // total
    total = int(rows[0].sum())
    values = (_sums("yh,hxc->yxc", rows, values) + 128 * total) // (256 * total)
    return np.ascontiguousarray(np.broadcast_to(values, (height, width, channels)).astype(np.uint8))


def _centre(pixels: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """The largest centred part whose sides are as height to width."""
    rows, columns = pixels.shape[:2]
    used_rows = min(rows, max(1, columns * height // width))
    used_columns = min(columns, max(1, rows * width // height))
    top, left = (rows - used_rows) // 2, (columns - used_columns) // 2
    return pixels[top : top + used_rows, left : left + used_columns]


def _weights(source: int, target: int) -> npt.NDArray[np.int64]:
    """What every source position adds to every target position, [target, source]; each row has the same sum."""
    goal, origin = np.arange(target)[:, None], np.arange(source)
    if target <= source:
        # The share of each area that the two have in common.
        shared = np.minimum((origin + 1) * target, (goal + 1) * source) - np.maximum(origin * target, goal * source)
        return np.maximum(shared, 0)
    # Linear between the centres of the two nearest; the edges continue outwards.
    centre = np.clip((2 * goal + 1) * source - target, 0, 2 * target * (source - 1))
    return np.maximum(2 * target - np.abs(centre - 2 * target * origin), 0)


def _sums(axes: str, weights: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    # All sums are below 2**31, so a float64 holds them exactly; its products are much faster than those of integers.
    sums = np.einsum(axes, weights.astype(np.float64), values.astype(np.float64), optimize=True)
    return np.rint(sums).astype(np.int64)
