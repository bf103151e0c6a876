"""Learning rates as pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from thaw.errors import UsageError
from thaw.quoting import shown

ScheduleKind = Literal["constant", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate moves over a stage.

    Attributes:
        kind: "constant", or "cosine": half a cosine from the stage's rate down to `final` times it.
        warmup: share of the stage's steps over which the rate first rises linearly from 0, 0 to below 1.
        final: what is left at the end, as a share of the stage's rate, 0 to 1.
    """

    kind: ScheduleKind = "constant"
    warmup: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScheduleKind):
            raise UsageError(f"schedule.kind {shown(self.kind)}: expected one of {', '.join(get_args(ScheduleKind))}")
        if not 0.0 <= self.warmup < 1.0:
            raise UsageError(f"schedule.warmup {shown(self.warmup)}: expected a share from 0 to below 1")
        if not 0.0 <= self.final <= 1.0:
            raise UsageError(f"schedule.final {shown(self.final)}: expected a share from 0 to 1")


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
