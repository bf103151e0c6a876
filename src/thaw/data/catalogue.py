"""What a source holds, before any image is decoded: entries, labels and classes of every split."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from thaw.data.problems import Problem
from thaw.data.scaling import Values
from thaw.quoting import encodable, printable, shown

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

SPLIT_NAMES: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""Names of folders and files, in lower case, that make a split."""

Payload = bytes | str | None
"""An encoded image, the path of one, or None where the image is missing."""

NO_LABEL = -1

_LONGEST_SLUG = 60


@dataclass(frozen=True, kw_only=True)
class Entries:
    """The images of one split, in order.

    Attributes:
        names: N names for messages.
        labels: int64 [N], 0 to K-1; -1 where the label is missing or out of range (told in the catalogue's problems).
        batches: makes a fresh iterator over all N payloads, some at a time.
        array: the images themselves, uint8 or uint16 [N, H, W, C], where they need no decoding; `batches` is not used
            then.
    """

    names: Sequence[str]
    labels: npt.NDArray[np.int64]
    batches: Callable[[], Iterator[Sequence[Payload]]] = lambda: iter(())
    array: Values | None = None


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """A source as it was found.

    Attributes:
        classes: K class names.
        named: False where the classes are numbers without names.
        splits: the splits that the source has.
        problems: what was wrong with files and labels.
    """

    classes: tuple[str, ...]
    splits: Mapping[Split, Entries]
    problems: tuple[Problem, ...] = ()
    named: bool = True


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source that was found but not read yet.

    Attributes:
        name: what the source is called, one printable line.
        facts: JSON-ready facts that change whenever the content may have changed (paths, sizes, times of change); they
            are cheap to have, and name the cached copy. None for data that is in memory already.
        read: makes the catalogue; may be slow.
        usual_input: the input that "auto" means for this source, where that is a convention ("28x28x1" for digits).
        problems: what is to be told about how the source was named; not kept with the cached copy.
    """

    name: str
    read: Callable[[], Catalogue]
    facts: Any = None
    usual_input: str = ""
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Labels as whole numbers, split by split; splits that are not used are left out."""

    classes: tuple[str, ...]
    labels: Mapping[Split, npt.NDArray[np.int64]]
    named: bool
    problems: tuple[Problem, ...] = field(default=())


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts "image10" behind "image9", and apart from that as text."""
    parts = re.split(r"([0-9]+)", text)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part)


def source_name(text: str) -> str:
    """What a source is called, in one printable line that is never empty."""
    return printable(text) or "data"


def slug(text: str) -> str:
    """A name that is safe in a folder name on any system: up to 60 lower case letters, digits, "_" and "-"."""
    plain = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9_]+", "-", plain)[:_LONGEST_SLUG].strip("-") or "data"


def encode_labels(
    values: Mapping[Split, Sequence[object]],
    names: Mapping[Split, Sequence[str]],
    declared: Sequence[str] | None = None,
) -> Encoded:
    """Whole-number labels from whatever a class column holds.

    With `declared` class names a number is an index into them and a text is one of them. Without, every distinct value
    is a class, sorted: numbers by size, texts naturally. A validation or test split without a single label is left out
    with a warning where the training split has some.

    Args:
        values: the raw labels a split: whole numbers, truth values or texts; None where missing.
        names: the images' names, for the problems.
        declared: class names that the source states.
    """
    values, unlabelled = _without_unlabelled(values)
    numeric = not any(isinstance(value, str) for column in values.values() for value in set(column))
    if declared is not None:
        classes = tuple(encodable(str(name)) for name in declared)
        known: dict[object, int] = {str(name): index for index, name in enumerate(declared)}
        if numeric:
            known = {index: index for index in range(len(classes))}
    else:
        found = {value for column in values.values() for value in column if _is_label(value)}
        # Truth values are numbers too; text sorts by natural_key, in which digits count as numbers.
        ordered = sorted(found, key=lambda value: natural_key(str(int(value) if isinstance(value, bool) else value)))
        classes = tuple(encodable(str(value)) for value in ordered)
        known = {value: index for index, value in enumerate(ordered)}
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
    problems = list(unlabelled)
    if missing:
        problems.append(Problem("label", "error", f"{_count(len(missing), 'image')} without a label", tuple(missing)))
    if outside:
        expected = f"expected 0 to {len(classes) - 1}" if declared is not None and numeric else "expected a class"
        message = f"{_count(len(outside), 'label')} out of range ({expected})"
        problems.append(Problem("label", "error", message, tuple(outside)))
    return Encoded(classes=classes, labels=labels, named=declared is not None or not numeric, problems=tuple(problems))


def _without_unlabelled(
    values: Mapping[Split, Sequence[object]],
) -> tuple[Mapping[Split, Sequence[object]], list[Problem]]:
    """Leaves out held-out splits whose labels are all withheld, as is usual for the test splits of contests."""
    unlabelled = {split for split, column in values.items() if len(column) and all(map(_is_withheld, column))}
    if "train" not in values or "train" in unlabelled or not unlabelled:
        return values, []
    problems = [
        Problem("unlabelled", "warning", f"the {split} split has no labels and is not used")
        for split in SPLITS
        if split in unlabelled
    ]
    return {split: column for split, column in values.items() if split not in unlabelled}, problems


def _is_withheld(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, int) and value < 0)


def _is_label(value: object) -> bool:
    """Whether a value can be a class where none are declared: negative numbers mean "no label" by custom."""
    return (isinstance(value, int) and value >= 0) or (isinstance(value, str) and value != "")


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
