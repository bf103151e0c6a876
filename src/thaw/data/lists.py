"""Tables of images and classes: CSV and JSON Lines, data frames, and lists of paths and labels."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from thaw.data.catalog import Catalog, Payload, Source, Split, source_name
from thaw.data.columns import Roles, choose_roles, name_image_files, rows_of_splits
from thaw.data.decode import SUFFIXES
from thaw.data.list_files import Columns, read_list
from thaw.data.pattern import FilePattern, require_match
from thaw.data.problems import Problem
from thaw.data.row_catalog import Rows, row_catalog
from thaw.data.settings import DataSettings
from thaw.data.walk import file_state, shown_path
from thaw.errors import DataError
from thaw.quoting import encodable, shown

_ROWS_A_BATCH = 32
_ROWS_LOOKED_AT = 50
_MOST_FOLDERS = 500

# Columns that may name images without a suffix, such as "id_code" in competitions.
_IMAGE_NAMES = frozenset(
    {
        "image",
        "images",
        "img",
        "image_id",
        "image_name",
        "image_path",
        "img_id",
        "img_name",
        "img_path",
        "id",
        "id_code",
    }
    | {"file", "files", "file_name", "filename", "file_path", "filepath", "name", "path", "photo", "picture"}
)


@dataclass(frozen=True)
class _Files:
    """Finds the file that a cell names."""

    base: Path
    stems: Mapping[str, str] = field(default_factory=dict)

    def find(self, text: str) -> str:
        """The path of the file; names without a suffix are looked up, and Windows backslashes are accepted."""
        if text in self.stems:
            return str(self.base / self.stems[text])
        path = self.base / text
        if "\\" in text and not _exists(path) and _exists(turned := self.base / text.replace("\\", "/")):
            return str(turned)
        return str(path)


def list_source(path: Path, settings: DataSettings) -> Source:
    """A CSV or JSON Lines file; paths are relative to its folder, or to the subfolder that holds the images.

    Raises:
        DataError: for a file that is not a table of images and labels.
    """
    columns = read_list(path)
    where = shown_path(path)
    if not next(iter(columns.values()), []):
        raise DataError(f"{where} has no rows: expected one row per image", code="data-empty")
    return columns_source(columns, settings, where=where, name=path.stem, base=path.parent, searches=True)


def names_images(path: Path) -> bool:
    """Whether a CSV or JSON Lines file has a column of images: paths, or names of existing files without suffix."""
    try:
        columns = read_list(path)
    except DataError:
        return False
    plain = {name: [_plain_value(value) for value in values] for name, values in columns.items()}
    return bool(_image_columns(plain, path.parent, searches=True))


def columns_source(
    columns: Columns,
    settings: DataSettings,
    *,
    where: str,
    name: str,
    base: Path,
    searches: bool = False,
    declared: Sequence[str] | None = None,
) -> Source:
    """A table with a column of image paths or encoded images.

    Args:
        columns: values by column, all of the same length.
        settings: roles of columns, and the file pattern.
        where: the table, for messages.
        name: the name of the source.
        base: the folder of relative paths.
        searches: whether to search folders below `base` if no path exists.
        declared: class names; labels that are numbers are indices into them.

    Raises:
        DataError: for a missing or ambiguous column.
    """
    raw = {column: [_plain_value(value) for value in values] for column, values in columns.items()}
    columns = {column: _whole_numbers(values) for column, values in raw.items()}
    roles = choose_roles(
        where,
        list(columns),
        columns.__getitem__,
        settings,
        images=lambda: _image_columns(raw, base, searches=searches),
        labels=lambda left: _label_columns(columns, left),
    )
    # Numbers can be file names too, such as "0001" or 17.
    images = [str(value) if type(value) is int else value for value in raw[roles.image]]
    columns[roles.image] = images
    odd = next((value for value in images if value is not None and not isinstance(value, str | bytes)), None)
    if odd is not None:
        kind = type(odd).__name__
        message = f"{where}: column {shown(roles.image)} holds {kind}: expected paths or encoded images"
        raise DataError(message, code="data-columns")
    texts = [value for value in images if isinstance(value, str)]
    files, notes = _located(base, texts) if searches else (_Files(base), [])
    payloads: list[Payload] = [files.find(value) if isinstance(value, str) else _as_bytes(value) for value in images]
    columns, payloads, notes = _chosen_rows(where, roles, settings, columns, payloads, notes)
    facts = {
        "rows": _digest(payloads, [columns[column] for column in (roles.label, roles.split, roles.group) if column]),
        "names": _digest([], [columns[roles.image]] if texts else []),
        "reading": [settings.group_by, settings.merge_spellings, declared, [str(note) for note in notes]],
    }
    read = partial(_read, where, roles, settings, columns, payloads, notes, declared)
    return Source(name=source_name(name), facts=facts, read=read, has_files=bool(texts))


def _as_bytes(value: object) -> bytes | None:
    return value if isinstance(value, bytes) else None


def _whole_numbers(plain: list[object]) -> list[object]:
    """A column as integers if all its values are integers, also as strings or as floats such as 3.0."""
    present = [value for value in plain if value is not None]
    if present and all(isinstance(value, str) and _is_number(value) for value in present):
        plain = [None if value is None else float(str(value)) for value in plain]
        present = [value for value in plain if value is not None]
    if present and all(isinstance(value, float) and value.is_integer() for value in present):
        return [int(value) if isinstance(value, float) else None for value in plain]
    return plain


def _plain_value(value: object) -> object:
    """A cell as a plain value: None for NaN and empty strings; bytes or path for a struct of an image."""
    if isinstance(value, dict) and set(value) <= {"bytes", "path"}:
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    item = getattr(value, "item", None)
    if item is not None and getattr(value, "ndim", None) == 0:
        value = item()
    if (isinstance(value, str) and not value) or (isinstance(value, float) and math.isnan(value)):
        return None
    return value


def _is_number(text: str) -> bool:
    """Whether a string can be converted to a number without loss: few digits, no leading zeros ("007")."""
    whole, _, fraction = text.removeprefix("-").partition(".")
    return (
        text.isascii()
        and whole.isdigit()
        and (whole == "0" or whole[0] != "0")
        and len(whole) <= 15
        and (not fraction or fraction.isdigit())
    )


def _image_columns(columns: Columns, base: Path, *, searches: bool) -> list[str]:
    found = [name for name, values in columns.items() if name_image_files(values)]
    if not found:
        found = [name for name, values in columns.items() if any(isinstance(value, bytes) for value in values)]
    if not found:
        named = [name for name in columns if name.lower() in _IMAGE_NAMES]
        texts = {name: [str(value) for value in columns[name] if value is not None] for name in named}
        found = [name for name in named if texts[name] and searches and _located(base, texts[name])[0].stems]
    return found


def _label_columns(columns: Columns, left: Sequence[str]) -> list[str]:
    """Columns of integers or strings; if there are several, those with repeated values."""
    found = [name for name in left if all(v is None or isinstance(v, int | str) for v in columns[name])]
    found = [name for name in found if any(value is not None for value in columns[name])]
    repeated = [name for name in found if len(set(columns[name])) < len(columns[name])]
    return repeated if len(found) > 1 and repeated else found


def _located(base: Path, texts: Sequence[str]) -> tuple[_Files, list[Problem]]:
    """The folder of the files that rows name: `base`, else the only folder below it that holds them all."""
    sample = texts[:_ROWS_LOOKED_AT]
    usual = _Files(base)
    if not sample or any(_exists(Path(usual.find(text))) for text in sample):
        return usual, []
    found = [files for folder in _folders_below(base) if (files := _fitting(folder, sample)) is not None]
    if len(found) != 1:
        return usual, []
    if found[0].base == base:
        return found[0], []
    message = f"the paths in the table are relative to its folder {encodable(str(found[0].base.relative_to(base)))}"
    return found[0], [Problem("layout", "note", message)]


def _fitting(folder: Path, sample: Sequence[str]) -> _Files | None:
    """The folder if it holds all files of a sample, by their names with or without suffix."""
    if all(_exists(folder / text) for text in sample):
        return _Files(folder)
    if any(PurePosixPath(text).suffix.lower() in SUFFIXES for text in sample):
        return None
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    stems = {PurePosixPath(name).stem: name for name in reversed(names)}
    return _Files(folder, stems) if all(text in stems for text in sample) else None


def _folders_below(base: Path) -> list[Path]:
    """`base` and its visible subfolders, two levels deep; at most a few hundred."""
    found = [base]
    for level in (1, 2):
        above = [folder for folder in found if len(folder.relative_to(base).parts) == level - 1]
        for folder in above:
            try:
                inner = [entry for entry in os.scandir(folder) if not entry.name.startswith(".") and entry.is_dir()]
            except OSError:
                continue
            found += sorted(Path(entry.path) for entry in inner)
    return found[:_MOST_FOLDERS]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _chosen_rows(
    where: str,
    roles: Roles,
    settings: DataSettings,
    columns: Columns,
    payloads: list[Payload],
    notes: list[Problem],
) -> tuple[Columns, list[Payload], list[Problem]]:
    """The rows whose paths match `data.pattern`."""
    if not settings.pattern:
        return columns, payloads, notes
    paths = [str(value) for value in columns[roles.image] if isinstance(value, str)]
    chosen = set(FilePattern.parse(settings.pattern).select(paths))
    require_match(where, settings.pattern, paths, sorted(chosen))
    rows = [row for row, value in enumerate(columns[roles.image]) if not isinstance(value, str) or value in chosen]
    message = f"data.pattern {shown(settings.pattern)} excludes {len(payloads) - len(rows):,} of {len(payloads):,} rows"
    kept = {name: [values[row] for row in rows] for name, values in columns.items()}
    return kept, [payloads[row] for row in rows], [*notes, Problem("pattern", "note", message)]


def _digest(payloads: Sequence[Payload], columns: Sequence[Sequence[object]]) -> str:
    """A digest of everything that determines the images: content, or path, size and modification time of each file."""
    digest = hashlib.sha256()
    for payload in payloads:
        if isinstance(payload, bytes):
            digest.update(b"b" + hashlib.sha256(payload).digest())
        else:
            state = None if payload is None else file_state(payload)
            digest.update(repr(state).encode("utf-8", "backslashreplace"))
    for column in columns:
        digest.update(repr(list(column)).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def _read(
    where: str,
    roles: Roles,
    settings: DataSettings,
    columns: Columns,
    payloads: Sequence[Payload],
    notes: Sequence[Problem],
    declared: Sequence[str] | None,
) -> Catalog:
    members: dict[Split, list[int]] = {"train": list(range(len(payloads)))}
    unused: list[Problem] = []
    if roles.split:
        members, unused = rows_of_splits(columns[roles.split], roles.split)
    images = columns[roles.image]
    has_paths = any(isinstance(value, str) for value in images)

    def rows_of(split: Split, chosen: Sequence[int]) -> Rows:
        return Rows(
            column=lambda name: [columns[name][row] for row in chosen],
            names=[encodable(value) if isinstance(value := images[row], str) else f"{split}[{row}]" for row in chosen],
            batches=partial(_batches, [payloads[row] for row in chosen]),
            paths=(lambda: [str(images[row]) for row in chosen]) if has_paths else None,
        )

    parts = {split: rows_of(split, chosen) for split, chosen in members.items()}
    return row_catalog(where, roles, settings, parts, declared=declared, problems=[*notes, *unused])


def _batches(payloads: Sequence[Payload]) -> Iterator[Sequence[Payload]]:
    for start in range(0, len(payloads), _ROWS_A_BATCH):
        yield payloads[start : start + _ROWS_A_BATCH]
