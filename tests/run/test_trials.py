"""Short trainings that select a network: candidates, data, and selection."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sizing_samples import draw_photos, made_candidate

import thaw
from thaw.errors import TrainingError
from thaw.recipe import candidates
from thaw.recipe.budget import Budget
from thaw.recipe.candidates import find_candidates
from thaw.recipe.recipe import load_recipe
from thaw.run import resolve
from thaw.run.request import TrainRequest
from thaw.run.resolve import prepare_run, settle_run
from thaw.run.trials import Trial, TrialPlan, best_trial, plan_trials, run_trials
from thaw.training.trainer import MultiStageTrainer

BUDGET = "ram=6KB,flash=16KB"
SHORT = (
    "sizing.sides=[16, 24]",
    "plain.epochs=20",
    "plain.batch_size=16",
    "augment.rotation_degrees=0",
    "quantize.qat_threshold=100",
)


def request_of(source, *overrides, budget=BUDGET, **more):
    recipe = load_recipe("balanced", [*SHORT, *overrides])[1]
    parsed = Budget.parse(budget) if budget else None
    return TrainRequest(source=source, recipe_name="balanced", recipe=recipe, budget=parsed, **more)


def drain(steps):
    events = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as end:
            return events, *end.value


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return draw_photos(tmp_path_factory.mktemp("trials") / "photos", [(30, 40), (28, 26)], each=20)


@pytest.fixture(scope="module")
def settled(photos):
    """The events of a comparison, the resolved request and its data."""
    return drain(settle_run(request_of(photos)))


# Candidates


def test_compared_networks_fit_and_are_reported(settled):
    (plan, *trials), request, data = settled
    assert isinstance(plan, TrialPlan)
    assert len(trials) == len(plan.candidates) >= 2
    assert [trial.number for trial in trials] == list(range(1, len(trials) + 1))
    notes = {note.kind: note.message for note in request.chosen}
    chosen = best_trial(trials).candidate
    assert (request.recipe.model, data.input_spec.shape) == (chosen.spec, chosen.shape)
    assert request.recipe.data.input == str(data.input_spec)
    assert f"the best of {len(trials)} in a short training" in notes["network"]
    for trial in trials:
        assert not Budget.parse(BUDGET).exceeded(trial.candidate.cost)
        assert f"{trial.candidate}: {trial.score:.1%}" in notes["trials"]
    assert notes["trials"].startswith(f"compared by accuracy, {plan.epochs} epochs on {len(plan.data.train)} images")
    assert all(note in data.problems for note in request.chosen)


def test_trials_use_neither_test_images_nor_training_images_for_scores(photos, settled):
    plan = settled[0][0]
    data = prepare_run(request_of(photos, "sizing.trials=0"))[1]
    size = data.input_spec.shape

    def pixels(images):
        return {image.tobytes() for image in np.asarray(images.images)}

    assert plan.data.train.images.shape[1:] == size
    trained, judged = pixels(plan.data.train), pixels(plan.data.validation)
    assert not trained & judged
    assert trained | judged == pixels(data.train) | pixels(data.validation)
    assert not (trained | judged) & pixels(data.test.open())


def test_same_seed_gives_the_same_trials(photos, settled):
    again = drain(settle_run(request_of(photos)))
    for one, other in zip(settled[0][1:], again[0][1:], strict=True):
        assert one.candidate == other.candidate
        np.testing.assert_array_equal(one.hits, other.hits)
    assert again[1].recipe == settled[1].recipe
    other_seed = plan_trials(settled[0][0].candidates, settled[1].recipe, settled[2], 1)
    assert other_seed is None or other_seed.candidates == settled[0][0].candidates


def test_comparison_is_within_its_fraction_of_the_training(photos):
    data = prepare_run(request_of(photos, "sizing.trials=0"))[1]
    few = [made_candidate(16, 100, macs, 1.0) for macs in (50, 40, 30, 20)]
    recipe = load_recipe("balanced")[1]
    plan = plan_trials(few, recipe, data, 0)
    assert plan.candidates == tuple(few)
    spent = plan.epochs * len(plan.data.train) * sum(each.cost.macs for each in few)
    assert 0.1 < spent / (recipe.plain.epochs * len(data.train) * 50) <= 0.2
    for overrides in (["sizing.trials=0"], ["sizing.trials=1"], ["plain.epochs=5"]):
        assert plan_trials(few, load_recipe("balanced", overrides)[1], data, 0) is None, overrides
    assert plan_trials(few, load_recipe("paper", ["sizing.network=largest"])[1], data, 0) is None
    two = plan_trials(few, load_recipe("balanced", ["plain.epochs=20"])[1], data, 0)
    assert len(two.candidates) < 4
    assert two.epochs >= 2
    assert plan_trials(few[:1], recipe, data, 0) is None


def test_disabled_comparison_uses_the_first_candidate(photos):
    events, request, data = drain(settle_run(request_of(photos, "sizing.trials=0")))
    assert not events
    first = find_candidates(
        load_recipe("balanced", SHORT)[1], Budget.parse(BUDGET), [(16, 16, 3), (24, 24, 3)], 3
    ).ranked[0]
    assert (request.recipe.model, data.input_spec.shape) == (first.spec, first.shape)
    notes = {note.kind: note.message for note in request.chosen}
    assert "trials" not in notes
    assert ": the largest within ram=6,144, flash=16,384 (" in notes["network"]


# Selection


def trial(hits, macs, number=1, weights=None):
    found = made_candidate(16, 100, macs, 1.0)
    hits = np.array(hits, bool)
    equal = np.full(len(hits), 1 / len(hits)) if weights is None else np.array(weights)
    return Trial(candidate=found, hits=hits, weights=equal, number=number, count=3, seconds=1.0)


def test_selects_the_cheapest_within_the_noise_of_the_best():
    best = trial([1] * 90 + [0] * 10, 100)
    # 16 images fewer, all of which the best one classifies correctly: 16 > sqrt(16).
    worse = trial([1] * 74 + [0] * 26, 50)
    assert best_trial([worse, best]) is best
    # 1 image fewer of 1 that differs is within the noise; so are 4 of 16.
    for hits in ([1] * 89 + [0] * 11, [0] * 10 + [1] * 80 + [1] * 6 + [0] * 4):
        cheaper = trial(hits, 50)
        assert best_trial([best, cheaper]) is cheaper
        assert best_trial([best, trial(hits, 200)]) is best
    # 2 of 2 are not.
    assert best_trial([best, trial([1] * 88 + [0] * 12, 50)]) is best


def test_imbalanced_classes_are_compared_by_balanced_accuracy(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.array([0] * 90 + [1] * 30 + [2] * 15)
    source = (rng.integers(0, 256, (len(labels), 24, 24, 3), np.uint8), labels)
    (plan, first, *_), _, _ = drain(settle_run(request_of(source)))
    judged = plan.data.validation.labels
    assert plan.figure == "balanced_accuracy"
    recalls = [first.hits[judged == label].mean() for label in np.unique(judged)]
    assert first.score == pytest.approx(np.mean(recalls))
    assert first.weights.sum() == pytest.approx(1.0)
    # Two classes with 90 and 10 images: an image of the small one weighs as much as nine of the other.
    weights = [1 / 180] * 90 + [1 / 20] * 10
    best, worse = trial([1] * 100, 100, weights=weights), trial([1] * 98 + [0] * 2, 50, weights=weights)
    assert best.score - worse.score == pytest.approx(0.1)
    assert best_trial([best, worse]) is best
    assert best_trial([best, trial([0] * 1 + [1] * 99, 50, weights=weights)]).candidate.cost.macs == 50


def test_failed_trial_has_no_hits(photos, settled, monkeypatch):
    def fail(self):
        raise TrainingError("not finite")

    monkeypatch.setattr(MultiStageTrainer, "epochs", fail)
    recipe = load_recipe("balanced", SHORT)[1]
    found = list(run_trials(settled[0][0], recipe, 0, "cpu"))
    assert not any(trial.hits.any() for trial in found)


# Whole runs


@pytest.fixture(scope="module")
def compared_run(photos, tmp_path_factory):
    events = []
    out = tmp_path_factory.mktemp("compared") / "run"
    run = thaw.train(photos, overrides=[*SHORT, "plain.epochs=20"], budget=BUDGET, out=out, on_event=events.append)
    return run, events


def test_run_reports_trials_before_the_time_estimate(compared_run, settled):
    run, events = compared_run
    names = [type(event).__name__ for event in events]
    count = len(settled[0]) - 1
    assert names[: count + 3] == ["TrialPlan", *["Trial"] * count, "Begun", "Started"]
    started = events[count + 2]
    assert set(started.epoch_seconds) == {"plain"}
    assert started.epoch_seconds["plain"] > 0
    assert run.model.spec == settled[1].recipe.model
    notes = {problem["kind"]: problem["message"] for problem in run.metrics["data"]["problems"]}
    assert notes["trials"] in run.report.read_text().replace("&#39;", "'")
    assert not load_recipe(str(run.path / "recipe.toml"))[1].sizing.is_open


def test_trials_do_not_change_the_bits_of_the_run(compared_run, photos, tmp_path):
    """The resolved recipe of the run trains to the same weights."""
    run, _ = compared_run
    again = thaw.train(photos, recipe=str(run.path / "recipe.toml"), out=tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").is_file()
    assert again.model.digest == run.model.digest


def test_resume_compares_nothing_and_ends_the_same(compared_run, monkeypatch):
    run, _ = compared_run

    def never(*args, **kwargs):
        raise AssertionError("it compared again")

    monkeypatch.setattr(resolve, "run_trials", never)
    monkeypatch.setattr(candidates, "largest_variant", never)
    before, digest = run.metrics["data"]["problems"], run.model.digest
    (run.path / "metrics.json").unlink()
    resumed = thaw.Run.open(run.path).resume()
    assert resumed.metrics["data"]["problems"] == before
    assert resumed.model.digest == digest
    kept = json.loads((run.path / "run.json").read_text())
    assert TrainRequest.from_dict(kept).recipe.sizing == replace(
        load_recipe("balanced", SHORT)[1].sizing, network="fixed", input="as is"
    )


def test_load_gives_the_images_of_the_run(compared_run, photos):
    run, _ = compared_run
    data = thaw.load(photos, overrides=SHORT, budget=BUDGET)
    assert data.fingerprint == run.metrics["data"]["fingerprint"]
