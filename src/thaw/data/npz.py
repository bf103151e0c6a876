"""NumPy archives of arrays (.npz)."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from thaw.data.arrays import read_arrays
from thaw.data.catalog import SPLIT_NAMES, Catalog, Source, source_name
from thaw.data.settings import DataSettings
from thaw.data.walk import shown_path
from thaw.errors import DataError
from thaw.quoting import listed, shown

_IMAGE_WORDS = frozenset({"x", "image", "images", "img", "imgs", "data"})
_LABEL_WORDS = frozenset({"y", "label", "labels", "target", "targets"})
_GROUP_WORDS = frozenset({"group", "groups"})
_CLASS_KEYS = frozenset({"classes", "class_names", "label_names", "target_names"})
_EXPECTED = "expected images and labels, or x_train, y_train, x_test and y_test"


def npz_source(path: Path, settings: DataSettings) -> Source:
    """An archive with images and labels, or with both for each split (`x_train`, `train_images`, ...).

    Pickled objects are not loaded.
    """
    found = path.stat()
    facts = {"npz": [str(path.resolve()), found.st_size, found.st_mtime_ns], "merge": settings.merge_spellings}
    return Source(name=source_name(path.stem), facts=facts, read=lambda: _read(path, settings))


def _read(path: Path, settings: DataSettings) -> Catalog:
    where = shown_path(path)
    arrays = _load(path, where)
    parts: dict[str, dict[str, Any]] = {}
    given: dict[str, Any] = {}
    for key, array in arrays.items():
        split, role = _meaning(key)
        if role == "classes":
            given[role] = array.tolist()
        elif role and role in parts.setdefault(split, {}):
            message = f"{where} has several arrays of {split} {role}, such as {shown(key)}: {_EXPECTED}"
            raise DataError(message, code="data-arrays")
        elif role:
            parts[split][role] = array
    keys = listed(arrays)
    for split, roles in parts.items():
        lacking = next((role for role in ("images", "labels") if role not in roles), "")
        if lacking:
            raise DataError(f"{where} has no {split} {lacking} among {keys}: {_EXPECTED}", code="data-arrays")
        given[split] = tuple(roles[role] for role in ("images", "labels", "groups") if role in roles)
    if not parts:
        raise DataError(f"{where} holds {keys or 'nothing'}: {_EXPECTED}", code="data-arrays")
    return read_arrays(given, settings)


def _load(path: Path, where: str) -> dict[str, Any]:
    """The arrays whose names have a known meaning; None for others."""
    try:
        # np.load leaves a file open if it is not an archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] if _meaning(key)[1] else None for key in archive.files}
    except ValueError as error:
        reason = "it holds pickled objects, which are not loaded" if "pickle" in str(error).lower() else str(error)
        raise DataError(f"{where} cannot be read: {reason[:200]}", code="data-file") from None
    except (OSError, EOFError, KeyError, MemoryError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        message = f"{where} is not a readable .npz archive: {str(error)[:200] or type(error).__name__}"
        raise DataError(message, code="data-file") from None


def _meaning(key: str) -> tuple[str, str]:
    """The split and the role ("images", "labels", "groups", "classes", or "") that the words of a key name."""
    if key.lower() in _CLASS_KEYS:
        return "", "classes"
    words = re.split(r"[^a-z0-9]+", key.lower())
    split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "train")
    for role, known in (("labels", _LABEL_WORDS), ("groups", _GROUP_WORDS), ("images", _IMAGE_WORDS)):
        if known.intersection(words):
            return split, role
    return split, ""
