"""The content of a source before any image is decoded: entries, labels and classes of each split."""

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
from thaw.quoting import printable

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
"""Names of folders and files that denote a split, in lower case."""

Payload = bytes | str | None
"""An encoded image, the path of one, or None for a missing image."""

NO_LABEL = -1

_LONGEST_SLUG = 60


@dataclass(frozen=True, kw_only=True)
class Entries:
    """The images of one split, in order.

    Attributes:
        names: N names for messages.
        labels: int64 [N], 0 to K-1; -1 if the label is missing or out of range (see the catalog's problems).
        batches: returns a new iterator over all N payloads, in batches.
        array: the decoded images, uint8 or uint16 [N, H, W, C]; `batches` is then unused.
    """

    names: Sequence[str]
    labels: npt.NDArray[np.int64]
    batches: Callable[[], Iterator[Sequence[Payload]]] = lambda: iter(())
    array: Values | None = None


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Images that belong together, such as those of one person; no split separates them.

    Attributes:
        by: what defines the groups, in words; "" if there are none.
        names: G group names.
        numbers: the group of each image, int64 [N] in 0 to G-1, by split.
    """

    by: str = ""
    names: tuple[str, ...] = ()
    numbers: Mapping[Split, npt.NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """The content of a source.

    Attributes:
        classes: K class names.
        named: False if the classes are numbers without names.
        splits: the splits of the source.
        problems: problems of files and labels.
        groups: groups of the images.
    """

    classes: tuple[str, ...]
    splits: Mapping[Split, Entries]
    problems: tuple[Problem, ...] = ()
    named: bool = True
    groups: Groups = field(default_factory=Groups)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source that has been found but not read yet.

    Attributes:
        name: the name of the source, one printable line.
        facts: JSON-ready facts that change when the content may have changed (paths, sizes, modification times); they
            identify the cached copy. None for data in memory, which is not cached.
        read: reads the catalog; may be slow.
        usual_input: what input "auto" means for this source by convention ("28x28x1" for digits), or "".
        problems: notes on how the source was named; not stored in the cached copy.
        has_files: whether the images are files with paths, from which a pattern can choose.
    """

    name: str
    read: Callable[[], Catalog]
    facts: Any = None
    usual_input: str = ""
    problems: tuple[Problem, ...] = ()
    has_files: bool = False


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that puts "image10" after "image9"."""
    parts = re.split(r"([0-9]{1,4000})", text)  # Python refuses to parse longer numbers
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part)


def source_name(text: str) -> str:
    """The name of a source as one printable line that is not empty."""
    return printable(text) or "data"


def slug(text: str) -> str:
    """A name that is safe in a folder name: up to 60 lowercase letters, digits, "_" and "-"."""
    plain = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9_]+", "-", plain)[:_LONGEST_SLUG].strip("-") or "data"
