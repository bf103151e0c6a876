"""One encoded image to pixels, by stated rules.

The rules, in this order:

- A file with several frames gives its first (told as "animated", except for the camera format MPO, whose further frames
  are previews).
- 16 bits a channel become 8 by keeping the high byte. 32-bit whole numbers are read as 16-bit values, and must lie
  between 0 and 65,535. Floating-point pixels up to 1 are taken as 0 to 1 and scaled by 255, above that as 0 to 255;
  both are rounded.
- A palette is expanded to its colours. CMYK, YCbCr and HSV become red-green-blue by Pillow's formulas, without colour
  profiles.
- Transparency is placed on white: `(value * alpha + 255 * (255 - alpha) + 127) // 255`.
- An image whose three channels are equal everywhere is grey, whatever the file calls itself.
- The EXIF orientation is obeyed.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from thaw.data.resize import MAX_SOURCE_SIDE
from thaw.errors import DataError

Pixels = npt.NDArray[np.uint8]

DECODER_VERSION = 1
"""Counts changes of the rules above; a cache made by other rules is not used."""

MAX_PIXELS = 89_478_485
"""Larger images are refused, since a small file can unpack to fill the memory; Pillow's own limit, 256 MiB as RGB."""

SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".mpo"}
    | {".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""Endings by which a file claims to be an image."""

# Pillow knows further formats; those that run other programs (EPS), or hold no pixels, stay shut.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "MPO", "PPM", "PCX", "TGA", "ICO", "JPEG2000", "AVIF")

_ORIENTATION_TAG = 0x0112

# Pillow's tile descriptions name the packing ("RGB;16B"): the only trace of 16 bits in modes that have 8.
_SIXTEEN_BITS = ";16"

RULES = {
    "animated": "several frames: the first is used",
    "16-bit": "16 bits a channel: the high byte is used",
    "32-bit": "32 bits a channel: scaled to 8",
    "palette": "palette expanded to its colours",
    "cmyk": "CMYK converted to red-green-blue",
    "colour-space": "other colour space converted to red-green-blue",
    "alpha": "transparency placed on white",
    "orientation": "turned as their EXIF orientation says",
}
"""What `Decoded.rules` can hold, and how each is told."""


class UnreadableImageError(DataError):
    """An image that cannot be decoded; the message is the reason without the image's name."""


@dataclass(frozen=True)
class Decoded:
    """An image as pixels.

    Attributes:
        pixels: uint8 [H, W, C], C = 1 where the image is grey by content, else 3.
        mode: Pillow's name of the file's pixel format ("L", "RGB", "P", ...).
        rules: the keys of `RULES` that were applied.
    """

    pixels: Pixels
    mode: str
    rules: tuple[str, ...]


def decode_image(data: bytes | str | Path | None) -> Decoded:
    """Decodes an encoded image or a file.

    Raises:
        UnreadableImageError: with the reason: empty, truncated, too large, no image format.
    """
    if data is None:
        raise UnreadableImageError("no image")
    content = b""
    try:
        content = data if isinstance(data, bytes) else Path(data).read_bytes()
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            return _decode_opened(image)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        raise UnreadableImageError("not an image of a known format" if content else "empty file") from None
    # A damaged file can make a codec raise almost anything (struct.error, SyntaxError, KeyError, zlib.error, ...).
    except Exception as error:  # noqa: BLE001
        raise UnreadableImageError(_reason(error)) from None


def looks_like_image(path: Path) -> bool:
    """Whether a file's first bytes are those of a known image format; for files whose names do not say."""
    try:
        with quiet_decoding(), Image.open(path, formats=_formats()):
            return True
    except Exception:  # noqa: BLE001 (as in `decode_image`)
        return False


@contextmanager
def quiet_decoding() -> Iterator[None]:
    """Silences Pillow's warnings: what they say (odd EXIF, odd palette, large image) is covered by rules or errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _reason(error: Exception) -> str:
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return f"{text or 'damaged'}"[:200]


def _decode_opened(image: Image.Image) -> Decoded:
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SOURCE_SIDE:
        raise UnreadableImageError(
            f"{width}x{height} pixels: at most {MAX_PIXELS:,} and sides of {MAX_SOURCE_SIDE:,} are read"
        )
    rules = []
    if image.format != "MPO" and getattr(image, "is_animated", False):
        rules.append("animated")
    if _SIXTEEN_BITS in image.mode or (
        image.format in ("PNG", "TIFF", "PPM") and _SIXTEEN_BITS in str(getattr(image, "tile", ""))
    ):
        rules.append("16-bit")
    mode = image.mode
    image.load()
    pixels, alpha = _to_bytes(image, rules)
    if alpha is not None and (alpha != 255).any():
        rules.append("alpha")
        pixels = _on_white(pixels, alpha)
    if pixels.shape[2] == 3 and _is_grey(pixels):
        pixels = pixels[..., :1]
    orientation = _orientation(image)
    if orientation != 1:
        rules.append("orientation")
        pixels = orient(pixels, orientation)
    return Decoded(np.ascontiguousarray(pixels), mode, tuple(rules))


def _to_bytes(image: Image.Image, rules: list[str]) -> tuple[Pixels, Pixels | None]:
    """Colour or grey bytes [H, W, C], and alpha [H, W, 1] where the image has any."""
    mode = image.mode
    if mode in ("L", "RGB") and "transparency" not in image.info:
        pixels = np.asarray(image)
        return (pixels[..., None] if mode == "L" else pixels), None
    if mode == "1":
        return np.asarray(image.convert("L"))[..., None], None
    if mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint16)
        return (wide >> 8).astype(np.uint8)[..., None], None
    if mode in ("I", "F"):
        rules.append("32-bit")
        return _from_32_bits(np.asarray(image))[..., None], None
    if mode in ("P", "PA"):
        rules.append("palette")
    elif mode == "CMYK":
        rules.append("cmyk")
    elif mode not in ("1", "L", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX"):
        rules.append("colour-space")
    if mode in ("PA", "LA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        four = np.asarray(image.convert("RGBA") if mode != "La" else image.convert("LA").convert("RGBA"))
        return four[..., :3], four[..., 3:]
    return np.asarray(image.convert("RGB")), None


def _from_32_bits(values: npt.NDArray[np.int32] | npt.NDArray[np.float32]) -> Pixels:
    low, high = values.min(), values.max()
    if values.dtype.kind == "i":
        if low < 0 or high > 65_535:
            raise UnreadableImageError(f"32-bit pixels from {low} to {high}: expected 0 to 65535")
        return (values // 256).astype(np.uint8)
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 255:
        raise UnreadableImageError(f"floating-point pixels from {low} to {high}: expected 0 to 1 or 0 to 255")
    scaled = values.astype(np.float64) * (255 if high <= 1 else 1)
    return np.floor(scaled + 0.5).astype(np.uint8)


def _on_white(pixels: Pixels, alpha: Pixels) -> Pixels:
    weight = alpha.astype(np.uint32)
    return ((pixels * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)


def _is_grey(pixels: Pixels) -> bool:
    red = pixels[..., 0]
    # Most colour images show it in their first row, which spares a pass over the whole.
    if not np.array_equal(red[0], pixels[0, :, 1]):
        return False
    return np.array_equal(red, pixels[..., 1]) and np.array_equal(red, pixels[..., 2])


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where there is none or it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 (as in `decode_image`; an unreadable EXIF block does not spoil the pixels)
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def orient(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels [H, W, C] turned upright from EXIF orientation 1 to 8 (EXIF 2.32, tag 274); 5 to 8 swap H and W."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    flip_rows, flip_columns = {
        1: (False, False),
        2: (False, True),
        3: (True, True),
        4: (True, False),
        5: (False, False),
        6: (False, True),
        7: (True, True),
        8: (True, False),
    }[orientation]
    if flip_rows:
        pixels = pixels[::-1]
    return pixels[:, ::-1] if flip_columns else pixels
