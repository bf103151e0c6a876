"""Split a data set whose images belong to groups that must stay together, such as those of one person."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thaw.data.splits import Rows
from thaw.errors import DataError
from thaw.seeds import derive, numpy_generator

# A cut without images of a class, or one that leaves a class in too few groups, is worse than any deviation.
_NONE_CUT = 4.0
_TOO_FEW_LEFT = 16.0

_MOST_PASSES = 30
_MOST_STARTS = 30
_GROUPS_LOOKED_AT = 60_000


def join_groups(identical: Rows, named: Rows) -> Rows:
    """The connected components of two groupings: images linked by any chain of groups of either kind.

    Args:
        identical: int64 [N], equal for identical images.
        named: int64 [N], equal for images of one group.

    Returns:
        int64 [N], numbers from 0 in the order in which the groups first appear.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(identical):
        return np.zeros(0, dtype=np.int64)
    offset = int(identical.max()) + 1
    size = offset + int(named.max()) + 1
    links = coo_array((np.ones(len(identical), dtype=np.int8), (identical, offset + named)), shape=(size, size))
    parts = connected_components(links, directed=False)[1][identical]
    _, first, numbers = np.unique(parts, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    result: Rows = rank[numbers]
    return result


def groups_of_classes(labels: Rows, groups: Rows, classes: int) -> Rows:
    """The number of groups that hold each class.

    Args:
        labels: int64 [N], 0 to K-1.
        groups: int64 [N].
        classes: K.

    Returns:
        int64 [K].
    """
    pairs = np.unique(np.stack([labels, groups], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=classes)


@dataclass
class _Cut:
    """A choice of groups and its cost; the last class represents all images."""

    images: list[int]
    groups: list[int]
    chosen: list[bool]
    cost: float


class _Search:
    """Groups by class, and the deviation of a cut from the wanted share of each class."""

    def __init__(self, labels: Rows, groups: Rows, fraction: float, left: int) -> None:
        """As `cut_off_groups`; groups are numbered from 0 without gaps."""
        pairs, counts = np.unique(np.stack([groups, labels], axis=1), axis=0, return_counts=True)
        classes = int(labels.max()) + 1
        self.members: list[list[tuple[int, int]]] = [[] for _ in range(int(groups.max()) + 1)]
        for (group, label), count in zip(pairs.tolist(), counts.tolist(), strict=True):
            self.members[group].append((label, count))
        self.images = [*np.bincount(labels, minlength=classes).tolist(), len(labels)]
        self.groups = [*np.bincount(pairs[:, 1], minlength=classes).tolist(), len(self.members)]
        for found in self.members:
            found.append((classes, sum(count for _, count in found)))
        self.fraction, self.left = fraction, left

    def cost(self, label: int, images: int, groups: int) -> float:
        """The squared deviation of a class from its share, and penalties for missing images or groups."""
        share = images / self.images[label] - self.fraction
        missing = max(0, self.left - (self.groups[label] - groups))
        cost: float = share * share + (0 if images else _NONE_CUT) + _TOO_FEW_LEFT * missing
        return cost

    def descend(self, order: list[int]) -> _Cut:
        """Greedy descent: move each group into or out of the cut while that lowers the cost."""
        present = [label for label, count in enumerate(self.images) if count]
        start = sum(self.cost(label, 0, 0) for label in present)
        cut = _Cut([0] * len(self.images), [0] * len(self.images), [False] * len(self.members), start)
        for _ in range(_MOST_PASSES):
            changed = False
            for group in order:
                sign = -1 if cut.chosen[group] else 1
                change = 0.0
                for label, count in self.members[group]:
                    images, groups = cut.images[label], cut.groups[label]
                    change += self.cost(label, images + sign * count, groups + sign) - self.cost(label, images, groups)
                if change < -1e-12:
                    for label, count in self.members[group]:
                        cut.images[label] += sign * count
                        cut.groups[label] += sign
                    cut.chosen[group], cut.cost, changed = sign > 0, cut.cost + change, True
            if not changed:
                break
        return cut

    def lacking(self, cut: _Cut) -> list[int]:
        """Classes that are missing in the cut, or remain in too few groups."""
        return [
            label
            for label in range(len(self.images) - 1)
            if self.images[label] and (not cut.images[label] or self.groups[label] - cut.groups[label] < self.left)
        ]


def cut_off_groups(
    labels: Rows, groups: Rows, fraction: float, seed: int, name: str, *, left: int
) -> tuple[Rows, Rows, list[int]]:
    """Cut a part off the rows; groups stay together.

    A local search from several random orders chooses groups with about `fraction` of the images of each class: those
    with the least sum of squared deviations. Each class has images on both sides.

    Args:
        labels: int64 [N].
        groups: int64 [N].
        fraction: above 0 and below 1.
        seed: the seed of the run.
        name: the split that is cut off ("test", "validation"); each has its own random stream.
        left: number of groups of each class that must remain.

    Returns:
        The remaining rows and the rows that are cut off, int64, both ascending; and the classes without a solution.
    """
    numbers = np.unique(groups, return_inverse=True)[1]
    search = _Search(labels, numbers, fraction, left)
    count = len(search.members)
    generator = numpy_generator(seed, "split", name, "groups")
    starts = max(1, min(_MOST_STARTS, _GROUPS_LOOKED_AT // count))
    cuts = [search.descend(generator.permutation(count).tolist()) for _ in range(starts)]
    best = min(cuts, key=lambda cut: round(cut.cost, 12))
    cut = np.array(best.chosen)[numbers]
    return np.flatnonzero(~cut), np.flatnonzero(cut), search.lacking(best)


def group_folds(labels: Rows, folds: int, seed: int, groups: Rows) -> list[tuple[Rows, Rows]]:
    """Folds by scikit-learn's StratifiedGroupKFold, shuffled by the seed: groups stay together, classes balanced.

    Args:
        labels: int64 [N].
        folds: number of folds, at least 2.
        seed: the seed of the run.
        groups: int64 [N].

    Returns:
        For each fold, the rows to train on and the rows to validate on, int64, both ascending.

    Raises:
        DataError: when a class has fewer groups than folds, or a fold would train without some class.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    per_class = groups_of_classes(labels, groups, int(labels.max()) + 1)
    fewest = int(per_class[np.unique(labels)].min())
    if fewest < folds:
        message = f"a class has {fewest} groups of training images: expected at least {folds} for {folds} folds"
        raise DataError(message, code="data-folds")
    # scikit-learn accepts 32-bit seeds.
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=derive(seed, "folds") % 2**32)
    result = [(np.sort(kept), np.sort(held)) for kept, held in splitter.split(np.zeros(len(labels)), labels, groups)]
    if any(len(np.unique(labels[kept])) < len(np.unique(labels)) or not len(held) for kept, held in result):
        message = f"the groups are too large for {folds} folds: a fold would train without some class; use fewer folds"
        raise DataError(message, code="data-folds")
    return result
