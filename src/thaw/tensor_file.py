"""Named tensors with one JSON header as a safetensors file, bound by a digest over all of it; no pickle.

The header is a text of the file's metadata. Its key "sha256" holds the digest over the other keys and over every
tensor's name, dtype, shape and bytes. Neither torch nor NumPy is needed here: whoever calls brings the functions that
turn tensors into bytes and back.
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
# What parsing and decoding meet in a damaged file; RuntimeError includes RecursionError.
_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError)
_METADATA = "__metadata__"
# As NumPy and torch both call them.
_DTYPES = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"} | {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}


@dataclass(frozen=True, kw_only=True)
class TensorFile(Generic[Tensors]):
    """A file as it was read; the digest is not yet held against it.

    Attributes:
        path: of the file.
        header: the JSON object, without the digest.
        tensors: as the caller's library has them.
        fault: what is wrong with the digest; "" where it is right.
    """

    path: Path
    header: dict[str, Any]
    tensors: Tensors
    fault: str

    def check_version(self, version: int) -> None:
        """Refuse another format.

        Raises:
            ModelFileError: when the header's "version" is another.
        """
        found = self.header.get("version")
        if type(found) is not int or found != version:
            shown = repr(found)[:80]
            raise ModelFileError(f"{self.path} has format version {shown}, this thaw reads version {version}")

    def check_digest(self) -> None:
        """Refuse a file that is not as it was written.

        Raises:
            ModelFileError: when the digest is missing or another.
        """
        if self.fault:
            raise ModelFileError(f"{self.path} {self.fault}")


def write_tensor_file(
    path: Path, key: str, header: Mapping[str, Any], save: Callable[[dict[str, str] | None], bytes]
) -> None:
    """Write a file atomically; the same header and tensors give the same bytes.

    Args:
        path: of the file.
        key: under which the metadata keep the header.
        header: JSON-ready, no number that is not finite.
        save: gives the tensors as a safetensors file with these metadata.

    Raises:
        RunError: when it cannot be written.
        ValueError: for a number in the header that is not finite.
    """
    # As it comes back from the file: tuples as lists, keys as text.
    plain: dict[str, Any] = json.loads(json.dumps(header, allow_nan=False))
    plain[SEAL] = digest(plain, _parts(save(None)))
    write_atomically(path, save({key: json.dumps(plain)}))


def read_tensor_file(path: Path, key: str, load: Callable[[bytes], Tensors]) -> TensorFile[Tensors]:
    """Read a file that `write_tensor_file` wrote; nothing is taken on trust, and sizes that lie take no memory.

    Args:
        path: of the file.
        key: under which the metadata keep the header.
        load: gives the tensors of a safetensors file.

    Raises:
        ModelFileError: when it is missing, truncated, or not one of ours.
    """
    try:
        _check_size(path)
        # Read once: what the digest is held against is what is used.
        data = path.read_bytes()
        header = parse_object(_outer(data)[_METADATA][key])
        tensors = load(data)
        kept = header.pop(SEAL, None)
        is_right = kept == digest(header, _parts(data))
    except FileNotFoundError:
        raise ModelFileError(f"{path} does not exist") from None
    except (SafetensorError, OSError, *_DAMAGE) as error:
        kind = type(error).__name__
        raise ModelFileError(f"{path} is truncated or not a file that thaw wrote ({kind})") from error
    fault = "" if is_right else "has changed since it was written: its digest does not match"
    if kept is None:
        fault = f"has no digest ({SEAL}): this version of thaw did not write it"
    return TensorFile(path=path, header=header, tensors=tensors, fault=fault)


def _check_size(path: Path) -> None:
    """Refuse sizes that no model has, and a header longer than its file, before anything is read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if size < 8 or header_bytes > min(size - 8, _LARGEST_HEADER_BYTES) or size > _LARGEST_FILE_BYTES:
        raise ValueError(f"{size} bytes, of which {header_bytes} of header")


def _outer(data: bytes) -> dict[str, Any]:
    """The JSON object that a safetensors file begins with."""
    length = int.from_bytes(data[:8], "little")
    return parse_object(data[8 : 8 + length])


def _parts(data: bytes) -> list[Part]:
    """Every tensor of a safetensors file, for the digest."""
    body = 8 + int.from_bytes(data[:8], "little")
    parts = []
    for name, entry in _outer(data).items():
        if name != _METADATA:
            begin, end = entry["data_offsets"]
            parts.append((name, _DTYPES[entry["dtype"]], tuple(entry["shape"]), data[body + begin : body + end]))
    return parts
