"""NumPy arrays, and the digits of scikit-learn."""

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
"""Images, labels, and groups."""


def array_source(data: Mapping[str, Any], settings: DataSettings) -> Source:
    """Images in memory or memory-mapped.

    Args:
        data: a mapping from split names to `(images, labels)` or `(images, labels, groups)`, with optional class names
            under "classes". Images are uint8 or uint16 [N, H, W] or [N, H, W, C] with C = 1 or 3; labels are integers
            from 0 (also as floats) or strings [N]; groups have any type [N].
        settings: groups, and whether spellings of a class name are merged.

    Raises:
        DataError: for anything else.
    """
    pairs, declared = _checked(data)
    return Source(name="arrays", read=partial(_catalog, pairs, declared, settings))


def read_arrays(data: Mapping[str, Any], settings: DataSettings) -> Catalog:
    """The catalog of `array_source`, with the same arguments and errors."""
    return _catalog(*_checked(data), settings)


def _checked(data: Mapping[str, Any]) -> tuple[dict[Split, Parts], list[str] | None]:
    parts = dict(data)
    declared = class_names(parts.pop("classes", None))
    pairs: dict[Split, Parts] = {}
    for key, pair in parts.items():
        split = split_key(key, pairs)
        if not isinstance(pair, Sequence) or len(pair) not in (2, 3):
            raise DataError(f"the {split} split is {type(pair).__name__}: {_EXPECTED}", code="data-arrays")
        pairs[split] = (_images(pair[0], split), check_labels(pair[1], split), check_groups(pair, split))
        if len(pairs[split][0]) != len(pairs[split][1]):
            counts = f"{len(pairs[split][0])} images and {len(pairs[split][1])} labels"
            raise DataError(f"the {split} split has {counts}: expected one label per image", code="data-arrays")
    if not pairs:
        raise DataError(f"no images: {_EXPECTED}", code="data-empty")
    return pairs, declared


def split_key(key: object, taken: Container[Split]) -> Split:
    """The split that a key of a mapping names.

    Raises:
        DataError: for an unknown or repeated split.
    """
    split = SPLIT_NAMES.get(str(key).lower())
    if split is None or split in taken:
        message = f"split {shown(key)}: expected train, validation and test, each at most once"
        raise DataError(message, code="data-split")
    return split


def check_groups(pair: Sequence[Any], split: Split) -> list[object] | None:
    """The third entry of (images, labels, groups), one per image, if any."""
    if len(pair) < 3 or pair[2] is None:
        return None
    groups = _as_array(pair[2], f"{split} groups", "expected [N], one per image")
    if groups.shape != (len(pair[1]),):
        message = f"the {split} groups have shape {list(groups.shape)}: expected [{len(pair[1])}], one per image"
        raise DataError(message, code="data-arrays")
    result: list[object] = groups.tolist()
    return result


def digits_source() -> Source:
    """The digits of scikit-learn: 1,797 gray images of 8x8 pixels with values 0 to 16, without splits.

    A value v becomes the byte `(255 v + 8) // 16`, so that 16 becomes 255.
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
    """Check a list of distinct class names.

    Raises:
        DataError: for anything else.
    """
    if value is None:
        return None
    names = list(value) if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes) else None
    if names is None or not all(isinstance(name, str | int | np.integer) for name in names):
        raise DataError(f"classes {shown(value)}: expected a list of distinct names", code="data-classes")
    texts = [str(name) for name in names]
    if len(set(texts)) < len(texts):
        raise DataError(f"classes {shown(value)}: expected a list of distinct names", code="data-classes")
    return texts


def _as_array(value: Any, what: str, expected: str) -> npt.NDArray[Any]:
    """`value` as an array, if it is array-like."""
    if value is None or isinstance(value, str | bytes | Mapping):
        raise DataError(f"the {what} are {type(value).__name__}: {expected}", code="data-arrays")
    try:
        return np.asarray(value)
    # Arrays of other libraries raise various errors, for example if they lie on another device.
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        message = f"the {what} cannot be converted to an array, {type(value).__name__} ({reason}): {expected}"
        raise DataError(message, code="data-arrays") from None


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
            f"the {split} images are {images.dtype} {list(images.shape)}: expected uint8 (or uint16); {hint}",
            code="data-arrays",
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
        hint = " (channels last)" if images.ndim == 4 and images.shape[1] in (1, 3) else ""
        raise DataError(
            f"the {split} images have shape {list(images.shape)}: expected [N, H, W] or [N, H, W, 1 or 3]{hint}",
            code="data-arrays",
        )
    return images


def check_labels(value: Any, split: Split) -> list[object]:
    """Labels [N] as a list of int, str and None.

    Raises:
        DataError: for anything else.
    """
    labels = _as_array(value, f"{split} labels", "expected [N], one integer or string per image")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        message = f"the {split} labels have shape {list(labels.shape)}: expected [N], one per image"
        raise DataError(message, code="data-label")
    if len(labels) and (labels.dtype.kind not in "iuUObf" or _has_fractions(labels)):
        raise DataError(
            f"the {split} labels are {labels.dtype}: expected integers from 0, or strings", code="data-label"
        )
    values = [whole_label(label.item() if isinstance(label, np.generic) else label) for label in labels.tolist()]
    odd = next((v for v in values if v is not None and not isinstance(v, int | str)), None)
    if odd is not None:
        raise DataError(
            f"the {split} labels hold {shown(odd)}: expected integers from 0, or strings", code="data-label"
        )
    return values


def _has_fractions(labels: npt.NDArray[Any]) -> bool:
    """Whether labels [N] of floats are others than integers and NaN."""
    return labels.dtype.kind == "f" and bool(((labels != np.floor(labels)) & ~np.isnan(labels)).any())


def whole_label(label: object) -> object:
    """An integer where a float is one, None where it is NaN, as in a column with gaps; else the same."""
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
        groups, grouping = number_groups(whole, "the groups", is_asked_for=True)
    else:
        no_groups_here(settings.group_by, "an array")
    problems = (*encoded.problems, *grouping)
    return Catalog(classes=encoded.classes, splits=splits, problems=problems, named=encoded.named, groups=groups)
