"""Values of any length, in any position, give messages of moderate length."""

from __future__ import annotations

import json

import pytest
from hostile_text import hostile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import thaw
from thaw.errors import ThawError
from thaw.export.c_names import check_prefix
from thaw.quoting import LINE_LENGTH, NAME_LENGTH
from thaw.recipe.budget import Budget
from thaw.recipe.recipe import load_recipe, recipe_from_dict

LONG = "x" * 5000
CHARACTERS = 1000
"""Maximum length of a message about one value."""

CALLS = {
    "source": ("train", LONG),
    "path": ("train", f"./{LONG}"),
    "data root": ("train", "mnist", "--data-root", LONG),
    "hub id": ("train", f"someone/{LONG}"),
    "recipe": ("train", "digits", "--recipe", LONG),
    "recipe file": ("train", "digits", "--recipe", f"{LONG}.toml"),
    "key": ("train", "digits", "--set", f"dual.{LONG}=1"),
    "section": ("train", "digits", "--set", f"{LONG}.epochs=1"),
    "no key": ("train", "digits", "--set", LONG),
    "value": ("train", "digits", "--set", f"dual.epochs={LONG}"),
    "number": ("train", "digits", "--set", f"dual.epochs={'9' * 5000}"),
    "hexadecimal": ("train", "digits", "--set", f"dual.epochs=0x{'f' * 5000}"),
    "float": ("train", "digits", "--set", f"dual.learning_rate={'9' * 5000}.0"),
    "choice": ("train", "digits", "--set", f"method={LONG}"),
    "family": ("train", "digits", "--set", f"model.family={LONG}"),
    "filters": ("train", "digits", "--set", f"model.filters=[{'1,' * 5000}]"),
    "view": ("train", "digits", "--set", f"dual.views=['{LONG}', 'a']"),
    "unit": ("train", "digits", "--set", f"unfreeze.steps=[{{unit='{LONG}', epochs=1}}]"),
    "input": ("train", "digits", "--set", f"data.input={LONG}"),
    "column": ("train", "digits", "--set", f"data.fit={LONG}"),
    "sizing": ("train", "digits", "--recipe", "balanced", "--set", f"sizing.budget={LONG}"),
    "budget": ("train", "digits", "--budget", LONG),
    "budget's name": ("train", "digits", "--budget", f"{LONG}=1"),
    "budget's limit": ("train", "digits", "--budget", f"ram={LONG}"),
    "budget's number": ("train", "digits", "--budget", f"ram={'9' * 5000}"),
    "seed": ("train", "digits", "--seed", LONG),
    "large seed": ("train", "digits", "--seed", "9" * 5000),
    "device": ("train", "digits", "--device", LONG),
    "out": ("train", "digits", "--out", LONG),
    "resume": ("train", "--resume", LONG),
    "option": ("train", "digits", f"--{LONG}"),
    "command": (LONG,),
    "model": ("info", LONG),
    "zoo": ("info", f"zoo:{LONG}"),
    "card": ("zoo", LONG),
    "shape": ("info", "--recipe", "paper", "--input", LONG),
    "classes": ("info", "--recipe", "paper", "--classes", "9" * 5000),
    "data set": ("reproduce", "--dataset", LONG),
    "seeds": ("reproduce", "--seeds", LONG),
    "seed beyond floats": ("train", "digits", "--seed", str(2**53 + 1)),
    "seeds beyond floats": ("reproduce", "--seeds", str(10**17)),
    "large seeds": ("reproduce", "--seeds", "9" * 5000),
    "study": ("ablate", "digits", "--study", LONG),
    "user": ("train", f"~{LONG}"),
}
WITH_RUN = {
    "format": ("predict", "{run}", "a.png", "--format", LONG),
    "image": ("predict", "{run}", LONG),
    "evaluated": ("evaluate", "{run}", LONG),
    "target": ("export", "{run}", "--to", LONG),
    "board": ("verify", "{run}", "--target", LONG),
    "export's folder": ("export", "{run}", "--to", "c", "--out", LONG),
    "host": ("demo", "{run}", "--host", LONG),
    "port": ("demo", "{run}", "--port", "9" * 5000),
}


def assert_short(code: int, out: str, err: str) -> None:
    assert code in (1, 2), (code, err[:2000])
    assert out == ""
    assert err.startswith("error: ")
    assert len(err) <= CHARACTERS, err[:3000]
    assert max(map(len, err.splitlines())) <= LINE_LENGTH + len("error: ")
    assert len(err.splitlines()) <= 4
    assert "Traceback" not in err
    assert "unexpected" not in err


@pytest.mark.parametrize("arguments", CALLS.values(), ids=CALLS)
def test_long_value_on_the_command_line(call, arguments):
    assert_short(*call(*arguments))


@pytest.mark.parametrize("arguments", WITH_RUN.values(), ids=WITH_RUN)
def test_long_value_with_a_run(call, finished, arguments):
    assert_short(*call(*(str(finished.path) if word == "{run}" else word for word in arguments)))


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: model.predict(LONG),
        lambda model: model.predict([f"/{LONG}"]),
        lambda _: thaw.train(LONG),
        lambda _: thaw.train("digits", recipe="digits", out=LONG),
        lambda _: thaw.train("digits", recipe="digits", out="a\0b"),
        lambda _: thaw.train("digits", recipe="digits", seed=2**53 + 1),
        lambda _: check_prefix(LONG),
        lambda _: check_prefix(5),
        lambda _: check_prefix(None),
    ],
)
def test_invalid_value_in_the_library(finished, tmp_path, monkeypatch, ask):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ThawError) as refused:
        ask(thaw.Model.load(finished.path))
    assert len(str(refused.value)) <= CHARACTERS
    assert not list(tmp_path.iterdir())


RECIPES = {
    "key": f"{LONG} = 1",
    "value": f'method = "{LONG}"',
    "section": f"[{LONG}]\na = 1",
    "hexadecimal": f"[dual]\nepochs = 0x{'f' * 5000}",
    "no string": f"method = {LONG}",
    "no end": f'"{LONG}',
}


@pytest.mark.parametrize("text", RECIPES.values(), ids=RECIPES)
def test_long_value_in_a_recipe(call, tmp_path, text):
    (tmp_path / "recipe.toml").write_text(text)
    assert_short(*call("train", "digits", "--recipe", "recipe.toml"))


def test_recipe_with_many_faults(call, tmp_path):
    (tmp_path / "recipe.toml").write_text("".join(f"{LONG[:100]}{number} = 1\n" for number in range(5000)))
    for words in (("--recipe", "recipe.toml"), ("--set", f"unfreeze.steps=[{'1,' * 5000}]")):
        code, _, err = call("train", "digits", *words)
        assert code == 2
        assert "5000 faults" in err
        assert len(err.splitlines()) <= 32


@pytest.mark.parametrize("name", ["source", "device", "budget", "chosen", "recipe", "folds", "threads", "version"])
def test_long_value_in_run_json(call, finished, tmp_path, name):
    kept = json.loads((finished.path / "run.json").read_text())
    (tmp_path / "run").mkdir()
    for value in ([LONG], {LONG: LONG}, LONG):
        (tmp_path / "run" / "run.json").write_text(json.dumps({**kept, name: value}))
        assert_short(*call("train", "--resume", "run"))


@given(hostile, st.integers(1, 400))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_is_rejected_with_a_short_message(text, times):
    long = text * times
    for refuse in (
        lambda: Budget.parse(long),
        lambda: Budget.parse(f"ram={long}"),
        lambda: load_recipe("paper", [f"dual.epochs={long}x"]),
        lambda: load_recipe("paper", [f"dual.{long}x=1"]),
        lambda: recipe_from_dict({"method": long, "dual": long, long: 1}),
    ):
        with pytest.raises(ThawError) as caught:
            refuse()
        # A character may be shown as an escape sequence of ten.
        assert max(map(len, str(caught.value).split("\n"))) <= 10 * NAME_LENGTH + 400
