"""Data sets of the Hugging Face Hub, read from the parquet files that the Hub keeps for public data sets.

The Hub converts image folders, archives and tables of all kinds to parquet, on the branch `refs/convert/parquet`, as
CONFIGURATION/SPLIT/NUMBER.parquet, images included. Nothing else is downloaded, and rows cannot open files.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from thaw.data.cache import BUILDING, cache_root, writing_cache
from thaw.data.catalog import Catalog, Source, slug, source_name
from thaw.data.problems import Problem
from thaw.data.settings import DataSettings
from thaw.data.tables import one_line, parquet_files, parquet_tables, reading, table_catalog
from thaw.errors import DataError
from thaw.quoting import listed, shown

# The repository's own files come second: the Hub does not convert private data sets.
_REVISIONS = ("refs/convert/parquet", "main")
# The Hub converts only the first part of a split over 5 GB, and marks its folder with this prefix.
_PARTIAL = "partial-"


def hub_source(hub_id: str, settings: DataSettings, name: str = "") -> Source:
    """A data set of the Hub, `owner/name` or `owner/name:configuration`.

    It is downloaded once, when it is first read; later reads use the copy in the cache folder.
    """
    facts = {"hub": hub_id, "reading": reading(settings)}
    label = source_name(name or hub_id.rsplit("/", maxsplit=1)[-1])
    return Source(name=label, facts=facts, read=partial(_read_hub, hub_id, settings, name))


def _read_hub(hub_id: str, settings: DataSettings, name: str) -> Catalog:
    folder = _downloaded(hub_id, name)
    files = parquet_files(folder)
    tables, problems = parquet_tables(folder, files, opener=partial(_refuse_file, hub_id))
    if any(part.startswith(_PARTIAL) for file in files for part in file.relative_to(folder).parts):
        message = "the Hub has converted only the first part of this data set; for all of it, download its files"
        problems.append(Problem("partial", "warning", message))
    return table_catalog(hub_id, tables, settings, problems)


def _refuse_file(hub_id: str, path: str) -> str:
    """Reject paths in tables of the Hub: the tables are not trusted, and could name any file of this machine."""
    raise DataError(
        f"{hub_id}: a row names the file {shown(path)} instead of holding an image: files are not opened",
        code="data-hub-file",
    )


def _downloaded(hub_id: str, name: str) -> Path:
    """The folder that holds a configuration's parquet files, downloaded whole or not at all."""
    root = cache_root()
    folder = root / f"hub-{slug(hub_id)}-{hashlib.sha256(hub_id.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    with writing_cache(root):
        root.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=BUILDING, dir=root))
    try:
        found = _download(hub_id, name, making)
        with writing_cache(root):
            if not folder.is_dir():
                found.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def _download(hub_id: str, name: str, making: Path) -> Path:
    """Download a configuration to a subfolder of `making` and return that folder."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    repository, _, configuration = hub_id.partition(":")
    try:
        for revision in _REVISIONS:
            try:
                files = HfApi().list_repo_files(repository, repo_type="dataset", revision=revision)
            except RevisionNotFoundError:
                continue
            folder = _configuration(hub_id, configuration, [file for file in files if file.endswith(".parquet")])
            if folder is not None:
                # `*` matches any characters here, including slashes.
                wanted = f"{folder}/*.parquet" if folder else "*.parquet"
                snapshot_download(
                    repository, repo_type="dataset", revision=revision, local_dir=making, allow_patterns=wanted
                )
                return making / folder
    except RepositoryNotFoundError as error:
        message = f"{repository} is not a public data set of the Hub: check its name"
        raise DataError(message, code="data-hub") from error
    except DataError:
        raise
    # In addition to its own errors, `huggingface_hub` raises those of the network and of the file system.
    except Exception as error:
        raise DataError(_failure(repository, name, one_line(error)), code="data-hub") from error
    raise DataError(
        f"{repository} has no parquet files on the Hub: download its files and give their folder", code="data-hub"
    )


def _configuration(hub_id: str, wanted: str, files: Sequence[str]) -> str | None:
    """The folder of the configuration; None if a revision holds no parquet files."""
    folders = sorted({file.rpartition("/")[0].partition("/")[0] for file in files})
    if not folders:
        return None
    chosen = wanted or ("default" if "default" in folders else folders[0])
    if chosen not in folders or (not wanted and len(folders) > 1 and chosen != "default"):
        repository = hub_id.partition(":")[0]
        raise DataError(
            f"{repository} has the configurations {listed(folders)}\n"
            f"Name one after a colon, as in {repository}:{folders[0]}.",
            code="data-hub-configuration",
        )
    return chosen


def _failure(repository: str, name: str, reason: str) -> str:
    if name:
        return (
            f"{name} could not be downloaded from the Hub ({repository}): {reason}\n"
            f"Without a network: put its parquet files into DIR/{name} and set --data-root DIR or THAW_DATA."
        )
    return (
        f"{repository} is not a path here, and could not be downloaded from the Hub: {reason}\n"
        "Check the name and the network, or give the path of a local copy (parquet files or class folders)."
    )
