"""The folder of a run: its name, its lock, and the files in it.

run.json            the request: enough to resume
recipe.toml         the resolved recipe
history.jsonl       one line per epoch
checkpoints/        last.safetensors: the state after the last epoch
folds/              one file per finished fold
model.safetensors   the trained model
training-images.safetensors  digests of its training images
model-int8.safetensors  its int8 graph
metrics.json        see docs/metrics.md
report.html
export/             exported files, one folder per format
deployment.json     results of export, verify and bench
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thaw.errors import RunError
from thaw.export.folder import remove_exports
from thaw.files import read_document, sweep_unfinished, write_atomically, write_document
from thaw.model.training_images import SEEN_FILE
from thaw.quoting import PATH_LENGTH, given, json_text, shell_command

RUN_VERSION = 1
DEPLOYMENT_FILE = "deployment.json"
EXPORT_FOLDER = "export"
# A run of the paper's network takes about 2 MB. Ten times that leaves room for larger families and more pictures.
NEEDED_BYTES = 20_000_000

_FOLDERS = ("checkpoints", "folds")
# The files of a run, in the order in which --overwrite removes them: run.json last, so that the folder still counts as
# a run after an interrupted removal.
_OWN_FILES = (
    DEPLOYMENT_FILE,
    "report.html",
    "metrics.json",
    "model-int8.safetensors",
    "model.safetensors",
    SEEN_FILE,
    "history.jsonl",
    "recipe.toml",
    "run.json",
)
_LOCK = ".lock"
_LONGEST_NAME = 80


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run's files."""

    path: Path

    @property
    def request(self) -> Path:
        """The request."""
        return self.path / "run.json"

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.toml"

    @property
    def history(self) -> Path:
        """One JSON line per epoch."""
        return self.path / "history.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The state after the last finished epoch."""
        return self.path / "checkpoints" / "last.safetensors"

    @property
    def model(self) -> Path:
        """The trained model."""
        return self.path / "model.safetensors"

    @property
    def training_images(self) -> Path:
        """Digests of the training images."""
        return self.path / SEEN_FILE

    @property
    def int8(self) -> Path:
        """The int8 graph of the model."""
        return self.path / "model-int8.safetensors"

    @property
    def metrics(self) -> Path:
        """The measurements."""
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        """The HTML page."""
        return self.path / "report.html"

    def fold(self, number: int) -> Path:
        """The result of fold `number`, from 1."""
        return self.path / "folds" / f"fold-{number}.json"

    def begin(self, request: Mapping[str, Any]) -> None:
        """Write run.json. The caller holds the lock.

        Raises:
            RunError: when another process has started a run here since the folder was made.
        """
        if self.request.exists():
            raise RunError(f"{self.path} exists already\nchoose another folder with --out", code="run-exists")
        write_document(self.request, request)

    def write_history(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Rewrite all lines: after a kill, some may be newer than the checkpoint."""
        write_atomically(self.history, "".join(json_text(record) + "\n" for record in records))


def create(out: Path | None, name: str, *, overwrite: bool = False) -> RunFolder:
    """Create a run folder: `out`, or the first free runs/<name>-<n>. `RunFolder.begin` turns it into a run.

    Raises:
        RunError: when it exists and is not empty (unless `overwrite`), cannot be written, or the disk is nearly full.
    """
    try:
        claimed = _first_free(Path("runs"), name) if out is None else _claim(out.expanduser(), overwrite=overwrite)
        folder = RunFolder(claimed)
        free_bytes = shutil.disk_usage(folder.path).free
        if free_bytes < NEEDED_BYTES:
            _remove_own(folder.path)
            raise RunError(
                f"{free_bytes / 1e6:.0f} MB are free at {folder.path.parent}; a run needs {NEEDED_BYTES / 1e6:.0f} MB\n"
                "free some space there, or choose another folder with --out",
                code="run-space",
            )
        for part in _FOLDERS:
            (folder.path / part).mkdir(exist_ok=True)
    # ValueError: a null byte in the path.
    except (OSError, ValueError) as error:
        target = given(out if out is not None else "runs", PATH_LENGTH)
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"cannot create run folder {target}: {reason}\nchoose another folder with --out", code="run-write"
        ) from error
    return folder


def open_for_resume(path: Path) -> tuple[RunFolder, dict[str, Any]]:
    """An existing run folder, and its run.json.

    Raises:
        RunError: when it is not a run folder, or belongs to another version.
    """
    folder = RunFolder(path.expanduser())
    if not folder.request.exists():
        raise RunError(
            f"{path} is not a run folder: it contains no run.json\nstart a run with thaw train SOURCE",
            code="run-folder",
        )
    request = read_json(folder.request)
    if request.get("version") != RUN_VERSION:
        raise RunError(
            f"{path} belongs to another version of thaw, so it cannot be resumed; start a new run", code="run-version"
        )
    return folder, request


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that a run wrote, without its digest.

    Raises:
        RunError: when it cannot be read, is not one, or was edited.
    """
    return read_document(path, remedy="restore the file, or start a new run")


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Lock the run folder against other processes. The system releases the lock when the process ends.

    Raises:
        RunError: when another process holds it.
    """
    try:
        file = (folder.path / _LOCK).open("w")
    except OSError as error:
        raise RunError(
            f"cannot write in {folder.path}: {error.strerror or error}\nmake it writable", code="run-write"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"another process is using {folder.path}; wait until it ends", code="run-busy") from None
        for part in ("", *_FOLDERS):
            sweep_unfinished(folder.path / part)
        yield


def _claim(path: Path, *, overwrite: bool) -> Path:
    if path.exists() and (not path.is_dir() or not _is_bare(path)):
        if not overwrite:
            is_stopped = (path / "run.json").is_file() and not (path / "metrics.json").is_file()
            message = f"{path} exists already: choose another folder with --out, or replace it with --overwrite"
            if is_stopped:
                message += f"\nor resume it with: {shell_command(['thaw', 'train', '--resume', str(path)])}"
            raise RunError(message, code="run-exists")
        if not path.is_dir() or not (path / "run.json").is_file():
            raise RunError(
                f"{path} is not a run folder, so --overwrite does not remove it\nchoose another folder with --out",
                code="run-folder",
            )
        with locked(RunFolder(path)):
            _remove_own(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _is_bare(path: Path) -> bool:
    """Whether a folder contains at most the files that a run creates before its run.json."""
    entries = list(path.iterdir())
    return all(entry.name in (*_FOLDERS, _LOCK) for entry in entries) and not any(
        any((path / part).iterdir()) for part in _FOLDERS if (path / part).is_dir()
    )


def _remove_own(path: Path) -> None:
    """Remove the files of a run and nothing else: the folder may contain other files of the user."""
    for part in _FOLDERS:
        shutil.rmtree(path / part, ignore_errors=True)
    remove_exports(path / EXPORT_FOLDER)
    for name in _OWN_FILES:
        (path / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.rmdir()


def _first_free(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = parent / f"{file_name(name)}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def file_name(name: str) -> str:
    """A short ASCII name for a file or folder, of letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", name)[:_LONGEST_NAME].strip("-.") or "run"
