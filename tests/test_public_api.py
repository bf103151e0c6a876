"""The public names are a sorted `__all__`, and there are no others."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import thaw
from thaw import _version

# Leaks are checked in a separate process, since other tests may have imported anything here.
_PUBLIC_NAMES = """
import __future__, types, thaw
for name in sorted(set(dir(thaw)) | set(vars(thaw))):
    value = getattr(thaw, name)
    is_room = isinstance(value, types.ModuleType) and value.__name__ == f"thaw.{name}"
    is_future = isinstance(value, __future__._Feature)
    if not name.startswith("_") and not is_room and not is_future:
        print(name)
"""


def test_all_is_sorted_and_unique():
    assert list(thaw.__all__) == sorted(set(thaw.__all__))


@pytest.mark.parametrize("name", thaw.__all__)
def test_every_public_name_exists_and_is_documented(name):
    value = getattr(thaw, name)
    assert not isinstance(value, ModuleType), f"thaw.{name} is a module: public names are functions, classes and values"
    if inspect.isclass(value) or inspect.isroutine(value):
        assert inspect.getdoc(value), f"thaw.{name} has no docstring"


def test_star_import_gives_exactly_the_public_names():
    namespace: dict[str, object] = {}
    exec("from thaw import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(thaw.__all__)


def test_no_other_public_names():
    command = [sys.executable, "-c", _PUBLIC_NAMES]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split()
    assert shown == [name for name in sorted(thaw.__all__) if not name.startswith("_")]


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        thaw.no_such_name  # noqa: B018 (the access is what is tested)


@pytest.mark.parametrize(
    ("words", "name", "arguments", "options"),
    [
        (["reproduce", "--dataset", "mnist", "--seeds", "4,2"], "reproduce", (["mnist"],), {"seeds": (4, 2)}),
        (
            ["ablate", "digits", "--study", "unify", "--set", "dual.epochs=1", "--out", "there"],
            "ablate",
            ("digits",),
            {"seeds": (0, 1, 2), "study": "unify", "overrides": ["dual.epochs=1"], "out": Path("there")},
        ),
        (["zoo"], "zoo_cards", (), {}),
        (["zoo", "zoo:mnist-15k"], "zoo_card", ("zoo:mnist-15k",), {}),
        (["train", "digits", "--seed", "4"], "train", ("digits",), {"seed": 4}),
        (["data", "digits", "--set", "data.fit=crop"], "summarize", ("digits",), {"overrides": ["data.fit=crop"]}),
        (["info", "--recipe", "paper", "--classes", "7"], "estimate", ("paper",), {"classes": 7}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value else None,
)
def test_command_calls_the_public_function(call, monkeypatch, words, name, arguments, options):
    calls = []

    def recorded(*given, **named):
        calls.append((given, named))
        raise thaw.UsageError("recorded")

    monkeypatch.setattr(thaw, name, recorded)
    assert call(*words)[0] == 2
    ((given, named),) = calls
    assert given == arguments
    assert named | options == named


@pytest.mark.parametrize("verb", ["predict", "export", "verify", "bench"])
def test_run_and_model_take_the_same_arguments(verb):
    """Both state their signatures, since each does something different around the same work."""
    of_run, of_model = (inspect.signature(getattr(kind, verb)) for kind in (thaw.Run, thaw.Model))
    assert of_run == of_model


def test_version_is_that_of_the_package():
    assert thaw.__version__ == _version.__version__
