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
        labels: int64 [N], 0 to K-1; -1 where the label is missing or out of range (told in the catalog's problems).
        batches: makes a fresh iterator over all N payloads, some at a time.
        array: the images themselves, uint8 or uint16 [N, H, W, C], where they need no decoding; `batches` is not used
            then.
    """

    names: Sequence[str]
    labels: npt.NDArray[np.int64]
    batches: Callable[[], Iterator[Sequence[Payload]]] = lambda: iter(())
    array: Values | None = None


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Which images belong together, such as those of one person; no split may separate them.

    Attributes:
        by: how they were told, in words; empty where there are no groups.
        names: their G names.
        numbers: int64 [N] a split, 0 to G-1.
    """

    by: str = ""
    names: tuple[str, ...] = ()
    numbers: Mapping[Split, npt.NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """A source as it was found.

    Attributes:
        classes: K class names.
        named: False where the classes are numbers without names.
        splits: the splits that the source has.
        problems: what was wrong with files and labels.
        groups: of the images of these splits.
    """

    classes: tuple[str, ...]
    splits: Mapping[Split, Entries]
    problems: tuple[Problem, ...] = ()
    named: bool = True
    groups: Groups = field(default_factory=Groups)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source that was found but not read yet.

    Attributes:
        name: what the source is called, one printable line.
        facts: JSON-ready facts that change whenever the content may have changed (paths, sizes, times of change); they
            are cheap to have, and name the cached copy. None for data that is in memory already.
        read: makes the catalog; may be slow.
        usual_input: the input that "auto" means for this source, where that is a convention ("28x28x1" for digits).
        problems: what is to be told about how the source was named; not kept with the cached copy.
        has_files: whether its images are files with paths, which a pattern can choose from.
    """

    name: str
    read: Callable[[], Catalog]
    facts: Any = None
    usual_input: str = ""
    problems: tuple[Problem, ...] = ()
    has_files: bool = False


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts "image10" behind "image9", and apart from that as text."""
    parts = re.split(r"([0-9]{1,4000})", text)  # Python refuses to read longer numbers
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part)


def source_name(text: str) -> str:
    """What a source is called, in one printable line that is never empty."""
    return printable(text) or "data"


def slug(text: str) -> str:
    """A name that is safe in a folder name on any system: up to 60 lower case letters, digits, "_" and "-"."""
    plain = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9_]+", "-", plain)[:_LONGEST_SLUG].strip("-") or "data"
