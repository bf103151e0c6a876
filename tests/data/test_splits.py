"""Cuts and folds: stratified, seeded, and without separating identical images."""

import numpy as np
import pytest
from error_matching import raises
from hypothesis import given, settings
from hypothesis import strategies as st

from thaw.data.splits import crossing_pairs, cut_off, identical_groups, k_folds


def digests_of(numbers):
    return np.array([list(int(n).to_bytes(16, "big")) for n in numbers], dtype=np.uint8).reshape(-1, 16)


@given(st.lists(st.integers(0, 2**127), max_size=40), st.integers(1, 5))
def test_groups_number_equal_digests_in_order_of_appearance(numbers, repeat):
    numbers = numbers * repeat
    seen = {}
    expected = [seen.setdefault(number, len(seen)) for number in numbers]
    assert identical_groups(digests_of(numbers)).tolist() == expected


@given(st.lists(st.integers(0, 9), max_size=20), st.lists(st.integers(0, 9), max_size=20))
def test_crossing_pairs(first, second):
    expected = [(first.index(value), row) for row, value in enumerate(second) if value in first]
    assert crossing_pairs(digests_of(first), digests_of(second)) == expected


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=120),
    st.floats(0.05, 0.5),
    st.integers(0, 9),
)
def test_cut_keeps_identical_images_together(members, fraction, seed):
    labels = np.array([label for label, _ in members])
    groups = np.unique([image for _, image in members], return_inverse=True)[1]
    kept, cut = cut_off(labels, groups, fraction, seed, "test")
    assert sorted([*kept.tolist(), *cut.tolist()]) == list(range(len(members)))
    assert not set(groups[kept]) & set(groups[cut])
    again = cut_off(labels, groups, fraction, seed, "test")
    assert np.array_equal(kept, again[0])


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.25])
def test_cut_is_stratified(fraction):
    labels = np.repeat([0, 1, 2], [100, 40, 7])
    _, cut = cut_off(labels, np.arange(147), fraction, 0, "test")
    assert np.bincount(labels[cut]).tolist() == [max(1, int(fraction * n + 0.5)) for n in (100, 40, 7)]


def test_cut_changes_with_seed_and_name():
    labels, groups = np.repeat([0, 1], 50), np.arange(100)
    cuts = [
        cut_off(labels, groups, 0.2, seed, name)[1].tolist()
        for seed, name in ((0, "test"), (1, "test"), (0, "validation"))
    ]
    assert len({tuple(cut) for cut in cuts}) == 3


def test_folds_are_stratified_and_keep_groups():
    labels = np.repeat([0, 1, 2], 30)
    groups = np.arange(90) // 2
    folds = k_folds(labels, 5, 3, groups)
    assert sorted(np.concatenate([held for _, held in folds]).tolist()) == list(range(90))
    for kept, held in folds:
        assert not set(groups[kept]) & set(groups[held])
        assert np.bincount(labels[held], minlength=3).tolist() == [6, 6, 6]
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(folds, k_folds(labels, 5, 3, groups), strict=True))


def test_too_few_images_for_the_folds():
    with raises("data-folds", "3", "5"):
        k_folds(np.repeat([0, 1], [3, 30]), 5, 0)
    with raises("data-folds", "2"):
        k_folds(np.repeat([0, 1], 30), 1, 0)
