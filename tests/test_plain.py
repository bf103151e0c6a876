"""Checked dataclasses: trees of plain values, and the faults found in them."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, StrictStr

from thaw.data.images import InputSpec
from thaw.errors import UsageError
from thaw.plain import Real, Whole, build, checked_dataclass, default_family, from_plain


@checked_dataclass(frozen=True, kw_only=True)
class Near:
    family: Literal["near"] = "near"
    distance: Real = 1.0


@checked_dataclass(frozen=True, kw_only=True)
class Far:
    family: Literal["far"] = "far"
    steps: tuple[Whole, ...] = ()


@checked_dataclass(frozen=True, kw_only=True)
class Trip:
    name: StrictStr
    by: Literal["foot", "train"] = "foot"
    goal: Annotated[Near | Far, Field(discriminator="family"), default_family("near")] = field(default_factory=Near)
    stops: tuple[Near, ...] = ()
    guide: StrictStr | None = None
    costs: dict[StrictStr, Real] = field(default_factory=dict)
    rest: Any = None


def test_tree_becomes_a_dataclass():
    tree = {
        "name": "x",
        "by": "train",
        "goal": {"family": "far", "steps": [1, 2]},
        "stops": [{"distance": 2}, {}],
        "guide": "y",
        "costs": {"a": 1, "b": 2.5},
        "rest": [1, "anything"],
    }
    assert from_plain(Trip, tree, "trip") == Trip(
        name="x",
        by="train",
        goal=Far(steps=(1, 2)),
        stops=(Near(distance=2.0), Near()),
        guide="y",
        costs={"a": 1.0, "b": 2.5},
        rest=[1, "anything"],
    )
    assert from_plain(Trip, {"name": "x", "guide": None}, "trip").guide is None


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (3, "trip: expected a section, found 3"),
        ({}, "trip.name is missing"),
        ({"name": 3}, "trip.name = 3: expected a string"),
        ({"name": "x", "nam": 1}, "trip.nam is unknown; did you mean name?"),
        ({"name": "x", "by": ["foot"]}, "trip.by = ['foot']: expected one of foot, train"),
        ({"name": "x", "goal": {"family": "odd"}}, "trip.goal.family = 'odd': expected one of near, far"),
        ({"name": "x", "goal": {"family": "far", "steps": [1, True]}}, "trip.goal.steps[1] = True"),
        ({"name": "x", "goal": {"family": "far", "steps": [2**63]}}, "trip.goal.steps[0] = 9223372036854775808"),
        ({"name": "x", "stops": [{}, {"distance": 1e-320}]}, "trip.stops[1].distance = 1e-320"),
        ({"name": "x", "stops": [{"distance": 3.5e38}]}, "trip.stops[0].distance = 3.5e+38"),
        ({"name": "x", "stops": [{"distance": float("nan")}]}, "expected a finite number"),
        ({"name": "x", "stops": [{"distance": 10**400}]}, "expected a number"),
        ({"name": "x", "costs": {"a": "1"}}, "trip.costs.a = '1': expected a number"),
        ({"name": "x", "costs": [1]}, "trip.costs: expected a section, found [1]"),
        ({"name": "x", "guide": 3}, "trip.guide = 3: expected a string"),
    ],
)
def test_fault_has_its_full_name(tree, words):
    with pytest.raises(UsageError) as caught:
        from_plain(Trip, tree, "trip")
    assert words in str(caught.value)


def test_all_faults_are_found_and_long_values_are_truncated():
    made, faults = build(Trip, {"name": 3, "by": "z" * 5000, "x" * 5000: 1, "guide": "\x1b"})
    assert made is None
    assert len(faults) == 3
    assert max(map(len, faults)) < 250
    assert build(Trip, {"name": 3, "by": "\x1b[2J"})[1][1] == r"by = '\x1b[2J': expected one of foot, train"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": (True,)}, "InputSpec.mean[0] = True"),
        ({"std": (1e-320,)}, "InputSpec.std[0] = 1e-320"),
        ({"std": (float("inf"),)}, "InputSpec.std[0] = inf"),
        ({"mean": (2**63,)}, "InputSpec.mean[0] = 9223372036854775808"),
        ({"height": True}, "InputSpec.height = True: expected an integer"),
        ({"height": 2**63}, "InputSpec.height = 9223372036854775808"),
        ({"channels": 1.0}, "InputSpec.channels = 1.0"),
    ],
)
def test_input_spec_from_python_is_checked(changes, words):
    with pytest.raises(UsageError) as caught:
        InputSpec(**{"height": 4, "width": 5, "channels": 1, **changes})
    assert words in str(caught.value)
