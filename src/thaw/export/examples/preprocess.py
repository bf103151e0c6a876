"""Convert an image file to the input of the model. Requires NumPy and Pillow.

A short form of the integer definition of depth, gray conversion and resizing in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps


def read_image(path: str | Path) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """The colors of an image file, upright and blended with white: [height, width, 3].

    uint8, or uint16 of a gray image of 16 bits; `fit` scales those.
    """
    with Image.open(path) as opened:
        # Pillow drops the low bytes of some formats; only the name of the packing shows this.
        is_reduced = ";16" in str(opened.tile) and opened.mode in ("RGB", "RGBA", "CMYK")
        opened.load()  # this rotates some formats upright
        image = ImageOps.exif_transpose(opened)
    if is_reduced or image.mode == "F":
        raise ValueError(f"{path}: expected 8 bits per channel, or 16-bit gray without alpha")
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.int64)
        if gray.min() < 0 or gray.max() > 65_535:
            raise ValueError(f"{path}: expected values from 0 to 65535, not {gray.min()} to {gray.max()}")
        gray[gray == image.info.get("transparency", -1)] = 65_535
        return np.repeat(gray[..., None].astype(np.uint16), 3, axis=-1)
    rgba = np.asarray(image.convert("RGBA")).astype(np.int64)
    color, alpha = rgba[..., :3], rgba[..., 3:]
    return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def printable(name: str) -> str:
    """A class name without control characters, which could steer the terminal that it is shown on."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def fit(pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], input_spec: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """An image as the model takes it.

    Args:
        pixels: uint8 or uint16 [height, width, 1 or 3], of any size.
        input_spec: the model's "height", "width", "channels", "fit" ("stretch" or "crop") and, where it was trained on
            images of 16 bits, the "range" of values that become 0 to 255.

    Returns:
        uint8 [input specification's height, width, channels].
    """
    height, width, channels = (int(input_spec[key]) for key in ("height", "width", "channels"))
    if pixels.dtype == np.uint16:
        low, high = input_spec.get("range", (0, 65_535))
        above = np.clip(pixels.astype(np.int64), low, high) - low
        pixels = ((above * 510 + high - low) // (2 * (high - low))).astype(np.uint8)
    if input_spec["fit"] == "crop":
        pixels = _center(pixels, height, width)
    values = pixels.astype(np.int64)
    if channels == 1 and pixels.shape[2] == 3:
        values = (values @ np.array([77, 150, 29]) + 128 >> 8)[..., None]
    rows, columns = (_weights(*sizes) for sizes in ((pixels.shape[0], height), (pixels.shape[1], width)))
    total = int(columns[0].sum())
    values = (256 * _sums("xw,hwc->hxc", columns, values) + total // 2) // total
    total = int(rows[0].sum())
    values = (_sums("yh,hxc->yxc", rows, values) + 128 * total) // (256 * total)
    return np.ascontiguousarray(np.broadcast_to(values, (height, width, channels)).astype(np.uint8))


def _center(pixels: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    """The largest centered part whose sides are as height to width."""
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
    # Linear between the centers of the two nearest; the edges continue outwards.
    center = np.clip((2 * goal + 1) * source - target, 0, 2 * target * (source - 1))
    return np.maximum(2 * target - np.abs(center - 2 * target * origin), 0)


def _sums(axes: str, weights: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    # All sums are below 2**31, so a float64 holds them exactly; its products are much faster than those of integers.
    sums = np.einsum(axes, weights.astype(np.float64), values.astype(np.float64), optimize=True)
    return np.rint(sums).astype(np.int64)
