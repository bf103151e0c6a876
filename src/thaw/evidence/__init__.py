"""Measurements of a model: quality on held-out images, latency, and comparisons of runtimes."""

from __future__ import annotations

from thaw.evidence.environment import environment
from thaw.evidence.latency import Latency, Timing, measure_alternately, measure_latency
from thaw.evidence.quality import McNemar, Quality, evaluate, mcnemar, mean_interval, wilson_interval

__all__ = [
    "Latency",
    "McNemar",
    "Quality",
    "Timing",
    "environment",
    "evaluate",
    "mcnemar",
    "mean_interval",
    "measure_alternately",
    "measure_latency",
    "wilson_interval",
]
