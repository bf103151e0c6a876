"""Signals: what every command says when it is stopped, and that none is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import TINY, start_interpreter, wait_for

LOST = """
import os, signal
from thaw.cli.interrupt import handle_signals, was_stopped, watched, stopped

signal.signal(signal.SIGHUP, signal.SIG_IGN)
handle_signals()
os.kill(os.getpid(), signal.SIGHUP)
assert not was_stopped(), "who started it wants this one ignored, as nohup does"
try:
    os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    pass  # as a finalizer would lose it
assert was_stopped()
try:
    list(watched([1, 2]))
except KeyboardInterrupt:
    error = stopped("told", "thaw go on")
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGINT)
print(error, error.next_command, error.exit_code)
"""


def test_an_interrupt_that_was_lost_comes_with_the_next_event_and_what_is_told_is_told_whole():
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "told thaw go on 143\n", "")


@pytest.mark.parametrize(
    ("work", "arguments"),
    [
        ("thaw.deploy.export.export", ("export", "{run}")),
        ("thaw.deploy.verify.check_boards", ("verify", "{run}")),
        ("thaw.deploy.export.export_if_none", ("bench", "{run}")),
        ("thaw.studies.reproduce.reproduce", ("reproduce",)),
        ("thaw.studies.ablation.ablate", ("ablate", "digits")),
        ("thaw.data.summary.look", ("data", "digits")),
    ],
)
def test_a_command_that_is_stopped_says_how_to_go_on(call, finished, monkeypatch, work, arguments):
    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(work, stop)
    code, out, err = call(*(str(finished.path) if word == "{run}" else word for word in arguments))
    assert (code, out) == (130, "")
    expected = "interrupted" if "data" in arguments else "same command again"
    assert expected in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_before_training_begins(tmp_path, stop, code):
    process = start_interpreter("train", "digits", *TINY, "--out", "run", cwd=tmp_path)
    maps = Path(f"/proc/{process.pid}/maps")
    wait_for(lambda: "libtorch" in maps.read_text(), process)
    process.send_signal(stop)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    assert "interrupted" in err
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_stopped_before_its_first_epoch_says_how_to_resume(call, tmp_path, monkeypatch):
    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    words = ("train", "digits", *TINY, "--out", "a run")
    with monkeypatch.context() as patched:
        patched.setattr("thaw.run.pipeline.seconds_per_epoch", stop)
        for again in (words, ("train", "--resume", "a run")):
            code, out, err = call(*again)
            assert (code, out) == (130, "")
            assert err.endswith("resume with: thaw train --resume 'a run'\n")
    monkeypatch.setattr("thaw.run.pipeline.settle_run", stop)
    assert "resume with: thaw train --resume 'a run'" in call("train", "--resume", "a run")[2]
    code, _, err = call("train", "digits", *TINY, "--out", "another")
    assert (code, err) == (130, "interrupted before training started\n")
    assert not (tmp_path / "another").exists()
