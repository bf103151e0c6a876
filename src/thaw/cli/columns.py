"""Text in columns, as wide as it needs: a path that is cut off or folded is of no use to whoever copies it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.cells import cell_len

from thaw.quoting import printable


def columns(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """`rows` of equally many cells as lines; the columns numbered in `right` end flush, the others begin so."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        gaps = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        parts = [
            gap + cell if index in right else cell + gap
            for index, (cell, gap) in enumerate(zip(row, gaps, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)
