"""LiteRT in a separate process: any failure due to a file is a `ModelFileError`."""

from __future__ import annotations

import struct
import sys
from dataclasses import replace

import numpy as np
import pytest
from error_matching import raises
from export_samples import card_of, paper_graph
from graph_samples import random_graph, random_images, random_int8_graph

from thaw.errors import ModelFileError
from thaw.evidence.litert_process import LiteRtModel
from thaw.evidence.run_litert import LiteRtRunner
from thaw.export.to_litert import write_litert
from thaw.graph.calibrate import calibrate
from thaw.graph.graph import Graph
from thaw.graph.ops import Add, Requantize, Reshape, Softmax
from thaw.graph.quantize import quantize
from thaw.graph.tensors import Quantization, Tensor

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
SHAPE = (28, 28, 1)


def written(graph):
    return write_litert(graph, card_of(graph))


def test_runner_rejects_invalid_input():
    model = written(paper_graph(SHAPE))
    with raises("usage", "threads = 0"):
        LiteRtRunner(model, threads=0)
    runner = LiteRtRunner(model)
    for images in (np.zeros((2, 28, 27, 1), np.uint8), np.zeros((2, 28, 28, 1), np.float32), np.zeros(SHAPE, np.uint8)):
        with raises("usage-images", "uint8 [N, 28, 28, 1]"):
            runner.run(images)
    assert runner.run(np.zeros((0, *SHAPE), np.uint8)).shape == (0, 10)


def test_prints_nothing(capfd):
    runner = LiteRtRunner(written(paper_graph(SHAPE)))
    runner.tensors(np.zeros((1, *SHAPE), np.uint8))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("package", ["flatbuffers", "ai_edge_litert.schema_py_generated"])
def test_missing_package_is_reported(monkeypatch, package):
    graph = paper_graph(SHAPE)
    monkeypatch.setitem(sys.modules, package, None)
    with raises("missing-dependency", "pip install 'thaw-cnn[litert]'"):
        written(graph)


def test_missing_interpreter_is_reported(monkeypatch):
    model = written(paper_graph(SHAPE))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with raises("missing-dependency", "pip install 'thaw-cnn[litert]'"):
        LiteRtRunner(model)


def scored(scale, *, twice=False):
    """A graph whose softmax reads scores on this scale; with `twice`, the sum of the pixels with themselves."""
    pixels = Quantization(scale=float(np.float32(1 / 255)), zero_point=0)
    fine = Quantization(scale=scale, zero_point=0)
    image = Tensor(name="image", shape=(1, 2, 1), dtype="uint8", quantization=pixels)
    first = replace(pixels, zero_point=-128) if twice else fine
    ops = [
        Requantize(name="read", inputs=("image",), output="read", quantization=first),
        Reshape(name="flat", inputs=("read",), output="flat", shape=(2,)),
    ]
    if twice:
        ops.append(Add(name="sum", inputs=("flat", "flat"), output="sum", quantization=fine))
    else:
        ops.append(Softmax(name="softmax", inputs=("flat",), output="softmax"))
    tensors = {"image": image}
    for op in ops:
        tensors[op.output] = op.infer([tensors[name] for name in op.inputs])
    return Graph(tensors=tuple(tensors.values()), ops=tuple(ops), input="image", outputs=(ops[-1].output,))


def test_crash_of_litert_is_an_error():
    """LiteRT aborts on scales that `quantize` never chooses."""
    with raises("model-file-litert", "exit code -6"):
        LiteRtRunner(written(scored(2.0**-26)), reference=True)
    assert LiteRtRunner(written(scored(2.0**-25)), reference=True).run(np.zeros((1, 1, 2, 1), np.uint8)).shape == (1, 2)
    finest = float(np.float32(1 / 255)) * 2.0**-19
    with raises("model-file-litert", "exit code"):
        LiteRtRunner(written(scored(finest, twice=True)), reference=True)
    images = np.array([0, 255], np.uint8).reshape(1, 1, 2, 1)
    graph = scored(finest * 2, twice=True)
    np.testing.assert_array_equal(LiteRtRunner(written(graph), reference=True).run(images), [[0, 127]])


def test_litert_accepts_scales_of_quantized_graphs():
    """For any calibration: nearly constant scores, and sums far smaller than their terms."""
    for seed in range(25):
        rng = np.random.default_rng(seed)
        graph = random_graph(rng)
        images = random_images(rng, graph, 4)
        ranges = calibrate(graph, images)["minmax"]
        tiny = {name: (low * 1e-12, high * 1e-12) for name, (low, high) in ranges.items()}
        model = written(quantize(graph, tiny))
        # In this process, which an abort would end.
        for reference in (True, False):
            assert len(LiteRtModel(model, reference=reference).run(images)) == 4


@pytest.mark.parametrize(
    "content", [b"", b"TFL3", b"\x1c\0\0\0TFL3", b"PK" * 40, b"\xff" * 400, b"\0\0\0\0TFL3" + b"\xff" * 99]
)
def test_rejects_invalid_litert_files(content):
    with pytest.raises(ModelFileError):
        LiteRtRunner(content)


def patched(model, change):
    """The model with `change` applied to its object form, written again."""
    import flatbuffers

    tree = schema.ModelT.InitFromPackedBuf(bytearray(model), 0)
    change(tree)
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(tree.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def with_foreign_operator(model):
    model.operatorCodes[0].builtinCode = schema.BuiltinOperator.WHILE
    model.operatorCodes[0].deprecatedBuiltinCode = schema.BuiltinOperator.WHILE


def with_short_weights(model):
    buffer = max(model.buffers, key=lambda buffer: 0 if buffer.data is None else len(buffer.data))
    buffer.data = buffer.data[:-1]


def with_scale_of_zero(model):
    model.subgraphs[0].tensors[-1].quantization.scale = [0.0]


def with_cycle(model):
    operators = model.subgraphs[0].operators
    operators[1].inputs[0] = operators[-1].outputs[0]


def with_buffer_elsewhere(model):
    model.buffers[2].data, model.buffers[2].offset, model.buffers[2].size = None, 8, 1 << 20


def with_stride_of_zero(model):
    next(op for op in model.subgraphs[0].operators if hasattr(op.builtinOptions, "strideW")).builtinOptions.strideW = 0


def with_no_output(model):
    model.subgraphs[0].outputs = []


@pytest.mark.parametrize(
    "change",
    [
        with_foreign_operator,
        with_short_weights,
        with_scale_of_zero,
        with_cycle,
        with_buffer_elsewhere,
        with_stride_of_zero,
        with_no_output,
    ],
)
def test_hostile_file_is_an_error(change):
    model = written(paper_graph(SHAPE))
    assert outcome(patched(model, change)) in {"refused", "crashed"}


def test_rewritten_file_runs():
    assert outcome(patched(written(paper_graph(SHAPE)), lambda tree: None)) == "runs"


def mutated(model, rng):
    """The model truncated, or with a byte, bit or integer changed outside the archive."""
    content, end = bytearray(model), model.rindex(b"labels.txt", 0, model.rindex(b"PK\x01\x02")) - 30
    match int(rng.integers(4)):
        case 0:
            return bytes(content[: int(rng.integers(len(content)))])
        case 1:
            content[int(rng.integers(end))] = int(rng.integers(256))
        case 2:
            content[int(rng.integers(end))] ^= 1 << int(rng.integers(8))
        case _:
            number = int(rng.choice([0, 1, 2, -1, 8, 2**31 - 1, -(2**31), 1 << 16]))
            struct.pack_into("<i", content, int(rng.integers(end // 4)) * 4, number)
    return bytes(content)


def outcome(model):
    """Scores from a separate process, for either kind of kernels, or the reason why there are none."""
    try:
        for reference in (True, False):
            runner = LiteRtRunner(model, reference=reference)
            images = np.zeros((1, *runner.shape), np.uint8)
            runner.run(images)
            runner.tensors(images)
    except ModelFileError as error:
        return "crashed" if "crashed" in str(error) else "refused"
    return "runs"


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_mutated_file_runs_or_is_a_model_file_error(precision):
    rng = np.random.default_rng(9)
    make = random_graph if precision == "float" else random_int8_graph
    outcomes = [outcome(mutated(written(make(np.random.default_rng(seed))), rng)) for seed in range(9)]
    assert {"runs", "refused"} <= set(outcomes) <= {"runs", "refused", "crashed"}
