"""Tables of encoded images: parquet files, and data sets of the Hugging Face Hub."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlparse

import numpy as np

from thaw.data.catalogue import (
    NO_LABEL,
    SPLIT_NAMES,
    SPLITS,
    Catalogue,
    Encoded,
    Entries,
    Payload,
    Source,
    Split,
    encode_labels,
    source_name,
)
from thaw.data.problems import Problem
from thaw.data.settings import DataSettings
from thaw.errors import DataError
from thaw.quoting import encodable, listed, shown

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_A_BATCH = 256
_BATCH_BYTES = 32 << 20

# Where several columns could be the class, a plain name decides.
_LABEL_NAMES = ("label", "labels", "class", "target")


class _Table(Protocol):
    """One split as a table of Arrow columns."""

    @property
    def schema(self) -> pa.Schema:
        """Names and types of all columns."""

    def column(self, name: str) -> list[object]:
        """A whole column as Python values."""

    def parts(self, name: str) -> Iterator[tuple[Path | None, pa.Array]]:
        """A column in parts of bounded size, each with the folder that paths in it start from.

        None for tables of others, whose paths are not trusted.
        """


@dataclass(frozen=True)
class _ParquetTable:
    """The parquet files of one split, one after the other."""

    files: Sequence[Path]
    schema: pa.Schema

    def column(self, name: str) -> list[object]:
        import pyarrow.parquet as pq

        values: list[object] = []
        for path in self.files:
            with _told_as_data_error(f"{path} cannot be read to its end"), pq.ParquetFile(path) as file:
                values += file.read(columns=[name]).column(0).to_pylist()
        return values

    def parts(self, name: str) -> Iterator[tuple[Path | None, pa.Array]]:
        import pyarrow.parquet as pq

        for path in self.files:
            with _told_as_data_error(f"{path} cannot be read to its end"), pq.ParquetFile(path) as file:
                stored = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
                row_bytes = max(1, stored // max(1, file.metadata.num_rows))
                rows = min(_ROWS_A_BATCH, max(1, _BATCH_BYTES // row_bytes))
                for batch in file.iter_batches(batch_size=rows, columns=[name]):
                    yield path.parent, batch.column(0)


@dataclass(frozen=True)
class _HubTable:
    """A split that `datasets` has downloaded, read in its stored form."""

    rows: Any
    schema: pa.Schema
    hub_id: str

    def column(self, name: str) -> list[object]:
        return [value for part in self._arrays(name, 10_000) for value in part.to_pylist()]

    def parts(self, name: str) -> Iterator[tuple[Path | None, pa.Array]]:
        for array in self._arrays(name, _ROWS_A_BATCH):
            yield None, array

    def _arrays(self, name: str, rows: int) -> Iterator[pa.Array]:
        with _told_as_data_error(f"the downloaded copy of {self.hub_id} cannot be read"):
            for table in self.rows.select_columns([name]).with_format("arrow").iter(batch_size=rows):
                yield table.column(0).combine_chunks()


@contextmanager
def _told_as_data_error(what: str) -> Iterator[None]:
    """Names the table in errors of its readers, some of which are OSErrors without a file name."""
    import pyarrow as pa

    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{what}: {_one_line(error)}") from None


def parquet_files(root: Path) -> list[Path]:
    """All parquet files below a folder, sorted; hidden files and those in hidden folders are none."""
    return sorted(
        path
        for path in root.rglob("*.parquet")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


def parquet_source(path: Path, settings: DataSettings, name: str = "") -> Source:
    """A parquet file, or a folder that holds some; file or folder names (`train-00000-of-00001`) tell the splits.

    Raises:
        DataError: when there is no parquet file.
    """
    files = [path] if path.is_file() else parquet_files(path)
    if not files:
        raise DataError(f"{path} holds no parquet files")
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    facts = {"parquet": [list(stat) for stat in stats], "columns": [settings.image_column, settings.label_column]}
    label = name or (path.stem if path.is_file() else path.resolve().name)
    return Source(name=source_name(label), facts=facts, read=partial(_read_parquet, path, files, settings))


def hub_source(hub_id: str, settings: DataSettings, name: str = "") -> Source:
    """A data set of the Hub, `owner/name` or `owner/name:configuration`; downloaded when it is read.

    The cached copy is used from then on, whatever happens on the Hub.
    """
    facts = {"hub": hub_id, "columns": [settings.image_column, settings.label_column]}
    label = source_name(name or hub_id.rsplit("/", maxsplit=1)[-1])
    return Source(name=label, facts=facts, read=partial(_read_hub, hub_id, settings, name))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _read_parquet(root: Path, files: Sequence[Path], settings: DataSettings) -> Catalogue:
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
        problems.append(Problem("unused", "warning", "parquet files whose names tell no split are not used", names))
    tables: dict[Split, _Table] = {}
    for split in (split for split in SPLITS if split in members):
        schemas = []
        for file in members[split]:
            with _told_as_data_error(f"{file} is no readable parquet file"), pq.ParquetFile(file) as opened:
                schemas.append(opened.schema_arrow)
        tables[split] = _ParquetTable(members[split], schemas[0])
        for file, schema in zip(members[split], schemas, strict=True):
            if schema.names != schemas[0].names:
                first = f"{members[split][0].name} has {listed(schemas[0].names)}"
                raise DataError(f"{file} has columns {listed(schema.names)}, {first}")
    return _catalogue(str(root), tables, settings, problems)


def _split_of(path: PurePath) -> Split | None:
    """By the file's name (`train-00000-of-00001.parquet`), else by the nearest folder's (`train/0000.parquet`)."""
    for part in (path.stem, *reversed(path.parent.parts)):
        word = re.split(r"[-_.]", part.lower(), maxsplit=1)[0]
        if word in SPLIT_NAMES:
            return SPLIT_NAMES[word]
    return None


def _catalogue(
    where: str, tables: Mapping[Split, _Table], settings: DataSettings, problems: Iterable[Problem]
) -> Catalogue:
    schema = next(iter(tables.values())).schema
    features = _features(schema)
    image = _choose("image", settings.image_column, _image_columns(schema, features), schema, where)
    label = _choose("label", settings.label_column, _label_columns(schema, features, image), schema, where)
    for split, table in tables.items():
        for column in (image, label):
            if column not in table.schema.names:
                only = listed(table.schema.names)
                raise DataError(f"{where}: the {split} split has no column {shown(column)}, only {only}")
    values = {split: table.column(label) for split, table in tables.items()}
    names = {split: [f"{split}[{row}]" for row in range(len(column))] for split, column in values.items()}
    odd = next((v for c in values.values() for v in c if v is not None and not isinstance(v, int | str)), None)
    if odd is not None:
        raise DataError(
            f"{where}: column {shown(label)} holds {shown(odd)}: expected whole numbers or texts as classes"
        )
    declared = features.get(label, {}).get("names")
    encoded = _without_unused(encode_labels(values, names, declared if isinstance(declared, list) else None))
    splits = {
        split: Entries(names=names[split], labels=labels, batches=partial(_payloads, tables[split], image, where))
        for split, labels in encoded.labels.items()
    }
    return Catalogue(
        classes=encoded.classes, splits=splits, named=encoded.named, problems=(*problems, *encoded.problems)
    )


def _without_unused(encoded: Encoded) -> Encoded:
    """Leaves out declared classes that no row has: nobody could add images to another's table, or learn the class."""
    used = np.unique(np.concatenate([labels[labels != NO_LABEL] for labels in encoded.labels.values()]))
    if len(used) == len(encoded.classes):
        return encoded
    unused = tuple(name for index, name in enumerate(encoded.classes) if index not in used)
    told = Problem("class", "warning", "declared classes without a single image are left out", unused)
    labels = {
        split: np.where(column == NO_LABEL, NO_LABEL, np.searchsorted(used, column))
        for split, column in encoded.labels.items()
    }
    classes = tuple(encoded.classes[index] for index in used)
    return replace(encoded, classes=classes, labels=labels, problems=(*encoded.problems, told))


def _payloads(table: _Table, column: str, where: str) -> Iterator[Sequence[Payload]]:
    """Encoded bytes, or paths where a row names a file instead."""
    for folder, part in table.parts(column):
        rows: list[Payload] = []
        for value in part.to_pylist():
            found = value
            if isinstance(value, dict):
                found = value.get("bytes") if value.get("bytes") is not None else value.get("path") or None
            if isinstance(found, str):
                found = _file_named(found, folder, where)
            elif found is not None and not isinstance(found, bytes):
                kind = type(found).__name__
                raise DataError(
                    f"{where}: column {shown(column)} holds {kind}: expected encoded images (bytes) or paths"
                )
            rows.append(found)
        yield rows


def _file_named(path: str, folder: Path | None, where: str) -> str:
    """The file that a row names.

    A table of the Hub comes from others, and could name any file of this machine as an image to be learnt: only what
    `datasets` itself has unpacked into its cache is opened.
    """
    if folder is not None:
        return str(folder / path)
    import datasets

    caches = (datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, _hub_cache())
    named = Path(path)
    if named.is_absolute() and ".." not in named.parts:
        real = named.resolve()
        if any(real.is_relative_to(Path(cache).resolve()) for cache in caches):
            return str(real)
    raise DataError(f"{where}: a row names the file {shown(path)}, which is no part of the data set: it is not opened")


def _hub_cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Column types as the Hugging Face libraries write them into a schema; empty where they are not there."""
    raw = (schema.metadata or {}).get(b"huggingface")
    try:
        found = json.loads(raw)["info"]["features"] if raw else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}


def _image_columns(schema: pa.Schema, features: Mapping[str, Mapping[str, Any]]) -> list[str]:
    import pyarrow as pa

    declared = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    if declared:
        return declared

    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    return [field.name for field in schema if holds_bytes(field.type)]


def _label_columns(schema: pa.Schema, features: Mapping[str, Mapping[str, Any]], image: str) -> list[str]:
    import pyarrow as pa

    declared = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    if declared:
        return declared

    def can_be_class(kind: pa.DataType) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        tests = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean)
        return any(test(kind) for test in tests)

    found = [field.name for field in schema if field.name != image and can_be_class(field.type)]
    plain = [name for name in found if name.lower() in _LABEL_NAMES]
    return plain if len(plain) == 1 else found


def _choose(what: str, wanted: str, candidates: Sequence[str], schema: pa.Schema, where: str) -> str:
    if wanted:
        if wanted not in schema.names:
            raise DataError(
                f"{where} has no column {shown(wanted)}: {what}_column must be one of {listed(schema.names)}"
            )
        return wanted
    if not candidates:
        raise DataError(f"{where} has no {what} column among {listed(schema.names)}: name one with data.{what}_column")
    if len(candidates) > 1:
        raise DataError(f"{where} has several {what} columns: choose data.{what}_column from {listed(candidates)}")
    return candidates[0]


def _read_hub(hub_id: str, settings: DataSettings, name: str) -> Catalogue:
    import datasets

    repository, _, configuration = hub_id.partition(":")
    reachable = _hub_resolves()
    try:
        with nullcontext() if reachable else _offline():
            loaded = datasets.load_dataset(repository, configuration or None)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(f"{repository} is not a public data set of the Hub: check its name") from error
    # Besides its own errors `datasets` passes on those of the network, the file system and the readers below it.
    except Exception as error:
        reason = _one_line(error) if reachable else "its address cannot be resolved, so there is no network"
        raise DataError(_hub_failure(repository, name, reason)) from error
    tables: dict[Split, _Table] = {}
    unused = []
    for key, rows in loaded.items():
        split = SPLIT_NAMES.get(str(key).lower())
        if split is None or split in tables:
            unused.append(str(key))
        else:
            tables[split] = _HubTable(rows, rows.features.arrow_schema, hub_id)
    if not tables:
        raise DataError(
            f"{shown(hub_id)} has the splits {listed(unused)}: expected train, validation or test among them"
        )
    message = "splits other than train, validation and test are not used"
    problems = [Problem("unused", "warning", message, tuple(unused))] if unused else []
    return _catalogue(hub_id, {split: tables[split] for split in SPLITS if split in tables}, settings, problems)


def _hub_failure(repository: str, name: str, reason: str) -> str:
    if "config name is missing" in reason.lower():
        return f"{repository}: {reason}\nName a configuration after a colon, as in {repository}:NAME."
    if name:
        return (
            f"{name} could not be downloaded from the Hub ({repository}): {reason}\n"
            f"Without a network: put its parquet files into DIR/{name} and set --data-root DIR or THAW_DATA."
        )
    return (
        f"{repository} is no path here, and could not be downloaded from the Hub: {reason}\n"
        "Check the name and the network, or give the path of a local copy (parquet files or class folders)."
    )


@contextmanager
def _offline() -> Iterator[None]:
    """Spares half a minute of retries; data sets that `datasets` has downloaded earlier still open."""
    import datasets
    from huggingface_hub import constants

    before = (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _hub_resolves() -> bool:
    """Whether the Hub's name resolves, or need not because a proxy does it."""
    from huggingface_hub import constants

    if any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
        return True
    try:
        return bool(socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname or "", 443))
    except OSError:
        return False
