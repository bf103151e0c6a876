"""The runner of ONNX models: input, output, and rejected files."""

from __future__ import annotations

import builtins
import subprocess
import sys

import numpy as np
import pytest
from error_matching import raises
from graph_samples import random_images
from onnx_samples import exported, paper_graphs

from thaw.evidence.run_onnx import OnnxRunner

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_runner_accepts_batches_of_any_size():
    graph = paper_graphs()["float"]
    runner = OnnxRunner(exported(graph, "float"))
    images = random_images(np.random.default_rng(1), graph, 251)
    whole = runner.run(images)
    assert whole.shape == (251, 10)
    np.testing.assert_allclose(runner.run(images[250:]), whole[250:], atol=1e-6)
    assert runner.run(images[:0]).shape == (0, 10)
    (one,) = runner.predict_one(images[7])()
    np.testing.assert_allclose(one, whole[7:8], atol=1e-6)
    (other,) = OnnxRunner(exported(graph, "float"), threads=2).predict_one(images[7])()
    np.testing.assert_allclose(other, one, atol=1e-6)


def test_runner_rejects_invalid_input():
    runner = OnnxRunner(exported(paper_graphs()["float"], "float"))
    for images in (np.zeros((1, 28, 28, 3), np.uint8), np.zeros((1, 28, 28, 1), np.float32)):
        with raises("usage-images", "uint8 [N, 28, 28, 1]"):
            runner.run(images)
    with raises("usage", "threads = 0"):
        OnnxRunner(b"", threads=0)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_package_is_reported(monkeypatch, package):
    content = exported(paper_graphs()["float"], "float")
    real_import = builtins.__import__

    def without(name, *arguments, **settings):
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real_import(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    with raises("missing-dependency", f"{package}: pip install 'thaw-cnn[onnx]'"):
        OnnxRunner(content)
    if package == "onnx":
        with raises("missing-dependency", "thaw-cnn[onnx]"):
            exported(paper_graphs()["float"], "float")


# Invalid files


def changed(change):
    model = onnx.load_from_string(exported(paper_graphs()["int8"], "int8"))
    change(model)
    return model.SerializeToString()


def _external(model):
    part = model.graph.initializer[0]
    part.ClearField("raw_data")
    part.data_location = onnx.TensorProto.EXTERNAL
    part.external_data.add(key="location", value="../../secret")


def _other_operation(model):
    model.graph.node[0].op_type = "Loop"


def _other_domain(model):
    model.graph.node[0].domain = "com.example"


def _function(model):
    model.functions.add(name="f", domain="d")


def _second_input(model):
    model.graph.input.append(model.graph.input[0])


def _opset(model):
    model.opset_import[0].version = 9999


def _cycle(model):
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def _lying_size(model):
    next(part for part in model.graph.initializer if part.dims).dims[0] = 2**40


def _huge_padding(model):
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    next(part for part in conv.attribute if part.name == "pads").ints[:] = [2**20] * 4


def _no_data(model):
    model.graph.initializer[-1].ClearField("raw_data")


def _float_image(model):
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (_external, ()),
        (_other_operation, ("'Loop'",)),
        (_other_domain, ()),
        (_function, ("functions",)),
        (_second_input, ("2 inputs", "1 outputs")),
        (_opset, ()),
        (_cycle, ()),
        (_lying_size, ()),
        (_huge_padding, ()),
        (_no_data, ()),
        (_float_image, ()),
    ],
)
def test_rejects_hostile_files(change, facts):
    with raises("model-file-onnx", *facts):
        OnnxRunner(changed(change))


@pytest.mark.parametrize("content", [b"", b"\x00", b"ONNX", b"\x08\x07", b"\xff" * 1000, b"{}" * 100])
def test_rejects_invalid_onnx_files(content):
    with raises("model-file-onnx"):
        OnnxRunner(content)


_MUTATE = """
import sys
import numpy as np
from pathlib import Path
from thaw.errors import ModelFileError
from thaw.evidence.run_onnx import OnnxRunner

good, images = Path(sys.argv[1]).read_bytes(), np.zeros((1, 28, 28, 1), np.uint8)
rng = np.random.default_rng(0)
refused = 0
for index in range(300):
    bad = bytearray(good)
    if index % 3 == 0:
        del bad[int(rng.integers(len(bad))):]
    elif index % 3 == 1:
        bad[int(rng.integers(len(bad)))] ^= 1 << int(rng.integers(8))
    else:
        start = int(rng.integers(len(bad)))
        del bad[start : start + int(rng.integers(1, 30))]
    try:
        OnnxRunner(bytes(bad)).run(images)
    except ModelFileError as error:
        assert len(str(error).splitlines()) == 1
        refused += 1
print(refused)
"""


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_mutated_file_is_rejected_or_runs(tmp_path, precision):
    # In a separate process, which a failure could end.
    (tmp_path / "model.onnx").write_bytes(exported(paper_graphs()[precision], precision))
    done = subprocess.run(
        [sys.executable, "-c", _MUTATE, str(tmp_path / "model.onnx")],
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (done.returncode, done.stderr) == (0, "")
    # All truncations are detected; changed weights are valid weights.
    assert int(done.stdout) >= 100
