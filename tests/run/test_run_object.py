"""`thaw.Run`: a run folder, finished or interrupted, from Python."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import TINY_OVERRIDES, history, stored
from PIL import Image

import thaw
from thaw.events import Decoding
from thaw.run.events import EpochDone, Finished, Started
from thaw.run.notebook import summary_html


def test_finished_run_is_complete(finished):
    run = thaw.Run.open(finished.path)
    assert run.is_finished
    assert run.metrics == stored(finished.path / "metrics.json")
    assert run.report.is_file()
    assert all(isinstance(finding.message, str) for finding in run.findings)
    assert run.model.classes == tuple("0123456789")
    accuracy = run.metrics["test"]["accuracy"]
    assert repr(run) == f"Run({str(finished.path)!r}, digits, test accuracy {accuracy:.2%})"
    assert run.evaluate("digits").count == 1797


def test_history_is_columns_for_plotting(finished):
    lines, columns = history(finished.path), thaw.Run.open(finished.path).history
    assert {len(column) for column in columns.values()} == {len(lines)}
    assert columns["stage"].tolist() == [line["stage"] for line in lines]
    np.testing.assert_array_equal(columns["validation_accuracy"], [line["validation_accuracy"] for line in lines])
    for name in ("original", "unified"):
        expected = [line["losses"].get(name, np.nan) for line in lines]
        np.testing.assert_array_equal(columns[f"losses.{name}"], expected)


def test_notebook_shows_summary_and_curves(finished, tmp_path):
    page = thaw.Run.open(finished.path)._repr_html_()
    assert page.count("<svg") == page.count("</svg>") == 2
    assert "14,862" in page
    run = Path(shutil.copytree(finished.path, tmp_path / "a <b> run"))
    (run / "metrics.json").unlink()
    page = thaw.Run.open(run)._repr_html_()
    assert "not finished" in page
    assert "<b>" not in page


def test_notebook_shows_every_finding_first(finished):
    run = thaw.Run.open(finished.path)
    found = [{"severity": "warning", "message": message} for message in ("no <hit> for a class", "worse than before")]
    page = summary_html({**run.metrics, "findings": found}, run.history)
    assert page.index("no &lt;hit&gt; for a class") < page.index("worse than before") < page.index("test accuracy")


def test_interrupted_run_is_resumed(tmp_path):
    class StopHereError(Exception):
        pass

    events = []

    def stop(event):
        events.append(event)
        if isinstance(event, EpochDone):
            raise StopHereError

    with pytest.raises(StopHereError):
        thaw.train("digits", overrides=TINY_OVERRIDES, out=tmp_path / "run", on_event=stop)
    run = thaw.Run.open(tmp_path / "run")
    assert not run.is_finished
    assert repr(run) == f"Run({str(tmp_path / 'run')!r}, not finished, 1 epochs done)"
    assert len(run.history["epoch"]) == 1
    for ask in (lambda: run.metrics, run.export, run.verify):
        with pytest.raises((thaw.RunError, thaw.ModelFileError)):
            ask()
    seen = []
    finished = run.resume(on_event=seen.append)
    assert finished.is_finished
    assert isinstance(seen[-1], Finished)
    (started,) = (event for event in seen if isinstance(event, Started))
    assert started.epochs_done == 1
    assert len(finished.history["epoch"]) == 3


def test_decoding_is_an_event(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            pixels = np.random.default_rng([number, ord(name)]).integers(0, 256, (9, 9), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    events = []
    thaw.load(tmp_path / "photos", recipe="paper", overrides={"data.input": "10x10x1"}, on_event=events.append)
    assert events[-1] == Decoding(24, 24)


def test_predicts_every_kind_of_image(finished, tmp_path):
    run = thaw.Run.open(finished.path)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)
    Image.fromarray(pixels[0, :, :, 0]).save(tmp_path / "0.png")
    expected = run.model.probabilities(pixels)
    for images in (pixels, pixels[..., 0], list(pixels)):
        found = run.predict(images)
        np.testing.assert_allclose([each.probabilities for each in found], expected, rtol=1e-5)
    with Image.open(tmp_path / "0.png") as opened:
        picture = opened.copy()
    for image in (pixels[0], pixels[0, :, :, 0], tmp_path / "0.png", picture):
        (found,) = run.predict(image)
        np.testing.assert_allclose(found.probabilities, expected[0], rtol=1e-5)
    assert repr(found) == f"Prediction({found.label!r}, {found.probability:.2%}, name='[0]')"


def test_repr_is_one_line(finished):
    run, data = thaw.Run.open(finished.path), thaw.load("digits", recipe="digits")
    shown = [run, run.model, data, data.train, data.test, thaw.estimate("paper"), thaw.summarize("digits")]
    for each in shown:
        assert "\n" not in repr(each)
        assert len(repr(each)) < 200 + len(str(finished.path))


# Requests


@pytest.mark.parametrize(
    "overrides",
    [
        ["dual.epochs=1", "model.filters=[5, 6]", 'data.fit="crop"'],
        {"dual.epochs": 1, "model.filters": [5, 6], "data.fit": "crop"},
        {"dual": {"epochs": 1}, "model": {"filters": (5, 6)}, "data": {"fit": "crop"}},
    ],
)
def test_overrides_are_a_list_or_a_dict(overrides):
    recipe = thaw.load_recipe("paper", overrides)
    assert (recipe.dual.epochs, recipe.model.filters, recipe.data.fit) == (1, (5, 6), "crop")


def test_overrides_of_tables_and_numbers():
    steps = [{"unit": "head", "epochs": 2, "learning_rate": 0.5}, {"unit": "all", "epochs": 1}]
    recipe = thaw.load_recipe("paper", {"unfreeze.steps": steps})
    assert [(step.unit, step.epochs) for step in recipe.unfreeze.steps] == [("head", 2), ("all", 1)]
    assert recipe.unfreeze.steps[0].learning_rate == 0.5
    with pytest.raises(thaw.UsageError):
        thaw.load_recipe("paper", "dual.epochs=1")
    with pytest.raises(thaw.UsageError):
        thaw.load_recipe("paper", [5])


def test_estimate_is_the_cost_of_a_model(finished):
    cost = thaw.Run.open(finished.path).model.cost
    assert thaw.estimate("digits", input="28x28x1", classes=10).cost == cost
