"""The ONNX models and their metadata, compared with the reference interpreter; the example, with the library."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from importlib import resources, util
from pathlib import Path

import numpy as np
import pytest
from graph_samples import EXTREMES, random_graph, random_images, random_int8_graph
from onnx_samples import card_for, exported, paper_graphs
from PIL import Image
from web_samples import GRAY_ALPHA, RGB, RGBA, png_file

from thaw.data.decode import decode_image
from thaw.data.images import InputSpec
from thaw.data.resize import resize
from thaw.evidence.run_onnx import OnnxRunner
from thaw.export.to_onnx import export_onnx
from thaw.graph import interpret
from thaw.graph.graph import Graph
from thaw.graph.ops import Add, Dense, Relu, Reshape, Scale, Softmax
from thaw.graph.quantize import quantize
from thaw.graph.tensors import Tensor

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_file_contents(precision):
    graph = paper_graphs()[precision]
    model = onnx.load_from_string(exported(graph, precision))
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 13)]
    assert model.ir_version == 7
    assert model.producer_name == "thaw"
    assert model.producer_version
    facts = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
    assert facts["classes"] == [f"class {index}" for index in range(10)]
    assert facts["input"] == {"height": 28, "width": 28, "channels": 1, "fit": "stretch"}
    assert facts["parameters"] == 14_862
    (image,), (scores,) = model.graph.input, model.graph.output
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    assert [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim] == ["N", 28, 28, 1]
    assert (scores.name, scores.type.tensor_type.elem_type) == ("probabilities", onnx.TensorProto.FLOAT)
    assert [dim.dim_param or dim.dim_value for dim in scores.type.tensor_type.shape.dim] == ["N", 10]
    names = {value.name for value in model.graph.value_info}
    inner = {tensor.name for tensor in graph.tensors} - {"image", "probabilities"}
    assert names == inner | ({"probabilities.int8"} if precision == "int8" else set())


def test_same_graph_gives_the_same_bytes():
    graphs = paper_graphs()
    first, second = (export_onnx(graphs, card_for(graphs["int8"])) for _ in range(2))
    assert first == second
    assert set(first) == {"model-float.onnx", "model-int8.onnx", "example.py", "preprocess.py"}


def test_int8_weights_are_int8_with_a_scale_per_channel():
    graph = paper_graphs()["int8"]
    content = exported(graph, "int8")
    constants = {
        part.name: onnx.numpy_helper.to_array(part) for part in onnx.load_from_string(content).graph.initializer
    }
    for op in graph.ops:
        if not hasattr(op, "weights"):
            continue
        weights = constants[f"{op.name}.weights"]
        expected = op.weights.transpose(0, 3, 1, 2) if op.weights.ndim == 4 else op.weights
        assert weights.dtype == np.int8
        np.testing.assert_array_equal(weights, expected)
        np.testing.assert_array_equal(constants[f"{op.name}.weights.scales"], op.weight_scales)
        np.testing.assert_array_equal(constants[f"{op.name}.bias"], op.bias)
        assert constants[f"{op.name}.bias"].dtype == np.int32
    assert len(content) < len(exported(paper_graphs()["float"], "float")) / 2


def test_int8_model_is_int8_in_the_session(tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    content = exported(paper_graphs()["int8"], "int8")
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 6
    assert kinds.count("QGemm") == 2
    assert {"QLinearSoftmax", "QLinearConcat"} <= set(kinds)
    # Only the last tensors are real numbers.
    assert kinds.count("DequantizeLinear") == 1
    assert not {"Conv", "Gemm", "Softmax", "Concat", "QuantizeLinear"} & set(kinds)


def test_random_float_graphs_equal_the_reference_interpreter():
    for seed in range(80):
        rng = np.random.default_rng(seed)
        graph = random_graph(rng)
        images = random_images(rng, graph, 5)
        runner = OnnxRunner(exported(graph, "float"))
        last = graph.outputs[-1]
        expected, found = interpret.run(graph, images)[last], runner.run(images)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        if graph.tensor(last).dtype == "int32":
            np.testing.assert_array_equal(found, expected)
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(expected).max()))
        values = interpret.trace(graph, images[3:4])
        for name, tensor in runner.tensors(images[3:4]).items():
            size = max(1.0, np.abs(values[name]).max())
            np.testing.assert_allclose(tensor / size, values[name] / size, atol=1e-5)


@pytest.mark.parametrize("extreme", [None, *EXTREMES])
def test_layers_of_random_int8_graphs_are_within_one_of_the_reference_interpreter(extreme):
    """Each layer, on its input from onnxruntime: equal, or rounded to the other neighbor near a half."""
    equal = total = 0
    for seed in range(40 if extreme is None else 6):
        rng = np.random.default_rng(seed)
        graph = random_int8_graph(rng, extreme=extreme)
        images = random_images(rng, graph, 3)
        runner = OnnxRunner(exported(graph, "int8"))
        found = runner.tensors(images[2:3]) | {"image": images[2:3]}
        for op in graph.ops:
            if op.output not in found:
                continue
            reads = [graph.tensor(name) for name in op.inputs]
            expected = op.execute(reads, [found[name] for name in op.inputs])
            values = found[op.output]
            assert (values.dtype, values.shape) == (expected.dtype, expected.shape)
            # Sums above 2**24 are rounded in float32, so the error is relative to them.
            most = 1 if extreme is None else 2
            assert np.abs(values.astype(int) - expected).max() <= most, f"seed {seed}: {op.kind} {op.name}"
            equal, total = equal + (values == expected).sum(), total + values.size
    assert equal / total > 0.98


def test_int8_probabilities_are_close_to_the_reference_interpreter():
    graph = paper_graphs()["int8"]
    images = random_images(np.random.default_rng(1), graph, 500)
    expected = (interpret.run(graph, images)["probabilities"].astype(np.float32) + 128) / 256
    found = OnnxRunner(exported(graph, "int8")).run(images)
    assert found.dtype == np.float32
    steps = np.abs(found - expected).max(axis=1) * 256
    assert (steps <= 1).mean() > 0.9
    assert steps.max() <= 8
    # If two classes have equal bytes, either one is valid.
    clear = np.partition(expected, -2)[:, -1] - np.partition(expected, -2)[:, -2] > 4 / 256
    np.testing.assert_array_equal(found.argmax(1)[clear], expected.argmax(1)[clear])


def relu_graph():
    """ReLUs with a zero point above the minimum: a sum and a dense layer on the scale of negative values."""
    scale = Scale(name="scale", inputs=("image",), output="scale", mean=(0.5,), std=(0.5,))
    flat = Reshape(name="flat", inputs=("scale",), output="flat", shape=(4,))
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(4, 4)).astype(np.float32), np.zeros(4, np.float32)
    one = Dense(name="one", inputs=("flat",), output="one", weights=weights, bias=bias, activation="relu")
    two = Dense(name="two", inputs=("flat",), output="two", weights=-weights, bias=bias)
    both = Add(name="both", inputs=("one", "two"), output="both", activation="relu")
    last = Relu(name="last", inputs=("two",), output="last")
    total = Add(name="total", inputs=("both", "last"), output="total")
    end = Softmax(name="end", inputs=("total",), output="end")
    tensors = {"image": Tensor(name="image", shape=(2, 2, 1), dtype="uint8")}
    ops = (scale, flat, one, two, both, last, total, end)
    for op in ops:
        tensors[op.output] = op.infer([tensors[name] for name in op.inputs])
    return Graph(tensors=tuple(tensors.values()), ops=ops, input="image", outputs=("end",))


def test_relu_with_a_zero_point_above_the_minimum():
    graph = relu_graph()
    made = quantize(graph, dict.fromkeys(("one", "two", "both", "total"), (-3.0, 5.0)))
    images = random_images(np.random.default_rng(0), graph, 20)
    runner = OnnxRunner(exported(made, "int8"))
    zero_point = made.tensor("one").quantization.zero_point
    assert zero_point > -128
    seen, below = set(), False
    for index in range(len(images)):
        found = runner.tensors(images[index : index + 1])
        for name in ("one", "both", "last"):
            assert found[name].min() >= zero_point
            seen.update(found[name].ravel().tolist())
        below |= bool(found["two"].min() < zero_point)
        np.testing.assert_array_equal(found["last"], np.maximum(found["two"], zero_point))
    assert below
    assert zero_point in seen
    assert len(seen) > 10


# The example


@cache
def preprocess():
    path = resources.files("thaw.export") / "examples" / "preprocess.py"
    spec = util.spec_from_file_location("preprocess", str(path))
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_example_resizes_like_the_library():
    rng = np.random.default_rng(0)
    for _ in range(600):
        height, width, rows, columns = (int(rng.integers(1, rng.choice([3, 12, 70]))) for _ in range(4))
        pixels = rng.integers(0, 256, (height, width, int(rng.choice([1, 3]))), dtype=np.uint8)
        value_range = None
        if rng.integers(2):
            low = int(rng.integers(0, 65_535))
            value_range = (low, int(rng.integers(low + 1, 65_536))) if rng.integers(3) else None
            pixels = rng.integers(low // 2, 65_536, pixels.shape).astype(np.uint16)
        input_spec = InputSpec(
            height=rows,
            width=columns,
            channels=int(rng.choice([1, 3])),
            fit=str(rng.choice(["stretch", "crop"])),
            range=value_range,
        )
        made = preprocess().fit(pixels, input_spec.as_dict())
        np.testing.assert_array_equal(made, resize(pixels, input_spec))


@pytest.mark.parametrize(
    "mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16", "I;16 with key", "TIFF", "P with transparency"]
)
@pytest.mark.parametrize("orientation", [None, 3, 6])
def test_example_reads_files_like_the_library(tmp_path, mode, orientation):
    rng = np.random.default_rng(1)
    colors = Image.fromarray(rng.integers(0, 256, (9, 14, 4), dtype=np.uint8), "RGBA")
    path = tmp_path / ({"CMYK": "image.jpg", "TIFF": "image.tif"}.get(mode, "image.png"))
    settings = {}
    if mode.startswith("I;16"):
        values = rng.integers(0, 65_536, (9, 14)).astype(np.uint16)
        image = Image.fromarray(values)
        if mode != "I;16":
            settings["transparency"] = int(values[0, 0])
    elif mode.startswith("P"):
        image = colors.convert("RGB").quantize(20)
        if mode != "P":
            settings["transparency"] = 3
    elif mode == "CMYK":
        image = colors.convert("RGB").convert("CMYK")
    else:
        image = colors.convert("RGB" if mode == "TIFF" else mode)
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        settings["exif"] = exif
    image.save(path, **settings)
    expected = decode_image(path).pixels
    np.testing.assert_array_equal(preprocess().read_image(path), np.broadcast_to(expected, (*expected.shape[:2], 3)))


@pytest.mark.parametrize(("kind", "samples"), [(RGB, 3), (RGBA, 4), (GRAY_ALPHA, 2)])
def test_example_rejects_formats_that_would_be_reduced(tmp_path, kind, samples):
    content = png_file(np.random.default_rng(3).integers(0, 65_536, (5, 6, samples)), 16, kind)
    (tmp_path / "wide.png").write_bytes(content)
    with pytest.raises(ValueError, match="16-bit gray"):
        preprocess().read_image(tmp_path / "wide.png")


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_example_runs(tmp_path, precision):
    graphs = paper_graphs()
    for name, content in export_onnx(graphs, card_for(graphs["int8"], fit="crop")).items():
        (tmp_path / name).write_bytes(content)
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (50, 61, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    model = [] if precision == "int8" else [str(tmp_path / "model-float.onnx")]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "example.py"), str(tmp_path / "photo.png"), *model],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(tmp_path).anchor,
    )
    assert (done.returncode, done.stderr) == (0, "")
    image = resize(pixels, InputSpec(height=28, width=28, channels=1, fit="crop"))
    found = OnnxRunner((tmp_path / f"model-{precision}.onnx").read_bytes()).run(image[None])[0]
    assert done.stdout == f"class {found.argmax()} {found.max():.4f}\n"
