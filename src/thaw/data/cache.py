"""The cache of prepared data sets: found by a digest of their origin, and built atomically."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL

from thaw.data.catalog import Source, slug
from thaw.data.decode import DECODER_VERSION
from thaw.data.images import Fit
from thaw.data.scaling import ValueRange
from thaw.data.store import STORE_FORMAT, Store, open_store
from thaw.errors import DataError

BUILDING = ".building-"
_REPLACED = ".replaced-"

# Errors that only writing can raise; others may come from reading a source.
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

# A folder that nothing has written to for a day was left by a killed process.
_STALE_SECONDS = 24 * 3600


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """The folder for prepared data: `cache_dir` if given, else `THAW_CACHE`, else `thaw` in the user's cache folder."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if chosen := os.environ.get("THAW_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "thaw"


def _home() -> Path:
    try:
        return Path.home() / ".cache" / "thaw"
    except RuntimeError:
        raise DataError(
            "this user has no home folder for the cache of prepared images: name a folder with THAW_CACHE",
            code="data-cache",
        ) from None


def store_folder(
    root: Path, source: Source, wanted_input: str, fit: Fit, value_range: ValueRange | None = None
) -> Path:
    """The folder for the prepared copy of a source; its name depends on everything that determines its bytes."""
    facts: dict[str, Any] = {
        "format": STORE_FORMAT,
        "decoder": DECODER_VERSION,
        "pillow": PIL.__version__,
        "name": source.name,
        "source": source.facts,
        "input": source.usual_input if wanted_input == "auto" and source.usual_input else wanted_input,
        "fit": fit,
        "range": value_range,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    return root / f"{slug(source.name)}-{digest.hexdigest()[:24]}"


def open_or_build(folder: Path, build: Callable[[Path], Store]) -> Store:
    """The store in `folder`; it is built first if it is missing or damaged.

    `build` fills the temporary folder that it receives. If it fails or is interrupted, nothing remains. If two
    processes build at once, both use the result of the first to finish.

    Raises:
        DataError: when the cache cannot be written or the source cannot be read.
    """
    found = open_store(folder)
    if found is not None:
        return found
    with writing_cache(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        making = Path(tempfile.mkdtemp(prefix=BUILDING, dir=folder.parent))
    try:
        _fill(making, build)
        with writing_cache(folder.parent):
            _publish(making, folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    made = open_store(folder)
    if made is None:
        raise DataError(
            f"cache folder {folder} changed while it was built: start again, or name another with THAW_CACHE",
            code="data-cache",
        )
    return made


def _fill(making: Path, build: Callable[[Path], Store]) -> None:
    """Run `build`, and distinguish errors of the cache's disk from errors of the source."""
    try:
        build(making)
    except OSError as error:
        inside = isinstance(error.filename, str) and making.parent in Path(error.filename).parents
        if inside or error.errno in _WRITE_ERRORS:
            raise _cache_error(making.parent, error) from error
        raise DataError(f"cannot prepare the images: {' '.join(str(error).split())}", code="data-source") from error


def check_room(folder: Path, needed_bytes: int) -> None:
    """Check the free disk space.

    Raises:
        DataError: when `folder` has less than `needed_bytes` of free space.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise DataError(
            f"cache folder {folder} has {free >> 20:,} MiB free, the prepared images need {needed_bytes >> 20:,} MiB: "
            "free some space, or name a folder on another disk with THAW_CACHE",
            code="data-cache",
        )


def _publish(making: Path, folder: Path) -> None:
    """Rename a finished folder to its final name, replacing a damaged one."""
    for _ in range(10):
        try:
            making.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EACCES) or not folder.exists():
                raise
        if open_store(folder) is not None:
            return
        aside = folder.parent / f"{_REPLACED}{making.name[len(BUILDING) :]}"
        try:
            folder.rename(aside)
        except FileNotFoundError:
            continue
        shutil.rmtree(aside, ignore_errors=True) if aside.is_dir() else aside.unlink()


def _sweep(root: Path) -> None:
    """Remove folders that killed processes left."""
    for path in root.glob(".*-*"):
        if not path.name.startswith((BUILDING, _REPLACED)):
            continue
        try:
            newest = max(entry.stat().st_mtime for entry in (path, *path.iterdir()))
        except OSError:
            continue
        if time.time() - newest > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def writing_cache(root: Path) -> Iterator[None]:
    """Report an OSError as a cache folder that cannot be written."""
    try:
        yield
    except OSError as error:
        raise _cache_error(root, error) from error


def _cache_error(root: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write to cache folder {root} ({error.strerror or error}): "
        "check its free space and permissions, or name another folder with THAW_CACHE",
        code="data-cache",
    )


def take_rows(
    images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], root: Path, memory_bytes: int = 1 << 30
) -> npt.NDArray[np.uint8]:
    """Some of the images [N, h, w, c], in the order of `rows`: a view if the rows are consecutive, else a copy.

    A copy of more than `memory_bytes` is a memory-mapped temporary file in the cache folder, which the system can page
    out. It disappears with the process.
    """
    count = len(rows)
    if count and np.array_equal(rows, np.arange(rows[0], rows[0] + count)):
        return images[rows[0] : rows[0] + count]
    image_bytes = int(np.prod(images.shape[1:]))
    if count * image_bytes <= memory_bytes:
        result = np.ascontiguousarray(images[rows])
        result.flags.writeable = False
        return result
    step = max(1, (64 << 20) // image_bytes)
    with writing_cache(root):
        root.mkdir(parents=True, exist_ok=True)
        check_room(root, count * image_bytes)
        with tempfile.TemporaryFile(dir=root) as file:
            for start in range(0, count, step):
                file.write(images[rows[start : start + step]].tobytes())
            file.flush()
            return np.memmap(file, dtype=np.uint8, mode="r", shape=(count, *images.shape[1:]))
