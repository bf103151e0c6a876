"""Arrow tables of encoded images: parquet files, and anything that provides the same columns."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Protocol

from thaw.data.catalog import (
    SPLIT_NAMES,
    SPLITS,
    Catalog,
    Payload,
    Source,
    Split,
    source_name,
)
from thaw.data.columns import Roles, choose_roles, name_image_files, rows_of_splits
from thaw.data.problems import Problem
from thaw.data.row_catalog import Rows, row_catalog
from thaw.data.settings import DataSettings
from thaw.data.walk import file_state, walk_files
from thaw.errors import DataError
from thaw.quoting import encodable, listed, shown

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_A_BATCH = 256
_BATCH_BYTES = 32 << 20


Opener = Callable[[str], str]
"""From a path in a table to the path of the file; raises if the file must not be opened."""


class Table(Protocol):
    """One split as Arrow columns."""

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""

    def column(self, name: str) -> list[object]:
        """A whole column as Python values."""

    def parts(self, name: str) -> Iterator[tuple[Opener, pa.Array]]:
        """A column in parts of bounded size, each with the opener of paths in it."""


@dataclass(frozen=True)
class _ParquetTable:
    """The parquet files of one split."""

    files: Sequence[Path]
    schema: pa.Schema
    opener: Opener | None

    def column(self, name: str) -> list[object]:
        import pyarrow.parquet as pq

        values: list[object] = []
        for path in self.files:
            with reading_table(f"{path} is damaged"), pq.ParquetFile(path) as file:
                values += file.read(columns=[name]).column(0).to_pylist()
        return values

    def parts(self, name: str) -> Iterator[tuple[Opener, pa.Array]]:
        import pyarrow.parquet as pq

        for path in self.files:
            with reading_table(f"{path} is damaged"), pq.ParquetFile(path) as file:
                stored = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
                row_bytes = max(1, stored // max(1, file.metadata.num_rows))
                rows = min(ROWS_A_BATCH, max(1, _BATCH_BYTES // row_bytes))
                for batch in file.iter_batches(batch_size=rows, columns=[name]):
                    yield self.opener or partial(_below, path.parent), batch.column(0)


@contextmanager
def reading_table(what: str) -> Iterator[None]:
    """Report errors of the readers as DataErrors that name the table."""
    import pyarrow as pa

    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{what}: {one_line(error)}", code="data-file") from None


def parquet_files(root: Path) -> list[Path]:
    """All parquet files below a folder, sorted, without hidden ones.

    Raises:
        DataError: when a folder cannot be read.
    """
    found = (file for file in walk_files(root).files if file.path.lower().endswith(".parquet") and not file.hidden)
    return sorted(root / file.path for file in found if file.size >= 0)


def parquet_source(path: Path, settings: DataSettings, name: str = "") -> Source:
    """A parquet file, or a folder of them; names of files or folders (`train-00000-of-00001`) give the splits.

    Raises:
        DataError: when there is no parquet file.
    """
    files = [path] if path.is_file() else parquet_files(path)
    if not files:
        raise DataError(f"{path} holds no parquet files", code="data-empty")
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    tables, problems = parquet_tables(path, files)
    facts = {
        "parquet": [list(stat) for stat in stats],
        "files": [file_state(file) for table in tables.values() for file in _files_named(table, settings)],
        "reading": reading(settings),
    }
    label = name or (path.stem if path.is_file() else path.resolve().name)
    read = partial(table_catalog, str(path), tables, settings, problems)
    return Source(name=source_name(label), facts=facts, read=read)


def _files_named(table: Table, settings: DataSettings) -> Iterator[str]:
    """The files that the image column names, if it is a column of paths."""
    wanted = [settings.image_column] if settings.image_column in table.schema.names else None
    for name in wanted or _image_columns(table, _features(table.schema)):
        if _holds_text(table.schema.field(name).type):
            for opener, part in table.parts(name):
                yield from (opener(path) for path in part.to_pylist() if path)


def reading(settings: DataSettings) -> list[str | bool]:
    """The settings that the catalog of a table depends on."""
    columns = [settings.image_column, settings.label_column, settings.split_column]
    return [*columns, settings.group_by, settings.merge_spellings]


def one_line(error: BaseException) -> str:
    """The text of an error on one line, truncated."""
    return " ".join(str(error).split())[:200]


def parquet_tables(
    root: Path, files: Sequence[Path], opener: Opener | None = None
) -> tuple[dict[Split, Table], list[Problem]]:
    """One table per split, by the names of files and folders; files whose names give no split are reported.

    Args:
        root: the folder, or the only file.
        files: parquet files in it.
        opener: finds the file that a row names; by default, paths are relative to the folder of the parquet file.

    Raises:
        DataError: for a file that cannot be read or has other columns than the first of its split.
    """
    import pyarrow.parquet as pq

    members: dict[Split, list[Path]] = {}
    unknown: list[Path] = []
    for file in files:
        split = _split_of(file.relative_to(root) if root.is_dir() else PurePath(file.name))
        if split is None:
            unknown.append(file)
        else:
            members.setdefault(split, []).append(file)
    problems = []
    if not members or root.is_file():
        members, unknown = {"train": list(files)}, []
    if unknown:
        names = tuple(encodable(str(file.relative_to(root))) for file in unknown)
        problems.append(Problem("unused", "warning", "parquet files whose names give no split are ignored", names))
    tables: dict[Split, Table] = {}
    for split in (split for split in SPLITS if split in members):
        schemas = []
        for file in members[split]:
            with reading_table(f"{file} is not a readable parquet file"), pq.ParquetFile(file) as opened:
                schemas.append(opened.schema_arrow)
        tables[split] = _ParquetTable(members[split], schemas[0], opener)
        for file, schema in zip(members[split], schemas, strict=True):
            if schema.names != schemas[0].names:
                message = f"{file} has the columns {listed(schema.names)}, the first file {listed(schemas[0].names)}"
                raise DataError(message, code="data-columns")
    return tables, problems


def _split_of(path: PurePath) -> Split | None:
    """The split by the name of the file (`train-00000-of-00001.parquet`) or of a folder (`train/0000.parquet`)."""
    for part in (path.stem, *reversed(path.parent.parts)):
        word = re.split(r"[-_.]", part.lower().removeprefix("partial-"), maxsplit=1)[0]
        if word in SPLIT_NAMES:
            return SPLIT_NAMES[word]
    return None


def table_catalog(
    where: str, tables: Mapping[Split, Table], settings: DataSettings, problems: Iterable[Problem]
) -> Catalog:
    """The catalog of one table per split, or of one table with a split column.

    Args:
        where: the source, for messages.
        tables: the first determines the roles of the columns.
        settings: names of columns, and groups.
        problems: earlier problems.

    Raises:
        DataError: for a missing or ambiguous column.
    """
    table = next(iter(tables.values()))
    features = _features(table.schema)
    roles = choose_roles(
        where,
        table.schema.names,
        table.column,
        settings,
        images=lambda: _image_columns(table, features),
        labels=lambda left: _label_columns(table.schema, features, left),
    )
    for split, other in tables.items():
        for column in filter(None, (roles.image, roles.label, roles.group)):
            if column not in other.schema.names:
                raise DataError(
                    f"{where}: the {split} split has no column {shown(column)}, only {listed(other.schema.names)}",
                    code="data-columns",
                )
    members: Mapping[Split, list[int] | None] = dict.fromkeys(tables)
    unused: list[Problem] = []
    if roles.split and list(tables) == ["train"]:
        members, unused = rows_of_splits(table.column(roles.split), roles.split)
    parts = {split: _rows(tables.get(split, table), split, rows, roles, where) for split, rows in members.items()}
    declared = features.get(roles.label, {}).get("names")
    names = declared if isinstance(declared, list) else None
    return row_catalog(where, roles, settings, parts, declared=names, problems=[*problems, *unused])


def _rows(table: Table, split: Split, members: list[int] | None, roles: Roles, where: str) -> Rows:
    """The given rows of a table, or all of them."""

    def column(name: str) -> list[object]:
        values = table.column(name)
        return values if members is None else [values[row] for row in members]

    rows = range(len(table.column(roles.label))) if members is None else members
    has_paths = _holds_text(table.schema.field(roles.image).type)
    return Rows(
        column=column,
        names=[f"{split}[{row}]" for row in rows],
        batches=partial(_payloads, table, members, roles.image, where),
        paths=(lambda: [str(value) for value in column(roles.image)]) if has_paths else None,
    )


def _below(folder: Path, path: str) -> str:
    return str(folder / path)


def _payloads(table: Table, wanted: list[int] | None, column: str, where: str) -> Iterator[Sequence[Payload]]:
    """Encoded images, or paths if rows name files; of the wanted rows in ascending order, or of all rows."""
    start = 0
    for opener, part in table.parts(column):
        rows: list[Payload] = []
        if wanted is not None:
            first, last = bisect_left(wanted, start), bisect_left(wanted, start + len(part))
            start += len(part)
            part = part.take([row - start + len(part) for row in wanted[first:last]])  # noqa: PLW2901
        for value in part.to_pylist():
            found = value
            if isinstance(value, dict):
                found = value.get("bytes") if value.get("bytes") is not None else value.get("path") or None
            if isinstance(found, str):
                found = opener(found)
            elif found is not None and not isinstance(found, bytes):
                kind = type(found).__name__
                raise DataError(
                    f"{where}: column {shown(column)} holds {kind}: expected encoded images (bytes) or paths",
                    code="data-columns",
                )
            rows.append(found)
        yield rows


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Column types that the Hugging Face libraries store in a schema, if any."""
    raw = (schema.metadata or {}).get(b"huggingface")
    try:
        found = json.loads(raw)["info"]["features"] if raw else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}


def _image_columns(table: Table, features: Mapping[str, Mapping[str, Any]]) -> list[str]:
    import pyarrow as pa

    schema = table.schema
    declared = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    if declared:
        return declared

    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    found = [field.name for field in schema if holds_bytes(field.type)]
    texts = [field.name for field in schema if _holds_text(field.type)]
    return found or [name for name in texts if name_image_files(table.column(name))]


def _holds_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _label_columns(schema: pa.Schema, features: Mapping[str, Mapping[str, Any]], left: Sequence[str]) -> list[str]:
    import pyarrow as pa

    declared = [name for name in left if features.get(name, {}).get("_type") == "ClassLabel"]
    if declared:
        return declared

    def can_be_class(kind: pa.DataType) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        tests = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean)
        return any(test(kind) for test in tests)

    return [field.name for field in schema if field.name in left and can_be_class(field.type)]
