"""From what a user names (a data set, a path, a Hub id, arrays) to a source that can be read."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thaw.data.arrays import array_source, digits_source
from thaw.data.catalogue import Source
from thaw.data.decode import SUFFIXES
from thaw.data.folders import folder_source
from thaw.data.settings import DataSettings
from thaw.data.tables import hub_source, parquet_source
from thaw.errors import DataError, UsageError

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
        UsageError: when `data_root` is no folder.
    """
    if not isinstance(source, str | Path):
        return array_source(source)
    text = str(source)
    if text == "digits":
        return digits_source()
    if text in HUB_IDS:
        return _named_source(text, settings, data_root)
    path = Path(text).expanduser()
    if path.is_dir():
        has_parquet = any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")) or any(path.glob("*/*/*.parquet"))
        return parquet_source(path, settings) if has_parquet else folder_source(path)
    if path.is_file():
        return _file_source(path, settings)
    if isinstance(source, str) and _can_be_hub_id(text):
        return hub_source(text, settings)
    raise DataError(f"{text!r} is neither a path nor a known data set{_suggestion(path)}\nKnown: {', '.join(NAMES)}.")


def _named_source(name: str, settings: DataSettings, data_root: str | Path | None) -> Source:
    root = data_root if data_root is not None else os.environ.get("THAW_DATA", "")
    if root:
        if not Path(root).expanduser().is_dir():
            raise UsageError(f"{'--data-root' if data_root is not None else 'THAW_DATA'} {str(root)!r} is not a folder")
        folder = Path(root).expanduser() / name
        if folder.is_dir() and any(folder.rglob("*.parquet")):
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
