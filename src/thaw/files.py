"""Atomic file writes, and JSON documents with a digest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from thaw.errors import RunError
from thaw.quoting import json_text

SEAL = "sha256"
"""The key of a document's digest."""

Part = tuple[str, str, tuple[int, ...], bytes]
"""A named array for a digest: name, dtype, shape, bytes (C order, little-endian)."""


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path`. A reader sees the old or the new file, even after a power failure.

    Raises:
        RunError: when the disk is full or the folder is not writable; the old file is then unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}\n"
            "free some disk space, or choose another folder with --out",
            code="run-write",
        ) from error
    finally:
        # The temporary file remains only after a failure, including Ctrl-C.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sweep_unfinished(folder: Path) -> None:
    """Remove temporary files of `write_atomically` that a killed process left in `folder`."""
    with contextlib.suppress(OSError):
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)


def digest(content: Mapping[str, Any], parts: Iterable[Part] = ()) -> str:
    """Hexadecimal SHA-256 of a JSON-ready object (without its `SEAL`) and named arrays.

    It does not depend on the order of keys or arrays.

    Raises:
        ValueError: for a number that is not finite.
    """
    plain = {key: value for key, value in content.items() if key != SEAL}
    found = hashlib.sha256(json.dumps(plain, sort_keys=True, allow_nan=False).encode())
    for name, dtype, shape, data in sorted(parts):
        found.update(f"{name} {dtype} {shape}".encode() + data)
    return found.hexdigest()


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object strictly: UTF-8, no duplicate keys, no NaN or infinity.

    Raises:
        ValueError: for anything else.
    """
    content = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Add the digest of a JSON-ready object under `SEAL`. Tuples become lists and keys strings, as in a file.

    Raises:
        ValueError: for a number that is not finite.
    """
    plain: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))
    return {**plain, SEAL: digest(plain)}


def unseal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Check and remove the digest that `seal` added.

    Raises:
        ValueError: when the digest is missing or does not match.
    """
    if content.get(SEAL) != digest(content):
        raise ValueError("its digest does not match")
    return {key: value for key, value in content.items() if key != SEAL}


def write_document(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write a JSON object with its digest, atomically.

    Returns:
        The content of the file, with the digest under `SEAL`.

    Raises:
        RunError: when the file cannot be written.
        ValueError: for a number that is not finite.
    """
    sealed = seal(content)
    write_atomically(path, document(sealed))
    return sealed


def document(sealed: Mapping[str, Any]) -> str:
    """The file content of a sealed object."""
    return json_text(sealed, indent=2) + "\n"


def read_document(path: Path, *, remedy: str) -> dict[str, Any]:
    """Read a JSON object that `write_document` wrote, and return it without its digest.

    Args:
        path: the file.
        remedy: what to do about a damaged file; the last line of the error.

    Raises:
        RunError: when the file cannot be read, is not a JSON object, or has changed since it was written.
    """
    try:
        content = parse_object(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is not a JSON object"
        raise RunError(f"cannot read {path}: {reason}\n{remedy}", code="run-file") from error
    if SEAL not in content:
        message = f"{path} has no digest ({SEAL}): this version of thaw did not write it\n{remedy}"
        raise RunError(message, code="run-digest")
    try:
        return unseal(content)
    except ValueError as error:
        message = f"{path} has changed since thaw wrote it: {error}\n{remedy}"
        raise RunError(message, code="run-digest") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key in an object")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
