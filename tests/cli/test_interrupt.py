"""Signals: messages of interrupted commands, and lost interrupts."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import TINY, start_interpreter, wait_for

LOST = """
import os, signal
from thaw.cli.interrupt import handle_signals, was_stopped, stopped
from thaw.cli.progress import Progress
from thaw.events import Step

signal.signal(signal.SIGHUP, signal.SIG_IGN)
handle_signals()
os.kill(os.getpid(), signal.SIGHUP)
assert not was_stopped(), "an inherited ignored signal stays ignored, as with nohup"
try:
    os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    pass  # a finalizer would lose it in this way
assert was_stopped()
try:
    Progress()(Step("work"))
except KeyboardInterrupt:
    error = stopped("told", "thaw go on")
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGINT)
print(error, error.next_command, error.exit_code)
"""


def test_lost_interrupt_is_raised_at_the_next_event():
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
def test_interrupted_command_reports_how_to_resume(call, finished, monkeypatch, work, arguments):
    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(work, stop)
    code, out, err = call(*(str(finished.path) if word == "{run}" else word for word in arguments))
    assert (code, out) == (130, "")
    expected = "interrupted" if "data" in arguments else "same command again"
    assert expected in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signal_before_training_begins(tmp_path, stop, code):
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


def test_interrupt_before_the_first_epoch_reports_how_to_resume(call, tmp_path, monkeypatch):
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
