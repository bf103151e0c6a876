"""The file next to a trained model that lists its training images, as digests of 8 bytes per image.

It is separate from the model file, which may be copied to devices: 60,000 images take 480 KB, eight times the model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from thaw.data.seen import SeenImages
from thaw.errors import ModelFileError
from thaw.model.model import Model
from thaw.training.checkpoint import read_tensors, write_tensors

SEEN_FILE = "training-images.safetensors"
_VERSION = 1
_PARTS = ("train", "validation")


def write_seen(path: Path, seen: SeenImages, model: Model) -> None:
    """Write the digests of the images that `model` was trained on, atomically."""
    # As int64, since safetensors has no tools for unsigned 64-bit numbers.
    tensors = {part: torch.from_numpy(getattr(seen, part).view(np.int64).copy()) for part in _PARTS}
    write_tensors(path, tensors, {"version": _VERSION, "model": model.digest})


def read_seen(model: Model) -> SeenImages | None:
    """The images that a model was trained on; None if the file is missing or belongs to another model.

    Raises:
        ModelFileError: when the file is damaged.
    """
    path = None if model.file is None else model.file.with_name(SEEN_FILE)
    if path is None or not path.is_file():
        return None
    try:
        tensors, header = read_tensors(path, version=_VERSION)
        parts = {part: tensors[part].numpy().view(np.uint64) for part in _PARTS}
    except (ModelFileError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = error if isinstance(error, ModelFileError) else f"{path} is damaged"
        raise ModelFileError(
            f"{reason}\nremove it to evaluate without the training images", code="model-file-images"
        ) from error
    if any(part.ndim != 1 for part in parts.values()):
        raise ModelFileError(
            f"{path} is damaged\nremove it to evaluate without the training images", code="model-file-images"
        )
    return SeenImages(**parts) if header.get("model") == model.digest else None
