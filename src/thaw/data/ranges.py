"""The range of 16-bit images: found on training images, and its effects reported.

The definition is in `thaw.data.scaling`; a row of `Facts` describes one image.
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
"""Kinds of the problems reported here."""

FEW_LEVELS = 32
"""With fewer gray levels after scaling, and at least twice as many before, an image has lost too much."""

MOSTLY = 0.5
"""An image with a larger share of values outside the range is reported."""

_SETTING = "--set data.range=LOW,HIGH"


def find_range(facts: Facts, rows: Rows) -> ValueRange | None:
    """The range of the training images `rows`; None if none has more than 8 bits per channel."""
    rows = rows[facts.wide[rows]]
    if not len(rows):
        return None
    spans = facts.spans[rows].astype(np.int64)
    spans = spans[spans[:, 0] <= spans[:, 1]]
    if not len(spans):
        return FULL_RANGE
    low, high = int(spans[:, 0].min()), int(spans[:, 1].max())
    # For a single value, a range that maps it to black.
    return (low, high) if low < high else (min(low, LARGEST_VALUE - 1), min(low, LARGEST_VALUE - 1) + 1)


def range_problems(store: Store, train: Rows, *, is_set: bool) -> list[Problem]:
    """Report the range of a data set and its effect on the images.

    Args:
        store: all images of the source, scaled by the range, which is None if no training image has more than 8 bits.
        train: rows of the training images in the training split (or in the first split if there is none).
        is_set: whether the user set the range.
    """
    # The training split comes first, so that its rows are also rows of the concatenation.
    splits = sorted(store.facts, key=lambda split: split != "train")
    facts, value_range = join_facts([store.facts[split] for split in splits]), store.range
    names = [name for split in splits for name in store.names[split]]
    wide = np.flatnonzero(facts.wide)
    if not len(wide):
        unused = f"data.range is set to {_words(value_range)}, but no image has more than 8 bits per channel"
        return [Problem("range", "warning", f"{unused}: 8-bit values are not scaled")] if is_set else []
    how = "by data.range" if is_set else "found on the training images"
    if value_range is None:
        how = f"since no training image has more than 8 bits per channel (change it with {_SETTING})"
    count = f"{len(wide):,} image{'' if len(wide) == 1 else 's'}"
    message = f"16-bit images: values {_words(value_range)} scaled to 0..255, {how} ({count})"
    problems = [Problem("range", "note", message)]
    if len(wide) < len(facts.wide):
        narrow = np.flatnonzero(~facts.wide)
        few = narrow if len(narrow) <= len(wide) else wide
        message = (
            f"{len(wide):,} images have more than 8 bits per channel and {len(narrow):,} have 8, which are not scaled; "
            f"these have {'8' if few is narrow else '16'}"
        )
        problems.append(Problem("depth", "warning", message, _names(names, few)))
    return [*problems, *_content(facts, names, train, value_range, is_set=is_set), *_clipped(facts, names, value_range)]


def _content(
    facts: Facts, names: Sequence[str], train: Rows, value_range: ValueRange | None, *, is_set: bool
) -> list[Problem]:
    """Warnings if the range removes most of the content of the training images, or there is little content."""
    rows = train[facts.wide[train]]
    if not len(rows):
        return []
    low, high = value_range or FULL_RANGE
    if high - low < FEW_LEVELS and not is_set:
        message = f"16-bit images are nearly constant: the training images only use the range {_words(value_range)}"
        return [Problem("levels", "warning", message)]
    kept, native = (int(np.median(column)) for column in facts.levels[rows].T)
    if kept >= FEW_LEVELS or native < 2 * kept:
        return []
    lowest, highest = int(rows[facts.spans[rows, 0].argmin()]), int(rows[facts.spans[rows, 1].argmax()])
    ends = (
        f"{names[lowest]} has the minimum, {facts.spans[lowest, 0]:,}",
        f"{names[highest]} has the maximum, {facts.spans[highest, 1]:,}",
    )
    message = (
        f"16-bit images keep {kept} gray levels of {native:,} (median of the training images) in the range "
        f"{_words(value_range)}: choose the relevant part with {_SETTING}"
    )
    return [Problem("levels", "warning", message, ends)]


def use_problems(facts: Facts, names: Sequence[str], value_range: ValueRange | None) -> list[Problem]:
    """Report images that do not fit the range of a trained model.

    Args:
        facts: facts about the images.
        names: names of the images.
        value_range: the range of the model's input specification; None if it was trained on 8-bit images.
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
            f"{_count(narrow)} 8-bit, but the model was trained on 16-bit images with the range "
            f"{_words(value_range)}: 8-bit values are not scaled"
        )
        problems.append(Problem("depth", "warning", message, _names(names, narrow)))
    return [*problems, *_clipped(facts, names, value_range)]


def warn_of(problems: Iterable[Problem], *, stacklevel: int = 3) -> None:
    """Issue Python warnings for the warnings reported here."""
    for problem in problems:
        if problem.severity == "warning" and problem.kind in RANGE_KINDS:
            warnings.warn(str(problem), stacklevel=stacklevel)


def _clipped(facts: Facts, names: Sequence[str], value_range: ValueRange | None) -> list[Problem]:
    rows = np.flatnonzero(facts.outside > MOSTLY)
    if not len(rows):
        return []
    clipped = tuple(f"{names[row]} ({facts.outside[row]:.0%})" for row in rows.tolist())
    message = f"16-bit images with most values outside the range {_words(value_range)}, which are clipped"
    return [Problem("clipped", "warning", message, clipped)]


def _words(value_range: ValueRange | None) -> str:
    low, high = value_range or FULL_RANGE
    return f"{low:,} to {high:,}"


def _count(rows: Rows) -> str:
    return f"{len(rows):,} image{' is' if len(rows) == 1 else 's are'}"


def _names(names: Sequence[str], rows: Rows) -> tuple[str, ...]:
    return tuple(names[row] for row in rows.tolist())
