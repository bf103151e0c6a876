"""The cross-validation part of metrics.json; tests/run/test_run.py trains one."""

from __future__ import annotations

import numpy as np
import pytest

from thaw.run.cross_validation import FoldDone, fold_summary


@pytest.mark.parametrize("accuracies", [[0.98, 1.0, 1.0], [0.0, 0.01, 0.0]])
def test_interval_over_folds_is_within_0_and_1(accuracies):
    folds = [FoldDone(number, 3, accuracy, accuracy) for number, accuracy in enumerate(accuracies, start=1)]
    low, high = fold_summary(folds)["ci95"]
    assert 0.0 <= low < high <= 1.0


def test_each_score_has_its_mean():
    summary = fold_summary([FoldDone(1, 3, 0.9, 0.5), FoldDone(2, 3, 0.8, 0.6), FoldDone(3, 3, 0.7, 0.4)])
    assert summary["accuracies"] == [0.9, 0.8, 0.7]
    assert summary["balanced_accuracies"] == [0.5, 0.6, 0.4]
    assert summary["mean"] == pytest.approx(0.8)
    assert summary["balanced_mean"] == pytest.approx(0.5)
    assert summary["std"] == pytest.approx(np.std([0.9, 0.8, 0.7], ddof=1))
    assert fold_summary([]) is None
