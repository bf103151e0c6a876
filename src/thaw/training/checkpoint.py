"""Checkpoints and model files: safetensors with one JSON header, written whole or not at all, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from thaw.errors import ModelFileError
from thaw.files import write_atomically
from thaw.quoting import shown

HEADER = "thaw"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors (any shape and dtype) with a JSON-ready header, atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # The second clone keeps safetensors from refusing tensors that share memory.
    content = save({name: tensor.clone() for name, tensor in contiguous.items()}, {HEADER: json.dumps(header)})
    write_atomically(path, content)


def read_tensors(path: Path, *, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a file that `write_tensors` wrote.

    Raises:
        ModelFileError: when the file is missing, truncated, not one of ours, or its header's "version" is another.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            header = json.loads(metadata[HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
    except FileNotFoundError:
        raise ModelFileError(f"{path} does not exist") from None
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is truncated or not a file that thaw wrote ({type(error).__name__})") from error
    if not isinstance(header, dict) or header.get("version") != version:
        found = header.get("version") if isinstance(header, dict) else None
        raise ModelFileError(f"{path} has format version {shown(found)}, this thaw reads version {version}")
    return tensors, header
