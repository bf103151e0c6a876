"""Data sets of the Hugging Face Hub, and what `datasets` has loaded."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from thaw.data.catalog import SPLIT_NAMES, SPLITS, Catalog, Source, Split, source_name
from thaw.data.problems import Problem
from thaw.data.settings import DataSettings
from thaw.data.tables import ROWS_A_BATCH, Opener, Table, one_line, reading, table_catalog, told_as_data_error
from thaw.errors import DataError
from thaw.quoting import listed, shown

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class RowsTable:
    """A split that `datasets` holds, read in its stored form.

    Attributes:
        rows: the split.
        schema: its columns.
        where: for messages.
        opener: what finds the file that a path in it means.
    """

    rows: Any
    schema: pa.Schema
    where: str
    opener: Opener

    def column(self, name: str) -> list[object]:
        """A whole column as Python values."""
        return [value for part in self._arrays(name, 10_000) for value in part.to_pylist()]

    def parts(self, name: str) -> Iterator[tuple[Opener, pa.Array]]:
        """A column in parts, each with what finds the file that a path in it means."""
        for array in self._arrays(name, ROWS_A_BATCH):
            yield self.opener, array

    def _arrays(self, name: str, rows: int) -> Iterator[pa.Array]:
        with told_as_data_error(f"{self.where} cannot be read"):
            for table in self.rows.select_columns([name]).with_format("arrow").iter(batch_size=rows):
                yield table.column(0).combine_chunks()


def hub_source(hub_id: str, settings: DataSettings, name: str = "") -> Source:
    """A data set of the Hub, `owner/name` or `owner/name:configuration`; downloaded when it is read.

    The cached copy is used from then on, whatever happens on the Hub.
    """
    facts = {"hub": hub_id, "reading": reading(settings)}
    label = source_name(name or hub_id.rsplit("/", maxsplit=1)[-1])
    return Source(name=label, facts=facts, read=partial(_read_hub, hub_id, settings, name))


def _downloaded_file(where: str, path: str) -> str:
    """The file that a row names.

    A table of the Hub comes from others, and could name any file of this machine as an image to be learnt: only what
    `datasets` itself has unpacked into its cache is opened.
    """
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


def _read_hub(hub_id: str, settings: DataSettings, name: str) -> Catalog:
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
        reason = one_line(error) if reachable else "its address cannot be resolved, so there is no network"
        raise DataError(_hub_failure(repository, name, reason)) from error
    tables: dict[Split, Table] = {}
    unused = []
    for key, rows in loaded.items():
        split = SPLIT_NAMES.get(str(key).lower())
        if split is None or split in tables:
            unused.append(str(key))
        else:
            tables[split] = RowsTable(
                rows, rows.features.arrow_schema, f"the downloaded copy of {hub_id}", partial(_downloaded_file, hub_id)
            )
    if not tables:
        raise DataError(
            f"{shown(hub_id)} has the splits {listed(unused)}: expected train, validation or test among them"
        )
    message = "splits other than train, validation and test are not used"
    problems = [Problem("unused", "warning", message, tuple(unused))] if unused else []
    return table_catalog(hub_id, {split: tables[split] for split in SPLITS if split in tables}, settings, problems)


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
