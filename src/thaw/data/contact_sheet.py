"""A picture of a data set: a row of images for each class, under its name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from thaw.data.images import ImageSet
from thaw.errors import DataError, UsageError

_TILE = 72
_GAP = 6
_LABEL = 20
_LONGEST_LABEL = 60
_MOST_CLASSES = 100


def contact_sheet(images: ImageSet, path: str | Path, *, per_class: int = 8) -> Path:
    """Writes a PNG with the first images of each class, as the model would see them, enlarged without smoothing.

    Args:
        images: such as the preview of `look`.
        path: where to write; folders on the way are made.
        per_class: images a row, from 1.

    Returns:
        The path of the file. Of more than 100 classes the first 100 are shown, and the sheet says so.

    Raises:
        UsageError: for `per_class` below 1.
        DataError: when the file cannot be written.
    """
    if per_class < 1:
        raise UsageError(f"{per_class} images a class: expected at least 1")
    target = Path(path)
    content = io.BytesIO()
    _draw(images, per_class).save(content, format="PNG")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.getvalue())
    except OSError as error:
        raise DataError(f"contact sheet {target} cannot be written: {error.strerror}") from None
    return target


def _draw(images: ImageSet, per_class: int) -> Image.Image:
    shown = images.classes[:_MOST_CLASSES]
    rows = [np.flatnonzero(images.labels == label)[:per_class] for label in range(len(shown))]
    height, width, _ = images.shape
    zoom = max(1, _TILE // max(height, width))
    tile_height, tile_width = height * zoom, width * zoom
    columns = max(1, *(len(row) for row in rows)) if rows else 1
    step = _LABEL + tile_height + _GAP
    font = ImageFont.load_default()
    lines = [_label(name, len(row)) for name, row in zip(shown, rows, strict=True)]
    widest = max((int(font.getlength(line)) for line in lines), default=0)
    rest = len(images.classes) - len(shown)
    size = (
        max(columns * (tile_width + _GAP), widest + _GAP) + _GAP,
        len(rows) * step + _GAP + (_LABEL if rest else 0),
    )
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for place, (line, row) in enumerate(zip(lines, rows, strict=True)):
        top = _GAP + place * step
        pen.text((_GAP, top), line, fill="black", font=font)
        for column, index in enumerate(row):
            pixels = np.broadcast_to(images.images[index], (height, width, 3))
            tile = Image.fromarray(np.ascontiguousarray(pixels)).resize(
                (tile_width, tile_height), Image.Resampling.NEAREST
            )
            sheet.paste(tile, (_GAP + column * (tile_width + _GAP), top + _LABEL - 4))
    if rest:
        pen.text((_GAP, size[1] - _LABEL), f"and {rest} more classes", fill="black", font=font)
    return sheet


def _label(name: str, count: int) -> str:
    """The class name in one line; control characters would break it."""
    text = "".join(letter if letter.isprintable() else "?" for letter in name)
    text = text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"
    return text if count else f"{text} (no image)"
