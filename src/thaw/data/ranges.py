"""The range of 16-bit images: found on training images, and what is told of it.

The definition is that of `thaw.data.scaling`; a row of `Facts` tells of one image.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np

from thaw.data.chunks import Facts, join_facts
from thaw.data.problems import Problem
from thaw.data.scaling import FULL_RANGE, LARGEST_VALUE, ValueRange
from thaw.data.splits import Rows
from thaw.data.store import Store

RANGE_KINDS = ("range", "levels", "depth", "clipped")
"""Kinds of the problems that are told here."""

FEW_LEVELS = 32
"""Gray levels below which little is left of an image that had at least twice as many."""

MOSTLY = 0.5
"""The share of an image's values outside the range from which it is told."""

_SETTING = "--set data.range=LOW,HIGH"


def find_range(facts: Facts, rows: Rows) -> ValueRange | None:
    """The range of the images at `rows`, the training images; None where none has more than 8 bits a channel."""
    rows = rows[facts.wide[rows]]
    if not len(rows):
        return None
    spans = facts.spans[rows].astype(np.int64)
    spans = spans[spans[:, 0] <= spans[:, 1]]
    if not len(spans):
        return FULL_RANGE
    low, high = int(spans[:, 0].min()), int(spans[:, 1].max())
    # Of one value throughout, a range that takes it to black.
    return (low, high) if low < high else (min(low, LARGEST_VALUE - 1), min(low, LARGEST_VALUE - 1) + 1)


def told_of_training(store: Store, train: Rows, *, is_set: bool) -> list[Problem]:
    """What there is to tell of the range of a data set, and of what it leaves of its images.

    Args:
        store: all images of the source, scaled by the range; by None where no training image has more than 8 bits.
        train: rows of the training images in the training split (or in the first, where there is none).
        is_set: the user named the range.
    """
    # The training split first: its rows are rows of the whole.
    splits = sorted(store.facts, key=lambda split: split != "train")
    facts, value_range = join_facts([store.facts[split] for split in splits]), store.range
    names = [name for split in splits for name in store.names[split]]
    wide = np.flatnonzero(facts.wide)
    if not len(wide):
        unused = f"data.range is set to {_words(value_range)}, but no image has more than 8 bits a channel"
        return [Problem("range", "warning", f"{unused}: 8-bit values are used as they are")] if is_set else []
    how = "as data.range says" if is_set else "found on the training images"
    if value_range is None:
        how = f"since no training image has more than 8 bits a channel ({_SETTING} chooses)"
    count = f"{len(wide):,} image{'' if len(wide) == 1 else 's'}"
    message = f"16-bit images: values {_words(value_range)} scaled to 0..255, {how} ({count})"
    problems = [Problem("range", "note", message)]
    if len(wide) < len(facts.wide):
        narrow = np.flatnonzero(~facts.wide)
        few = narrow if len(narrow) <= len(wide) else wide
        message = (
            f"{len(wide):,} images of more than 8 bits a channel and {len(narrow):,} of 8: the range holds for the "
            f"former only, 8-bit values are used as they are; these are the {'8' if few is narrow else '16'}-bit ones"
        )
        problems.append(Problem("depth", "warning", message, _names(names, few)))
    return [*problems, *_content(facts, names, train, value_range, is_set=is_set), *_clipped(facts, names, value_range)]


def _content(
    facts: Facts, names: Sequence[str], train: Rows, value_range: ValueRange | None, *, is_set: bool
) -> list[Problem]:
    """Warnings where the range leaves little of the training images, or there was little."""
    rows = train[facts.wide[train]]
    if not len(rows):
        return []
    low, high = value_range or FULL_RANGE
    if high - low < FEW_LEVELS and not is_set:
        message = f"16-bit images are nearly constant: the training images use the range {_words(value_range)} only"
        return [Problem("levels", "warning", message)]
    kept, native = (int(np.median(column)) for column in facts.levels[rows].T)
    if kept >= FEW_LEVELS or native < 2 * kept:
        return []
    lowest, highest = int(rows[facts.spans[rows, 0].argmin()]), int(rows[facts.spans[rows, 1].argmax()])
    ends = (
        f"{names[lowest]} goes down to {facts.spans[lowest, 0]:,}",
        f"{names[highest]} goes up to {facts.spans[highest, 1]:,}",
    )
    message = (
        f"16-bit images keep {kept} gray levels of {native:,} (median of the training images) in the range "
        f"{_words(value_range)}: choose the part that matters with {_SETTING}"
    )
    return [Problem("levels", "warning", message, ends)]


def told_of_use(facts: Facts, names: Sequence[str], value_range: ValueRange | None) -> list[Problem]:
    """What there is to tell of images that a trained model meets.

    Args:
        facts: of the images.
        names: as many names.
        value_range: of the model's input specification; None where it was trained on 8-bit images.
    """
    wide, narrow = np.flatnonzero(facts.wide), np.flatnonzero(~facts.wide)
    problems = []
    if len(wide) and value_range is None:
        low, high = int(facts.spans[wide, 0].min()), int(facts.spans[wide, 1].max())
        message = (
            f"{_count(wide)} 16-bit, but the model was trained on 8-bit images: values 0 to {LARGEST_VALUE:,} are "
            f"scaled to 0..255, and these images use {low:,} to {high:,}"
        )
        problems.append(Problem("depth", "warning", message, _names(names, wide)))
    elif len(wide):
        message = f"16-bit images: values {_words(value_range)} scaled to 0..255, as in training"
        problems.append(Problem("range", "note", message))
    if len(narrow) and value_range is not None:
        message = (
            f"{_count(narrow)} 8-bit, but the model was trained on 16-bit images, of which it scales values "
            f"{_words(value_range)}: 8-bit values are used as they are"
        )
        problems.append(Problem("depth", "warning", message, _names(names, narrow)))
    return [*problems, *_clipped(facts, names, value_range)]


def warn_of(problems: Iterable[Problem], *, stacklevel: int = 3) -> None:
    """Python warnings of those of the problems that are warnings of the kinds told here."""
    for problem in problems:
        if problem.severity == "warning" and problem.kind in RANGE_KINDS:
            warnings.warn(str(problem), stacklevel=stacklevel)


def _clipped(facts: Facts, names: Sequence[str], value_range: ValueRange | None) -> list[Problem]:
    rows = np.flatnonzero(facts.outside > MOSTLY)
    if not len(rows):
        return []
    told = tuple(f"{names[row]} ({facts.outside[row]:.0%})" for row in rows.tolist())
    message = f"16-bit images with most values outside the range {_words(value_range)}, where they are cut off"
    return [Problem("clipped", "warning", message, told)]


def _words(value_range: ValueRange | None) -> str:
    low, high = value_range or FULL_RANGE
    return f"{low:,} to {high:,}"


def _count(rows: Rows) -> str:
    return f"{len(rows):,} image{' is' if len(rows) == 1 else 's are'}"


def _names(names: Sequence[str], rows: Rows) -> tuple[str, ...]:
    return tuple(names[row] for row in rows.tolist())
