"""Runs that are killed, interrupted, on a full disk, or whose loss is not finite."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import (
    DIGEST,
    SMALL,
    STAGES,
    TINY,
    TINY_OVERRIDES,
    assert_same_run,
    error_of,
    history,
    metrics,
    reseal,
    start,
    stored,
    thaw,
    wait_for,
)
from error_matching import raises
from launcher import Launched

import thaw as library
from thaw.files import write_atomically
from thaw.graph.graph_file import read_graph
from thaw.run.cross_validation import EpochDone
from thaw.run.folder import RunFolder, locked
from thaw.training.checkpoint import read_tensors

FINAL_NAMES = {
    ".lock",
    "checkpoints",
    "folds",
    "history.jsonl",
    "metrics.json",
    "model-int8.safetensors",
    "model.safetensors",
    "recipe.toml",
    "report.html",
    "run.json",
    "training-images.safetensors",
}

PAPER = ("--recipe", "paper")


def kill(process: Launched) -> None:
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()


def assert_whole_files(run: Path) -> None:
    """Check that every file with a final name is complete."""
    for path in run.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            if path.name == "model-int8.safetensors":
                read_graph(path)
            elif path.suffix == ".safetensors":
                read_tensors(path, version=1)
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".jsonl":
                assert path.read_text() == "" or path.read_text().endswith("\n")
                history(path.parent)
            elif path.suffix == ".html":
                assert path.read_text().rstrip().endswith("</html>")


def test_run_killed_in_every_stage_ends_with_the_same_bits(finished, tmp_path):
    run = tmp_path / "run"
    begin = ("train", "digits", *SMALL, "--out", run)
    resume = ("train", "--resume", run)
    chance = random.Random(5)
    for place, stage in enumerate(STAGES):
        process = start(*(resume if place else begin), cwd=tmp_path)
        # After the first epoch of the stage, during the second.
        wait_for(lambda stage=stage: (history(run) or [{"stage": ""}])[-1]["stage"] == stage, process)
        time.sleep(chance.uniform(0, 0.1))
        kill(process)
        assert_whole_files(run)
        assert not (run / "model.safetensors").exists()
    for name in ("model.safetensors", "model-int8.safetensors", "report.html"):
        process = start(*resume, cwd=tmp_path)
        wait_for((run / name).exists, process)
        kill(process)
        assert_whole_files(run)
    done = thaw(*resume, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch 11" in done.stderr
    assert_same_run(run, finished.path)
    assert {path.name for path in run.iterdir()} == FINAL_NAMES
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.safetensors"]


def test_kills_at_random_moments_lose_nothing(finished, tmp_path, chance):
    run = tmp_path / "run"
    process = start("train", "digits", *SMALL, "--out", run, cwd=tmp_path)
    for _ in range(2):
        before = len(history(run))
        wait_for(lambda before=before: len(history(run)) > before, process)
        time.sleep(chance.uniform(0, 0.3))
        assert process.poll() is None, "the run ended before it could be killed"
        kill(process)
        assert_whole_files(run)
        process = start("train", "--resume", run, cwd=tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert_same_run(run, finished.path)


# It writes a file repeatedly, with different content and length.
WRITER = """
import sys
from pathlib import Path
from thaw.files import write_atomically
number = 0
while True:
    write_atomically(Path(sys.argv[1]), bytes([number % 256]) * (100_000 + 10_000 * (number % 256)))
    number += 1
"""


def test_kill_during_a_write_leaves_complete_files(tmp_path, chance):
    path = tmp_path / "checkpoints" / "last.safetensors"
    path.parent.mkdir()
    interrupted = 0
    for _ in range(15):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        while not path.exists():
            time.sleep(0.001)
        time.sleep(chance.uniform(0.05, 0.2))
        process.kill()
        process.wait()
        content = path.read_bytes()
        assert content == content[:1] * (100_000 + 10_000 * content[0])
        interrupted += len(list(path.parent.glob(".*.tmp")))
        with locked(RunFolder(tmp_path)):
            assert [left.name for left in path.parent.iterdir()] == [path.name], (
                "temporary files of a killed process are removed"
            )
    assert interrupted, "no kill during a write"


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_and_reports_how_to_resume(finished, tmp_path, stop, code):
    run = tmp_path / "a run"
    process = start("train", "digits", *SMALL, "--out", run, "--json", cwd=tmp_path)
    wait_for(lambda: len(history(run)) >= 2, process)
    process.send_signal(stop)
    # Further signals during the shutdown have no effect.
    for _ in range(60):
        process.send_signal(stop)
        time.sleep(0.002)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in err
    assert f"resume with: thaw train --resume '{run}'" in err
    done = thaw("train", "--resume", run, "--json", cwd=tmp_path)
    assert json.loads(done.stdout) == stored(run / "metrics.json")
    assert_same_run(run, finished.path)


@pytest.fixture(scope="module")
def copied(finished, tmp_path_factory):
    """A function that returns a new copy of the finished run."""

    def copy() -> Path:
        return Path(shutil.copytree(finished.path, tmp_path_factory.mktemp("copied") / "run"))

    return copy


def test_finished_run_is_measured_again_but_not_trained(finished, copied):
    run = copied()
    for name in ("metrics.json", "report.html", "model.safetensors", "model-int8.safetensors", "history.jsonl"):
        (run / name).unlink()
    epochs = []
    made = library.Run.open(run).resume(on_event=lambda event: epochs.append(isinstance(event, EpochDone)))
    assert not any(epochs)
    assert made.path == run
    assert made.metrics == stored(run / "metrics.json")
    assert_same_run(run, finished.path)


def test_two_processes_cannot_share_a_run(copied, call):
    run = copied()
    with locked(RunFolder(run)):
        error_of(["another process is using", str(run)], call("train", "--resume", run), 1)
        error_of(["another process"], call("train", "digits", *TINY, "--out", run, "--overwrite"), 1)
    assert (run / "metrics.json").exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "other shapes", "no checkpoint"])
def test_damaged_checkpoint_is_reported(copied, call, damage):
    run = copied()
    path = run / "checkpoints" / "last.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "no checkpoint":
        shutil.copy(run / "model.safetensors", path)
    else:
        kept = json.loads((run / "run.json").read_text())
        kept["recipe"]["model"]["filters"] = [10, 21]
        reseal(run / "run.json", kept)
    error_of([f"remove {path}"], call("train", "--resume", run), 1)


RUN_DAMAGE = {
    "no JSON": ("{", "not a JSON object"),
    "deep": ("[" * 100_000, "not a JSON object"),
    "a list": ("[]", "not a JSON object"),
    "empty": ("", "not a JSON object"),
    "no UTF-8": ("\udcff", "not a JSON object"),
    "NaN": ('{"version": NaN}', "not a JSON object"),
    "a key twice": ('{"version": 1, "version": 1}', "not a JSON object"),
    "no digest": ('{"version": 1}', "has no digest"),
    "another digest": (json.dumps({"version": 1, DIGEST: "0" * 64}), "has changed since thaw wrote it"),
    "another version": ({"version": 99}, "another version"),
    "nothing else": ({"version": 1}, "has no source"),
}


@pytest.mark.parametrize("damage", list(RUN_DAMAGE))
def test_damaged_run_json_is_reported(tmp_path, call, damage):
    text, words = RUN_DAMAGE[damage]
    run = tmp_path / "run"
    run.mkdir()
    if isinstance(text, dict):
        reseal(run / "run.json", text)
    else:
        (run / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    error_of([words], call("train", "--resume", run), 1)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("seed", "3", "invalid seed '3'"),
        ("folds", None, "invalid folds None"),
        ("source", 5, "invalid source 5"),
        ("recipe", {"dual": {"epoch": 3}}, "did you mean epochs"),
        ("device", "tpu", "device 'tpu'"),
        ("threads", 0, "invalid threads 0"),
        ("threads", 2**40, "invalid threads 1099511627776"),
        ("seed", 2**64, "invalid seed 18446744073709551616"),
        ("data_root", "a\0b", "data_root"),
        ("chosen", [{"kind": 3}], "chosen[0].kind = 3"),
        ("budget", {"params": "many"}, "params"),
    ],
)
def test_invalid_value_in_run_json_is_reported(copied, call, key, value, words):
    run = copied()
    kept = json.loads((run / "run.json").read_text())
    reseal(run / "run.json", {**kept, key: value})
    outcome = call("train", "--resume", run)
    error_of([words], outcome, outcome[0])
    assert outcome[0] in (1, 2)


def test_resuming_another_folder_is_reported(tmp_path, call):
    error_of(["not a run folder", "run.json"], call("train", "--resume", tmp_path), 1)
    error_of(["not a run folder"], call("train", "--resume", tmp_path / "nowhere"), 1)


def write_class_folders(root: Path, shade: int = 0) -> None:
    from PIL import Image

    chance = np.random.default_rng(7)
    for label, name in enumerate(("dark", "light")):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(20):
            pixels = chance.integers(0, 100, (16, 16), dtype=np.uint8) + np.uint8(label * 100 + shade)
            Image.fromarray(pixels).save(root / name / f"{index}.png")


def test_run_with_changed_data_is_not_resumed(tmp_path, call):
    write_class_folders(tmp_path / "images")
    code, _, err = call("train", "images", *PAPER, *TINY, "--out", "run")
    assert code == 0, err
    assert metrics(tmp_path / "run")["data"]["source"] == "images"
    write_class_folders(tmp_path / "images", shade=3)
    error_of(["have changed", "start a new run"], call("train", "--resume", "run"), 1)


def test_run_is_resumed_from_another_folder_with_a_folder_of_the_same_name(tmp_path, call, monkeypatch):
    (tmp_path / "digits").mkdir()
    write_class_folders(tmp_path / "images")
    for source in ("digits", "images"):
        assert call("train", source, *PAPER, *TINY, "--out", f"run-{source}")[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for source in ("digits", "images"):
        code, _, err = call("train", "--resume", tmp_path / f"run-{source}")
        assert code == 0, err


def digit_arrays() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.kron(bunch.images, np.ones((1, 2, 2))).astype(np.uint8)[:600] * 15, bunch.target[:600]


def full_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """Make the disk full after `writes` files."""
    left = [writes]

    def fsync(_descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("writes", [0, 1, 4, 6, 9, 10, 11, 12])
def test_full_disk_stops_a_run_on_arrays_that_resumes_later(tmp_path, monkeypatch, writes):
    monkeypatch.chdir(tmp_path)
    arrays = digit_arrays()
    run = tmp_path / "runs" / "arrays-paper-1"
    with monkeypatch.context() as patch:
        full_after(patch, writes)
        with raises("run-write", "No space left on device"):
            library.train(arrays, recipe="paper", overrides=TINY_OVERRIDES)
    assert_whole_files(run)
    assert not list(run.rglob("*.tmp"))
    assert not (run / "metrics.json").exists()
    if writes == 0:
        assert not (run / "run.json").exists()
        return
    with raises("run-memory"):
        library.Run.open(run).resume()
    made = library.Run.open(run, source=arrays).resume()
    assert made.path == run
    assert len(history(run)) == 3
    assert made.metrics["dataset"] == "arrays"
    assert made.metrics["data"]["source"] == "arrays"
    assert made.model.probabilities(arrays[0][:5, :, :, None]).shape == (5, 10)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 26 MB, if the system can mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=26m", "tmpfs", str(disk)]
    can_mount = os.geteuid() == 0 and shutil.which("mount") is not None
    if not can_mount or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small disk: this needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_disk_that_fills_up_stops_the_run_cleanly(finished, small_disk):
    run = small_disk / "run"
    process = start("train", "digits", *SMALL, "--out", run, cwd=small_disk)
    wait_for(lambda: len(history(run)) >= 2, process)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    error = err[err.index("error: ") :]
    error_of(["cannot write", "No space left on device", f"resume with: thaw train --resume {run}"], (1, "", error), 1)
    assert_whole_files(run)
    assert not list(run.rglob("*.tmp"))
    ballast.unlink()
    done = thaw("train", "--resume", run, cwd=small_disk)
    assert done.returncode == 0, done.stderr
    assert_same_run(run, finished.path)


def test_nearly_full_disk_is_reported_before_training(small_disk, call):
    (small_disk / "ballast").write_bytes(bytes(10 << 20))
    outcome = call("train", "digits", *TINY, "--out", small_disk / "run")
    assert not (small_disk / "run").exists()
    error_of(["MB are free", "a run needs 20 MB", "--out"], outcome, 1)


def test_loss_that_is_not_finite_stops_the_run(tmp_path, call):
    steps = 'unfreeze.steps=[{unit="head", epochs=2, learning_rate=1e38}]'
    code, out, err = call("train", "digits", "--set", "dual.epochs=1", "--set", steps, "--out", "run")
    error = err[err.index("error: ") :]
    error_of(["stage head, epoch 1", "not finite", "lower learning rate", "in run"], (code, out, error), 1)
    kept, header = read_tensors(tmp_path / "run" / "checkpoints" / "last.safetensors", version=1)
    assert header["method"]["run"]["stage"] == "dual"
    assert all(np.isfinite(tensor.numpy()).all() for tensor in kept.values())
    assert "Traceback" not in call("train", "--resume", "run")[2], "it fails again with a message"


def test_folds_do_not_affect_the_model_and_survive_a_kill(tmp_path):
    write_class_folders(tmp_path / "images")
    plain, folded, killed = (tmp_path / name for name in ("plain", "folded", "killed"))
    longer = ("--set", "dual.epochs=20", "--set", "dual.patience=20")
    folds = ("--folds", "3")
    for run, more in ((plain, ()), (folded, folds)):
        done = thaw("train", "images", *PAPER, *TINY, *longer, *more, "--out", run, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "fold 2 of 3: accuracy" in done.stderr
    process = start("train", "images", *PAPER, *TINY, *longer, *folds, "--out", killed, cwd=tmp_path)
    wait_for((killed / "folds" / "fold-1.json").exists, process)
    kill(process)
    assert not (killed / "folds" / "fold-3.json").exists()
    done = thaw("train", "--resume", killed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_run(killed, folded)
    result = metrics(folded)["folds"]
    assert result["count"] == len(result["accuracies"]) == 3
    assert result["mean"] == pytest.approx(np.mean(result["accuracies"]))
    assert result["balanced_mean"] == pytest.approx(np.mean(result["balanced_accuracies"]))
    # Classes have equal numbers of images, also in every fold.
    assert result["balanced_accuracies"] == pytest.approx(result["accuracies"], abs=0.1)
    assert result["std"] == pytest.approx(np.std(result["accuracies"], ddof=1))
    low, high = result["ci95"]
    assert 0 <= low <= result["mean"] <= high <= 1
    reseal(folded / "metrics.json", metrics(folded) | {"folds": None})
    assert_same_run(plain, folded)


def test_interrupted_write_leaves_no_trace(tmp_path, monkeypatch):
    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", "text")
    assert list(tmp_path.iterdir()) == []
