"""Recipes: shipped ones, overrides, and the report of all faults."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import numpy as np
import pytest

import thaw
from thaw.errors import RecipeError, UsageError
from thaw.models.families import FAMILIES, LoopedSpec, PaperSpec, ResidualSpec, SeparableSpec
from thaw.models.unify import UnifySpec
from thaw.recipe.recipe import Recipe, default_recipe, load_recipe, recipe_from_dict, recipe_names
from thaw.recipe.reference import settings_reference
from thaw.training.distil import DistilSettings
from thaw.training.stages import UnfreezeSettings, UnfreezeStep


def faults(overrides, recipe="paper") -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)


def test_shipped_recipes():
    assert recipe_names()[:1] == ("balanced",)
    assert recipe_names()[-2:] == ("digits", "paper")
    assert all(name.startswith("best-") for name in recipe_names()[1:-2])
    for name in recipe_names():
        found, recipe = load_recipe(name)
        assert found == name
        assert recipe.description
        two_stages = ["dual", "head", "dense", "conv2", "conv1"]
        assert list(recipe.stage_epochs()) == (two_stages if name in {"digits", "paper"} else ["plain"])


def test_paper_recipe_has_the_values_of_the_paper():
    recipe = load_recipe("paper")[1]
    assert recipe.model == PaperSpec(filters=(10, 20), dropout=recipe.model.dropout)
    assert recipe.unify.hidden == 32
    assert recipe.dual.views == ("original", "augmented")
    assert recipe.unfreeze.momentum == 0.9


@pytest.mark.parametrize("name", recipe_names())
def test_resolved_recipe_round_trips_through_toml(name):
    recipe = load_recipe(name, ["dual.epochs=7", "model.dropout=0.25"])[1]
    tree = tomllib.loads(recipe.as_toml())
    assert tree == recipe.as_dict()
    assert recipe_from_dict(tree) == recipe
    assert tree["model"]["family"] == recipe.model.family
    assert set(tree) == {field.name for field in dataclasses.fields(Recipe)}


def test_recipe_file_has_its_own_name(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[dual]\nepochs = 4\n[model]\nfamily = 'paper'\nfilters = [4, 8]\n")
    name, recipe = load_recipe(str(path))
    assert name == "mine"
    assert recipe.dual.epochs == 4
    assert recipe.model.filters == (4, 8)


def test_overrides_of_every_type():
    recipe = load_recipe(
        "paper",
        [
            "dual.epochs=5",
            "dual.learning_rate=1",
            " dual.patience = 2 ",
            "data.input=48x48x3",
            "data.fit='crop'",
            "dual.schedule.kind=constant",
            'unfreeze.steps=[{unit="head", epochs=1}, {unit="all", epochs=2, learning_rate=0.5}]',
            'dual.views=["original", "original"]',
            "description=",
        ],
    )[1]
    assert recipe.dual.epochs == 5
    assert recipe.dual.learning_rate == 1.0
    assert isinstance(recipe.dual.learning_rate, float)
    assert recipe.dual.patience == 2
    assert recipe.data.input == "48x48x3"
    assert recipe.data.fit == "crop"
    assert recipe.dual.schedule.kind == "constant"
    assert recipe.unfreeze.steps == (
        UnfreezeStep(unit="head", epochs=1),
        UnfreezeStep(unit="all", epochs=2, learning_rate=0.5),
    )
    assert recipe.dual.views == ("original", "original")
    assert recipe.description == ""


def test_last_override_of_a_setting_applies():
    assert load_recipe("paper", ["dual.epochs=5", "dual.epochs=6"])[1].dual.epochs == 6


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_other_family_has_its_defaults_and_the_overrides(family):
    """Overrides of the new family's settings apply wherever they stand; the recipe's settings of the old one do not."""
    base = load_recipe("balanced")[1]
    expected = base.model if family == base.model.family else FAMILIES[family]()
    for overrides in (
        ["model.dropout=0.25", f"model.family={family}"],
        [f"model.family='{family}'", "model.dropout=0.25"],
        ["model.family=paper", f"model.family={family}", "model.dropout=0.25"],
    ):
        recipe = load_recipe("balanced", overrides)[1]
        assert recipe.model == dataclasses.replace(expected, dropout=0.25)
        assert dataclasses.replace(recipe, model=base.model) == base
    tree = {"model": {"family": family, "dropout": 0.25}}
    assert thaw.load_recipe("balanced", tree).model == dataclasses.replace(expected, dropout=0.25)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_teacher_of_another_family_has_its_defaults_and_the_overrides(family, tmp_path):
    path = tmp_path / "teacher.toml"
    path.write_text("method = 'distil'\n[distil.model]\nfamily = 'looped'\npasses = [1, 2]\nwidths = [8, 8]\n")
    overrides = [f"distil.model.family={family}", "distil.model.dropout=0.25"]
    kept = LoopedSpec(passes=(1, 2), widths=(8, 8))
    defaults = {"looped": kept, "residual": DistilSettings().model}.get(family, FAMILIES[family]())
    expected = dataclasses.replace(defaults, dropout=0.25)
    assert load_recipe(str(path), overrides)[1].distil.model == expected


def test_family_in_a_file_without_one(tmp_path):
    """A section without a family has the default one, so naming that family changes nothing."""
    path = tmp_path / "mine.toml"
    path.write_text("[model]\nfilters = [4, 8]\n[distil.model]\ndropout = 0.5\n")
    teacher = ResidualSpec(widths=(32, 48, 64), dropout=0.5)
    for overrides in ([], ["model.family=paper", "distil.model.family=residual"]):
        recipe = load_recipe(str(path), overrides)[1]
        assert recipe.model == PaperSpec(filters=(4, 8))
        assert recipe.distil.model == teacher
    plain = load_recipe(str(path), ["method=plain", "model.family=separable", "distil.model.family=paper"])[1]
    assert plain.model == SeparableSpec()
    assert plain.distil.model == PaperSpec()
    path.write_text("method = 'plain'\n")
    assert load_recipe(str(path), ["model.family=looped"])[1].model == LoopedSpec()
    assert load_recipe(str(path), ["distil.model.widths=[8, 8, 8]"])[1].distil.model == ResidualSpec(widths=(8, 8, 8))


def test_family_in_a_section_that_is_not_one(tmp_path):
    path = tmp_path / "odd.toml"
    path.write_text("model = 5\ndistil = 6\n")
    message = faults(["model.family=looped", "distil.model.family=looped"], recipe=str(path))
    assert "expected a section at model, found a value" in message
    assert "expected a section at distil, found a value" in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dual.epoch=5", "dual.epoch is unknown; did you mean epochs?"),
        ("duel.epochs=5", "duel is unknown; did you mean dual?"),
        ("xyzzy=5", "xyzzy is unknown; known here: description, method, data, augment"),
        ("dual.epochs=five", "dual.epochs = 'five': expected an integer"),
        ("dual.epochs=5.0", "dual.epochs = 5.0: expected an integer"),
        ("dual.epochs=true", "dual.epochs = True: expected an integer"),
        ("dual.epochs=", "dual.epochs = '': expected an integer"),
        ("dual.epochs=0", "dual.epochs = 0: expected an integer of at least 1"),
        ("dual.epochs=-3", "dual.epochs = -3"),
        ("dual.learning_rate=nan", "dual.learning_rate = nan: expected a finite number"),
        ("dual.learning_rate=inf", "dual.learning_rate = inf: expected a finite number"),
        ("dual.learning_rate=fast", "dual.learning_rate = 'fast': expected a number"),
        (f"dual.learning_rate=1{'0' * 400}", "expected a number"),
        ("dual.views=original", "dual.views = 'original': expected a list"),
        ('dual.views=["original"]', "expected 2 entries"),
        ('dual.views=["original", "odd"]', "dual.views[1] = 'odd': expected one of original, augmented"),
        ("dual.views=[[1], 'original']", "dual.views[0] = [1]: expected one of original, augmented"),
        ("dual=5", "dual: expected a section, found 5"),
        ("dual.epochs.more=5", "expected a section at epochs, found a value"),
        ("model.family=resnet", "model.family = 'resnet': expected one of paper"),
        ("model.family=[1]", "model.family = [1]: expected one of paper"),
        ("model.filters=[10]", "model.filters"),
        ("model.filters=[10, 20.5]", "model.filters[1] = 20.5: expected an integer"),
        ("model.filters=[0, 5]", "model.filters[0] = 0: expected an integer from 1 to 4,096"),
        ("model.filters=[10, 999999]", "model.filters"),
        ("model.dropout=1", "model.dropout = 1: expected a number from 0 to below 1"),
        ("data.fit=squeeze", "data.fit = 'squeeze': expected one of stretch, crop"),
        ("data.validation_fraction=0.9", "data.validation_fraction = 0.9: expected a number above 0 and at most 0.5"),
        ("data.input=28x28", "expected HEIGHTxWIDTHxCHANNELS"),
        ("compute.precision=half", "compute.precision = 'half': expected one of auto, float32, bfloat16"),
        ('unfreeze.steps=[{unit="head"}]', "unfreeze.steps[0].epochs is missing"),
        ('unfreeze.steps=[{unit="head", epoch=3, epochs=1}]', "unfreeze.steps[0].epoch is unknown"),
        ("unfreeze.steps=[5]", "unfreeze.steps[0]: expected a section"),
        ("unfreeze.steps=[]", "unfreeze.steps = []: expected at least one, for head"),
        ('unfreeze.steps=[{unit="conv1", epochs=1}]', "expected the order head, dense, conv2, conv1"),
        (
            'unfreeze.steps=[{unit="head", epochs=1}, {unit="conv2", epochs=1}, {unit="dense", epochs=1}]',
            "expected the order head, dense, conv2, conv1",
        ),
        ('unfreeze.steps=[{unit="head", epochs=1}, {unit="head", epochs=1}]', "expected each unit to be unfrozen once"),
        ("dual.epochs", 'overrides=["dual.epochs"]: expected section.key=value'),
        ("=5", 'overrides=["=5"]: expected section.key=value'),
        ("dual..epochs=5", "expected section.key=value"),
        ("", "expected section.key=value"),
        (f"dual.epochs={'[' * 5000}", "expected an integer"),
    ],
)
def test_one_fault(override, words):
    message = faults([override])
    assert words in message
    assert message.startswith("the recipe is not valid: ")


def test_all_faults_are_reported_together():
    message = faults(
        [
            "dual.epoch=5",
            "dual.patience=0",
            "dual.batch_size=-1",
            "quantize.qat.view=odd",
            "dual.schedule.warmup=nan",
            "augment.zoom=7",
            "augment.rotation_degrees=999",
            'unfreeze.steps=[{unit="conv1", epochs=1}]',
            "compute.precision=half",
            "broken",
        ]
    )
    lines = message.splitlines()
    assert lines[0] == "10 faults in the recipe:"
    assert len(lines) == 11
    for words in (
        "dual.epoch is unknown",
        "dual.patience = 0",
        "dual.batch_size = -1",
        "quantize.qat.view",
        "dual.schedule.warmup = nan",
        "augment.zoom = 7",
        "augment.rotation_degrees = 999",
        "expected the order head, dense",
        "compute.precision",
        'overrides=["broken"]',
    ):
        assert words in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("papr", "did you mean paper?"),
        ("zzz", "digits, paper, or the path of a .toml file"),
        ("nowhere.toml", "cannot read the recipe nowhere.toml: No such file"),
        (".", "unknown recipe '.'"),
    ],
)
def test_missing_recipe(name, words):
    assert words in faults([], recipe=name)


@pytest.mark.parametrize("content", [b"dual = ", b"\xff\xfe\x00", b"a = [" + b"[" * 5000])
def test_file_that_is_not_toml(tmp_path, content):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    message = faults([], recipe=str(path))
    assert str(path) in message


def test_default_recipe_of_a_source():
    assert default_recipe("digits") == "digits"
    for source in ("mnist", "fashion_mnist", "cifar10"):
        assert default_recipe(source) == "paper"
        assert default_recipe(source, has_budget=True) == "balanced"
    photos = ("photos/", Path("photos"), "./mnist", "owner/digits", "ylecun/mnist")
    for source in (*photos, (np.zeros(3), np.zeros(3)), np.zeros((2, 2)), {"train": ()}):
        assert default_recipe(source) == "balanced"


def test_rejects_a_recipe_without_stage_two():
    with pytest.raises(UsageError):
        Recipe(unfreeze=UnfreezeSettings(steps=()))
    with pytest.raises(UsageError):
        Recipe(unify=UnifySpec(join="average"))


def test_unfreezing_order_is_checked_when_the_network_is_valid():
    wrong = 'unfreeze.steps=[{unit="conv1", epochs=1}]'
    message = faults([wrong, "model.dropout=2", "augment.zoom=7"])
    assert message.startswith("2 faults in the recipe:")
    assert "unfreeze.steps" not in message


@pytest.mark.parametrize("info", settings_reference(), ids=lambda info: f"{info.family} {info.key}")
def test_every_setting_is_strict(info):
    """A value of another type is rejected, not converted, and the fault has the setting's full name."""
    if "[]" in info.key or info.key in {"model.family", "unfreeze.steps", "data.range"}:
        return
    wrong = {"text": "5", "true or false": "1", "integer": "true", "number": "true"}.get(info.type, "3")
    family = [f"model.family={info.family}"] if info.family else []
    recipe = "paper" if info.family in {"", "paper"} else "balanced"
    message = faults([*family, f"{info.key}={wrong}"], recipe=recipe)
    assert message.startswith(f"the recipe is not valid: {info.key}")
