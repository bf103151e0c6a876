"""Plan the splits of a source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from thaw.data.catalog import SPLITS, Split
from thaw.data.checks import fold_problems
from thaw.data.group_splits import cut_off_groups, groups_of_classes, join_groups
from thaw.data.problems import Problem
from thaw.data.settings import DataSettings
from thaw.data.splits import Rows, cut_off, identical_groups
from thaw.data.store import Store

# A split that is larger or smaller than requested by more than this factor is reported.
_FAR_OFF = 1.5


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """The rows of each split.

    Attributes:
        rows: int64, ascending, by split: rows of the split in the source if it has it, else of "train".
        groups: int64 [N] of the training images of the source; equal for images that stay together.
        cut_by: "origin", "fraction" and "seed" of the splits that were cut.
        grouping: None, or "by" (in words), "count", and the number of groups in each split.
        problems: errors if the groups cannot be split; else warnings and notes.
    """

    rows: Mapping[Split, Rows]
    groups: Rows
    cut_by: Mapping[Split, Mapping[str, Any]]
    grouping: Mapping[str, Any] | None
    problems: tuple[Problem, ...]


def plan_splits(store: Store, settings: DataSettings, *, seed: int, folds: int = 0) -> SplitPlan:
    """Cut missing splits from the training images; identical images and images of one group stay together.

    Args:
        store: the prepared source, with training images of every class.
        settings: the fractions.
        seed: seed of the cuts.
        folds: number of folds that the remaining training images must allow; 0 for none.
    """
    groups = identical_groups(store.facts["train"].originals)
    grouped = "train" in store.groups.numbers
    if grouped:
        groups = join_groups(groups, store.groups.numbers["train"])
    rows: dict[Split, Rows] = {split: np.arange(len(labels)) for split, labels in store.labels.items()}
    cut_by: dict[Split, dict[str, Any]] = {}
    problems: list[Problem] = []
    wanted: dict[Split, float] = {"test": settings.test_fraction, "validation": settings.validation_fraction}
    cuts = [split for split in wanted if split not in store.labels]
    if grouped:
        problems += _too_few_groups(store, groups, len(cuts), folds)
    for place, split in enumerate(cuts if not problems else []):
        train, fraction = rows["train"], wanted[split]
        labels = store.labels["train"][train]
        if grouped:
            left = max(1, folds) + len(cuts) - place - 1
            kept, cut, lacking = cut_off_groups(labels, groups[train], fraction, seed, split, left=left)
            problems += _uncut(store, split, lacking)
        else:
            kept, cut = cut_off(labels, groups[train], fraction, seed, split)
        rows["train"], rows[split] = train[kept], train[cut]
        cut_by[split] = {"origin": "cut", "fraction": fraction, "seed": seed}
        if grouped:
            problems += _far_off(split, fraction, len(cut), len(train))
    if problems and any(problem.severity == "error" for problem in problems):
        return SplitPlan(rows=rows, groups=groups, cut_by=cut_by, grouping=None, problems=tuple(problems))
    grouping = _grouping(store, groups, rows, cut_by) if grouped else None
    problems += [_grouping_note(grouping)] if grouping else fold_problems(store, rows["train"], groups, folds)
    return SplitPlan(rows=rows, groups=groups, cut_by=cut_by, grouping=grouping, problems=tuple(problems))


def _too_few_groups(store: Store, groups: Rows, cuts: int, folds: int) -> list[Problem]:
    """Classes in fewer groups than there are splits and folds."""
    parts = max(1, folds) + cuts
    labels = store.labels["train"]
    found = groups_of_classes(labels, groups, len(store.classes))
    few = np.flatnonzero((found < parts) & (np.bincount(labels, minlength=len(store.classes)) > 0))
    if not len(few):
        return []
    largest = np.bincount(groups).max()
    names = tuple(f"{store.classes[row]} ({found[row]})" for row in few)
    message = (
        f"classes in fewer groups by {store.groups.by} than the {parts} parts of the data "
        f"(the largest group has {largest:,} of {len(groups):,} images): use smaller groups, or add some"
    )
    return [Problem("group", "error", message, names)]


def _uncut(store: Store, split: Split, lacking: list[int]) -> list[Problem]:
    if not lacking:
        return []
    message = (
        f"no {split} split of whole groups by {store.groups.by} leaves each class on both sides: use smaller groups, "
        "or provide the split"
    )
    return [Problem("group", "error", message, tuple(store.classes[label] for label in lacking))]


def _far_off(split: Split, fraction: float, count: int, total: int) -> list[Problem]:
    share = count / total
    if 1 / _FAR_OFF <= share / fraction <= _FAR_OFF:
        return []
    message = f"the {split} split has {share:.0%} of the images instead of {fraction:.0%}, since groups stay together"
    return [Problem("groups", "warning", message)]


def _grouping(store: Store, groups: Rows, rows: Mapping[Split, Rows], cut_by: Mapping[Split, Any]) -> dict[str, Any]:
    own = {split: store.groups.numbers.get(split) for split in SPLITS if split in store.labels}
    counts: dict[str, int] = {}
    for split in SPLITS:
        if split in cut_by or split == "train":
            counts[split] = len(np.unique(groups[rows[split]]))
        else:
            numbers = own.get(split)
            counts[split] = 0 if numbers is None else len(np.unique(numbers))
    return {"by": store.groups.by, "count": len(np.unique(groups)), **counts}


def _grouping_note(grouping: Mapping[str, Any]) -> Problem:
    parts = ", ".join(f"{split} {grouping[split]:,}" for split in SPLITS)
    return Problem("groups", "note", f"groups by {grouping['by']} are kept together: {parts}")
