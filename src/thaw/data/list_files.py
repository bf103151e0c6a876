"""Read CSV and JSON Lines files as columns of values."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from thaw.data.decode import SUFFIXES
from thaw.data.walk import shown_path
from thaw.errors import DataError
from thaw.quoting import shown

CSV_SUFFIXES = frozenset({".csv", ".tsv"})
JSON_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
LIST_SUFFIXES = CSV_SUFFIXES | JSON_SUFFIXES
"""Suffixes of text tables."""

Columns = dict[str, list[object]]

_DELIMITERS = ",;\t|"
_LINES_LOOKED_AT = 20
# Not `str.splitlines`, which also splits at characters that may be part of a cell, such as U+2028.
_LINE_END = re.compile(r"\r\n|\n|\r")


def read_list(path: Path) -> Columns:
    """The columns of a CSV file (delimiter `,`, `;`, tab or `|`) or JSON Lines file, all of the same length.

    Cells of a CSV file are stripped strings, or None if empty. If the first line names an image file, the file has no
    header, and the columns are named "1", "2", ...

    Raises:
        DataError: for a file that is not a table, with the line.
    """
    where = shown_path(path)
    text = _text(path, where)
    if path.suffix.lower() in JSON_SUFFIXES:
        return _json_columns(text, where)
    return _csv_columns(text, where, "\t" if path.suffix.lower() == ".tsv" else _DELIMITERS)


def _text(path: Path, where: str) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror}", code="data-file") from None
    # Excel saves "Unicode text" as UTF-16.
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{where} is not UTF-8 text (line {line}): save it as UTF-8", code="data-file") from None


def _csv_columns(text: str, where: str, delimiters: str) -> Columns:
    rows = _rows(text, _delimiter(text, delimiters), where)
    if not rows:
        raise DataError(f"{where} is empty: expected a column of image paths and one of labels", code="data-empty")
    width = len(rows[0][1])
    if width < 2:
        raise DataError(
            f"{where} has one column: expected one of image paths and one of labels, separated by commas",
            code="data-columns",
        )
    for line, cells in rows:
        if len(cells) != width:
            raise DataError(
                f"{where} line {line} has {len(cells)} cells, the first line {width}: quote cells that contain the "
                "delimiter",
                code="data-file",
            )
    first = rows[0][1]
    if any(PurePosixPath(cell).suffix.lower() in SUFFIXES for cell in first):
        names = [str(place + 1) for place in range(width)]
    else:
        names, rows = [cell or str(place + 1) for place, cell in enumerate(first)], rows[1:]
    if len(set(names)) < width:
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise DataError(f"{where} has two columns {shown(twice)}: rename one", code="data-columns")
    return {name: [cells[place] or None for _, cells in rows] for place, name in enumerate(names)}


def _rows(text: str, delimiter: str, where: str) -> list[tuple[int, list[str]]]:
    """Each row with the line that it ends on; empty lines are skipped."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows = []
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                rows.append((reader.line_num, stripped))
    except csv.Error as error:
        raise DataError(f"{where} line {reader.line_num}: {error}; expected a CSV file", code="data-file") from None
    return rows


def _delimiter(text: str, delimiters: str) -> str:
    """The delimiter that splits the first lines into the most columns, the same number in each."""
    head = "\n".join([line for line in _LINE_END.split(text[:65_536]) if line.strip()][:_LINES_LOOKED_AT])

    def columns(delimiter: str) -> tuple[bool, int]:
        try:
            widths = [len(row) for row in csv.reader(io.StringIO(head), delimiter=delimiter, skipinitialspace=True)]
        except csv.Error:
            return (False, 0)
        return (len(set(widths)) == 1 and widths[0] > 1, widths[0] if widths else 0)

    return max(delimiters, key=columns)


def _json_columns(text: str, where: str) -> Columns:
    stripped = text.strip()
    try:
        if stripped.startswith("["):
            entries = list(enumerate(json.loads(stripped), start=1))
        else:
            lines = [(number, line) for number, line in enumerate(_LINE_END.split(text), start=1) if line.strip()]
            entries = []
            for number, line in lines:
                try:
                    entries.append((number, json.loads(line)))
                except ValueError as error:
                    message = f"{where} line {number} is not JSON ({error}): expected one object per line"
                    raise DataError(message, code="data-file") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {str(error)[:200]}", code="data-file") from None
    return _columns_of(entries, where)


def _columns_of(entries: Sequence[tuple[int, object]], where: str) -> Columns:
    names: dict[str, None] = {}
    for number, entry in entries:
        if not isinstance(entry, dict):
            raise DataError(
                f"{where} entry {number} is {type(entry).__name__}: expected objects with a path and a label",
                code="data-file",
            )
        names.update(dict.fromkeys(entry))
    if not entries:
        raise DataError(f"{where} is empty: expected objects with an image path and a label", code="data-empty")
    return {name: [entry.get(name) for _, entry in entries if isinstance(entry, dict)] for name in names}
