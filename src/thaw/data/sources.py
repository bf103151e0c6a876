"""From what a user names (a data set, a path, a Hub id, arrays) to a source that can be read."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from thaw.data.arrays import array_source, digits_source
from thaw.data.catalogue import Source
from thaw.data.decode import SUFFIXES
from thaw.data.folders import folder_source
from thaw.data.problems import Problem
from thaw.data.settings import DataSettings
from thaw.data.tables import hub_source, parquet_files, parquet_source
from thaw.errors import DataError, UsageError
from thaw.quoting import PATH_LENGTH, shown

SourceLike = str | Path | Sequence[Any] | Mapping[str, Any]
"""A name, path or Hub id; or arrays: (images, labels), or a mapping of splits to such pairs."""

HUB_IDS: Mapping[str, str] = {
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
}
"""Data sets with a name of their own, and where the Hub has them."""

NAMES = ("digits", *HUB_IDS)


def open_source(source: SourceLike, settings: DataSettings, *, data_root: str | Path | None = None) -> Source:
    """Finds a source; nothing is decoded or downloaded yet.

    Args:
        source: one of `NAMES`, a folder or parquet file, a Hub id (`owner/name`), or arrays.
        settings: column names for tables.
        data_root: a folder with parquet sub-folders for the named data sets; else the environment's `THAW_DATA`.

    Raises:
        DataError: when nothing is there by that name, or what is there is no data set.
        UsageError: when the source is empty, or `data_root` is no folder.
    """
    if data_root is not None and not isinstance(data_root, str | os.PathLike):
        raise UsageError(f"data root {shown(data_root)}: expected the path of a folder")
    if not isinstance(source, str | Path):
        return array_source(source)
    text = str(source)
    if not text.strip():
        raise UsageError(f"the source is empty: expected a folder, a parquet file, a Hub id, or {', '.join(NAMES)}")
    if text in NAMES:
        opened = digits_source() if text == "digits" else _named_source(text, settings, data_root)
        return _with_note(opened, text)
    try:
        path = Path(text).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    # A path may be too long, hold a zero byte, lie in a folder that is closed, or name a user that is unknown.
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{shown(text, PATH_LENGTH)} is no path that can be read: {reason}") from None
    if is_folder:
        return _directory_source(path, settings)
    if is_file:
        return _file_source(path, settings)
    if isinstance(source, str) and _can_be_hub_id(text):
        return hub_source(text, settings)
    told = f"{shown(text, PATH_LENGTH)} is neither a path nor a known data set{_suggestion(path)}"
    raise DataError(f"{told}\nKnown: {', '.join(NAMES)}.")


def _with_note(source: Source, name: str) -> Source:
    """Tells a folder of the same name that it was not meant."""
    if not Path(name).is_dir():
        return source
    message = f"{shown(name)} names the known data set; write ./{name} for the folder of that name"
    return replace(source, problems=(Problem("name", "note", message),))


def _directory_source(path: Path, settings: DataSettings) -> Source:
    tables = parquet_files(path)
    if not tables:
        return folder_source(path)
    if _has_image_folders(path):
        raise DataError(
            f"{path} holds both parquet files ({tables[0].relative_to(path)}) and folders of images, so what is meant "
            "is unclear\nGive the path of the parquet file, or move it out of the folder to use the images."
        )
    return parquet_source(path, settings)


def _has_image_folders(root: Path) -> bool:
    """Whether any sub-folder that is not hidden holds files that claim to be images."""
    return any(
        path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.relative_to(root).parts)
        for path in root.glob("*/**/*")
    )


def _named_source(name: str, settings: DataSettings, data_root: str | Path | None) -> Source:
    root = data_root if data_root is not None else os.environ.get("THAW_DATA", "")
    if root:
        if not Path(root).expanduser().is_dir():
            origin = "--data-root" if data_root is not None else "THAW_DATA"
            raise UsageError(f"{origin} {shown(str(root), PATH_LENGTH)} is not a folder")
        folder = Path(root).expanduser() / name
        if folder.is_dir() and parquet_files(folder):
            return parquet_source(folder, settings, name)
    return hub_source(HUB_IDS[name], settings, name)


def _file_source(path: Path, settings: DataSettings) -> Source:
    if path.suffix.lower() == ".parquet":
        return parquet_source(path, settings)
    if path.suffix.lower() in SUFFIXES:
        raise DataError(f"{path} is a single image: expected a folder with one sub-folder of images for each class")
    raise DataError(f"{path} is a file of no known kind: expected a folder of class folders, or a parquet file")


def _can_be_hub_id(text: str) -> bool:
    owner, _, name = text.partition("/")
    return bool(owner and name) and "/" not in name and not text.startswith((".", "~", "/")) and "\\" not in text


def _suggestion(path: Path) -> str:
    """The closest names: known data sets, and what lies beside the path."""
    try:
        beside = {entry.name: str(path.parent / entry.name) for entry in path.parent.iterdir()}
    except OSError:
        beside = {}
    choices = {**{name: name for name in NAMES}, **beside}
    close = difflib.get_close_matches(path.name, choices, n=2)
    return f": did you mean {' or '.join(choices[name] for name in close)}?" if close else "."
