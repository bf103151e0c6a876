"""Draw a contact sheet: a row of images per class, under its name."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from thaw.data.images import ImageSet
from thaw.quoting import clipped, printable

_TILE = 72
_GAP = 6
_LABEL = 20
_LONGEST_LABEL = 60
_MOST_CLASSES = 100


def draw_sheet(images: ImageSet, per_class: int) -> Image.Image:
    """Draw the first `per_class` images of each class, enlarged without smoothing.

    The sheet shows at most 100 classes, with a note about the rest.
    """
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
    """The class name on one line."""
    text = clipped(printable(name), _LONGEST_LABEL)
    return text if count else f"{text} (no images)"
