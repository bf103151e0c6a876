"""Candidates that fit a budget, and their ranking: widths, stems and inputs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from error_matching import raises
from sizing_samples import draw_photos, made_candidate

from thaw.data.ingest import Glance, glance
from thaw.data.settings import DataSettings
from thaw.data.sources import open_source
from thaw.graph.lower import layer_table
from thaw.models.families import LoopedSpec, ResidualSpec, SeparableSpec
from thaw.recipe.budget import Budget
from thaw.recipe.candidates import find_candidates, rank
from thaw.recipe.recipe import load_recipe
from thaw.run.request import TrainRequest
from thaw.run.resolve import first_choices, possible_inputs, source_facts, with_network

BALANCED = load_recipe("balanced")[1]
SIDES = [(side, side, 3) for side in BALANCED.sizing.sides]


def found(text, shapes=SIDES, classes=6, recipe=BALANCED):
    return find_candidates(recipe, Budget.parse(text), shapes, classes)


@pytest.mark.parametrize(
    "text",
    ["ram=32KB,flash=128KB", "ram=64KB,flash=128KB", "ram=20KB,flash=64KB", "params=5000", "params=20000,ram=128KB"],
)
def test_stages_have_at_least_eight_channels_within_every_limit(text):
    choices = found(text)
    assert choices.least_width == 8
    assert not choices.warning
    for candidate in choices.ranked:
        assert min(candidate.spec.widths) >= 8
        assert not Budget.parse(text).exceeded(candidate.cost)
        assert candidate.cost == layer_table(candidate.spec, None, candidate.shape, 6)


def test_64_pixels_in_32_kb_get_a_reducing_stem_instead_of_two_channels():
    """ram=32KB,flash=128KB at 64x64x3 gave widths 2, 12, 108, 108."""
    choices = found("ram=32KB,flash=128KB", [(64, 64, 3)])
    assert {candidate.stem for candidate in choices.ranked} == {"pool", "stride"}
    for candidate in choices.ranked:
        assert min(candidate.spec.widths) >= 8
        # Other stems leave no memory for eight channels: one stage of 64x64x8 uses all of it.
        narrowest = replace(candidate.spec, stem_reduction="none", widths=(8,) * len(candidate.spec.widths))
        assert layer_table(narrowest, None, (64, 64, 3), 6).ram_bytes > 32 * 1024


def test_tight_limit_gives_fewer_channels_and_names_it():
    choices = found("params=3000", [(64, 64, 3)])
    assert choices.least_width == 4
    assert all(4 <= min(candidate.spec.widths) < 8 for candidate in choices.ranked)
    smallest = layer_table(ResidualSpec(widths=(8, 8, 8), blocks=(1, 1, 0)), None, (32, 32, 3), 6).parameters
    assert "at least 8 channels in every stage" in choices.warning
    assert f"params {smallest:,} (limit 3,000)" in choices.warning
    recipe, notes = with_network(BALANCED, Budget(params=3000), (64, 64, 3), 6)
    assert [note.kind for note in notes if note.severity == "warning"] == ["width"]
    assert recipe.model == choices.ranked[0].spec
    assert found("params=800", [(32, 32, 3)]).least_width == 1
    with raises("budget", "residual"):
        found("params=20")


def test_fewer_channels_are_used_only_if_no_input_fits_eight():
    """At 96x96 even a reducing stem does not fit; at 32x32 it does."""
    text = "ram=16KB,flash=64KB"
    assert found(text, [(64, 64, 3)]).least_width < 8
    mixed = found(text, [(32, 32, 3), (64, 64, 3)])
    assert mixed.least_width == 8
    assert {candidate.shape[0] for candidate in mixed.ranked} == {32}


@pytest.mark.parametrize(
    "spec", [LoopedSpec(), SeparableSpec(), LoopedSpec(stem=16, widths=(16, 16), passes=(1, 2), shared=True)]
)
def test_other_families_have_stems(spec):
    recipe = replace(BALANCED, model=spec)
    choices = found("ram=20KB,flash=64KB", [(48, 48, 3)], recipe=recipe)
    assert choices.least_width == 8
    for candidate in choices.ranked:
        assert min(candidate.spec.tunable_widths) >= 8
        assert candidate.stem != "none"
        candidate.spec.build((48, 48, 3), 6)


def test_explicit_stem_is_kept_and_the_papers_network_has_none():
    given = replace(BALANCED, model=replace(BALANCED.model, stem_reduction="pool"))
    assert {candidate.stem for candidate in found("params=20000", recipe=given).ranked} == {"pool"}
    only = load_recipe("balanced", ["sizing.stems=['none']"])[1]
    assert {candidate.stem for candidate in found("params=20000", recipe=only).ranked} == {"none"}
    paper = load_recipe("paper", ["sizing.network=largest"])[1]
    choices = found("params=14862", [(28, 28, 1)], 10, paper)
    assert [candidate.spec.filters for candidate in choices.ranked] == [(10, 20)]


def test_images_too_small_to_reduce_keep_the_plain_stem():
    choices = found("params=20000", [(4, 4, 1)])
    assert [candidate.stem for candidate in choices.ranked] == ["none"]
    with raises("usage"):
        found("params=20000", [(3, 3, 1)])


# Ranking


def test_largest_input_that_keeps_size_and_proportions_comes_first():
    best, smaller = made_candidate(48, 100, 50, 0.5), made_candidate(32, 100, 90, 1.0)
    few, narrow = made_candidate(64, 80, 40, 1.0), made_candidate(64, 100, 40, 0.2)
    assert rank([smaller, few, narrow, best])[:2] == (best, smaller)
    assert set(rank([smaller, few, narrow, best])) == {best, smaller, few, narrow}


def test_dominated_candidates_are_removed():
    whole = made_candidate(64, 100, 100, 1.0)
    assert rank([made_candidate(48, 105, 60, 1.0), made_candidate(64, 100, 40, 1.0, "stride"), whole]) == (whole,)
    # More multiply-accumulates, more parameters, or more even widths are reasons for a smaller input.
    for other in (made_candidate(48, 100, 150, 1.0), made_candidate(48, 120, 60, 1.0)):
        assert set(rank([whole, other])) == {whole, other}
    uneven = made_candidate(64, 100, 100, 0.2)
    assert len(rank([uneven, made_candidate(48, 100, 60, 0.9)])) == 2


def test_both_reductions_of_an_image_are_compared_the_second_last():
    pool, stride = (made_candidate(64, 100, 40, 1.0, stem) for stem in ("pool", "stride"))
    other = made_candidate(32, 100, 90, 0.1)
    assert rank([pool, other, stride]) == (stride, other, pool)


def test_generous_budget_leaves_nothing_to_compare():
    for text in ("params=20000,ram=256KB,macs=20M", "params=200000,ram=256KB,flash=512KB"):
        (only,) = found(text).ranked
        assert (only.shape[0], only.stem) == (64, "none")


def test_ranked_shapes_grow_only_with_an_advantage():
    """No candidate is dominated by an earlier one."""
    ranked = found("ram=32KB,flash=128KB").ranked
    assert 2 <= len(ranked) <= 6
    for earlier, later in pairwise(ranked):
        assert (earlier.shape, earlier.stem) != (later.shape, later.stem)


# Photographs


def chosen_input(source, budget="params=4000", *overrides):
    """`data.input` of the first candidate, and why no larger side was considered."""
    recipe = load_recipe("balanced", ["sizing.sides=[16, 24, 32, 96]", *overrides])[1]
    request = TrainRequest(source=source, recipe_name="balanced", recipe=recipe, budget=Budget.parse(budget))
    facts = source_facts(request)
    inputs = possible_inputs(recipe, request.budget, facts)
    choices = first_choices(recipe, request.budget, inputs, facts)
    return (inputs.setting(choices.ranked[0].shape) if inputs.are_open else recipe.data.input), inputs.bound


def test_glance_finds_sizes_and_color(tmp_path):
    entries = open_source(draw_photos(tmp_path / "a", [(70, 90), (60, 40)]), DataSettings()).read().splits
    assert glance(entries) == Glance(sizes=((70, 90), (60, 40)) * 15, color=True)
    assert glance(entries).shorter_side == 55
    assert glance(entries).own_size is None
    same = (np.zeros((200, 20, 30, 3), np.uint8), np.arange(200) % 2)
    seen = glance(open_source(same, DataSettings()).read().splits)
    assert set(seen.sizes) == {(20, 30)}
    assert len(seen.sizes) <= 67
    assert not seen.color
    assert seen.own_size == (20, 30)


def test_input_of_photographs_follows_the_budget(tmp_path):
    photos = draw_photos(tmp_path / "photos", [(70, 90), (60, 40)])
    assert chosen_input(photos) == ("32x32x3", "the shorter side of the images is 55")
    assert chosen_input(photos, "ram=6KB,flash=16KB")[0] == "24x24x3"
    largest = ("24x24x3", "no larger side is in sizing.sides")
    assert chosen_input(photos, "params=4000", "sizing.sides=[16, 24]") == largest
    assert chosen_input(photos, "params=4000", "sizing.sides=[64, 96]")[0] == "64x64x3"
    assert chosen_input(photos, "params=4000", "data.input=20x20x3") == ("20x20x3", "")
    assert chosen_input(photos, "params=4000", "sizing.input=as is") == ("auto", "")
    with raises("budget", "16x16x3", "3 classes"):
        chosen_input(photos, "params=20")


def test_small_images_of_one_size_keep_it_if_it_fits(tmp_path):
    photos = draw_photos(tmp_path / "photos", [(40, 30)])
    assert chosen_input(photos)[0] == "auto"
    assert chosen_input(photos, "ram=5KB,flash=16KB")[0] == "16x16x3"


def test_gray_images_determine_the_channels(tmp_path):
    photos = draw_photos(tmp_path / "photos", [(70, 90), (60, 80)], gray=True)
    assert chosen_input(photos)[0] == "32x32xauto"
