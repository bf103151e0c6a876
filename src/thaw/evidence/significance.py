"""The exact binomial test."""

from __future__ import annotations

from scipy import special


def binomial_tail(hits: int, count: int, share: float) -> float:
    """The probability of `hits` or more in `count` independent trials that succeed with probability `share`.

    It is the p-value of the one-sided exact binomial test. `scipy.stats` has it too, but takes 2 s to import.
    """
    return float(special.betainc(hits, count - hits + 1, share)) if hits else 1.0
