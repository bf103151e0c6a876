"""The folder of a run: its name, its lock, and the files in it.

    run.json            what was asked for: enough to resume
    recipe.toml         the resolved recipe
    history.jsonl       a line an epoch
    checkpoints/        last.safetensors: where to go on from
    folds/              a file a finished fold
    model.safetensors   the trained model
    metrics.json        see docs/metrics.md
    report.html
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thaw.errors import RunError
from thaw.files import write_atomically

fcntl: Any
try:
    import fcntl
except ImportError:
    fcntl = None

RUN_VERSION = 1
# A run of the paper's network takes about 2 MB; ten times that leaves room for larger families and the report's pictures.
NEEDED_BYTES = 20_000_000


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run's files."""

    path: Path

    @property
    def request(self) -> Path:
        """What was asked for."""
        return self.path / "run.json"

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.toml"

    @property
    def history(self) -> Path:
        """A JSON line an epoch."""
        return self.path / "history.jsonl"

    @property
    def checkpoint(self) -> Path:
        """Where to go on from."""
        return self.path / "checkpoints" / "last.safetensors"

    @property
    def model(self) -> Path:
        """The trained model."""
        return self.path / "model.safetensors"

    @property
    def metrics(self) -> Path:
        """What was measured."""
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.path / "report.html"

    def fold(self, number: int) -> Path:
        """What fold `number` (from 1) gave."""
        return self.path / "folds" / f"fold-{number}.json"

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """One JSON object, atomically; numbers that are not finite are our own mistake and raise ValueError."""
        write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_history(self, records: Sequence[Mapping[str, Any]]) -> None:
        """All lines anew: after a kill, lines past the last checkpoint must go."""
        write_atomically(self.history, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))


def create(out: Path | None, name: str, *, overwrite: bool = False) -> RunFolder:
    """A new run folder: `out`, or the first free runs/<name>-<n>.

    Raises:
        RunError: when it exists and is not empty (unless `overwrite`), cannot be written, or the disk is nearly full.
    """
    try:
        path = _claim(out, overwrite=overwrite) if out is not None else _first_free(Path("runs"), _slug(name))
        (path / "checkpoints").mkdir()
        (path / "folds").mkdir()
        free_bytes = shutil.disk_usage(path).free
    except OSError as error:
        target = out if out is not None else Path("runs")
        raise RunError(
            f"cannot make a run folder at {target}: {error.strerror or error}\nchoose another place with --out"
        ) from error
    if free_bytes < NEEDED_BYTES:
        shutil.rmtree(path, ignore_errors=True)
        raise RunError(
            f"{free_bytes / 1e6:.0f} MB are free at {path.parent}, a run needs {NEEDED_BYTES / 1e6:.0f} MB\n"
            "free some space there, or choose another folder with --out"
        )
    return RunFolder(path)


def open_for_resume(path: Path) -> tuple[RunFolder, dict[str, Any]]:
    """An existing run folder and what was asked for in it.

    Raises:
        RunError: when it is none, or was made by another version.
    """
    folder = RunFolder(path)
    try:
        request = json.loads(folder.request.read_text("utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is not a run folder: it holds no run.json") from None
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {folder.request}: {error}") from error
    if not isinstance(request, dict) or request.get("version") != RUN_VERSION:
        raise RunError(f"{path} was made by another version of thaw and cannot be resumed")
    return folder, request


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Hold the run folder against a second process; the system frees the lock with the process, however it ends.

    Raises:
        RunError: when another process is at work in it.
    """
    with (folder.path / ".lock").open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(f"another process is at work in {folder.path}; wait until it has ended") from None
        yield


def _claim(path: Path, *, overwrite: bool) -> Path:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        if not overwrite:
            raise RunError(f"{path} exists already\nchoose another folder with --out, or allow it with --overwrite")
        # Only what a run made is removed: an --out that points at somebody's photos must not cost them.
        if not path.is_dir() or not (path / "run.json").is_file():
            raise RunError(f"{path} is not a run folder, so --overwrite leaves it alone; choose another folder with --out")
        with locked(RunFolder(path)):
            shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _first_free(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        try:
            (parent / f"{name}-{number}").mkdir()
        except FileExistsError:
            number += 1
        else:
            return parent / f"{name}-{number}"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.") or "run"
