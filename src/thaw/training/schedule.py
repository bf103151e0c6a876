"""Learning rates as pure functions of the step."""

from __future__ import annotations

import math
from typing import Literal

from thaw.plain import BelowOne, Share, checked_dataclass

ScheduleKind = Literal["constant", "cosine"]


@checked_dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate changes over a stage."""

    kind: ScheduleKind = "constant"
    """"constant", or "cosine": half a cosine from the stage's learning rate down to `final` times that."""
    warmup: BelowOne = 0.0
    """Fraction of the stage's steps over which the learning rate first rises linearly from 0."""
    final: Share = 0.0
    """Learning rate at the end, as a fraction of the stage's learning rate."""


def learning_rate(schedule: Schedule, base: float, step: int, steps: int) -> float:
    """Return the learning rate of step `step` (from 0) of `steps`.

    The cosine is that of SGDR (arXiv 1608.03983) without restarts, over the steps after the warm-up.
    """
    warmup_steps = int(schedule.warmup * steps)
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    if schedule.kind == "constant":
        return base
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return base * (schedule.final + (1.0 - schedule.final) * 0.5 * (1.0 + math.cos(math.pi * progress)))
