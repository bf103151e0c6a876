"""Documents with a digest, and dataclasses from plain trees: what goes in comes out, and nothing else does."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from command_line import reseal
from hypothesis import given, settings
from hypothesis import strategies as st

from thaw.data.images import InputSpec
from thaw.errors import NotFiniteError, RunError, UsageError
from thaw.files import read_document, seal, unseal, write_document
from thaw.finite import check_finite
from thaw.plain import build, from_plain

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text().filter(lambda key: key != "sha256"), JSON, max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_document_comes_back(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "document.json"
    written = write_document(path, content)
    assert read_document(path, mend="") == json.loads(json.dumps(content))
    assert json.loads(path.read_text("utf-8")) == written
    reseal(path, content)
    assert read_document(path, mend="") == json.loads(json.dumps(content))


def test_the_digest_is_over_the_canonical_json(tmp_path):
    path = tmp_path / "document.json"
    written = write_document(path, {"b": (1, 2.0), "a": {3: "é"}})
    assert written["sha256"] == hashlib.sha256(b'{"a": {"3": "\\u00e9"}, "b": [1, 2.0]}').hexdigest()
    # How it is spaced and in which order does not matter.
    path.write_text(json.dumps(dict(reversed(written.items())), ensure_ascii=True))
    assert read_document(path, mend="") == {"b": [1, 2.0], "a": {"3": "é"}}


def test_every_changed_bit_of_a_document_is_found(tmp_path):
    path = tmp_path / "document.json"
    write_document(path, {"seed": 3, "accuracy": 0.75, "name": "a", "many": [1, None, True]})
    content = path.read_bytes()
    expected = read_document(path, mend="")
    for place in range(len(content)):
        for bit in range(8):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            with contextlib.suppress(RunError):
                # White space, at most.
                assert read_document(path, mend="") == expected, (place, bit)


def test_a_name_that_is_no_text_is_kept_in_a_file_that_is_utf_8(tmp_path):
    path = tmp_path / "document.json"
    write_document(path, {"source": "caf\udce9"})
    assert json.loads(path.read_bytes().decode("utf-8"))["source"] == "caf\udce9"
    assert read_document(path, mend="") == {"source": "caf\udce9"}


def test_numbers_that_are_not_finite_are_our_own_mistake(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_document(tmp_path / "document.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="digest"):
        unseal({**seal({"a": 1}), "a": 2})


@dataclass(frozen=True, kw_only=True)
class Near:
    family: ClassVar[str] = "near"
    distance: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Far:
    family: ClassVar[str] = "far"
    steps: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Trip:
    name: str
    by: Literal["foot", "train"] = "foot"
    goal: Near | Far = field(default_factory=Near)
    stops: tuple[Near, ...] = ()
    guide: str | None = None
    costs: dict[str, float] = field(default_factory=dict)
    rest: Any = None


def test_a_tree_becomes_a_dataclass():
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
        ({"name": "x", "stops": [{"distance": 2**53}]}, "trip.stops[0].distance = 9007199254740992"),
        ({"name": "x", "costs": {"a": "1"}}, "trip.costs.a = '1': expected a number"),
        ({"name": "x", "costs": [1]}, "trip.costs = [1]: expected a section"),
        ({"name": "x", "guide": 3}, "trip.guide = 3: expected a string"),
    ],
)
def test_what_cannot_be_is_told_by_its_name(tree, words):
    with pytest.raises(UsageError) as caught:
        from_plain(Trip, tree, "trip")
    assert words in str(caught.value)


def test_all_faults_are_found_and_long_values_are_cut():
    faults: list[str] = []
    assert build(Trip, {"name": "y" * 5000 and 3, "by": "z" * 5000, "x" * 5000: 1}, "", faults) is None
    assert len(faults) == 3
    assert max(map(len, faults)) < 250


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": (True,)}, "input.mean[0] = True"),
        ({"std": (1e-320,)}, "input.std[0] = 1e-320"),
        ({"std": (float("inf"),)}, "input.std[0] = inf"),
        ({"mean": (2**63,)}, "input.mean[0] = 9223372036854775808"),
        ({"height": True}, "input size Truex5"),
        ({"height": 2**63}, "input size 9223372036854775808x5"),
        ({"channels": 1.0}, "input with 1.0 channels"),
    ],
)
def test_an_input_contract_from_python_is_checked_too(changes, words):
    with pytest.raises(UsageError) as caught:
        InputSpec(**{"height": 4, "width": 5, "channels": 1, **changes})
    assert words in str(caught.value)


def test_answers_that_are_not_finite_are_counted():
    answers = np.ones((5, 3))
    check_finite(answers, "it")
    check_finite(np.ones((5, 3), np.int8), "it")
    answers[1, 2], answers[4, 0] = np.nan, -np.inf
    with pytest.raises(NotFiniteError, match="it computes NaN or infinity for 2 of 5 images"):
        check_finite(answers, "it")
