"""What is no LiteRT model that `thaw export` writes is refused before the interpreter could fail over it."""

from __future__ import annotations

import struct
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from export_samples import card_of, paper_graph
from graph_samples import random_graph, random_images, random_int8_graph

from thaw.errors import MissingDependencyError, ModelFileError, UsageError
from thaw.evidence.run_litert import LiteRtRunner
from thaw.export import litert_file
from thaw.export.litert_file import read_litert
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


def test_what_the_runner_refuses():
    model = written(paper_graph(SHAPE))
    with pytest.raises(UsageError, match="0 threads: expected at least 1"):
        LiteRtRunner(model, threads=0)
    runner = LiteRtRunner(model)
    for images in (np.zeros((2, 28, 27, 1), np.uint8), np.zeros((2, 28, 28, 1), np.float32), np.zeros(SHAPE, np.uint8)):
        with pytest.raises(UsageError, match=r"expected uint8 \[N, 28, 28, 1\]"):
            runner.run(images)
    assert runner.run(np.zeros((0, *SHAPE), np.uint8)).shape == (0, 10)


def test_nothing_is_said_on_the_terminal(capfd):
    runner = LiteRtRunner(written(paper_graph(SHAPE)))
    runner.tensors(np.zeros((1, *SHAPE), np.uint8))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("package", ["flatbuffers", "ai_edge_litert.schema_py_generated"])
def test_a_missing_package_is_named(monkeypatch, package):
    graph = paper_graph(SHAPE)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'thaw-cnn\[litert\]'"):
        written(graph)


def test_a_missing_interpreter_is_named(monkeypatch):
    model = written(paper_graph(SHAPE))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'thaw-cnn\[litert\]'"):
        LiteRtRunner(model)


def scored(scale, *, twice=False):
    """A graph whose softmax reads scores on that scale; `twice`, a sum of the pixels with themselves on that scale."""
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


def test_scales_over_which_litert_would_end_the_process_are_refused():
    with pytest.raises(
        UsageError, match=r"SOFTMAX that writes 'softmax': expected a scale of its scores above 1\.49012e-08"
    ):
        written(scored(2.0**-26))
    assert LiteRtRunner(written(scored(2.0**-25)), reference=True).run(np.zeros((1, 1, 2, 1), np.uint8)).shape == (1, 2)
    finest = float(np.float32(1 / 255)) * 2.0**-19
    with pytest.raises(UsageError, match="ADD that writes 'sum': expected a scale of the sum that is not as fine as"):
        written(scored(finest, twice=True))
    images = np.array([0, 255], np.uint8).reshape(1, 1, 2, 1)
    graph = scored(finest * 2, twice=True)
    np.testing.assert_array_equal(LiteRtRunner(written(graph), reference=True).run(images), [[0, 127]])


def test_a_quantized_graph_always_has_scales_that_litert_takes():
    """Whatever calibration says: scores all but constant, sums far smaller than their terms."""
    for seed in range(25):
        rng = np.random.default_rng(seed)
        graph = random_graph(rng)
        ranges = calibrate(graph, random_images(rng, graph, 4))["minmax"]
        tiny = {name: (low * 1e-12, high * 1e-12) for name, (low, high) in ranges.items()}
        assert read_litert(written(quantize(graph, tiny)))


@pytest.mark.parametrize(
    "content", [b"", b"TFL3", b"\x1c\0\0\0TFL3", b"PK" * 40, b"\xff" * 400, b"\0\0\0\0TFL3" + b"\xff" * 99]
)
def test_what_is_no_litert_file_is_refused(content):
    with pytest.raises(ModelFileError, match="LiteRT file"):
        LiteRtRunner(content)


def patched(model, change):
    """The model with `change` made to its object form, written anew."""
    import flatbuffers

    tree = schema.ModelT.InitFromPackedBuf(bytearray(model), 0)
    change(tree)
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(tree.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def with_many_graphs(model):
    model.subgraphs = model.subgraphs * 2


def with_foreign_operator(model):
    model.operatorCodes[0].builtinCode = schema.BuiltinOperator.WHILE
    model.operatorCodes[0].deprecatedBuiltinCode = schema.BuiltinOperator.WHILE


def with_huge_tensor(model):
    model.subgraphs[0].tensors[-1].shape = [1, 1 << 15, 1 << 15]


def with_short_weights(model):
    buffer = max(model.buffers, key=lambda buffer: 0 if buffer.data is None else len(buffer.data))
    buffer.data = buffer.data[:-1]


def with_scale_of_zero(model):
    model.subgraphs[0].tensors[-1].quantization.scale = [0.0]


def with_cycle(model):
    operators = model.subgraphs[0].operators
    operators[1].inputs[0] = operators[-1].outputs[0]


def with_second_writer(model):
    operators = model.subgraphs[0].operators
    operators[-1].outputs = list(operators[0].outputs)


def with_buffer_elsewhere(model):
    model.buffers[2].data, model.buffers[2].offset, model.buffers[2].size = None, 8, 1 << 20


def with_stride_of_zero(model):
    next(op for op in model.subgraphs[0].operators if hasattr(op.builtinOptions, "strideW")).builtinOptions.strideW = 0


def with_no_output(model):
    model.subgraphs[0].outputs = []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_many_graphs, "expected one subgraph"),
        (with_foreign_operator, "which no file of thaw has"),
        (with_huge_tensor, "a tensor of shape"),
        (with_short_weights, "LiteRT file"),
        (with_scale_of_zero, "scales from 0 to 0"),
        (with_cycle, "reads what is not there yet"),
        (with_second_writer, "writes what is there already"),
        (with_buffer_elsewhere, "a buffer lies outside of the model"),
        (with_stride_of_zero, "strides of at least 1"),
        (with_no_output, "LiteRT file"),
    ],
)
def test_a_hostile_file_is_refused(change, message):
    model = written(paper_graph(SHAPE))
    assert LiteRtRunner(patched(model, lambda tree: None)).shape == SHAPE
    with pytest.raises(ModelFileError, match=message):
        LiteRtRunner(patched(model, change))


def test_a_file_that_asks_for_too_much_memory_is_refused(monkeypatch):
    model = written(paper_graph(SHAPE))
    monkeypatch.setattr(litert_file, "MOST_VALUES", 784 * 10)
    with pytest.raises(ModelFileError, match="hold more than 7,840 values"):
        LiteRtRunner(model)
    with pytest.raises(UsageError, match="kernels cannot compute this graph: its tensors hold more than 7,840 values"):
        written(paper_graph(SHAPE))


def mutated(model, rng):
    """The model cut off, or with a byte, a bit or a whole number changed in its part that is not the archive."""
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


RUN_ALL = """
import sys
from pathlib import Path

import numpy as np

from thaw.errors import ModelFileError
from thaw.evidence.run_litert import LiteRtRunner

for path in sorted(Path(sys.argv[1]).iterdir()):
    print(path.name, end=" ", flush=True)
    try:
        for reference in (True, False):
            runner = LiteRtRunner(path.read_bytes(), reference=reference)
            images = np.zeros((1, *runner.shape), np.uint8)
            runner.run(images)
            runner.tensors(images)
    except ModelFileError:
        print("refused", flush=True)
    else:
        print("runs", flush=True)
"""


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_a_mutated_file_is_refused_or_runs(tmp_path, precision):
    """In a process of its own, since what this looks for would end the test's."""
    rng = np.random.default_rng(9)
    make = random_graph if precision == "float" else random_int8_graph
    for seed in range(8):
        model = written(make(np.random.default_rng(seed)))
        for number in range(40):
            (tmp_path / f"{seed}-{number:02}").write_bytes(mutated(model, rng))
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, str(tmp_path)], check=False, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-2000:]
    outcomes = [line.split()[1] for line in done.stdout.splitlines()]
    assert len(outcomes) == 320
    assert set(outcomes) == {"runs", "refused"}
