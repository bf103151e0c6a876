"""Read images of more than 8 bits per channel without loss.

Pillow keeps 16 bits for a single channel only, and drops the low bytes of 16-bit color and of gray with alpha. The name
of the packing in an image's tiles ("RGB;16B") determines which byte is read, so the low bytes are read in a second pass
with the name of the other byte order.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from thaw.data.scaling import LARGEST_VALUE, Wide

_SIXTEEN_BITS = re.compile(r";16(?=[BLNR]|$)")
_GRAY_ALPHA = "LA;16B"
_NATIVE = ";16L" if sys.byteorder == "little" else ";16B"
_BITS_PER_SAMPLE, _PLANAR_CONFIGURATION, _SEPARATE = 258, 284, 2

# High-bit-depth flags of an AV1 configuration (AV1-ISOBMFF 2.3.3), and the precision in the SIZ marker of JPEG 2000.
_AV1_BOX, _AV1_HIGH_DEPTH = b"av1C", 0x40
_SIZ_MARKER, _SIZ_PRECISION = b"\xff\x51", 40
_HEADER_BYTES = 1 << 16


class UnsupportedDepthError(ValueError):
    """An unsupported layout of more than 8 bits; the message says which, and what to do."""


def packing(image: Image.Image) -> str:
    """Pillow's name of the packing of samples in an opened file ("RGB;16B"); "" if there is none."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        return next((each for each in arguments if isinstance(each, str)), "")
    return ""


def has_wide_samples(image: Image.Image) -> bool:
    """Whether an opened file, not loaded yet, has more than 8 bits per channel that `wide_samples` can read."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F") or _is_wide_in_planes(image):
        return True
    if image.format == "PPM":
        return _largest(image) > 255
    if image.format not in ("PNG", "TIFF") or image.mode not in ("RGB", "RGBA"):
        return False
    return bool(_SIXTEEN_BITS.search(packing(image))) and not packing(image).startswith("RGBa")


def _is_wide_in_planes(image: Image.Image) -> bool:
    """Whether an image is a TIFF with separate planes of more than 8 bits, which Pillow misreads."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, ())
    return len(bits) > 1 and max(bits) > 8 and tags.get(_PLANAR_CONFIGURATION) == _SEPARATE


def is_reduced(image: Image.Image, content: bytes) -> bool:
    """Whether an opened file has more than 8 bits per channel of which only 8 are read."""
    if image.format in ("PNG", "TIFF"):
        return bool(_SIXTEEN_BITS.search(packing(image)))
    head = content[:_HEADER_BYTES]
    if image.format == "JPEG2000":
        place = head.find(_SIZ_MARKER) + _SIZ_PRECISION
        # The lowest 7 bits are the precision minus one.
        return place < len(head) and (head[place] & 0x7F) > 7
    place = head.find(_AV1_BOX) + len(_AV1_BOX) + 2
    return image.format == "AVIF" and place < len(head) and bool(head[place] & _AV1_HIGH_DEPTH)


def wide_samples(image: Image.Image, content: bytes) -> tuple[Wide, Wide | None, str]:
    """The samples of an opened file for which `has_wide_samples` is true.

    16-bit samples are not scaled, except those of PGM and PPM files, which are scaled from the maximum in the header to
    65,535, rounded half up. Floating-point samples up to 1 are scaled by 65,535, larger ones up to 255 by 257.

    Returns:
        uint16 [H, W, 1 or 3]; alpha, uint16 [H, W, 1], or None; and how floating-point samples were scaled,
        "unit-float" or "byte-float", else "".

    Raises:
        UnsupportedDepthError: for an unsupported layout or value.
        Exception: any error of Pillow for a damaged file.
    """
    if image.mode == "F":
        image.load()
        samples, rule = _from_floats(np.asarray(image))
        return samples[..., None], None, rule
    if image.format == "PPM":
        return _portable_map(image, content), None, ""
    if image.mode in ("RGB", "RGBA") or _is_wide_in_planes(image):
        return *_colors(image, content), ""
    image.load()
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > LARGEST_VALUE:
        raise UnsupportedDepthError(f"32-bit pixels from {low} to {high}: expected 0 to {LARGEST_VALUE}")
    samples = values.astype(np.uint16)[..., None]
    return samples, _keyed(samples, image.info.get("transparency")), ""


def _colors(image: Image.Image, content: bytes) -> tuple[Wide, Wide | None]:
    if _is_wide_in_planes(image):
        raise UnsupportedDepthError(
            "16-bit TIFF with separate planes is not supported: save it with interleaved channels"
        )
    if packing(image) == _GRAY_ALPHA:
        # Four bytes per pixel, unpacked as four channels: high and low byte of gray, and of alpha.
        parts = _loaded(image, lambda _: "RGBA")
        return _joined(parts[..., 0:1], parts[..., 1:2]), _joined(parts[..., 2:3], parts[..., 3:4])
    with Image.open(io.BytesIO(content), formats=(str(image.format),)) as again:
        low = _loaded(again, _other_order)
    samples = _joined(_loaded(image, lambda name: name), low)
    if samples.shape[2] == 4:
        return samples[..., :3], samples[..., 3:]
    return samples, _keyed(samples, image.info.get("transparency"))


def _joined(high: npt.NDArray[np.uint8], low: npt.NDArray[np.uint8]) -> Wide:
    result: Wide = high * np.uint16(256) + low
    return result


def _other_order(name: str) -> str:
    """The name of a packing with the opposite byte order, for which Pillow's "high byte" is the low one."""
    found = _SIXTEEN_BITS.search(name)
    if found is None:
        return name
    order = name[found.start() :].replace(";16N", _NATIVE)
    return name[: found.start()] + (";16B" if order == ";16L" else ";16L")


def _loaded(image: Image.Image, renamed: Callable[[str], str]) -> npt.NDArray[np.uint8]:
    """The bytes uint8 [H, W, C] of an opened file, unpacked with renamed packings."""
    tiles: list[Any] = []
    for tile in image.tile:  # type: ignore[attr-defined]
        arguments = tile[3]
        if isinstance(arguments, tuple):
            arguments = tuple(renamed(each) if isinstance(each, str) else each for each in arguments)
        else:
            arguments = renamed(arguments)
        made = (*tile[:3], arguments)
        # Before Pillow 11, tiles are plain tuples.
        tiles.append(tile._make(made) if hasattr(tile, "_make") else made)
    image.tile = tiles  # type: ignore[attr-defined]
    image.load()
    return np.asarray(image)


def _keyed(samples: Wide, key: Any) -> Wide | None:
    """Alpha uint16 [H, W, 1] for a color key; None if there is none."""
    if not isinstance(key, int | tuple) or np.size(key) != samples.shape[2]:
        return None
    hidden = (samples == np.array(key)).all(axis=2, keepdims=True)
    return np.where(hidden, np.uint16(0), np.uint16(LARGEST_VALUE))


def _largest(image: Image.Image) -> int:
    """The maximum value in the header of a PGM or PPM file; 255 if there is none."""
    arguments = image.tile[0][3]  # type: ignore[attr-defined]
    if isinstance(arguments, tuple) and len(arguments) == 2 and isinstance(arguments[1], int):
        return arguments[1]
    return LARGEST_VALUE if _SIXTEEN_BITS.search(packing(image)) else 255


def _portable_map(image: Image.Image, content: bytes) -> Wide:
    """The samples of a PGM or PPM file of more than 8 bits, which Pillow would reduce to 8 for color."""
    largest, offset = _largest(image), image.tile[0][2]  # type: ignore[attr-defined]
    shape = (image.height, image.width, 3 if image.mode == "RGB" else 1)
    count = int(np.prod(shape))
    if content[:2] in (b"P5", b"P6"):
        if len(content) - offset < 2 * count:
            raise UnsupportedDepthError("image file is truncated")
        values = np.frombuffer(content, ">u2", count, offset).astype(np.int64)
    else:
        words = re.sub(rb"#[^\r\n]*", b" ", content[offset:]).split(maxsplit=count)[:count]
        if len(words) < count:
            raise UnsupportedDepthError("image file is truncated")
        values = np.array([int(word) for word in words])
    if values.min() < 0 or values.max() > largest:
        raise UnsupportedDepthError(f"pixels from {values.min()} to {values.max()}: expected 0 to {largest}")
    scaled = (values * (2 * LARGEST_VALUE) + largest) // (2 * largest)
    return scaled.astype(np.uint16).reshape(shape)


def _from_floats(values: npt.NDArray[np.float32]) -> tuple[Wide, str]:
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 255:
        raise UnsupportedDepthError(
            f"floating-point pixels from {low} to {high}: expected 0 to 1 or 0 to 255 (or 16-bit integers)"
        )
    factor, rule = (LARGEST_VALUE, "unit-float") if high <= 1 else (257, "byte-float")
    return np.floor(values.astype(np.float64) * factor + 0.5).astype(np.uint16), rule
