"""The export folder: a subfolder for each format, with a manifest of the files that thaw wrote there.

OUT/onnx, OUT/litert, OUT/c, OUT/web    the files of a format, and in each
export.json                             their sizes and digests; "complete" only when all of them are there

The manifest distinguishes a complete export from an interrupted one, and thaw's files from other ones, which are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thaw.errors import ModelFileError, RunError
from thaw.export.card import PRECISIONS, Precision
from thaw.files import document, read_document, seal, sweep_unfinished, write_atomically
from thaw.quoting import shown

MANIFEST = "export.json"
EXPORT_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportedFormat:
    """A complete export of one format.

    Attributes:
        format: its name.
        precisions: "float", "int8" or both.
        files: content by name.
        changed: names of files that have changed since they were exported.
    """

    format: str
    precisions: tuple[Precision, ...]
    files: Mapping[str, bytes]
    changed: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form: precisions, and each file's size and digest."""
        return {"precisions": list(self.precisions), "files": _described(self.files)}


def write_format(
    out: Path, format_: str, precisions: Sequence[Precision], files: Mapping[str, bytes]
) -> ExportedFormat:
    """Write the files of a format to `out`/`format_`, replacing those of an earlier export.

    The folder counts as incomplete until the last file is there. Files that thaw did not write are kept.

    Raises:
        RunError: when the folder is a link, a file of the same name was not written by thaw, or writing fails.
    """
    wrong = [name for name in files if not _NAME.fullmatch(name) or name == MANIFEST]
    if wrong:
        raise AssertionError(f"an exporter wrote a file named {wrong[0]!r}")
    folder = out / format_
    earlier = _claim(folder, files)
    content = {"version": EXPORT_VERSION, "format": format_, "precisions": list(precisions)}
    # From now on the folder is thaw's own, and incomplete.
    _write_manifest(folder, {**content, "complete": False, "files": dict.fromkeys({*earlier, *files}, None)})
    for name in sorted(set(earlier) - set(files)):
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)
    for name, data in files.items():
        write_atomically(folder / name, data)
    _write_manifest(folder, {**content, "complete": True, "files": _described(files)})
    return ExportedFormat(format=format_, precisions=tuple(precisions), files=dict(files), changed=())


def read_format(out: Path, format_: str) -> ExportedFormat | None:
    """The export in `out`/`format_`; None if there is none.

    Raises:
        ModelFileError: when the export was interrupted, a file is missing, or the manifest is invalid.
    """
    folder = out / format_
    listed = _read_manifest(folder)
    if listed is None:
        return None
    if listed.get("complete") is not True:
        raise ModelFileError(
            f"{folder} contains an interrupted export\nexport it again with thaw export", code="model-file-export"
        )
    entries, files = listed["files"], {}
    for name in entries:
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            raise ModelFileError(
                f"{folder / name} was exported but cannot be read: {error.strerror}\nexport it again with thaw export",
                code="model-file-export",
            ) from error
    changed = tuple(name for name, data in files.items() if _described({name: data})[name] != entries[name])
    precisions = tuple(each for each in PRECISIONS if each in listed["precisions"])
    return ExportedFormat(format=format_, precisions=precisions, files=files, changed=changed)


def remove_exports(out: Path) -> None:
    """Remove everything that thaw exported to `out`, and the folders that are then empty."""
    for folder in out.iterdir() if out.is_dir() else ():
        with contextlib.suppress(ModelFileError, OSError):
            listed = None if folder.is_symlink() else _read_manifest(folder)
            for name in (*listed["files"], MANIFEST) if listed is not None else ():
                (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
    with contextlib.suppress(OSError):
        out.rmdir()


def exported_formats(out: Path) -> list[str]:
    """The names of the subfolders with a manifest, sorted."""
    return sorted(path.parent.name for path in out.glob(f"*/{MANIFEST}"))


def _claim(folder: Path, files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Create the folder, or check that thaw may write to it; returns the files of an earlier export."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.is_symlink():
            raise RunError(f"{folder} is a link to another folder\nchoose another folder with --out", code="run-export")
        sweep_unfinished(folder)
        try:
            listed = _read_manifest(folder)
        except ModelFileError as error:
            raise RunError(
                f"{str(error).splitlines()[0]}\nchoose another folder with --out", code="run-export"
            ) from error
        earlier = () if listed is None else tuple(listed["files"])
        foreign = sorted(name for name in files if name not in earlier and (folder / name).exists())
    except OSError as error:
        raise RunError(
            f"cannot export to {folder}: {error.strerror or error}\nchoose another folder with --out", code="run-export"
        ) from error
    if foreign:
        raise RunError(
            f"{folder / foreign[0]} exists and was not written by thaw export\n"
            "move it, or choose another folder with --out",
            code="run-export",
        )
    return earlier


def _write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    write_atomically(folder / MANIFEST, document(seal(content)))


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """The checked manifest of a format; None if there is none."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        content = read_document(path, remedy="export to another folder")
    except RunError as error:
        raise ModelFileError(str(error), code="model-file-export") from error
    if content.get("version") != EXPORT_VERSION:
        found = content.get("version")
        raise ModelFileError(
            f"{path} has version {shown(found)}; this version of thaw reads {EXPORT_VERSION}", code="model-file-export"
        )
    files, precisions = content.get("files"), content.get("precisions")
    if content.get("format") != folder.name or not isinstance(precisions, list) or not _is_listing(files, content):
        raise ModelFileError(
            f"{path} is not a valid manifest of thaw export\nexport to another folder", code="model-file-export"
        )
    return content


def _is_listing(files: object, content: Mapping[str, Any]) -> bool:
    """Whether they are plain file names, with sizes and digests if the export is complete."""
    if not isinstance(files, dict) or any(not _NAME.fullmatch(name) or name == MANIFEST for name in files):
        return False
    return content.get("complete") is not True or all(
        isinstance(entry, dict)
        and type(entry.get("bytes")) is int
        and isinstance(entry.get("sha256"), str)
        and _DIGEST.fullmatch(entry["sha256"]) is not None
        for entry in files.values()
    )


def _described(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    return {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
