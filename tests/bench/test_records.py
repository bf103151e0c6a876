"""bench/records.py: many trainings from one plan, stopped and continued."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from error_matching import raises
from records import CHECKPOINT, Stopped, main, read_plan, train

PLAN = """
source = "digits"
recipe = "balanced"
set = ["data.input=8x8x1", "model={family='separable', widths=[4], blocks=[1]}", "plain.epochs=3"]

[[trial]]
name = "slow"
set = ["plain.learning_rate=0.01"]

[[trial]]
name = "fast"
seeds = [0, 3]
"""


@pytest.fixture(autouse=True)
def _own_signals(monkeypatch):
    """Leave the handlers of this process alone."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)


def plan(tmp_path: Path, text: str = PLAN) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return path


def test_stopped_trial_ends_with_the_same_result(tmp_path):
    whole, stopped = (read_plan(plan(tmp_path), None, tmp_path / name)[0] for name in ("whole", "stopped"))
    expected = train(whole, float("inf"))
    for epoch in (1, 2):
        with pytest.raises(Stopped):
            train(stopped, 0.0)
        assert [each["epoch"] for each in stopped.epochs()] == list(range(1, epoch + 1))
        assert stopped.result() is None
    made = train(stopped, float("inf"))
    for result in (made, expected):
        del result["seconds"], result["images_per_second"]
    assert made == expected
    assert not (stopped.folder / CHECKPOINT).exists()


def test_checkpoint_of_other_settings_is_refused(tmp_path):
    with pytest.raises(Stopped):
        train(read_plan(plan(tmp_path), None, tmp_path)[0], 0.0)
    other = read_plan(plan(tmp_path, PLAN.replace("0.01", "0.02")), None, tmp_path)[0]
    with raises("usage", "other settings"):
        train(other, 0.0)


def test_plan_lists_first_seeds_first(tmp_path):
    jobs = read_plan(plan(tmp_path), None, tmp_path)
    assert [job.name for job in jobs] == ["slow-seed0", "fast-seed0", "fast-seed3"]
    assert jobs[2].trial.seed == 3
    assert jobs[0].trial.overrides[-1] == "plain.learning_rate=0.01"


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        (PLAN + "epochs = 3\n", "unknown epochs"),
        (PLAN.replace('source = "digits"', ""), "no source"),
        (PLAN.replace('"slow"', '"../slow"'), "../slow"),
        (PLAN.replace('"slow"', '"fast"'), "different names"),
        ("source = ", "cannot be read"),
    ],
)
def test_wrong_plans_are_refused(tmp_path, text, fact):
    with raises("usage", fact):
        read_plan(plan(tmp_path, text), None, tmp_path)


def test_commands(tmp_path, capsys):
    arguments = [str(plan(tmp_path)), "--root", str(tmp_path / "root")]
    log = tmp_path / "log.jsonl"
    assert main(["train", *arguments, "--jobs", "2", "--log", str(log)]) == 0
    assert [json.loads(line)["seed"] for line in log.read_text().splitlines()].count(3) == 1
    assert len(log.read_text().splitlines()) == 3
    started = time.monotonic()
    assert main(["train", *arguments]) == 0  # nothing is left
    assert time.monotonic() - started < 5
    capsys.readouterr()
    assert main(["list", *arguments]) == 0
    assert capsys.readouterr().out.count("finished") == 3
