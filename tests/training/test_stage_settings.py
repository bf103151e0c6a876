"""Invalid values of the stage settings."""

from __future__ import annotations

import math

import pytest
from error_matching import raises

from thaw.errors import UsageError
from thaw.training.stages import DualSettings, UnfreezeSettings, UnfreezeStep

NO_POSITIVE = [0, -1, math.nan, math.inf]


@pytest.mark.parametrize("value", NO_POSITIVE)
@pytest.mark.parametrize("name", ["epochs", "batch_size", "learning_rate", "patience"])
def test_dual_settings_reject_invalid_numbers(name, value):
    with raises("usage", f"DualSettings.{name} = {value}: "):
        DualSettings(**{name: value})


@pytest.mark.parametrize("views", [("original",), ("original", "augmented", "original"), ("original", "mirrored"), ()])
def test_dual_settings_reject_invalid_views(views):
    with raises("usage", "DualSettings.views"):
        DualSettings(views=views)


@pytest.mark.parametrize("value", NO_POSITIVE)
def test_unfreeze_settings_reject_invalid_numbers(value):
    for name in ("epochs", "learning_rate"):
        with raises("usage", f"UnfreezeStep.{name} = "):
            UnfreezeStep(unit="head", **{"epochs": 1, "learning_rate": 0.1, name: value})
    for name in ("batch_size", "patience"):
        with raises("usage", f"UnfreezeSettings.{name} = "):
            UnfreezeSettings(**{name: value})


@pytest.mark.parametrize("momentum", [-0.1, 1.0, math.nan])
def test_unfreeze_settings_reject_unknown_keys(momentum):
    with raises("usage", "UnfreezeSettings.momentum"):
        UnfreezeSettings(momentum=momentum)


def test_unfreeze_settings_reject_invalid_view():
    with raises("usage", "UnfreezeSettings.view = 'both'", "original, augmented"):
        UnfreezeSettings(view="both")


def test_all_faults_are_reported_together():
    with pytest.raises(UsageError) as caught:
        DualSettings(epochs=0, patience=True, learning_rat=1, schedule={"warmup": 2})
    assert len(str(caught.value).splitlines()) == 4
