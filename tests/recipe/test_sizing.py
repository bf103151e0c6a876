"""The largest network within a budget: the search, its reports, and runs that leave their size open."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tomllib
from functools import cache

import numpy as np
import pytest
from command_line import error_of
from error_matching import raises
from sizing_samples import draw_photos

import thaw
from thaw.data.settings import DataSettings, parse_input
from thaw.errors import BudgetError, UsageError
from thaw.graph.lower import layer_table
from thaw.models.families import LoopedSpec, PaperSpec, ResidualSpec, SeparableSpec
from thaw.models.unify import UnifySpec
from thaw.recipe import candidates
from thaw.recipe.budget import Budget
from thaw.recipe.recipe import default_recipe, load_recipe, recipe_from_dict
from thaw.recipe.sizing import SizingSettings, largest_variant
from thaw.run import resolve
from thaw.run.request import TrainRequest
from thaw.run.resolve import with_network

SHAPE = (16, 16, 1)
BALANCED = load_recipe("balanced")[1]


@cache
def cost(spec, shape=SHAPE, classes=3, unify_spec=None):
    return layer_table(spec, unify_spec, shape, classes)


def grid(spec, widest):
    """All networks of a family with widths up to `widest`, by brute force."""
    step = spec.width_step
    for widths in itertools.product(range(step, widest + 1, step), repeat=len(spec.tunable_widths)):
        yield spec.with_widths(widths)


# With one stage, only the width is free, so the result is the largest of all.


@pytest.mark.parametrize(
    "spec",
    [
        ResidualSpec(widths=(16,), blocks=(1,)),
        SeparableSpec(widths=(16,), blocks=(2,)),
        LoopedSpec(stem=16, widths=(16,), passes=(2,)),
        LoopedSpec(stem=16, widths=(16, 16), passes=(1, 2), shared=True),
    ],
    ids=lambda spec: f"{spec.family}-{len(spec.widths)}",
)
@pytest.mark.parametrize(
    "budget",
    [
        Budget(params=9_000),
        Budget(macs=900_000),
        Budget(ram=4_000),
        Budget(flash=16_000),
        Budget(params=5_000, ram=8_000),
    ],
    ids=str,
)
def test_largest_of_one_width_agrees_with_brute_force(spec, budget):
    fitting = [member for member in grid(spec, 64) if not budget.exceeded(cost(member))]
    expected = max(fitting, key=lambda member: cost(member).parameters)
    assert expected.tunable_widths[0] < 64
    assert largest_variant(spec, budget, SHAPE, 3, None) == expected


@pytest.mark.parametrize("limit", [600, 2_000, 5_000, 12_000])
@pytest.mark.parametrize(
    "spec", [ResidualSpec(widths=(8, 16), blocks=(1, 1)), SeparableSpec(widths=(8, 16), blocks=(1, 1))]
)
def test_two_widths_use_most_of_the_limit(spec, limit):
    budget = Budget(params=limit)
    found = largest_variant(spec, budget, SHAPE, 3, None)
    needed = cost(found).parameters
    assert needed <= limit
    first, second = found.tunable_widths
    for wider in ((first + 4, second), (first, second + 4)):
        assert cost(found.with_widths(wider)).parameters > limit

    def evenness(member):
        shares = [width / usual for width, usual in zip(member.tunable_widths, spec.tunable_widths, strict=True)]
        return min(shares) / max(shares)

    as_even = [
        member for member in grid(spec, 48) if cost(member).parameters <= limit and evenness(member) >= evenness(found)
    ]
    assert needed >= 0.85 * max((cost(member).parameters for member in as_even), default=0)


@pytest.mark.parametrize("limit", [5_000, 14_862, 40_000])
def test_papers_family_grows_by_one_filter(limit):
    unify_spec, shape = UnifySpec(), (28, 28, 1)
    found = largest_variant(PaperSpec(), Budget(params=limit), shape, 10, unify_spec)
    first, second = found.filters
    assert 0.97 * limit <= cost(found, shape, 10, unify_spec).parameters <= limit
    assert cost(PaperSpec(filters=(first + 1, second)), shape, 10, unify_spec).parameters > limit
    assert cost(PaperSpec(filters=(first, second + 1)), shape, 10, unify_spec).parameters > limit
    if limit == 14_862:
        assert found.filters == (10, 20)


@pytest.mark.parametrize(("side", "limit"), [(32, 10_000), (32, 19_622), (32, 50_000), (64, 20_000), (64, 50_000)])
def test_parameter_limit_is_used_to_within_a_few_percent(limit, side):
    spec = ResidualSpec().with_extra_stages((side, side, 3), 11)
    found = largest_variant(spec, Budget(params=limit), (side, side, 3), 10, None)
    assert 0.9 * limit <= cost(found, (side, side, 3), 10).parameters <= limit


def test_limit_on_one_stage_does_not_limit_the_others():
    budget = Budget(params=20_000, ram=6_000)
    found = largest_variant(ResidualSpec(), budget, (32, 32, 3), 10, None)
    assert not budget.exceeded(cost(found, (32, 32, 3), 10))
    assert found.widths[0] < 4 < found.widths[-1]


def test_budget_below_the_smallest_network_is_rejected_with_its_cost():
    budget = Budget(params=50, macs=10**9)
    assert largest_variant(ResidualSpec(), budget, SHAPE, 3, None) is None
    with pytest.raises(BudgetError) as caught:
        with_network(BALANCED, budget, SHAPE, 3)
    smallest = cost(next(iter(BALANCED.model.variants())))
    lines = str(caught.value).splitlines()
    assert lines[0] == "the smallest residual network does not fit the budget (input 16x16x1, 3 classes):"
    assert lines[1].startswith(f"  params: needs {smallest.parameters}, limit 50")
    assert len(lines) == 3


def test_stages_follow_the_image():
    spec = ResidualSpec()
    sides = {24: 3, 32: 3, 40: 3, 47: 3, 48: 4, 64: 4, 80: 4, 95: 4, 96: 5, 160: 5, 1024: 8}
    for side, stages in sides.items():
        deep = spec.with_extra_stages((side, side, 3), 11)
        assert deep.widths == (*spec.widths, *(28,) * 8)[:stages]
        assert len(deep.blocks) == stages
        deep.build((side, side, 3), 4)
    # A short side is not pooled to nothing.
    assert len(spec.with_extra_stages((8, 512, 3), 11).widths) == 4
    spec.with_extra_stages((8, 512, 3), 11).build((8, 512, 3), 4)
    assert LoopedSpec().with_extra_stages((64, 64, 3), 11).passes == (2, 4, 4, 4)
    assert SeparableSpec().with_extra_stages((64, 64, 3), 11).blocks == (1, 2, 2, 2)
    assert PaperSpec().with_extra_stages((64, 64, 3), 11) == PaperSpec()


def test_tunable_widths_round_trip():
    for spec in (
        PaperSpec(),
        ResidualSpec(),
        LoopedSpec(),
        SeparableSpec(),
        LoopedSpec(widths=(16, 16, 16), shared=True),
    ):
        assert spec.with_widths(spec.tunable_widths) == spec
    assert LoopedSpec().with_widths((20, 24, 28)) == LoopedSpec(stem=20, widths=(20, 24, 28))
    assert LoopedSpec(stem=8).with_widths((20, 24, 28)) == LoopedSpec(stem=8, widths=(20, 24, 28))
    assert LoopedSpec(widths=(16, 16, 16), shared=True).with_widths((8,)).widths == (8, 8, 8)


# Settings


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sizing.network=biggest", "sizing.network = 'biggest': expected one of fixed, largest"),
        ("sizing.input=auto", "sizing.input = 'auto': expected one of as is, largest"),
        ("sizing.budget=params=x", "sizing.budget = 'params=x': expected a count"),
        ("sizing.macs=0", "from 1 to 1,000,000,000,000"),
        ("sizing.last_map=0", "from 1 to 1,024"),
        ("sizing.least_width=0", "from 1 to 4,096"),
        ("sizing.trials=-1", "from 0 to 16"),
        ("sizing.trials=100", "from 0 to 16"),
        ("sizing.trial_share=0.0", "above 0 and at most 1"),
        ("sizing.trial_share=1.5", "at most 1"),
        ("sizing.stems=[]", "sizing.stems = []: expected at least 1 entry"),
        ("sizing.stems=['pool', 'pool']", "expected each stem once"),
        ("sizing.stems=['half']", "expected one of none, pool, stride"),
        ("sizing.sides=[]", "sizing.sides = []: expected at least 1 entry"),
        ("sizing.sides=[64, 32]", "in ascending order"),
        ("sizing.sides=[4, 32]", "sizing.sides[0] = 4: expected an integer from 8 to 1,024"),
        ("data.input=64xauto", "expected HEIGHTxWIDTHxCHANNELS"),
        ("data.input=auto x1", "expected HEIGHTxWIDTHxCHANNELS"),
    ],
)
def test_rejects_invalid_settings(override, words):
    with raises("recipe") as caught:
        load_recipe("balanced", [override])
    assert words in str(caught.value)


def test_input_may_leave_the_channels_open():
    assert parse_input("64x48xauto") == (64, 48, 0)
    assert parse_input("64x48x3") == (64, 48, 3)
    DataSettings(input="64x48xauto")
    with pytest.raises(UsageError):
        DataSettings(input="0x48xauto")


def test_default_recipe_with_a_budget_is_balanced():
    assert default_recipe("digits", has_budget=True) == default_recipe("photos", has_budget=True) == "balanced"
    assert BALANCED.sizing == SizingSettings(network="largest", input="largest")
    assert load_recipe("paper")[1].sizing == SizingSettings()


# Resolved recipes


def test_chosen_network_is_reported_and_stored():
    recipe, notes = with_network(BALANCED, Budget(params=19_622), (32, 32, 3), 10)
    parameters = cost(recipe.model, (32, 32, 3), 10).parameters
    widths = ", ".join(map(str, recipe.model.widths))
    assert [(note.kind, note.severity) for note in notes] == [("network", "note")]
    assert notes[0].message == (
        f"chosen network residual, widths {widths}: the largest within params=19,622 "
        f"({parameters:,} parameters); any wider exceeds params"
    )
    assert not recipe.sizing.is_open
    again, told = with_network(recipe, Budget(params=19_622), (32, 32, 3), 10)
    assert (again, told) == (recipe, ())
    assert recipe_from_dict(tomllib.loads(recipe.as_toml())) == recipe


def test_recipe_budget_applies_without_a_budget():
    recipe, notes = with_network(BALANCED, None, (32, 32, 3), 10)
    assert "within params=20,000, ram=262,144, macs=20,000,000 (" in notes[0].message
    assert cost(recipe.model, (32, 32, 3), 10).parameters <= 20_000


def test_only_named_limits_apply():
    """params=200000 gave 21,657 parameters, because a default of 20 million multiply-accumulates also applied."""
    budget = Budget.parse("params=200000,ram=256KB,flash=512KB")
    recipe, notes = with_network(BALANCED, budget, (64, 64, 3), 6)
    found = cost(recipe.model, (64, 64, 3), 6)
    assert 190_000 < found.parameters <= 200_000
    assert found.macs > 20_000_000
    assert "within params=200,000, ram=262,144, flash=524,288 (" in notes[0].message
    _, notes = with_network(BALANCED, Budget.parse("macs=1M"), (32, 32, 3), 10)
    assert "the largest within macs=1,000,000 (" in notes[0].message
    assert notes[0].message.endswith("any wider exceeds macs")


def test_budget_without_a_limit_on_size_is_reported():
    notes = with_network(BALANCED, Budget.parse("ram=8KB"), (16, 16, 1), 3)[1]
    assert any(note.kind == "budget" and "flash" in note.message for note in notes)


def test_two_stages_keep_the_stages_of_their_steps():
    recipe = load_recipe("paper", ["sizing.network=largest"])[1]
    assert with_network(recipe, Budget(params=14_862), (28, 28, 1), 10)[0].model.filters == (10, 20)


def test_fixed_network_over_the_budget_suggests_balanced():
    recipe = load_recipe("best-mnist-8k")[1]
    with raises("budget", 'overrides=["model.widths=', 'recipe="balanced"'):
        with_network(recipe, Budget(params=1_000), (28, 28, 1), 10)


# The command line


def test_info_shows_the_network_of_balanced(call):
    arguments = ("info", "--recipe", "balanced", "--budget", "params=5000", "--input", "48x48x3", "--classes", "5")
    code, out, _ = call(*arguments)
    assert code == 0
    assert out.splitlines()[0] == "recipe balanced, input 48x48x3, 5 classes"
    assert out.splitlines()[1].startswith("  note: chosen network residual, widths ")
    described = json.loads(call(*arguments, "--json")[1])
    assert described["parameters"] <= 5_000
    assert described["model"]["family"] == "residual"
    assert len(described["model"]["widths"]) == 4
    assert described["chosen"][0]["kind"] == "network"
    error_of(("10 classes",), call("info", "--recipe", "paper", "--budget", "params=100"), 2, lines=3)
    error_of(("apply to --recipe",), call("info", "run", "--budget", "params=100"), 2)


def test_named_source_keeps_its_usual_input_and_is_rejected_early(call, monkeypatch):
    def no_images(*args, **kwargs):
        raise AssertionError("images were decoded")

    monkeypatch.setattr(resolve, "prepare", no_images)
    told = call("train", "digits", "--budget", "params=60")
    error_of(("the smallest residual network", "input 28x28x1, 10 classes"), told, 2, lines=3)


QUICK = ("sizing.sides=[16, 24]", "plain.epochs=1", "plain.batch_size=8", "quantize.qat_threshold=100")


@pytest.fixture(scope="module", params=[False, True], ids=["color", "gray"])
def open_run(request, tmp_path_factory):
    """A run whose network and input were chosen, and its photographs."""
    folder = tmp_path_factory.mktemp("open")
    photos = draw_photos(folder / "photos", [(30, 40), (28, 26)], gray=request.param)
    return (
        thaw.train(photos, overrides=QUICK, budget="params=2500", out=folder / "run"),
        photos,
        1 if request.param else 3,
    )


def test_run_with_open_size_reports_its_choice(open_run):
    run, _, channels = open_run
    notes = {problem["kind"]: problem["message"] for problem in run.metrics["data"]["problems"]}
    assert notes["input"].startswith(f"chosen input 24x24x{channels}: from sides of 16, 24 pixels, the largest")
    assert notes["network"].startswith("chosen network residual, widths ")
    assert f"({run.metrics['parameters']:,} parameters)" in notes["network"]
    assert 2_000 < run.metrics["parameters"] <= 2_500
    assert run.metrics["budget"]["params"] == 2_500
    assert run.metrics["recipe"] == "balanced"
    assert "--recipe balanced" in run.metrics["command"]
    page = run.report.read_text()
    assert notes["input"] in page
    assert notes["network"] in page
    kept = json.loads((run.path / "run.json").read_text())
    assert [note["message"] for note in kept["chosen"]] == [notes["input"], notes["network"], notes["width"]]
    assert "at least 8 channels" in notes["width"]


def test_recipe_of_a_run_contains_the_choice(open_run):
    run, photos, channels = open_run
    resolved = load_recipe(str(run.path / "recipe.toml"))[1]
    assert resolved.data.input == f"24x24x{channels}"
    assert not resolved.sizing.is_open
    assert cost(resolved.model, (24, 24, channels), 3).parameters == run.metrics["parameters"]
    assert resolved.model == run.model.spec
    again = thaw.load(photos, recipe=str(run.path / "recipe.toml"))
    assert again.fingerprint == run.metrics["data"]["fingerprint"]
    same = thaw.load(photos, overrides=QUICK, budget="params=2500")
    assert same.input_spec == again.input_spec


def test_resume_does_not_search_again(open_run, monkeypatch, tmp_path):
    run, _, _ = open_run

    def no_search(*args, **kwargs):
        raise AssertionError("it searched again")

    monkeypatch.setattr(candidates, "largest_variant", no_search)
    monkeypatch.setattr(resolve, "run_trials", no_search)
    before = run.metrics["data"]["problems"]
    (run.path / "metrics.json").unlink()
    resumed = thaw.Run.open(run.path).resume()
    assert resumed.metrics["data"]["problems"] == before
    assert resumed.metrics["parameters"] == run.metrics["parameters"]


def test_rejects_invalid_notes_in_run_json(open_run):
    kept = json.loads((open_run[0].path / "run.json").read_text())
    assert len(TrainRequest.from_dict(kept).chosen) == 3
    assert TrainRequest.from_dict({**kept, "chosen": None}).chosen == ()
    for wrong in ("none", [5], [{"kind": "input"}]):
        with raises("run-json", "run.json", "chosen"):
            TrainRequest.from_dict({**kept, "chosen": wrong})


def test_recipe_from_python_may_leave_its_size_open(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (45, 20, 20, 1), dtype=np.uint8)
    recipe = dataclasses.replace(load_recipe("balanced", QUICK)[1], sizing=SizingSettings(network="largest"))
    run = thaw.train((images, np.arange(45) % 3), recipe=recipe, budget="params=1500", out=tmp_path / "run")
    assert run.metrics["parameters"] <= 1_500
    assert run.metrics["input"]["height"] == 20
