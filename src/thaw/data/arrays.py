"""NumPy arrays, from Python, and the digits that come with scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.data.catalog import SPLIT_NAMES, SPLITS, Catalog, Entries, Groups, Source, Split
from thaw.data.groups import NO_GROUPS, no_groups_here, number_groups
from thaw.data.labels import encode_labels
from thaw.data.problems import Problem
from thaw.data.scaling import Values
from thaw.data.settings import DataSettings
from thaw.errors import DataError
from thaw.quoting import shown

_EXPECTED = (
    'expected (images, labels) or {"train": (images, labels), "test": ...} with images uint8 (or uint16) '
    "[N, H, W] or [N, H, W, C]"
)


Parts = tuple[Values, list[object], list[object] | None]
"""Images, labels, and what groups them."""


def array_source(data: Mapping[str, Any], settings: DataSettings) -> Source:
    """Images that are in memory (or memory-mapped) already.

    Args:
        data: a mapping of split names to `(images, labels)` or `(images, labels, groups)`, with class names under
            "classes" if there are any. Images are uint8 or uint16 [N, H, W] or [N, H, W, C], C = 1 or 3; labels whole
            numbers from 0 (also as floats), or texts, [N]; groups anything, [N].
        settings: whether spellings of a class name are merged.

    Raises:
        DataError: for anything else, with what was found.
    """
    pairs, declared = _checked(data)
    return Source(name="arrays", read=partial(_catalog, pairs, declared, settings))


def read_arrays(data: Mapping[str, Any], settings: DataSettings) -> Catalog:
    """What `array_source` would read.

    Raises:
        DataError: as `array_source`.
    """
    return _catalog(*_checked(data), settings)


def _checked(data: Mapping[str, Any]) -> tuple[dict[Split, Parts], list[str] | None]:
    parts = dict(data)
    declared = class_names(parts.pop("classes", None))
    pairs: dict[Split, Parts] = {}
    for key, pair in parts.items():
        split = split_key(key, pairs)
        if not isinstance(pair, Sequence) or len(pair) not in (2, 3):
            raise DataError(f"the {split} split is {type(pair).__name__}: {_EXPECTED}")
        pairs[split] = (_images(pair[0], split), check_labels(pair[1], split), check_groups(pair, split))
        if len(pairs[split][0]) != len(pairs[split][1]):
            counts = f"{len(pairs[split][0])} images and {len(pairs[split][1])} labels"
            raise DataError(f"the {split} split has {counts}: expected one label an image")
    if not pairs:
        raise DataError(f"no images were given: {_EXPECTED}")
    return pairs, declared


def split_key(key: object, taken: Container[Split]) -> Split:
    """The split that a key of a mapping means.

    Raises:
        DataError: where it means none, or one that is taken.
    """
    split = SPLIT_NAMES.get(str(key).lower())
    if split is None or split in taken:
        raise DataError(f"split {shown(key)}: expected each of train, validation and test at most once")
    return split


def check_groups(pair: Sequence[Any], split: Split) -> list[object] | None:
    """The third entry of (images, labels, groups), one an image."""
    if len(pair) < 3 or pair[2] is None:
        return None
    groups = _as_array(pair[2], f"{split} groups", "expected [N], one an image")
    if groups.shape != (len(pair[1]),):
        raise DataError(f"the {split} groups have shape {list(groups.shape)}: expected [{len(pair[1])}], one an image")
    result: list[object] = groups.tolist()
    return result


def digits_source() -> Source:
    """scikit-learn's digits: 1,797 gray images of 8x8 pixels with values 0 to 16, no split of their own.

    A value v becomes the byte `(255 v + 8) // 16`, which takes 0 to 0 and 16 to 255.
    """
    facts = {"digits": version("scikit-learn")}
    return Source(name="digits", facts=facts, read=_read_digits, usual_input="28x28x1")


def _read_digits() -> Catalog:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = ((digits.images.astype(np.int32) * 255 + 8) // 16).astype(np.uint8)[..., None]
    names = [f"digits[{row}]" for row in range(len(pixels))]
    entries = Entries(names=names, labels=digits.target.astype(np.int64), array=pixels)
    return Catalog(classes=tuple(str(digit) for digit in range(10)), splits={"train": entries})


def class_names(value: Any) -> list[str] | None:
    """Class names from Python, different ones.

    Raises:
        DataError: for anything else.
    """
    if value is None:
        return None
    names = list(value) if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes) else None
    if names is None or not all(isinstance(name, str | int | np.integer) for name in names):
        raise DataError(f"classes {shown(value)}: expected a list of different names")
    texts = [str(name) for name in names]
    if len(set(texts)) < len(texts):
        raise DataError(f"classes {shown(value)}: expected a list of different names")
    return texts


def _as_array(value: Any, what: str, expected: str) -> npt.NDArray[Any]:
    """An array of whatever is one, or a list of such."""
    if value is None or isinstance(value, str | bytes | Mapping):
        raise DataError(f"the {what} are {type(value).__name__}: {expected}")
    try:
        return np.asarray(value)
    # Other libraries' arrays raise what they like, such as for memory on another device.
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"the {what} are no array, {type(value).__name__} ({reason}): {expected}") from None


def _images(value: Any, split: Split) -> Values:
    images = _as_array(
        value, f"{split} images", "expected uint8 (or uint16) [N, H, W] or [N, H, W, C], all of one size"
    )
    if images.dtype == np.dtype(np.uint16).newbyteorder():
        images = images.astype(np.uint16)
    if images.dtype not in (np.uint8, np.uint16):
        hint = (
            "scale floats to 0..255, round, and convert with astype(numpy.uint8)"
            if images.dtype.kind == "f"
            else _EXPECTED
        )
        raise DataError(
            f"the {split} images are {images.dtype} {list(images.shape)}: expected uint8 (or uint16); {hint}"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
        hint = " (channels last)" if images.ndim == 4 and images.shape[1] in (1, 3) else ""
        raise DataError(
            f"the {split} images have shape {list(images.shape)}: expected [N, H, W] or [N, H, W, 1 or 3]{hint}"
        )
    return images


def check_labels(value: Any, split: Split) -> list[object]:
    """Labels as plain whole numbers, texts and None, [N].

    Raises:
        DataError: for anything else.
    """
    labels = _as_array(value, f"{split} labels", "expected [N], one class number or text an image")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(f"the {split} labels have shape {list(labels.shape)}: expected [N], one class number an image")
    if len(labels) and (labels.dtype.kind not in "iuUObf" or _has_fractions(labels)):
        raise DataError(f"the {split} labels are {labels.dtype}: expected whole numbers from 0, or texts")
    values = [whole_label(label.item() if isinstance(label, np.generic) else label) for label in labels.tolist()]
    odd = next((v for v in values if v is not None and not isinstance(v, int | str)), None)
    if odd is not None:
        raise DataError(f"the {split} labels hold {shown(odd)}: expected whole numbers from 0, or texts")
    return values


def _has_fractions(labels: npt.NDArray[Any]) -> bool:
    """Whether labels [N] of floats are others than whole numbers and NaN."""
    return labels.dtype.kind == "f" and bool(((labels != np.floor(labels)) & ~np.isnan(labels)).any())


def whole_label(label: object) -> object:
    """A whole number where a float is one, None where it is NaN, as in a column with gaps; else the same."""
    if isinstance(label, float):
        return int(label) if label.is_integer() else None if math.isnan(label) else label
    return label


def _catalog(pairs: Mapping[Split, Parts], declared: Sequence[str] | None, settings: DataSettings) -> Catalog:
    names = {split: [f"{split}[{row}]" for row in range(len(images))] for split, (images, *_) in pairs.items()}
    values = {split: labels for split, (_, labels, _) in pairs.items()}
    encoded = encode_labels(values, names, declared, merge=settings.merge_spellings)
    splits = {
        split: Entries(names=names[split], labels=encoded.labels[split], array=pairs[split][0])
        for split in SPLITS
        if split in encoded.labels
    }
    given = {split: column for split, (*_, column) in pairs.items() if column is not None and split in splits}
    groups, grouping = Groups(), list[Problem]()
    if given and settings.group_by != NO_GROUPS:
        whole = {split: given.get(split, [None] * len(pairs[split][1])) for split in splits}
        groups, grouping = number_groups(whole, "the groups given", is_asked_for=True)
    else:
        no_groups_here(settings.group_by, "an array")
    told = (*encoded.problems, *grouping)
    return Catalog(classes=encoded.classes, splits=splits, problems=told, named=encoded.named, groups=groups)
