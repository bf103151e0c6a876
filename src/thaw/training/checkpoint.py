"""Checkpoints and model files: safetensors with one JSON header and a digest, written whole or not at all."""

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
        RunError: when the file cannot be written.
        ValueError: for a number in the header that is not finite.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # The second clone keeps safetensors from refusing tensors that share memory.
    apart = {name: tensor.clone() for name, tensor in contiguous.items()}
    write_tensor_file(path, HEADER, header, lambda metadata: save(apart, metadata))


def open_tensors(path: Path, *, version: int) -> TensorFile[dict[str, Tensor]]:
    """A file that `write_tensors` wrote, its digest not yet checked: a caller can tell first which value is wrong.

    Raises:
        ModelFileError: when the file is missing, truncated, not one of ours, or its header's "version" is another.
    """
    file = read_tensor_file(path, HEADER, load)
    file.check_version(version)
    return file


def read_tensors(path: Path, *, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a file that `write_tensors` wrote.

    Raises:
        ModelFileError: as `open_tensors`, and when the file has changed since it was written.
    """
    file = open_tensors(path, version=version)
    file.check_digest()
    return file.tensors, file.header
