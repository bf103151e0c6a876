"""Decode one image to pixels.

The rules, in this order:

- The first frame of a file with several is used (reported as "animated", except for the camera format MPO, whose other
  frames are previews).
- Samples of more than 8 bits per channel are read as 16-bit values; `scaling` converts them to bytes by the range of
  the data set. PGM and PPM samples are scaled from the maximum in the header to 65,535. 32-bit integers must lie
  between 0 and 65,535. Floating-point pixels up to 1 are scaled by 65,535, larger ones up to 255 by 257, and rounded.
  Color JPEG 2000, AVIF, and CMYK or premultiplied TIFF are read with their high 8 bits only.
- A palette is expanded to its colors. CMYK, YCbCr and HSV are converted to RGB by Pillow's formulas, without color
  profiles.
- Transparent pixels are blended with white: `(value * alpha + 255 * (255 - alpha) + 127) // 255`, with 65,535 for 255
  and 32,767 for 127 in 16 bits.
- An image whose three channels are equal everywhere is gray, whatever the file declares.
- The EXIF orientation is applied.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from thaw.data.resize import MAX_SOURCE_SIDE
from thaw.data.scaling import Values, value_span
from thaw.data.walk import why_missing
from thaw.data.wide import has_wide_samples, is_reduced, wide_samples
from thaw.errors import DataError

DECODER_VERSION = 2
"""Version of the rules above; a cache of another version is not used."""

MAX_PIXELS = 89_478_485
"""Larger images are refused, since a small file can expand to fill the memory. Pillow's own limit, 256 MiB as RGB."""

SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".mpo"}
    | {".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""Suffixes of image files."""

# Other formats of Pillow run external programs (EPS) or hold no pixels.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "MPO", "PPM", "PCX", "TGA", "ICO", "JPEG2000", "AVIF")

_ORIENTATION_TAG = 0x0112

_INSTEAD = (
    (b"version https://git-lfs", "a Git LFS pointer, not the image: fetch it with git lfs pull"),
    (b"/annex/objects/", "a git-annex pointer, not the image: fetch it with git annex get"),
    (b"<!doctype html", "a web page, not an image"),
    (b"<html", "a web page, not an image"),
)
"""First bytes of files that are not images -> what they are."""

RULES = {
    "animated": "several frames: the first is used",
    "16-bit": "more than 8 bits per channel: scaled to 0..255 by the range of the data set",
    "unit-float": "floating-point values from 0 to 1: taken as 0 to 65,535",
    "byte-float": "floating-point values from 0 to 255: taken as 0 to 65,535",
    "reduced": "more than 8 bits per channel in a format read with its high 8 bits only (save as 16-bit PNG or TIFF)",
    "palette": "palette expanded to its colors",
    "cmyk": "CMYK converted to RGB",
    "color-space": "other color space converted to RGB",
    "alpha": "transparent pixels blended with white",
    "orientation": "rotated by their EXIF orientation",
}
"""The keys of `Decoded.rules`, and how each is reported."""

LOSSY_RULES = frozenset({"reduced"})
"""Rules that may cost accuracy: a warning instead of a note."""


class UnreadableImageError(DataError):
    """An image that cannot be decoded. The message is the reason, without the image's name."""

    code = "data-unreadable"


@dataclass(frozen=True)
class Decoded:
    """A decoded image.

    Attributes:
        pixels: [H, W, C], C = 1 if the image is gray by content, else 3; uint8, or uint16 (0 to 65,535, not scaled)
            if the file has more than 8 bits per channel.
        mode: Pillow's name of the file's pixel format ("L", "RGB", "P", ...).
        rules: the keys of `RULES` that were applied.
        span: `scaling.value_span` of uint16 pixels, before transparent pixels were blended.
    """

    pixels: Values
    mode: str
    rules: tuple[str, ...]
    span: tuple[int, int] | None = None


def decode_image(data: bytes | str | Path | None) -> Decoded:
    """Decode an encoded image or a file.

    Raises:
        UnreadableImageError: with the reason, such as empty, truncated, too large, or not an image.
    """
    if data is None:
        raise UnreadableImageError("no image")
    content = b""
    try:
        content = data if isinstance(data, bytes) else Path(data).read_bytes()
    except FileNotFoundError:
        raise UnreadableImageError(why_missing(str(data))) from None
    except (OSError, ValueError) as error:
        raise UnreadableImageError(_reason(error)) from None
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            return _decode_opened(image, content)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        raise UnreadableImageError(_what_instead(content)) from None
    # A damaged file can make a codec raise almost anything (struct.error, SyntaxError, KeyError, zlib.error, ...).
    except Exception as error:  # noqa: BLE001
        raise UnreadableImageError(_reason(error)) from None


def decode_pillow(image: Image.Image) -> Decoded:
    """Decode an image that was opened or created with Pillow, by the rules for files.

    The current frame is used. Pillow keeps 8 of 16 bits per channel of a color image.

    Raises:
        UnreadableImageError: with the reason.
    """
    try:
        with quiet_decoding():
            # Read the orientation after the pixels, since Pillow rotates some formats itself when it loads them; and
            # from the image itself, since a copy lacks some of the metadata.
            image.load()
            orientation = _orientation(image)
            frame = image.copy()
            frame.info = {key: value for key, value in image.info.items() if key == "transparency"}
            decoded = _decode_opened(frame, b"")
    except UnreadableImageError:
        raise
    except Exception as error:  # noqa: BLE001 (as in `decode_image`)
        raise UnreadableImageError(_reason(error)) from None
    if orientation == 1:
        return decoded
    pixels = orient(decoded.pixels, orientation)
    return replace(decoded, pixels=pixels.copy(), rules=(*decoded.rules, "orientation"))


def _what_instead(content: bytes) -> str:
    """The reason why a file with the name of an image is not one."""
    head = content[:1024].lstrip()
    if not content:
        return "empty file"
    found = next((what for mark, what in _INSTEAD if mark in head.lower()), None)
    return found or "not an image of a known format"


def looks_like_image(path: Path) -> bool:
    """Whether the first bytes of a file are those of a known image format."""
    try:
        with quiet_decoding(), Image.open(path, formats=_formats()):
            return True
    except Exception:  # noqa: BLE001 (as in `decode_image`)
        return False


@contextmanager
def quiet_decoding() -> Iterator[None]:
    """Suppress Pillow's warnings: rules and errors cover what they report (EXIF, palettes, large images)."""
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


def _decode_opened(image: Image.Image, content: bytes) -> Decoded:
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SOURCE_SIDE:
        raise UnreadableImageError(
            f"{width}x{height} pixels: limit {MAX_PIXELS:,} pixels and sides of {MAX_SOURCE_SIDE:,}"
        )
    rules = []
    pixels: Values
    alpha: Values | None
    if image.format != "MPO" and getattr(image, "is_animated", False):
        rules.append("animated")
    mode, span = image.mode, None
    if has_wide_samples(image):
        pixels, alpha, scale_rule = wide_samples(image, content)
        span = value_span(pixels, alpha)
        rules += ["16-bit", *([scale_rule] if scale_rule else [])]
    else:
        rules += ["reduced"] if is_reduced(image, content) else []
        image.load()
        pixels, alpha = _to_bytes(image, rules)
    if alpha is not None and (alpha != np.iinfo(alpha.dtype).max).any():
        rules.append("alpha")
        pixels = _on_white(pixels, alpha)
    if pixels.shape[2] == 3 and _is_gray(pixels):
        pixels = pixels[..., :1]
    orientation = _orientation(image)
    if orientation != 1:
        rules.append("orientation")
        pixels = orient(pixels, orientation)
    return Decoded(pixels if pixels.flags.c_contiguous else pixels.copy(), mode, tuple(rules), span)


def _to_bytes(image: Image.Image, rules: list[str]) -> tuple[Values, Values | None]:
    """Color or gray bytes [H, W, C], and alpha [H, W, 1] if the image has any."""
    mode = image.mode
    if mode in ("L", "RGB") and "transparency" not in image.info:
        pixels = np.asarray(image)
        return (pixels[..., None] if mode == "L" else pixels), None
    if mode == "1":
        return np.asarray(image.convert("L"))[..., None], None
    if mode in ("P", "PA"):
        rules.append("palette")
    elif mode == "CMYK":
        rules.append("cmyk")
    elif mode not in ("1", "L", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX"):
        rules.append("color-space")
    if mode in ("PA", "LA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        four = np.asarray(image.convert("RGBA") if mode != "La" else image.convert("LA").convert("RGBA"))
        return four[..., :3], four[..., 3:]
    return np.asarray(image.convert("RGB")), None


def _on_white(pixels: Values, alpha: Values) -> Values:
    white, weight = np.uint32(np.iinfo(pixels.dtype).max), alpha.astype(np.uint32)
    # At most 65,535 * 65,535 + 32,767, which is below 2**32.
    placed = (pixels * weight + white * (white - weight) + white // 2) // white
    return placed.astype(np.uint8) if pixels.dtype == np.uint8 else placed.astype(np.uint16)


def _is_gray(pixels: Values) -> bool:
    red = pixels[..., 0]
    # Most color images differ in their first row, so that the other rows need not be compared.
    if not np.array_equal(red[0], pixels[0, :, 1]):
        return False
    return np.array_equal(red, pixels[..., 1]) and np.array_equal(red, pixels[..., 2])


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) if it is missing or cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 (as in `decode_image`; a damaged EXIF block does not affect the pixels)
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def orient(pixels: Values, orientation: int) -> Values:
    """Values [H, W, C] rotated upright from EXIF orientation 1 to 8 (EXIF 2.32, tag 274); 5 to 8 swap H and W."""
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
