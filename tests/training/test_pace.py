"""The estimate of an epoch's duration, which does not affect training."""

from __future__ import annotations

import time

import pytest
import torch
from training_samples import branches_of, method_of, snapshot

from thaw.models.families import ResidualSpec
from thaw.training.pace import seconds_per_epoch


@pytest.mark.parametrize(
    ("method", "join"),
    [
        ("two-stage", "concatenate"),
        ("two-stage", "average"),
        ("two-stage", "distil"),
        ("plain", "concatenate"),
        ("distil", "concatenate"),
    ],
)
def test_every_stage_is_timed_without_affecting_the_run(method, join):
    model = ResidualSpec(widths=(4, 6), blocks=(1, 0), dropout=0.1)
    weights = []
    for timed in (False, True):
        with branches_of(1) as parallel:
            trained = method_of(parallel, method=method, join=join, model=model)
            state = torch.get_rng_state()
            if timed:
                told = seconds_per_epoch(trained.settings, trained.context)
                assert list(told) == list(trained.settings.stage_epochs)
                assert all(seconds > 0 for seconds in told.values())
            assert torch.equal(torch.get_rng_state(), state)
            for _ in trained.epochs():
                pass
            weights.append(snapshot(trained.network))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_estimate_agrees_with_an_epoch():
    with branches_of(1) as parallel:
        trained = method_of(parallel, method="plain", model=ResidualSpec(widths=(24, 32), blocks=(2, 2)))
        told = seconds_per_epoch(trained.settings, trained.context)["plain"]
        started = time.perf_counter()
        epochs = sum(1 for _ in trained.epochs())
        took = (time.perf_counter() - started) / epochs
    # The order of magnitude, also while other programs run.
    assert 0.2 < told / took < 5
