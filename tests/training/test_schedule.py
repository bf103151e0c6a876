"""Learning rates, compared with calculations by hand and PyTorch's cosine."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from error_matching import raises

from thaw.training.schedule import Schedule, learning_rate


def rates(schedule: Schedule, base: float, steps: int) -> list[float]:
    return [learning_rate(schedule, base, step, steps) for step in range(steps)]


def test_constant():
    assert rates(Schedule(), 0.02, 5) == [0.02] * 5


def test_constant_with_warmup():
    # 40 % of 5 steps are 2: half of the rate, then the full rate.
    assert rates(Schedule(warmup=0.4), 0.02, 5) == pytest.approx([0.01, 0.02, 0.02, 0.02, 0.02])


def test_cosine_by_hand():
    made = rates(Schedule(kind="cosine"), 0.8, 4)
    # (1 + cos) / 2 at 0, 45, 90 and 135 degrees: 1, 0.853553, 0.5, 0.146447.
    assert made == pytest.approx([0.8, 0.6828427, 0.4, 0.1171573], rel=1e-6)


def test_cosine_with_warmup_and_floor_by_hand():
    made = rates(Schedule(kind="cosine", warmup=0.2, final=0.1), 0.1, 10)
    assert made[:3] == pytest.approx([0.05, 0.1, 0.1])
    # Half of the 8 steps after the warm-up: 0.1 (0.1 + 0.9 / 2).
    assert made[6] == pytest.approx(0.055)
    # The last: cos(7/8 pi) = -0.92387953, 0.1 (0.1 + 0.45 (1 - 0.92387953)).
    assert made[9] == pytest.approx(0.0134254, rel=1e-5)


def test_cosine_agrees_with_pytorch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.03)
    for rate in rates(Schedule(kind="cosine", final=0.1), 0.3, 50):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("final", [0.0, 0.25, 1.0])
def test_cosine_is_continuous_and_decreases_after_the_warmup(warmup, final):
    steps, base = 400, 0.7
    made = rates(Schedule(kind="cosine", warmup=warmup, final=final), base, steps)
    rising = int(warmup * steps)
    # Half a cosine over n steps falls by at most base pi / 2 n per step; the warm-up rises by base / its steps.
    steepest = base * math.pi / 2 / (steps - rising)
    for index, (now, then) in enumerate(pairwise(made)):
        if index + 1 < rising:
            assert then - now == pytest.approx(base / rising)
        else:
            assert -steepest <= then - now <= 1e-12
    assert max(made) == pytest.approx(base)
    assert made[-1] == pytest.approx(base * final, abs=2 * steepest)
    assert min(made) > 0


@pytest.mark.parametrize("schedule", [Schedule(), Schedule(kind="cosine", warmup=0.9, final=0.5)])
def test_single_step(schedule):
    assert rates(schedule, 0.1, 1) == pytest.approx([0.1])


def test_rates_scale_with_the_base():
    schedule = Schedule(kind="cosine", warmup=0.3, final=0.2)
    assert rates(schedule, 2.0, 30) == pytest.approx([20 * rate for rate in rates(schedule, 0.1, 30)])


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"kind": "linear"}, "kind = 'linear'"),
        ({"warmup": 1.0}, "warmup = 1.0"),
        ({"warmup": -0.1}, "warmup = "),
        ({"warmup": math.nan}, "warmup = "),
        ({"final": 1.1}, "final = "),
        ({"final": -0.1}, "final = "),
        ({"final": math.nan}, "final = "),
    ],
)
def test_settings_reject_invalid_values(values, field):
    with raises("usage", field):
        Schedule(**values)
