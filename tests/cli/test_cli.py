"""The command line: output, errors, and the commands."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from command_line import REPOSITORY, STAGES, TINY, error_of, history, metrics, start, stored, thaw

import thaw as library

# Output


def test_json_on_standard_output_and_progress_on_standard_error(finished):
    assert json.loads(finished.stdout) == stored(finished.path / "metrics.json")
    lines = finished.stderr.splitlines()
    assert lines[0].startswith("digits: 1,293 train, 145 validation, 359 test; 10 classes; input 28x28x1")
    epochs = [line for line in lines if " epoch " in line]
    assert [line.split()[0] for line in epochs] == ["dual"] * 3 + [name for name in STAGES[1:] for _ in range(2)]
    for line in epochs:
        assert re.search(r"epoch +\d/\d  loss \w+ \d.*  val \d+\.\d\d%[* ] +[\d,]+ img/s  \d+ s left$", line)
    assert "\x1b" not in finished.stderr
    assert "\r" not in finished.stderr


def documented_names(section: str) -> set[str]:
    """The names in the first column of a table of docs/metrics.md."""
    text = (REPOSITORY / "docs" / "metrics.md").read_text()
    part = re.split(r"^#+ ", text.split(f"# {section}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    cells = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_metrics_have_the_documented_names(finished):
    run = metrics(finished.path)
    assert set(run) == documented_names("metrics.json")
    for section in ("data", "cost", "test", "latency", "environment"):
        assert set(run[section]) == documented_names(section), section
    for stage in run["stages"]:
        assert set(stage) == documented_names("stages")
    for record in history(finished.path):
        assert set(record) == documented_names("history.jsonl")
    folds = {"count", "accuracies", "mean", "std", "ci95", "balanced_accuracies", "balanced_mean"}
    assert folds == documented_names("folds")


def test_metrics_describe_the_run(finished):
    run = metrics(finished.path)
    assert run["schema"] == 1
    assert run["dataset"] == run["recipe"] == run["data"]["source"] == "digits"
    assert run["seed"] == 3
    assert run["parameters"] == run["cost"]["parameters"] == 14862
    assert run["macs"] == run["cost"]["macs"] > 0
    assert [stage["name"] for stage in run["stages"]] == list(STAGES)
    assert [stage["epochs"] for stage in run["stages"]] == [3, 2, 2, 2, 2]
    assert run["data"]["train"] + run["data"]["validation"] + run["data"]["test"] == 1797
    cut = {"origin": "cut", "fraction": 0.2, "seed": 3, "count": run["test"]["count"]}
    assert run["data"]["splits"]["test"] == cut
    assert run["test"]["count"] == run["data"]["test"] == sum(map(sum, run["test"]["confusion"]))
    assert run["folds"] is None
    assert run["command"].startswith("thaw train digits --recipe digits --seed 3 --set dual.epochs=3")
    for name in run["files"].values():
        assert (finished.path / name).is_file()
    recipe = tomllib.loads((finished.path / "recipe.toml").read_text())
    assert recipe["dual"]["epochs"] == 3
    assert recipe["dual"]["batch_size"] == 32


def screen(stream: str) -> list[str]:
    """The final screen of a terminal that interprets line feed, carriage return, cursor up and erase line."""
    lines, row, column = [""], 0, 0
    for sequence, letter in re.findall(r"\x1b\[([?\d;]*[A-Za-z])|([^\x1b])", stream):
        if sequence.endswith("A"):
            row = max(0, row - int(sequence[:-1] or 1))
        elif sequence.endswith("K"):
            lines[row] = "" if sequence == "2K" else lines[row][:column]
        elif letter == "\r":
            column = 0
        elif letter == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif letter:
            lines[row] = lines[row][:column].ljust(column) + letter + lines[row][column + 1 :]
            column += 1
    return lines


def test_terminal_shows_one_live_line_per_stage(tmp_path):
    ours, theirs = pty.openpty()
    more = ("--set", "dual.epochs=3", "--set", "quantize.qat_threshold=100", "--out", "run")
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
    environment["TERM"] = "xterm"
    process = start("train", "digits", *TINY, *more, cwd=tmp_path, stderr=theirs, env=environment)
    os.close(theirs)
    received = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux reports a closed peer in this way
            break
        if not part:
            break
        received += part
    os.close(ours)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    shown = screen(received.decode())
    stages = [line for line in shown if " epoch " in line]
    assert [line.split()[0] for line in stages] == ["dual", "head", "all"]
    assert "epoch  3/3" in stages[0]
    assert "test accuracy" in out
    assert str(Path("run/report.html")) in out


def test_summary_names_the_report_in_one_line(tmp_path, call):
    folder = tmp_path / ("a long [bold]name[/bold] " * 6).strip()
    code, out, err = call("train", "digits", *TINY, "--out", folder)
    assert code == 0, err
    assert any(line.endswith(str(folder / "report.html")) for line in out.splitlines())
    assert any(line.endswith(f"run folder: {folder}") for line in err.splitlines())


SHOW_MODULES = """
import sys
from thaw.cli import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def test_no_command_shows_help_quickly(tmp_path):
    for arguments, words in (((), "Usage: thaw"), (("-h",), "ablate"), (("--version",), f"thaw {library.__version__}")):
        started = time.monotonic()
        words_given = [sys.executable, "-c", SHOW_MODULES, *arguments]
        done = subprocess.run(words_given, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
        assert not {"torch", "numpy", "PIL", "matplotlib"} & set(done.stderr.split())
        assert time.monotonic() - started < 1.5


@pytest.mark.parametrize("name", ["train", "data", "predict", "evaluate", "info", "reproduce", "ablate"])
def test_every_command_has_help(call, name):
    code, out, err = call(name, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: thaw {name}" in out


def test_closed_pipe_is_not_a_crash(finished, tmp_path):
    process = start("info", finished.path, "--json", cwd=tmp_path)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 1
    assert err == ""


# Errors


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("train",), 2, ["either a source", "--resume"]),
        (("train", "digits", "--resume", "run"), 2, ["either a source"]),
        (("train", "--resume", "run", "--seed", "0"), 2, ["--resume", "--json"]),
        (("train", "--resume", "run", "--device", "cpu"), 2, ["--resume", "--json"]),
        (("train", "--resume", "run", "--data-root", "."), 2, ["--resume", "--json"]),
        (("train", "digit"), 1, ["'digit'", "did you mean digits"]),
        (("train", "nowhere/at/all"), 1, ["nowhere/at/all"]),
        (("train", "digits", "--recipe", "papr"), 2, ["unknown recipe 'papr'", "did you mean paper?"]),
        (("train", "digits", "--set", "dual.epoch=3"), 2, ["did you mean epochs"]),
        (("train", "digits", "--set", "dual.learning_rate=nan"), 2, ["expected a finite number"]),
        (("train", "digits", "--set", "dual.epochs"), 2, ["expected section.key=value"]),
        (("train", "digits", "--device", "tpu"), 2, ["device 'tpu'", "auto, cpu, cuda"]),
        (("train", "digits", "--folds", "1"), 2, ["folds 1", "at least 2"]),
        (("train", "digits", "--folds", "-2"), 2, ["--folds"]),
        (("train", "digits", "--folds", "many"), 2, ["--folds", "integer"]),
        (("train", "digits", "--folds", "1000"), 1, ["folds"]),
        (("train", "digits", "--seed", "-1"), 2, ["--seed"]),
        (("train", "digits", "--set", "data.input=9x9x1"), 2, ["9x9", "too small", "10x10"]),
        (("train", "digits", "--set", "data.input=9999x9999x1"), 2, ["9999x9999", "1024"]),
        (("train", "mnist", "--data-root", "nowhere"), 2, ["nowhere", "not a folder"]),
        (("trian", "digits"), 2, ["trian"]),
        (("train", "digits", "--sed", "3"), 2, ["--sed"]),
        (("predict",), 2, ["RUN"]),
        (("predict", "nowhere", "x.png"), 1, ["nowhere does not exist"]),
        (("predict", ".", "x.png"), 1, ["model.safetensors"]),
        (("predict", ".", "x.png", "--format", "xml"), 2, ["xml", "table, json, csv"]),
        (("evaluate", "nowhere", "digits"), 1, ["nowhere does not exist"]),
        (("info",), 2, ["either a run folder", "--recipe"]),
        (("info", "run", "--recipe", "paper"), 2, ["either a run folder"]),
        (("info", "run", "--input", "28x28x1"), 2, ["apply to --recipe"]),
        (("info", "nowhere"), 1, ["nowhere does not exist"]),
        (("info", "--recipe", "paper", "--input", "28x28"), 2, ["HEIGHTxWIDTHxCHANNELS"]),
        (("info", "--recipe", "paper", "--input", "8x8x1"), 2, ["too small"]),
        (("info", "--recipe", "paper", "--input", "28x28x2"), 2, ["28x28x2", "1 (gray) or 3"]),
        (("info", "--recipe", "paper", "--input", "0x0x1"), 2, ["0x0"]),
        (("info", "--recipe", "paper", "--input", "99999999x99999999x3"), 2, ["1024"]),
        (("info", "--recipe", "paper", "--input", "-5x5x1"), 2, ["HEIGHTxWIDTHxCHANNELS"]),
        (("info", "--recipe", "paper", "--classes", "1"), 2, ["--classes"]),
        (("info", "--recipe", "paper", "--classes", "1000000000000"), 2, ["--classes"]),
        (("data", "nowhere/at/all"), 1, ["nowhere/at/all"]),
        (("reproduce", "--dataset", "imagenet"), 2, ["imagenet", "mnist, fashion_mnist, cifar10"]),
        (("reproduce", "--seeds", "0,x"), 2, ["0,x", "such as 0,1,2"]),
        (("ablate", "digits", "--seeds", "1,1"), 2, ["distinct integers"]),
        (("ablate", "digits", "--device", "tpu"), 2, ["device 'tpu'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_error_has_two_lines(call, tmp_path, arguments, code, words):
    error_of(words, call(*arguments), code)
    assert not (tmp_path / "runs").exists()


def test_cuda_is_not_available(call):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    error_of(["device cuda", "use --device cpu"], call("train", "digits", "--device", "cuda"), 2)


def test_several_faults_of_a_recipe_are_reported_together(call):
    faulty = ("--set", "dual.epoch=3", "--set", "unfreeze.momentum=2", "--set", "modell.filters=5")
    err = error_of(["3 faults"], call("train", "digits", *faulty), 2, lines=4)
    for words in ("did you mean epochs", "unfreeze.momentum = 2", "did you mean model"):
        assert words in err


@pytest.mark.parametrize("place", [0, 1, 2, 4])
def test_debug_shows_the_traceback_in_any_position(call, place):
    arguments = ["train", "digits", "--recipe", "papr"]
    arguments.insert(place, "--debug")
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert "Traceback" in err
    assert err.splitlines()[-2].startswith("error: unknown recipe")


def test_debug_after_two_dashes_is_a_name(call):
    error_of(["--debug"], call("info", "--", "--debug"), 1)


def test_internal_error_has_no_traceback(call, monkeypatch):
    def fail(*_arguments, **_options):
        raise IndexError("list index out of range")

    monkeypatch.setattr("thaw.run.request.load_recipe", fail)
    error_of(["unexpected IndexError", "--debug"], call("train", "digits"), 70)
    assert "Traceback" in call("train", "digits", "--debug")[2]


def test_real_command_reports_errors(tmp_path):
    done = thaw("train", "digits", "--recipe", "papr", "--json", cwd=tmp_path)
    error_of(["did you mean paper?"], (done.returncode, done.stdout, done.stderr), 2)


# Run folders


def test_run_folders_are_numbered(call, tmp_path):
    (tmp_path / "runs" / "digits-digits-2").mkdir(parents=True)
    (tmp_path / "runs" / "digits-digits-2" / "keep").write_text("mine")
    for _ in range(2):
        assert call("train", "digits", *TINY)[0] == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [f"digits-digits-{n}" for n in (1, 2, 3)]
    assert [path.name for path in (tmp_path / "runs" / "digits-digits-2").iterdir()] == ["keep"]


def test_overwrite_requires_the_option(call, tmp_path):
    assert call("train", "digits", *TINY, "--out", "run")[0] == 0
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "my notes.txt").write_text("mine")
    error_of(["run exists already", "--out", "--overwrite"], call("train", "digits", *TINY, "--out", "run"), 1)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    code, _, err = call("train", "digits", *TINY, "--seed", "1", "--out", "run", "--overwrite")
    assert code == 0, err
    assert metrics(tmp_path / "run")["seed"] == 1
    assert (tmp_path / "run" / "my notes.txt").read_text() == "mine"


def test_stopped_run_is_resumed_or_overwritten(call, tmp_path):
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "run.json").write_text("{}")
    error_of(
        ["exists already", "--overwrite", "thaw train --resume 'my run'"], call("train", "digits", "--out", "my run"), 1
    )


def test_overwrite_refuses_a_folder_that_is_not_a_run(call, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for out in ("photos", "file", "."):
        error_of(["not a run folder"], call("train", "digits", *TINY, "--out", out, "--overwrite"), 1)
        error_of(["exists already"], call("train", "digits", *TINY, "--out", out), 1)
    assert (tmp_path / "photos" / "cat.jpg").read_text() == (tmp_path / "file").read_text() == "mine"


def test_folder_of_a_killed_start_is_reused(call, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "folds").mkdir()
    code, _, err = call("train", "digits", *TINY, "--out", "run")
    assert code == 0, err


@pytest.mark.parametrize("out", ["file/run", "/proc/run", "/dev/null/run", "x" * 300])
def test_unwritable_folder_is_reported_before_training(call, tmp_path, out):
    (tmp_path / "file").write_text("")
    error_of(["cannot create run folder", "--out"], call("train", "digits", *TINY, "--out", out), 1)
