"""Export, verification and timing of a small run, with deliberately broken artifacts."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from command_line import TINY_OVERRIDES, error_of, reseal
from error_matching import raises
from sklearn.datasets import load_digits

import thaw as library
from thaw.deploy import formats
from thaw.deploy import verify as verification
from thaw.errors import MissingDependencyError, RunError
from thaw.events import Step
from thaw.evidence.emulate import Emulation, missing_tools
from thaw.export.folder import MANIFEST, read_format, write_format
from thaw.export.to_c import export_c
from thaw.export.to_litert import export_litert
from thaw.export.to_onnx import export_onnx
from thaw.graph.graph_file import read_graph, write_graph
from thaw.graph.interpret import run as run_reference
from thaw.run.deployment import read_deployment, update_deployment
from thaw.run.report import DEPLOYMENT_BEGIN, DEPLOYMENT_END, rewrite_deployment
from thaw.run.run import Run

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")

TEST_IMAGES = 359
LAYERS = ("branch1.conv2", "head.output")


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """A run with its artifacts, shared by tests, which must not change it."""
    run = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(finished.path, run)
    Run.open(run).export()
    return run


@pytest.fixture
def run(exported, tmp_path):
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "run"))


def negated(opened: Run, layer: str):
    """The int8 graph with negated weights of one layer, except the first of each channel."""

    def change(op):
        if op.name != layer:
            return op
        weights = -op.weights
        weights[..., 0] = op.weights[..., 0]
        return replace(op, weights=weights)

    graph = opened.model.graph("int8")
    assert layer in {op.name for op in graph.ops}
    return replace(graph, ops=tuple(map(change, graph.ops)))


def by_runtime(result):
    return {(check.format, check.precision, check.runtime): check for check in result.checks}


def test_exports_everything_and_reports_it(exported):
    found = {target: read_format(exported / "export", target) for target in ("onnx", "litert", "c")}
    for target, suffix in (("onnx", "onnx"), ("litert", "tflite")):
        assert {f"model-float.{suffix}", f"model-int8.{suffix}", "example.py"} <= set(found[target].files)
        assert found[target].precisions == ("float", "int8")
    assert {"run.h", "run.c", "model.h", "model.c", "main.c", "Makefile"} <= set(found["c"].files)
    told = read_deployment(exported)
    assert set(told) == {"schema", "export"}
    for target, each in found.items():
        files = told["export"]["formats"][target]["files"]
        assert {name: entry["bytes"] for name, entry in files.items()} == {n: len(d) for n, d in each.files.items()}
    assert told["export"]["missing"] == {}
    assert 0 < told["export"]["memory"]["arena_bytes"] < told["export"]["memory"]["constant_bytes"]
    assert not list(exported.rglob("*.tmp"))


def test_same_run_gives_the_same_files(exported, tmp_path):
    Run.open(exported).export(out=tmp_path / "again")
    for target in ("onnx", "litert", "c"):
        again, first = (read_format(out, target).files for out in (tmp_path / "again", exported / "export"))
        assert again == first


def test_every_artifact_is_verified_on_the_whole_test_set(run):
    told = []
    result = Run.open(run).verify(on_event=told.append)
    assert result.is_verified
    assert (result.images, result.test_images, result.changed) == (TEST_IMAGES, TEST_IMAGES, ())
    checks = by_runtime(result)
    assert set(checks) == {(name, each.precision, each.name) for name, each in formats.runtimes()}
    for key in (("litert", "int8", "LiteRT, reference kernels"), ("c", "int8", "C on this machine")):
        assert checks[key].result == "equal"
        assert checks[key].must_be_equal
        assert checks[key].comparison.score_bytes == 10 * TEST_IMAGES
    assert len(told) >= 8
    # The accuracies of the reference interpreter, computed here.
    opened = Run.open(run)
    test = opened._data(None).test.open()
    host = {"float": ("litert", "float", "LiteRT, XNNPACK"), "int8": ("c", "int8", "C on this machine")}
    for precision, key in host.items():
        scores = run_reference(opened.model.graph(precision), test.images)["probabilities"]
        assert checks[key].accuracy == (scores.argmax(axis=1) == test.labels).mean()
    part = read_deployment(run)["verify"]
    assert part["verified"] is True
    assert part["checks"] == json.loads(json.dumps([check.as_dict() for check in result.checks]))
    assert part["runtimes"]["onnxruntime"]


@pytest.mark.parametrize("layer", LAYERS)
def test_corrupted_artifact_is_detected_and_its_layer_named(run, layer):
    opened = Run.open(run)
    broken = {"int8": negated(opened, layer)}
    for target, exporter in (("onnx", export_onnx), ("litert", export_litert), ("c", export_c)):
        write_format(run / "export", target, ("int8",), exporter(broken, opened.model.card()))
    result = Run.open(run).verify(images=60)
    assert not result.is_verified
    assert len(result.checks) == 4
    writer = next(op for op in opened.model.graph("int8").ops if op.name == layer)
    for check in result.checks:
        assert check.result == "differs", check
        first = check.comparison.first_difference
        assert layer in (first.layer, *first.fused)
        if check.runtime == "LiteRT, reference kernels":
            assert (first.layer, first.tensor) == (layer, writer.output)
        assert check.comparison.differing_images > 0
    assert read_deployment(run)["verify"]["verified"] is False


def test_one_changed_byte_is_detected_and_its_layer_named(run):
    graph = Run.open(run).model.graph("int8")
    layer = next(op for op in graph.ops if op.name == "branch2.conv1")
    path = run / "export" / "litert" / "model-int8.tflite"
    content = bytearray(path.read_bytes())
    place = content.find(layer.weights.tobytes()) + int(np.abs(layer.weights).argmax())
    assert place > layer.weights.size
    content[place] = (-content[place]) & 0xFF
    path.write_bytes(content)
    result = Run.open(run).verify()
    check = by_runtime(result)["litert", "int8", "LiteRT, reference kernels"]
    assert (check.result, check.comparison.first_difference.layer) == ("differs", "branch2.conv1")
    assert by_runtime(result)["c", "int8", "C on this machine"].result == "equal"
    assert result.changed == ("litert/model-int8.tflite",)
    assert not result.is_verified


def test_unusable_artifacts_are_reported_and_the_others_verified(run):
    folder = run / "export"
    for name in ("onnx/model-int8.onnx", "litert/model-int8.tflite", "c/run.c"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    result = Run.open(run).verify(images=10)
    assert {(check.format, check.precision): check.result for check in result.checks} == {
        ("onnx", "float"): "close",
        ("onnx", "int8"): "failed",
        ("litert", "float"): "close",
        ("litert", "int8"): "failed",
        ("c", "int8"): "failed",
    }
    assert all(check.problem for check in result.checks if check.result == "failed")
    listed = json.loads((folder / "litert" / MANIFEST).read_text())
    reseal(folder / "litert" / MANIFEST, {**listed, "complete": False})
    half = [check for check in Run.open(run).verify(images=10).checks if check.format == "litert"]
    assert [check.result for check in half] == ["failed"]
    assert "an interrupted export" in half[0].problem


def test_c_has_the_requested_prefix(run, call):
    folder = run / "export" / "c"
    library.Run.open(run).export(["c"], prefix="blinker")
    assert (folder / "blinker.c").is_file()
    assert not (folder / "run.c").exists()
    assert "blinker_predict(" in (folder / "README.md").read_text()
    assert by_runtime(Run.open(run).verify(images=5))["c", "int8", "C on this machine"].result == "equal"
    shutil.rmtree(folder)
    assert call("export", run, "--to", "c", "--prefix", "Lamp_2")[0] == 0
    assert b"LAMP_2_INPUT_BYTES" in (folder / "Lamp_2.h").read_bytes()
    with raises("usage-prefix"):
        library.Run.open(run).export(prefix="while")


def test_c_with_a_warning_is_timed_but_not_verified(run):
    path = run / "export" / "c" / "run.c"
    path.write_bytes(path.read_bytes() + b"static int spare;\n")
    check = by_runtime(Run.open(run).verify(images=5))["c", "int8", "C on this machine"]
    assert check.result == "failed"
    assert "spare" in check.problem
    result = Run.open(run).bench(rounds=1, repeats=1)
    assert ("C on this machine", "int8") in result.timings


def test_missing_packages_are_reported_and_the_others_exported(run, monkeypatch, call):
    def missing(*_, **__):
        raise MissingDependencyError("running ONNX models needs onnxruntime: pip install 'thaw-cnn[onnx]'")

    monkeypatch.setattr(formats, "OnnxRunner", missing)
    code, out, err = call("verify", run, "--images", 5, "--json")
    assert code == 1, err
    found = {(check["format"], check["runtime"]): check for check in json.loads(out)["checks"]}
    assert found["onnx", "onnxruntime"]["result"] == "missing"
    assert "thaw-cnn[onnx]" in found["onnx", "onnxruntime"]["problem"]
    assert found["c", "C on this machine"]["result"] == "equal"
    monkeypatch.setattr(formats, "export_litert", missing)
    code, out, err = call("export", run)
    assert code == 1
    assert "litert: running ONNX models needs onnxruntime: pip install 'thaw-cnn[onnx]'" in err
    assert "model-float.onnx" in out
    assert ".tflite" not in out
    code, out, err = call("bench", run, "--json")
    assert code == 1
    assert {entry["runtime"] for entry in json.loads(out)["problems"]} == {"onnxruntime"}
    assert "pip install 'thaw-cnn[onnx]'" in err


def test_verify_exports_first_without_an_export(finished, tmp_path):
    run = Path(shutil.copytree(finished.path, tmp_path / "run"))
    told = []
    assert Run.open(run).verify(images=3, on_event=told.append).is_verified
    assert "nothing was exported" in next(event.text for event in told if isinstance(event, Step))
    assert read_format(run / "export", "c") is not None
    assert set(read_deployment(run)) == {"schema", "export", "verify"}


def test_missing_int8_graph_is_created_again(run):
    file = run / "model-int8.safetensors"
    before = file.read_bytes()
    file.unlink()
    Run.open(run).export(formats=["onnx", "litert"], precision="float")
    assert not file.exists()
    Run.open(run).export(formats=["c"])
    assert file.read_bytes() == before


def test_damaged_or_foreign_int8_graph_is_rejected(run, call):
    file = run / "model-int8.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    error_of(["model-int8.safetensors", "truncated"], call("export", run), 1)
    file.write_bytes(whole)
    graph, header = read_graph(file)
    # With other classes, and from a model of the same architecture with other weights.
    facts = {**header.facts, "model": "0" * 64}
    for other in (replace(header, classes=tuple("abcdefghij")), replace(header, facts=facts)):
        write_graph(file, graph, other)
        error_of(["belongs to another model"], call("export", run), 1)


@pytest.mark.skipif(bool(missing_tools()), reason=f"the emulator is not installed: {' '.join(missing_tools())}")
def test_firmware_is_compared_too(run):
    result = Run.open(run).verify(boards=["cortex-m4"], images=12)
    check = by_runtime(result)["c", "int8", "cortex-m4"]
    assert (check.result, check.comparison.images, check.must_be_equal) == ("equal", 12, True)
    told = check.emulation
    assert told["flash_bytes"] == told["text_bytes"] + told["constant_bytes"]
    assert told["instructions_per_mac"] == told["instructions_per_inference"] / 568_240
    page = (run / "report.html").read_text()
    assert f"{told['flash_bytes'] / 1024:.1f}" in page
    assert f"{round(told['instructions_per_inference']):,}" in page
    opened = Run.open(run)
    write_format(
        run / "export", "c", ("int8",), export_c({"int8": negated(opened, "head.output")}, opened.model.card())
    )
    broken = by_runtime(Run.open(run).verify(boards=["cortex-m4"], images=12))["c", "int8", "cortex-m4"]
    assert broken.result == "differs"


def test_board_runs_a_thousand_images_by_default(run, monkeypatch):
    given = {}

    def emulate(files, images, board):
        given[board] = images
        sizes = dict.fromkeys([field.name for field in fields(Emulation) if field.name.endswith("bytes")], 1)
        counts = {"instructions_per_inference": 2.0, "most_instructions": 2.0, "images": len(images)}
        scores = run_reference(graph, images)["probabilities"]
        return Emulation(board=board, scores=scores, tools={}, **sizes, **counts)

    graph = Run.open(run).model.graph("int8")
    monkeypatch.setattr(verification, "emulate", emulate)
    result = Run.open(run).verify(boards=["cortex-m4", "cortex-m7", "cortex-m4"])
    assert list(given) == ["cortex-m4", "cortex-m7"]
    assert len(given["cortex-m4"]) == min(1000, TEST_IMAGES)
    assert result.is_verified


def test_bench_times_and_records_everything(run):
    result = Run.open(run).bench(rounds=2, repeats=3)
    assert result.is_complete
    assert {name for name, _ in result.timings} == {"torch", "onnxruntime", "LiteRT, XNNPACK", "C on this machine"}
    assert len(result.timings) == 6
    assert result.timings["C on this machine", "int8"].ratio == 1.0
    assert all(timing.repeats == 6 and timing.median_us > 0 for timing in result.timings.values())
    part = read_deployment(run)["bench"]
    assert part == json.loads(json.dumps(result.as_dict()))
    assert part["threads"] == 1


def test_report_shows_results_and_keeps_the_rest(finished, tmp_path):
    run = Path(shutil.copytree(finished.path, tmp_path / "run"))
    report = run / "report.html"

    def parts():
        before, _, rest = report.read_text().partition(DEPLOYMENT_BEGIN)
        section, _, after = rest.partition(DEPLOYMENT_END)
        return before + after, section

    rest, section = parts()
    assert rest.endswith("</html>")
    assert "Not exported yet" in section
    Run.open(run).export(formats=["litert", "c"])
    assert parts()[0] == rest
    assert "model-int8.tflite" in parts()[1]
    assert "Not verified yet: run <code>thaw verify</code>" in parts()[1]
    Run.open(run).verify(images=5)
    assert parts()[0] == rest
    assert "LiteRT, reference kernels" in parts()[1]
    assert "5 of 359 test images" in parts()[1]
    Run.open(run).bench(rounds=1, repeats=2)
    assert parts()[0] == rest
    assert "Relative to C" in parts()[1]
    section = parts()[1]
    Run.open(run).export(formats=["litert", "c"])
    assert parts() == (rest, section), "the files are the same, so their results remain"
    Run.open(run).export(formats=["litert"], precision="float")
    assert "Relative to C" not in parts()[1]
    assert set(read_deployment(run)) == {"schema", "export"}
    report.write_text("<html>of an older version</html>")
    Run.open(run).export(formats=["c"])
    assert report.read_text() == "<html>of an older version</html>"


def test_record_is_escaped(run):
    record = read_deployment(run)
    record["export"]["formats"]["c"]["files"] = {"<script>alert(1)</script>": {"bytes": 1, "sha256": "0"}}
    record["export"]["missing"] = {"onnx": f"<img src=x>{DEPLOYMENT_END}"}
    metrics = json.loads((run / "metrics.json").read_text())
    for _ in range(2):
        assert rewrite_deployment(run, metrics, record)
    page = (run / "report.html").read_text()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert page.count(DEPLOYMENT_END) == 1


def test_damaged_record_is_rejected(run):
    path = run / "deployment.json"
    whole = path.read_text()
    for damaged in (whole[:-30], "[]", json.dumps({"schema": 2}), "[" * 100_000):
        path.write_text(damaged)
        with raises("run", "deployment.json"):
            read_deployment(run)
    path.write_text(whole)
    content = update_deployment(run, "bench", {"threads": 1})
    assert set(content) == {"schema", "export", "bench"}


def test_overwriting_a_run_removes_only_its_own_artifacts(run):
    (run / "export" / "c" / "board.c").write_text("mine")
    library.train("digits", overrides=TINY_OVERRIDES, out=run, overwrite=True)
    assert [path.name for path in (run / "export").rglob("*")] == ["c", "board.c"]
    assert not (run / "deployment.json").exists()
    assert "Not exported yet" in (run / "report.html").read_text()


def test_bare_model_file_needs_its_run(run, tmp_path, call):
    model = shutil.copy(run / "model.safetensors", tmp_path / "lone.safetensors")
    error_of(["--out"], call("export", model, "--float"), 2)
    error_of(["run.json"], call("export", model, "--out", tmp_path / "out"), 1)
    error_of(["run's data", "run.json"], call("verify", model), 1)
    error_of(["--out"], call("bench", model), 2)
    code, out, err = call("export", model, "--to", "litert", "--float", "--out", tmp_path / "out", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["complete"] is True
    assert told["out"] == str(tmp_path / "out")
    assert set(told["formats"]) == {"litert"}
    assert (tmp_path / "out" / "litert" / "model-float.tflite").is_file()
    error_of(["does not exist"], call("verify", tmp_path / "nothing"), 1)


def test_missing_or_changed_data_are_reported(run):
    request = json.loads((run / "run.json").read_text())
    reseal(run / "run.json", {**request, "fingerprint": "0" * 64})
    with raises("run-data"):
        Run.open(run).verify()
    reseal(run / "run.json", {**request, "source": None})
    with raises("run-memory", "source="):
        Run.open(run).verify()
    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)
    with raises("run-data"):
        Run.open(run, source=(images[:500], digits.target[:500])).verify()


def test_command_line(run, call):
    error_of(["int8 only", "--float"], call("export", run, "--to", "c", "--float"), 2)
    error_of(["exclude"], call("export", run, "--int8", "--float"), 2)
    error_of(["'int'", "keyword", "'model_int'"], call("export", run, "--prefix", "int"), 2)
    error_of(["prefix", "add c"], call("export", run, "--to", "onnx", "--prefix", "net"), 2)
    error_of(["prefix", "add c"], call("export", run, "--float", "--prefix", "net"), 2)
    error_of(["'tflite'", "litert"], call("export", run, "--to", "onnx,tflite"), 2)
    error_of(["'cortex-a53'", "cortex-m4"], call("verify", run, "--board", "cortex-a53"), 2)
    error_of(["--images"], call("verify", run, "--images", 0), 2)
    code, out, err = call("export", run, "--to", "c", "--int8")
    assert (code, err) == (0, "")
    assert "bytes of arena in RAM" in out
    assert str(run / "export" / "c" / "run.c") in out
    assert "begin with run_ or RUN_; --prefix" in out
    code, out, err = call("verify", run, "--images", 4)
    assert code == 0
    assert "6 of 6 verified" in out
    assert "the reference interpreter, int8: 4 images" in err
    path = run / "export" / "c" / "main.c"
    path.write_text(path.read_text() + "/* mine */\n")
    opened = Run.open(run)
    files = export_litert({"int8": negated(opened, "head.output")}, opened.model.card())
    (run / "export" / "litert" / "model-int8.tflite").write_bytes(files["model-int8.tflite"])
    code, out, err = call("verify", run, "--images", 4)
    assert code == 1
    assert "differs, must be equal" in out
    assert "differs first in head.output" in out
    assert "note: c/main.c has changed since it was exported" in out
    shutil.rmtree(run / "export" / "c")
    error_of(["holds no C", "--to c"], call("verify", run, "--board", "cortex-m4"), 2)


def test_python(run):
    result = library.Run.open(run).export(["c"])
    assert [each.format for each in result.formats] == ["c"]
    assert library.Run.open(run).verify(images=2).is_verified
    with pytest.raises(RunError):
        library.Run.open(run / "nowhere")
