"""Files that are written whole or not at all, and JSON documents that are bound by a digest."""

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
"""The key under which a document keeps its digest."""

Part = tuple[str, str, tuple[int, ...], bytes]
"""A named array for a digest: name, dtype, shape, bytes (C order, little-endian)."""


def write_atomically(path: Path, content: bytes | str) -> None:
    """Put `content` (text as UTF-8) at `path` so that a reader, or a power cut, finds the old file or the new one.

    Raises:
        RunError: when the disk is full or the folder cannot be written; the old file is then still there.
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
            "free some space there, or choose another folder with --out"
        ) from error
    finally:
        # There only if something went wrong, Ctrl-C included.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sweep_unfinished(folder: Path) -> None:
    """Remove what `write_atomically` had begun in `folder` when its process was killed."""
    with contextlib.suppress(OSError):
        for left in folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)


def digest(content: Mapping[str, Any], parts: Iterable[Part] = ()) -> str:
    """SHA-256, in hexadecimal digits, over a JSON-ready object (without its `SEAL`) and named arrays.

    Neither the order of keys nor that of the arrays matters, nor how the JSON is spaced.

    Raises:
        ValueError: for a number that is not finite.
    """
    plain = {key: value for key, value in content.items() if key != SEAL}
    found = hashlib.sha256(json.dumps(plain, sort_keys=True, allow_nan=False).encode())
    for name, dtype, shape, data in sorted(parts):
        found.update(f"{name} {dtype} {shape}".encode() + data)
    return found.hexdigest()


def parse_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object, strictly: no key twice, no NaN and no Infinity, UTF-8.

    Raises:
        ValueError: for anything else.
    """
    content = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON-ready object with its digest under `SEAL`, as it comes back from a file: tuples as lists, keys as text.

    Raises:
        ValueError: for a number that is not finite.
    """
    plain: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))
    return {**plain, SEAL: digest(plain)}


def unseal(content: Mapping[str, Any]) -> dict[str, Any]:
    """What `seal` was given.

    Raises:
        ValueError: when the digest is missing or another.
    """
    if content.get(SEAL) != digest(content):
        raise ValueError("its digest does not match")
    return {key: value for key, value in content.items() if key != SEAL}


def write_document(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write a JSON object with its digest, atomically.

    Returns:
        What the file holds now, the digest under `SEAL`.

    Raises:
        RunError: when it cannot be written.
        ValueError: for a number that is not finite, which is our own mistake.
    """
    sealed = seal(content)
    write_atomically(path, document(sealed))
    return sealed


def document(sealed: Mapping[str, Any]) -> str:
    """What `seal` gave, as the text of a file."""
    return json_text(sealed, indent=2) + "\n"


def read_document(path: Path, *, mend: str) -> dict[str, Any]:
    """A JSON object that `write_document` wrote, without its digest.

    Args:
        path: the file.
        mend: what to do about a file that is damaged, the last line of the error.

    Raises:
        RunError: when it cannot be read, is no JSON object, or is not what was written.
    """
    try:
        content = parse_object(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is not a JSON object"
        raise RunError(f"cannot read {path}: {reason}\n{mend}") from error
    if SEAL not in content:
        raise RunError(f"{path} has no digest ({SEAL}): this version of thaw did not write it\n{mend}")
    try:
        return unseal(content)
    except ValueError as error:
        raise RunError(f"{path} has changed since thaw wrote it: {error}\n{mend}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
