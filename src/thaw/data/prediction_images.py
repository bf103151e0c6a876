"""Convert anything that a model can classify to pixels of its input size.

Shapes: N images, H rows, W columns, C channels (1 gray, 3 RGB) of the source; h, w, c of the input specification.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from thaw.data.checks import as_skippable
from thaw.data.chunks import Facts, Target, convert_chunk, join_facts
from thaw.data.decode import UnreadableImageError, decode_pillow
from thaw.data.image_files import Progress, load_images
from thaw.data.images import InputSpec
from thaw.data.problems import Problem, raise_errors
from thaw.data.ranges import use_problems
from thaw.data.resize import resize
from thaw.data.scaling import Values
from thaw.errors import DataError

Pixels = npt.NDArray[np.uint8]

_EXPECTED = (
    "expected the path of an image or a folder, a PIL image, an array uint8 (or uint16) [H, W], [H, W, C], [N, H, W] "
    "or [N, H, W, C] with C = 1 or 3, or a list of these"
)
_CHANNELS = (1, 3)
_HINTS: Mapping[str, str] = {
    "f": "scale floats to 0..255, round, and convert with astype(numpy.uint8)",
    "b": "multiply by 255 after astype(numpy.uint8)",
    "i": "convert values from 0 to 255 with astype(numpy.uint8)",
    "u": "convert values from 0 to 255 with astype(numpy.uint8)",
}


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Some of the images.

    Attributes:
        pixels: uint8 [n, h, w, c].
        names: of these n images.
        problems: problems of these images.
        facts: facts about images from memory, if their depth or the model's range matters.
    """

    pixels: Pixels
    names: Sequence[str]
    problems: Sequence[Problem] = ()
    facts: Facts | None = None


def read_images(
    images: object, input_spec: InputSpec, *, skip_broken: bool = False, progress: Progress | None = None
) -> tuple[Pixels, list[str], tuple[Problem, ...]]:
    """Read images without labels from files or memory.

    An array with three axes is one image [H, W, C] if its last axis has length 1 or 3, else N gray images [N, H, W].

    Args:
        images: the path of an image or of a folder of images (in natural order); a `PIL.Image.Image`, decoded by the
            rules for files; an array uint8 or uint16 [H, W], [H, W, C], [N, H, W] or [N, H, W, C], or anything that
            NumPy converts to one, such as a tensor; or an iterable of these, also mixed.
        input_spec: the input of the model.
        skip_broken: skip images that cannot be decoded.
        progress: called with the number of files decoded and of all files.

    Returns:
        uint8 [N, h, w, c]; N names: paths or positions ("[0]", or "[2][5]" for the sixth image of the third array); and
        problems.

    Raises:
        DataError: for anything else, a missing path, a broken image, or no image.
    """
    if _is_array(images):
        parts = [_array_images(images, "the array", "", input_spec)]
    else:
        items = [images] if _is_path(images) or _is_image(images) else _items(images)
        parts = list(_parts(items, input_spec, skip_broken=skip_broken, progress=progress))
    names = [name for part in parts for name in part.names]
    problems = [problem for part in parts for problem in part.problems]
    if not parts or (not names and problems):
        raise DataError(f"no {'readable ' if parts else ''}images: {_EXPECTED}", code="data-empty")
    described = [(part.names, part.facts) for part in parts if part.facts is not None]
    if described:
        facts = join_facts([each for _, each in described])
        problems += use_problems(facts, [name for some, _ in described for name in some], input_spec.range)
    return np.concatenate([part.pixels for part in parts]), names, tuple(problems)


def _items(images: object) -> list[object]:
    if isinstance(images, bytes | bytearray | Mapping) or not isinstance(images, Iterable):
        raise DataError(f"the images are {type(images).__name__}: {_EXPECTED}", code="data-arrays")
    return list(images)


def _parts(
    items: Sequence[object], input_spec: InputSpec, *, skip_broken: bool, progress: Progress | None
) -> Iterator[_Part]:
    """Read the items; consecutive paths are read together, in parallel."""
    for are_paths, group in groupby(enumerate(items), key=lambda item: _is_path(item[1])):
        if are_paths:
            paths = [_path(item) for _, item in group]
            pixels, names, problems = load_images(
                paths,
                input_spec,
                skip_broken=skip_broken,
                may_be_none=len(items) > len(paths),
                progress=progress,
            )
            yield _Part(pixels=pixels, names=names, problems=problems)
            continue
        for place, item in group:
            name = f"[{place}]"
            if isinstance(item, Image.Image):
                yield _pillow_image(item, name, input_spec, skip_broken=skip_broken)
            elif _is_array(item):
                yield _array_images(item, f"image {name}", name, input_spec)
            else:
                raise DataError(f"image {name} is {type(item).__name__}: {_EXPECTED}", code="data-arrays")


def _pillow_image(image: Image.Image, name: str, input_spec: InputSpec, *, skip_broken: bool) -> _Part:
    try:
        return _prepared(decode_pillow(image).pixels[None], [name], input_spec)
    except UnreadableImageError as error:
        broken = Problem("unreadable", "error", "images that cannot be read", (f"{name} ({error})",))
    problems = tuple(as_skippable([broken], skip_broken=skip_broken))
    raise_errors("images", problems)
    return _Part(pixels=np.empty((0, *input_spec.shape), np.uint8), names=(), problems=problems)


def _array_images(item: Any, what: str, name: str, input_spec: InputSpec) -> _Part:
    """The images of an array; if there are several, their names are numbered."""
    array = _as_pixels(item, what)
    if array.ndim == 3:
        return _prepared(array[None], [name or "[0]"], input_spec)
    return _prepared(array, [f"{name}[{number}]" for number in range(len(array))], input_spec)


def _prepared(values: Values, names: list[str], input_spec: InputSpec) -> _Part:
    """Images uint8 or uint16 [N, H, W, C] in the form of the input specification, with facts if a range is involved."""
    if not len(values) or (values.dtype == np.uint8 and input_spec.range is None):
        return _Part(pixels=resize(values, input_spec), names=names)
    chunk = convert_chunk(values, Target.of(input_spec))
    return _Part(pixels=chunk.pixels, names=names, facts=chunk.facts)


def _as_pixels(item: Any, what: str) -> Values:
    """An array uint8 or uint16 [H, W, C] of one image or [N, H, W, C] of several, C = 1 or 3."""
    try:
        array = np.asarray(item)
    # Arrays of other libraries raise various errors, for example if they lie on another device.
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split())[:200]
        message = f"{what} cannot be converted to an array, {type(item).__name__} ({reason}): {_EXPECTED}"
        raise DataError(message, code="data-arrays") from None
    found = f"{what} is {array.dtype} {list(array.shape)}"
    if array.dtype == np.dtype(np.uint16).newbyteorder():
        array = array.astype(np.uint16)
    if array.dtype not in (np.uint8, np.uint16):
        message = f"{found}: expected uint8 (or uint16); {_HINTS.get(array.dtype.kind, _EXPECTED)}"
        raise DataError(message, code="data-arrays")
    shape = array.shape
    if array.ndim not in (2, 3, 4) or (array.ndim == 4 and shape[3] not in _CHANNELS):
        hint = " (channels last)" if array.ndim == 4 and shape[1] in _CHANNELS else ""
        message = f"{found}: expected [H, W], [H, W, C], [N, H, W] or [N, H, W, C] with C = 1 or 3{hint}"
        raise DataError(message, code="data-arrays")
    # A tensor [3, H, W] is one image with channels first, not three gray images.
    if array.ndim == 3 and shape[0] in _CHANNELS and shape[2] not in _CHANNELS and not isinstance(item, np.ndarray):
        raise DataError(
            f"{found}, with channels first: expected [H, W, C]; permute its axes, or pass gray images as [N, H, W, 1]",
            code="data-arrays",
        )
    if array.ndim == 2 or (array.ndim == 3 and shape[2] not in _CHANNELS):
        array = array[..., None]
    if 0 in array.shape[-3:]:
        raise DataError(f"{found}: expected images with at least one row and one column", code="data-arrays")
    return array


def _is_path(item: object) -> bool:
    return isinstance(item, str | os.PathLike)


def _path(item: Any) -> Path:
    text = os.fsdecode(item)
    if not text:
        raise DataError(f"the path of an image is empty: {_EXPECTED}", code="data-empty")
    return Path(text)


def _is_image(item: object) -> bool:
    return isinstance(item, Image.Image)


def _is_array(item: object) -> bool:
    """Whether `item` is an array of numbers; an array of strings or objects counts as a list."""
    if _is_image(item) or not (hasattr(item, "__array__") or hasattr(item, "__array_interface__")):
        return False
    return getattr(item, "ndim", 0) != 1 or getattr(getattr(item, "dtype", None), "kind", "") not in "UOT"
