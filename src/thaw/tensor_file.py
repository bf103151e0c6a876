"""Named tensors and a JSON header in a safetensors file with a digest; no pickle.

The header is one string of the file's metadata. Its key "sha256" holds the digest of the other keys and of the name,
dtype, shape and bytes of every tensor. This module needs neither torch nor NumPy: callers pass the functions that
convert tensors to bytes and back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from safetensors import SafetensorError

from thaw.errors import ModelFileError
from thaw.files import SEAL, Part, digest, parse_object, write_atomically

Tensors = TypeVar("Tensors")

_LARGEST_FILE_BYTES = 1 << 32
_LARGEST_HEADER_BYTES = 1 << 24
# Exceptions that parsing and decoding a damaged file can raise; RuntimeError includes RecursionError.
_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError)
_METADATA = "__metadata__"
# The dtype names of NumPy and torch.
_DTYPES = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"} | {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}


@dataclass(frozen=True, kw_only=True)
class TensorFile(Generic[Tensors]):
    """The content of a file. The digest has been computed, but not enforced.

    Attributes:
        path: the file.
        header: the JSON object, without the digest.
        tensors: in the type of the caller's library.
        fault: the problem with the digest; "" if it matches.
    """

    path: Path
    header: dict[str, Any]
    tensors: Tensors
    fault: str

    def check_version(self, version: int) -> None:
        """Reject other format versions.

        Raises:
            ModelFileError: when the header's "version" is not `version`.
        """
        found = self.header.get("version")
        if type(found) is not int or found != version:
            shown = repr(found)[:80]
            raise ModelFileError(
                f"{self.path} has format version {shown}, this thaw reads version {version}", code="model-file-version"
            )

    def check_digest(self) -> None:
        """Reject a file that has changed since it was written.

        Raises:
            ModelFileError: when the digest is missing or does not match.
        """
        if self.fault:
            raise ModelFileError(f"{self.path} {self.fault}", code="model-file-digest")


def write_tensor_file(
    path: Path, key: str, header: Mapping[str, Any], save: Callable[[dict[str, str] | None], bytes]
) -> None:
    """Write a file atomically. The same header and tensors give the same bytes.

    Args:
        path: the file.
        key: the metadata key of the header.
        header: JSON-ready, all numbers finite.
        save: serializes the tensors as a safetensors file with the given metadata.

    Raises:
        RunError: when the file cannot be written.
        ValueError: for a number in the header that is not finite.
    """
    # As after reading: tuples become lists, keys become strings.
    plain: dict[str, Any] = json.loads(json.dumps(header, allow_nan=False))
    plain[SEAL] = digest(plain, _parts(save(None)))
    write_atomically(path, save({key: json.dumps(plain)}))


def read_tensor_file(path: Path, key: str, load: Callable[[bytes], Tensors]) -> TensorFile[Tensors]:
    """Read a file that `write_tensor_file` wrote. Its content is not trusted; false sizes allocate no memory.

    Args:
        path: the file.
        key: the metadata key of the header.
        load: parses the tensors of a safetensors file.

    Raises:
        ModelFileError: when the file is missing, truncated, or not written by thaw.
    """
    try:
        _check_size(path)
        # Read once, so that the checked bytes are the ones that are used.
        data = path.read_bytes()
        header = parse_object(_outer(data)[_METADATA][key])
        tensors = load(data)
        stored = header.pop(SEAL, None)
        matches = stored == digest(header, _parts(data))
    except FileNotFoundError:
        raise ModelFileError(f"{path} does not exist", code="model-file-missing") from None
    except (SafetensorError, OSError, *_DAMAGE) as error:
        kind = type(error).__name__
        raise ModelFileError(
            f"{path} is truncated or not a file that thaw wrote ({kind})", code="model-file-damaged"
        ) from error
    fault = "" if matches else "has changed since it was written: its digest does not match"
    if stored is None:
        fault = f"has no digest ({SEAL}): this version of thaw did not write it"
    return TensorFile(path=path, header=header, tensors=tensors, fault=fault)


def _check_size(path: Path) -> None:
    """Reject implausible sizes, and a header longer than its file, before anything is read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if size < 8 or header_bytes > min(size - 8, _LARGEST_HEADER_BYTES) or size > _LARGEST_FILE_BYTES:
        raise ValueError(f"{size} bytes with a header of {header_bytes} bytes")


def _outer(data: bytes) -> dict[str, Any]:
    """The JSON object at the start of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return parse_object(data[8 : 8 + length])


def _parts(data: bytes) -> list[Part]:
    """All tensors of a safetensors file, as parts of the digest."""
    body = 8 + int.from_bytes(data[:8], "little")
    parts = []
    for name, entry in _outer(data).items():
        if name != _METADATA:
            begin, end = entry["data_offsets"]
            parts.append((name, _DTYPES[entry["dtype"]], tuple(entry["shape"]), data[body + begin : body + end]))
    return parts
