"""What a model is worth, in numbers: quality on held-out images, latency, and the machine they were measured on."""

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
