"""Split a data set: stratified, seeded, and without separating identical images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thaw.errors import DataError
from thaw.seeds import derive, numpy_generator

Rows = npt.NDArray[np.int64]


def identical_groups(digests: npt.NDArray[np.uint8]) -> Rows:
    """Number the images so that images with equal digests have equal numbers.

    Args:
        digests: uint8 [N, 16].

    Returns:
        int64 [N], numbers from 0 in the order in which the groups first appear.
    """
    if not len(digests):
        return np.zeros(0, dtype=np.int64)
    halves = np.ascontiguousarray(digests).view("<u8")
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
    in_order = np.cumsum(starts) - 1
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = in_order
    # lexsort is stable, so the first of each run is its earliest image.
    earliest = order[starts]
    rank = np.empty(len(earliest), dtype=np.int64)
    rank[np.argsort(earliest, kind="stable")] = np.arange(len(earliest))
    result: Rows = rank[numbers]
    return result


def cut_off(labels: Rows, groups: Rows, fraction: float, seed: int, name: str) -> tuple[Rows, Rows]:
    """Cut a part off the rows.

    `fraction` of each class is cut off, rounded to the nearest integer and at least one image; at least one remains. A
    group of identical images stays together and counts in the class of its first image, so that a class may deviate
    slightly from its share.

    Args:
        labels: int64 [N].
        groups: int64 [N], from `identical_groups`.
        fraction: above 0 and below 1.
        seed: the seed of the run.
        name: the split that is cut off ("test", "validation"); each has its own random stream.

    Returns:
        The remaining rows and the rows that are cut off, int64, both ascending.
    """
    _, first, group_of, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    group_labels = labels[first]
    counts = np.bincount(labels, minlength=1)
    chosen = np.zeros(len(first), dtype=bool)
    generator = numpy_generator(seed, "split", name)
    for label in np.unique(group_labels):
        candidates = generator.permutation(np.flatnonzero(group_labels == label))
        wanted = max(1, int(fraction * counts[label] + 0.5))
        most_groups = len(candidates) - 1
        for group in candidates:
            if wanted <= 0 or most_groups <= 0:
                break
            if sizes[group] <= wanted:
                chosen[group] = True
                wanted -= int(sizes[group])
                most_groups -= 1
    cut = chosen[group_of]
    return np.flatnonzero(~cut), np.flatnonzero(cut)


def k_folds(labels: Rows, folds: int, seed: int, groups: Rows | None = None) -> list[tuple[Rows, Rows]]:
    """Stratified folds by scikit-learn's StratifiedKFold, shuffled by the seed.

    Args:
        labels: int64 [N].
        folds: number of folds, at least 2.
        seed: the seed of the run.
        groups: int64 [N]; images of one group stay in one fold.

    Returns:
        For each fold, the rows to train on and the rows to validate on, int64, both ascending.

    Raises:
        DataError: when a class has fewer different images than folds.
    """
    from sklearn.model_selection import StratifiedKFold

    if folds < 2:
        raise DataError(f"{folds} folds: expected at least 2", code="data-folds")
    members = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    first = np.unique(members, return_index=True)[1]
    fewest = int(np.unique(labels[first], return_counts=True)[1].min(initial=len(labels)))
    if fewest < folds:
        message = f"a class has {fewest} different training images: expected at least {folds} for {folds} folds"
        raise DataError(message, code="data-folds")
    # scikit-learn accepts 32-bit seeds.
    splitter = StratifiedKFold(n_splits=folds, shuffle=True, random_state=derive(seed, "folds") % 2**32)
    result = []
    for _, held in splitter.split(np.zeros(len(first)), labels[first]):
        inside = np.isin(members, held)
        result.append((np.flatnonzero(~inside), np.flatnonzero(inside)))
    return result


def crossing_pairs(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> list[tuple[int, int]]:
    """(row in the first set, row in the second set) for each image of the second set that is also in the first.

    Args:
        first: digests, uint8 [N, 16].
        second: digests, uint8 [M, 16].
    """
    groups = identical_groups(np.concatenate([first, second]))
    here, there = groups[: len(first)], groups[len(first) :]
    # Groups are numbered by first appearance, so the groups of the first set have the lowest numbers.
    earliest = np.unique(here, return_index=True)[1]
    rows = np.flatnonzero(there < len(earliest))
    return [(int(earliest[there[row]]), int(row)) for row in rows]
