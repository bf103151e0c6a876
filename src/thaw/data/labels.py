"""Encode labels of any type as class numbers, and merge spellings of class names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from thaw.data.catalog import NO_LABEL, SPLITS, Split, natural_key
from thaw.data.problems import Problem
from thaw.data.spelling import one_spelling
from thaw.quoting import shown


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Labels as class numbers by split, without unused splits."""

    classes: tuple[str, ...]
    labels: Mapping[Split, npt.NDArray[np.int64]]
    named: bool
    problems: tuple[Problem, ...] = field(default=())


def encode_labels(
    values: Mapping[Split, Sequence[object]],
    names: Mapping[Split, Sequence[str]],
    declared: Sequence[str] | None = None,
    *,
    merge: bool = True,
) -> Encoded:
    """Encode the values of a class column as class numbers.

    With `declared` class names, integers are indices into them and strings are names; classes without images are
    dropped. Otherwise every distinct value is a class, in natural order. Names that differ only in case or Unicode form
    are one class (`one_spelling`). A validation or test split without any label is dropped with a warning if the
    training split has labels.

    Args:
        values: the raw labels by split: int, bool or str; None if missing.
        names: names of the images, for messages.
        declared: class names that the source declares.
        merge: whether spellings of one name are one class.
    """
    values, unlabeled = _without_unlabeled(values)
    tally = Counter(value for column in values.values() for value in column)
    numeric = not any(isinstance(value, str) for value in tally)
    known, classes, merged = (
        _found_classes(tally, merge=merge and not numeric)
        if declared is None
        else _declared_classes(tally, [str(name) for name in declared], numeric=numeric, merge=merge)
    )
    labels = {
        split: np.fromiter((known.get(value, NO_LABEL) for value in column), dtype=np.int64, count=len(column))
        for split, column in values.items()
    }
    missing, outside = [], []
    for split, column in labels.items():
        for row in np.flatnonzero(column == NO_LABEL).tolist():
            value, name = values[split][row], names[split][row]
            if value is None or value == "":
                missing.append(name)
            else:
                outside.append(f"{name} has {shown(value)}")
    problems = [*unlabeled, *merged]
    if missing:
        problems.append(Problem("label", "error", f"{_count(len(missing), 'image')} without a label", tuple(missing)))
    if outside:
        expected = f"expected 0 to {len(declared) - 1}" if declared is not None and numeric else "expected a class"
        message = f"{_count(len(outside), 'label')} out of range ({expected})"
        problems.append(Problem("label", "error", message, tuple(outside)))
    named = declared is not None or not numeric
    encoded = Encoded(classes=classes, labels=labels, named=named, problems=tuple(problems))
    return encoded if declared is None else _without_unused(encoded)


def _without_unused(encoded: Encoded) -> Encoded:
    """Drop declared classes without images, since they cannot be learned."""
    used = np.unique(np.concatenate([labels[labels != NO_LABEL] for labels in encoded.labels.values()]))
    if len(used) == len(encoded.classes):
        return encoded
    unused = tuple(name for index, name in enumerate(encoded.classes) if index not in used)
    warning = Problem("class", "warning", "declared classes without images are ignored", unused)
    labels = {
        split: np.where(column == NO_LABEL, NO_LABEL, np.searchsorted(used, column))
        for split, column in encoded.labels.items()
    }
    classes = tuple(encoded.classes[index] for index in used)
    return replace(encoded, classes=classes, labels=labels, problems=(*encoded.problems, warning))


_Known = dict[object, int]
"""Raw label -> class."""


def _found_classes(tally: Counter[object], *, merge: bool) -> tuple[_Known, tuple[str, ...], list[Problem]]:
    """Each distinct value, after merging spellings, is a class."""
    found = [value for value in tally if _is_label(value)]
    counts: Counter[str] = Counter()
    for value in found:
        counts[str(value)] += tally[value]
    spelled, problems = one_spelling(counts, merge=merge)
    classes = tuple(sorted(set(spelled.values()), key=natural_key))
    index = {name: place for place, name in enumerate(classes)}
    return {value: index[spelled[str(value)]] for value in found}, classes, problems


def _declared_classes(
    tally: Counter[object], declared: Sequence[str], *, numeric: bool, merge: bool
) -> tuple[_Known, tuple[str, ...], list[Problem]]:
    """The declared names; among equally frequent spellings, the first is used."""
    texts = {value: count for value, count in tally.items() if isinstance(value, str) and value}
    counts = dict.fromkeys(declared, 0) | texts
    for place, name in enumerate(declared):
        # Declared spellings outweigh those in the column.
        counts[name] += tally.get(place, 0) if numeric else sum(texts.values()) + 1
    spelled, problems = one_spelling(counts, merge=merge)
    classes = tuple(dict.fromkeys(spelled[name] for name in declared))
    index = {name: place for place, name in enumerate(classes)}
    if numeric:
        return {place: index[spelled[name]] for place, name in enumerate(declared)}, classes, problems
    known: _Known = {text: index[spelled[text]] for text in counts if spelled[text] in index}
    return known, classes, problems


def _without_unlabeled(
    values: Mapping[Split, Sequence[object]],
) -> tuple[Mapping[Split, Sequence[object]], list[Problem]]:
    """Drop validation and test splits whose labels are all withheld, as is usual in competitions."""
    unlabeled = {split for split, column in values.items() if len(column) and all(map(_is_withheld, column))}
    if "train" not in values or "train" in unlabeled or not unlabeled:
        return values, []
    problems = [
        Problem("unlabeled", "warning", f"the {split} split has no labels and is ignored")
        for split in SPLITS
        if split in unlabeled
    ]
    return {split: column for split, column in values.items() if split not in unlabeled}, problems


def _is_withheld(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, int) and value < 0)


def _is_label(value: object) -> bool:
    """Whether a value can be a class if none are declared: negative numbers conventionally mean "no label"."""
    return (isinstance(value, int) and value >= 0) or (isinstance(value, str) and value != "")


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
