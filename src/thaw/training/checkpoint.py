"""Checkpoints and model files: safetensors with a JSON header and a digest, written atomically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from thaw.tensor_file import TensorFile, read_tensor_file, write_tensor_file

HEADER = "thaw"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors (any shape and dtype) with a JSON-ready header, atomically.

    Raises:
        RunError: if the file cannot be written.
        ValueError: for a number in the header that is not finite.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # safetensors refuses tensors that share memory.
    apart = {name: tensor.clone() for name, tensor in contiguous.items()}
    write_tensor_file(path, HEADER, header, lambda metadata: save(apart, metadata))


def open_tensors(path: Path, *, version: int) -> TensorFile[dict[str, Tensor]]:
    """Open a file from `write_tensors` without checking its digest, so that the caller can first name an invalid value.

    Raises:
        ModelFileError: if the file is missing, truncated, not written by thaw, or has another "version".
    """
    file = read_tensor_file(path, HEADER, load)
    file.check_version(version)
    return file


def read_tensors(path: Path, *, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header of a file from `write_tensors`.

    Raises:
        ModelFileError: as `open_tensors`, and if the file has changed since it was written.
    """
    file = open_tensors(path, version=version)
    file.check_digest()
    return file.tensors, file.header
