"""Checks of a whole data set: classes, duplicates, and images that cannot be read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from thaw.data.catalog import Split
from thaw.data.problems import Problem
from thaw.data.splits import Rows, crossing_pairs, identical_groups
from thaw.data.store import Store

# A larger ratio of the largest class to the smallest is a warning.
_IMBALANCED = 10

LEFT_OUT_KINDS = ("unreadable", "label", "format", "link")
"""Kinds of problems whose images are skipped with `skip_broken`."""

_HELD_OUT: tuple[Split, ...] = ("validation", "test")


def find_problems(store: Store, *, skip_broken: bool, folds: int) -> list[Problem]:
    """All problems of a source, and the conversions of its images.

    Args:
        store: the prepared source.
        skip_broken: skip images that cannot be read or have no label, with a warning.
        folds: number of folds that training will use; 0 for none.
    """
    return [
        *unusable_images(store, skip_broken=skip_broken),
        *_classes(store, folds),
        *_duplicates(store),
        *(problem for problem in store.problems if not _is_left_out(problem)),
        *_chosen_input(store),
    ]


def unusable_images(store: Store, *, skip_broken: bool) -> list[Problem]:
    """Images that cannot be read or have no label: errors, or warnings with `skip_broken`."""
    problems = [problem for problem in store.problems if _is_left_out(problem)]
    if store.unreadable:
        count = len(store.unreadable)
        message = f"{count:,} image{'' if count == 1 else 's'} cannot be read"
        problems.insert(0, Problem("unreadable", "error", message, store.unreadable))
    return as_skippable(problems, skip_broken=skip_broken)


def _is_left_out(problem: Problem) -> bool:
    return problem.kind in LEFT_OUT_KINDS and problem.severity != "note"


def as_skippable(problems: Iterable[Problem], *, skip_broken: bool) -> list[Problem]:
    """Problems of single images: warnings with `skip_broken`, else errors with a hint."""
    if skip_broken:
        return [replace(problem, severity="warning", message=f"skipped: {problem.message}") for problem in problems]
    hint = " (fix or remove them, or skip them with --skip-broken)"
    return [replace(problem, message=problem.message + hint) for problem in problems]


def _classes(store: Store, folds: int) -> list[Problem]:
    if "train" not in store.labels:
        return [Problem("split", "error", f"no training images, only {' and '.join(store.labels)} images")]
    if not len(store.labels["train"]):
        return [Problem("split", "error", "the training split has no usable image")]
    for split in _HELD_OUT:
        if split in store.labels and not len(store.labels[split]):
            return [Problem("split", "error", f"the {split} split has no usable image: fill or remove it")]
    problems = []
    counts = {split: np.bincount(labels, minlength=len(store.classes)) for split, labels in store.labels.items()}
    train = counts["train"]
    elsewhere = sum(count for split, count in counts.items() if split != "train")
    for split in _HELD_OUT:
        held = counts.get(split)
        lacking = () if held is None else _class_names(store, (train == 0) & (held > 0))
        if lacking:
            message = f"{split} classes without a training image"
            problems.append(Problem("class", "error", message, lacking))
    if int((train > 0).sum()) == 1:
        problems.append(
            Problem("class", "error", "only one class: expected at least two", _class_names(store, train > 0))
        )
    empty = _class_names(store, (train == 0) & (elsewhere == 0))
    if empty:
        problems.append(Problem("class", "error", "classes without images (add some, or remove the class)", empty))
    problems += _small_classes(store, folds)
    present = train[train > 0]
    if len(present) and present.max() > _IMBALANCED * present.min():
        largest, smallest = store.classes[int(train.argmax())], _class_names(store, train == present.min())
        message = (
            f"class imbalance: {largest} has {present.max():,} training images, the smallest class {present.min():,}"
        )
        problems.append(Problem("balance", "warning", message, smallest))
    return problems


def _small_classes(store: Store, folds: int) -> list[Problem]:
    """Classes with too few images for a part in each split and fold."""
    cuts = [name for name in ("validation", "test") if name not in store.labels]
    labels = store.labels["train"]
    first = np.unique(identical_groups(store.facts["train"].originals), return_index=True)[1]
    different = np.bincount(labels[first], minlength=len(store.classes))
    parts = 1 + len(cuts)
    needed = max(parts, folds + len(cuts) if folds else 0)
    few = (different < needed) & (np.bincount(labels, minlength=len(store.classes)) > 0)
    if not few.any():
        return []
    names = tuple(f"{store.classes[row]} ({different[row]})" for row in np.flatnonzero(few))
    wants = " and ".join([f"{folds} folds" if folds else "training", *cuts])
    message = f"classes with too few different images ({wants} need {needed} of each class)"
    return [Problem("class", "error", message, names)]


def fold_problems(store: Store, train: Rows, groups: Rows, folds: int) -> list[Problem]:
    """Classes with fewer different training images than folds."""
    if not folds:
        return []
    labels = store.labels["train"]
    first = train[np.unique(groups[train], return_index=True)[1]]
    different = np.bincount(labels[first], minlength=len(store.classes))
    few = np.flatnonzero(different < folds)
    names = tuple(f"{store.classes[row]} ({different[row]})" for row in few)
    message = f"classes with too few different training images for {folds} folds"
    return [Problem("class", "error", message, names)] if names else []


def _class_names(store: Store, where: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(store.classes[row] for row in np.flatnonzero(where))


def _duplicates(store: Store) -> list[Problem]:
    problems = []
    pairs: list[tuple[Split, Split]] = [("train", split) for split in _HELD_OUT] + [("validation", "test")]
    for one, other in pairs:
        if one not in store.facts or other not in store.facts:
            continue
        found = crossing_pairs(store.facts[one].originals, store.facts[other].originals)
        if found:
            names = tuple(_same(store, (one, a), (other, b)) for a, b in found)
            message = f"{len(names):,} {other} image{'' if len(names) == 1 else 's'} also in {one}"
            problems.append(Problem("duplicate", "warning", message, names))
    if "train" in store.facts:
        problems += _repeated(store)
    return problems


def _same(store: Store, first: tuple[Split, int], second: tuple[Split, int]) -> str:
    """Two identical images, and their classes if these differ."""
    names = [store.names[split][row] for split, row in (first, second)]
    classes = [store.classes[store.labels[split][row]] for split, row in (first, second)]
    return f"{names[0]} = {names[1]}" + (f" ({classes[0]}, {classes[1]})" if classes[0] != classes[1] else "")


def _repeated(store: Store) -> list[Problem]:
    groups, labels = identical_groups(store.facts["train"].originals), store.labels["train"]
    first = np.unique(groups, return_index=True)[1]
    repeats = np.setdiff1d(np.arange(len(groups)), first)
    if not len(repeats):
        return []
    names = store.names["train"]
    originals = first[groups[repeats]]
    clash = labels[repeats] != labels[originals]
    problems = []
    equal = [f"{names[a]} = {names[b]}" for a, b in zip(originals.tolist(), repeats.tolist(), strict=True)]
    if clash.any():
        clashing = tuple(
            f"{text} ({store.classes[labels[a]]}, {store.classes[labels[b]]})"
            for text, a, b, differs in zip(equal, originals, repeats, clash, strict=True)
            if differs
        )
        problems.append(Problem("duplicate", "warning", "identical images of different classes", clashing))
    message = "identical images in the training split (the splits keep them together)"
    problems.append(Problem("repeat", "note", message, tuple(equal)))
    return problems


def _chosen_input(store: Store) -> list[Problem]:
    if not store.chosen:
        return []
    shape = "x".join(str(side) for side in store.shape)
    return [Problem("input", "note", f"input {shape} was chosen: {store.chosen}")]
