"""The exact binomial test, compared with scipy.stats."""

from __future__ import annotations

import pytest
from scipy import stats

from thaw.evidence.significance import binomial_tail


@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.93])
@pytest.mark.parametrize("count", [0, 1, 7, 100, 10_000])
def test_tail_is_that_of_scipy(count, share):
    for hits in {0, min(1, count), count // 5, count // 2, max(0, count - 1), count}:
        expected = stats.binom.sf(hits - 1, count, share)
        assert binomial_tail(hits, count, share) == pytest.approx(expected, rel=1e-9)
