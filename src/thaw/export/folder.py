"""The folder that artifacts are exported to: a subfolder a target, each with a list of what thaw wrote there.

OUT/onnx, OUT/litert, OUT/c, OUT/web    the files of a target, and in each
export.json                             their sizes and digests; "complete" only once all of them are there

The list is what tells a whole export from half a one, and thaw's files from somebody else's, which are left alone.
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
from thaw.export.card import Precision
from thaw.files import document, read_document, seal, sweep_unfinished, write_atomically
from thaw.quoting import shown

MANIFEST = "export.json"
EXPORT_VERSION = 1
TARGETS: Mapping[str, tuple[Precision, ...]] = {"onnx": ("float", "int8"), "litert": ("float", "int8"), "c": ("int8",)}
"""What is exported unless targets are named, and in which precisions."""

ALL_TARGETS: Mapping[str, tuple[Precision, ...]] = {**TARGETS, "web": ("float", "int8")}
"""What can be exported. The web page holds another runtime of 14 MB, so it is made where it is asked for."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportedTarget:
    """A whole export of one target, read back.

    Attributes:
        target: "onnx", "litert", "c" or "web".
        precisions: "float", "int8" or both.
        files: content by name.
        changed: names of files that are no longer what was exported.
    """

    target: str
    precisions: tuple[Precision, ...]
    files: Mapping[str, bytes]
    changed: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form: precisions, and each file's size and digest."""
        return {"precisions": list(self.precisions), "files": _described(self.files)}


def write_target(out: Path, target: str, precisions: Sequence[Precision], files: Mapping[str, bytes]) -> ExportedTarget:
    """Write the files of a target to `out`/`target`, in place of those of an earlier export.

    Until the last of them is there the folder counts as unfinished. Files that thaw did not write stay.

    Raises:
        RunError: when the folder leads elsewhere, a file of the same name was not written by thaw, or it cannot be
            written.
    """
    wrong = [name for name in files if not _NAME.fullmatch(name) or name == MANIFEST]
    if wrong:
        raise AssertionError(f"an exporter named a file {wrong[0]!r}")
    folder = out / target
    earlier = _claim(folder, files)
    content = {"version": EXPORT_VERSION, "target": target, "precisions": list(precisions)}
    # Whatever is in the folder from now on is thaw's own, and not yet whole.
    _write_manifest(folder, {**content, "complete": False, "files": dict.fromkeys({*earlier, *files}, None)})
    for name in sorted(set(earlier) - set(files)):
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)
    for name, data in files.items():
        write_atomically(folder / name, data)
    _write_manifest(folder, {**content, "complete": True, "files": _described(files)})
    return ExportedTarget(target=target, precisions=tuple(precisions), files=dict(files), changed=())


def read_target(out: Path, target: str) -> ExportedTarget | None:
    """What was exported to `out`/`target`; None where nothing was.

    Raises:
        ModelFileError: when the export was cut short, a file of it is missing, or its list is not one of ours.
    """
    folder = out / target
    listed = _read_manifest(folder)
    if listed is None:
        return None
    if listed.get("complete") is not True:
        raise ModelFileError(f"{folder} holds half an export, which was cut short\nexport it again with thaw export")
    entries, files = listed["files"], {}
    for name in entries:
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            raise ModelFileError(
                f"{folder / name} was exported but cannot be read: {error.strerror}\nexport it again with thaw export"
            ) from error
    changed = tuple(name for name, data in files.items() if _described({name: data})[name] != entries[name])
    precisions = tuple(each for each in ALL_TARGETS[target] if each in listed["precisions"])
    return ExportedTarget(target=target, precisions=precisions, files=files, changed=changed)


def remove_exports(out: Path) -> None:
    """Remove what thaw exported to `out`, and the folders that are empty then."""
    for target in ALL_TARGETS:
        folder = out / target
        with contextlib.suppress(ModelFileError, OSError):
            listed = None if folder.is_symlink() else _read_manifest(folder)
            for name in (*listed["files"], MANIFEST) if listed is not None else ():
                (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
    with contextlib.suppress(OSError):
        out.rmdir()


def _claim(folder: Path, files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Make the folder, or see that it may be written to; the names of an earlier export's files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.is_symlink():
            raise RunError(f"{folder} is a link to another folder\nchoose another folder with --out")
        sweep_unfinished(folder)
        try:
            listed = _read_manifest(folder)
        except ModelFileError as error:
            raise RunError(f"{str(error).splitlines()[0]}\nchoose another folder with --out") from error
        earlier = () if listed is None else tuple(listed["files"])
        foreign = sorted(name for name in files if name not in earlier and (folder / name).exists())
    except OSError as error:
        raise RunError(
            f"cannot export to {folder}: {error.strerror or error}\nchoose another folder with --out"
        ) from error
    if foreign:
        raise RunError(
            f"{folder / foreign[0]} is there already and was not written by thaw export\n"
            "move it away, or choose another folder with --out"
        )
    return earlier


def _write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    write_atomically(folder / MANIFEST, document(seal(content)))


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """The list of a target's files, checked; None where there is none."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        content = read_document(path, mend="export to another folder")
    except RunError as error:
        raise ModelFileError(str(error)) from error
    if content.get("version") != EXPORT_VERSION:
        found = content.get("version")
        raise ModelFileError(f"{path} has format version {shown(found)}, this thaw reads version {EXPORT_VERSION}")
    files, precisions = content.get("files"), content.get("precisions")
    if content.get("target") != folder.name or not isinstance(precisions, list) or not _is_listing(files, content):
        raise ModelFileError(f"{path} is no list that thaw export wrote\nexport to another folder")
    return content


def _is_listing(files: object, content: Mapping[str, Any]) -> bool:
    """Whether they are plain names, none of which leads elsewhere, with sizes and digests if the export is whole."""
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
