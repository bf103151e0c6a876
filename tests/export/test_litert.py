"""The LiteRT models are byte-identical to the reference interpreter; metadata of the files."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from export_samples import card_of, paper_graph
from graph_samples import EXTREMES, random_graph, random_images, random_int8_graph
from PIL import Image

import thaw
from thaw.data.resize import resize
from thaw.evidence.litert_process import LiteRtModel
from thaw.export.to_litert import export_litert, write_litert
from thaw.graph import interpret
from thaw.graph.calibrate import calibrate
from thaw.graph.graph import Graph
from thaw.graph.lower import lower
from thaw.graph.ops import Concat, Conv2d, Requantize
from thaw.graph.quantize import quantize
from thaw.graph.tensors import Quantization, Tensor
from thaw.models.families import PaperSpec
from thaw.models.unify import UnifySpec, build_unified

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
SHAPE = (28, 28, 1)


def written(graph):
    return write_litert(graph, card_of(graph))


def assert_same_bytes(graph, images):
    """Scores of all images, and all tensors of the first two, by LiteRT's reference kernels and our interpreter."""
    runner = LiteRtModel(written(graph), reference=True)
    scores = runner.run(images)
    expected = interpret.run(graph, images)[graph.outputs[-1]]
    assert scores.dtype == expected.dtype
    np.testing.assert_array_equal(scores, expected)
    for index in range(2):
        image = images[index : index + 1]
        found = runner.tensors(image)
        reference = interpret.trace(graph, image)
        for name in needed_tensors(graph):
            values = found[name].reshape(reference[name].shape)
            assert values.dtype == reference[name].dtype
            np.testing.assert_array_equal(values, reference[name], err_msg=name)


def needed_tensors(graph):
    """Names of the tensors that the last output depends on."""
    needed = {graph.outputs[-1]}
    for op in reversed(graph.ops):
        if op.output in needed:
            needed.update(op.inputs)
    return needed - {graph.input}


# Equality


@pytest.mark.parametrize("extreme", [None, *EXTREMES])
def test_random_int8_graphs_equal_the_reference_kernels(extreme):
    for seed in range(50 if extreme is None else 12):
        rng = np.random.default_rng([seed, 77])
        graph = random_int8_graph(rng, extreme=extreme)
        assert_same_bytes(graph, random_images(rng, graph, 12))


def test_papers_network_equals_the_reference_kernels_on_mnist(data_root):
    import torch

    data = thaw.load("mnist", data_root=str(data_root))
    images = np.ascontiguousarray(data.train.images[:400])
    torch.manual_seed(1)
    module = build_unified(PaperSpec(), UnifySpec(), SHAPE, 10).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2.5)
    graph = lower(module, shape=SHAPE, mean=(0.13,), std=(0.31,), classes=10)
    ranges = calibrate(graph, images[:200])
    for method in ranges:
        assert_same_bytes(quantize(graph, ranges[method]), images)


def test_random_float_graphs_agree_with_the_reference_interpreter():
    for seed in range(40):
        rng = np.random.default_rng([seed, 5])
        graph = random_graph(rng)
        images = random_images(rng, graph, 4)
        expected = interpret.run(graph, images)[graph.outputs[-1]]
        for reference in (True, False):
            runner = LiteRtModel(written(graph), reference=reference)
            scores = runner.run(images)
            assert (scores.shape, scores.dtype) == (expected.shape, expected.dtype)
            if scores.dtype == np.float32:
                np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=2e-5)
            traced = interpret.trace(graph, images[:1])
            found = runner.tensors(images[:1]) if reference else {}
            for name in needed_tensors(graph) & set(found):
                scale = max(1.0, float(np.abs(traced[name]).max()))
                np.testing.assert_allclose(found[name] / scale, traced[name] / scale, atol=2e-6, err_msg=name)


def test_fast_kernels_agree_with_the_reference_kernels():
    graph = paper_graph(SHAPE)
    images = random_images(np.random.default_rng(0), graph, 200)
    model = written(graph)
    fast, reference = LiteRtModel(model), LiteRtModel(model, reference=True)
    difference = np.abs(fast.run(images).astype(int) - reference.run(images))
    assert difference.max() <= 8
    np.testing.assert_array_equal(fast.predict_one(images[3])()[0], fast.run(images[3:4])[0])


def test_comparison_can_fail():
    graph = paper_graph(SHAPE)
    images = random_images(np.random.default_rng(0), graph, 12)
    name = graph.ops[1].output
    op = graph.ops[1]
    other = replace(graph, ops=(graph.ops[0], replace(op, bias=op.bias + 200), *graph.ops[2:]))
    found = LiteRtModel(written(other), reference=True).tensors(images[3:4])[name]
    assert not np.array_equal(found, interpret.trace(graph, images[3:4])[name])


def test_int8_mnist_in_the_reference_interpreter_takes_less_than_20_seconds():
    graph = paper_graph(SHAPE)
    images = random_images(np.random.default_rng(0), graph, 1000)
    # Processor time, which does not depend on other programs; a tenth of 10,000 images.
    start = time.process_time()
    interpret.run(graph, images)
    assert time.process_time() - start < 20 / 10


def test_concatenation_with_too_many_inputs():
    pixels = Quantization(scale=float(np.float32(1 / 255)), zero_point=0)
    as_int8 = Quantization(scale=pixels.scale, zero_point=-128)
    image = Tensor(name="image", shape=(2, 3, 1), dtype="uint8", quantization=pixels)
    ops = [Requantize(name="read", inputs=("image",), output="read", quantization=as_int8)]
    for number in range(23):
        weights = np.full((1, 1, 1, 1), number + 1, np.int8)
        ops.append(
            Conv2d(
                name=f"c{number}",
                inputs=("read",),
                output=f"c{number}",
                weights=weights,
                bias=np.full(1, number, np.int32),
                weight_scales=np.full(1, 1 / 23, np.float32),
                quantization=as_int8,
            )
        )
    ops.append(Concat(name="all", inputs=tuple(f"c{number}" for number in range(23)), output="all"))
    tensors = {"image": image}
    for op in ops:
        tensors[op.output] = op.infer([tensors[name] for name in op.inputs])
    graph = Graph(tensors=tuple(tensors.values()), ops=tuple(ops), input="image", outputs=("all",))
    content = write_litert(graph, replace(card_of(graph), classes=("a", "b")))
    images = random_images(np.random.default_rng(0), graph, 4)
    found = LiteRtModel(content, reference=True).run(images)
    np.testing.assert_array_equal(found, interpret.run(graph, images)["all"])
    operators = operators_of(content)
    assert [len(inputs) for kind, inputs in operators if kind == "CONCATENATION"] == [10, 10, 5]


# The file


def names_of(enumeration):
    return {value: name for name, value in vars(enumeration).items() if name.isupper()}


def operators_of(content):
    """(Operator name, inputs) of each operator."""
    model = schema.Model.GetRootAs(content, 0)
    names = names_of(schema.BuiltinOperator)
    graph = model.Subgraphs(0)
    found = []
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        found.append((names[model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()], operator.InputsAsNumpy()))
    return found


def test_files_of_the_folder():
    graphs = {"float": paper_graph(SHAPE, "float"), "int8": paper_graph(SHAPE)}
    card = card_of(graphs["int8"])
    files = export_litert(graphs, card)
    assert set(files) == {"model-float.tflite", "model-int8.tflite", "example.py", "preprocess.py"}
    assert export_litert(graphs, card) == files
    assert set(export_litert({"int8": graphs["int8"]}, card)) == {"model-int8.tflite", "example.py", "preprocess.py"}


def test_papers_int8_network_takes_at_most_22_kilobytes():
    graph = replace(paper_graph(SHAPE))
    card = replace(card_of(graph), name="mnist-paper", classes=tuple("0123456789"), facts={"parameters": 14_862})
    assert sum(op.weights.size + op.bias.size for op in graph.ops if hasattr(op, "weights")) == 14_862
    assert len(write_litert(graph, card)) <= 22_000


def test_uses_only_operators_of_microcontrollers():
    # The operators that tensorflow/tflite-micro registers.
    known = {"ADD", "ARG_MAX", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "DEQUANTIZE"}
    known |= {"FULLY_CONNECTED", "MAX_POOL_2D", "MUL", "PAD", "QUANTIZE", "RELU", "RESHAPE", "SOFTMAX", "SUB"}
    seen = set()
    for seed in range(25):
        rng = np.random.default_rng(seed)
        for graph in (random_graph(rng), random_int8_graph(rng)):
            operators = operators_of(written(graph))
            seen |= {kind for kind, _ in operators}
            assert all(len(inputs) <= 10 for kind, inputs in operators if kind == "CONCATENATION")
    assert seen == known


def test_int8_model_is_int8_throughout():
    graph = paper_graph(SHAPE)
    main = schema.Model.GetRootAs(written(graph), 0).Subgraphs(0)
    names = names_of(schema.TensorType)
    tensors = [main.Tensors(index) for index in range(main.TensorsLength())]
    types = [(tensor.Name().decode(), names[tensor.Type()]) for tensor in tensors]
    assert {dtype for _, dtype in types} == {"UINT8", "INT8", "INT32"}
    weighted = [op for op in graph.ops if hasattr(op, "weights")]
    # 32-bit integers are biases, one per operation, without names.
    assert [name for name, dtype in types if dtype == "INT32"] == [""] * len(weighted)
    assert [name for name, dtype in types if dtype == "UINT8"] == ["image"]
    unnamed = [tensor for tensor in tensors if tensor.Name() == b""]
    with_scales = [tensor for tensor in unnamed if names[tensor.Type()] == "INT8"]
    assert len(with_scales) == len(weighted)
    for op, tensor in zip(weighted, with_scales, strict=True):
        np.testing.assert_array_equal(tensor.Quantization().ScaleAsNumpy(), op.weight_scales)
        assert not tensor.Quantization().ZeroPointAsNumpy().any()


def test_interpreter_sees_the_declared_tensors():
    from ai_edge_litert.interpreter import Interpreter

    graph = paper_graph(SHAPE)
    interpreter = Interpreter(model_content=written(graph))
    interpreter.allocate_tensors()
    (image,), (scores,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (image["name"], image["dtype"], image["shape"].tolist()) == ("image", np.uint8, [1, 28, 28, 1])
    assert (scores["name"], scores["dtype"], scores["shape"].tolist()) == ("probabilities", np.int8, [1, 10])
    assert scores["quantization"] == (1 / 256, -128)
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["image"], "outputs": ["probabilities"]}}
    run = interpreter.get_signature_runner()
    pixels = random_images(np.random.default_rng(0), graph, 4)
    expected = LiteRtModel(written(graph)).run(pixels[3:4])
    np.testing.assert_array_equal(run(image=pixels[3:4])["probabilities"], expected)


def test_archive_contains_labels_and_card():
    graph = paper_graph(SHAPE)
    card = replace(card_of(graph), classes=("ä, ö", "two\nlines", *map(str, range(8))), facts={"parameters": 14_862})
    content = write_litert(graph, card)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["labels.txt", "card.json"]
        # Metadata readers read the archive without unpacking it.
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read("labels.txt").decode() == "ä, ö\ntwo\\nlines\n0\n1\n2\n3\n4\n5\n6\n7\n"
        told = json.loads(archive.read("card.json"))
    assert told == json.loads(json.dumps(card.as_dict()))
    assert told["input"] == {"height": 28, "width": 28, "channels": 1, "fit": card.input_spec.fit}


def slot(buffer, table, number):
    """Position of field `number` of the table at `table`, by the FlatBuffers format; None if it is omitted."""
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", buffer, vtable)[0]:
        return None
    offset = struct.unpack_from("<H", buffer, vtable + 4 + 2 * number)[0]
    return table + offset if offset else None


def follow(buffer, place):
    return place + struct.unpack_from("<I", buffer, place)[0]


def string(buffer, table, number):
    start = follow(buffer, slot(buffer, table, number))
    length = struct.unpack_from("<I", buffer, start)[0]
    return buffer[start + 4 : start + 4 + length].decode()


def first_of(buffer, table, number, count=1):
    """The first table of a vector of `count` tables."""
    start = follow(buffer, slot(buffer, table, number))
    assert struct.unpack_from("<I", buffer, start)[0] == count
    return follow(buffer, start + 4)


def metadata_of(content):
    model = schema.Model.GetRootAs(content, 0)
    entries = [model.Metadata(index) for index in range(model.MetadataLength())]
    return {entry.Name().decode(): model.Buffers(entry.Buffer()).DataAsNumpy().tobytes() for entry in entries}


def test_metadata_are_valid_tensorflow_lite_metadata():
    graph = paper_graph((32, 24, 3))
    entries = metadata_of(written(graph))
    assert entries["min_runtime_version"].rstrip(b"\0").count(b".") == 2
    about = entries["TFLITE_METADATA"]
    # Slots and numbers of metadata_schema.fbs 1.1.0 of TensorFlow Lite Support.
    assert about[4:8] == b"M001"
    model = follow(about, 0)
    assert string(about, model, 0) == "sample"
    assert string(about, model, 7) == "1.0.0"
    assert string(about, first_of(about, model, 6), 0) == "card.json"
    main = first_of(about, model, 3)
    image, scores = first_of(about, main, 2), first_of(about, main, 3)
    assert (string(about, image, 0), string(about, scores, 0)) == ("image", "probabilities")
    labels = first_of(about, scores, 6)
    assert string(about, labels, 0) == "labels.txt"
    assert about[slot(about, labels, 2)] == 2  # TENSOR_AXIS_LABELS
    content = follow(about, slot(about, image, 3))
    assert about[slot(about, content, 0)] == 2  # ImageProperties
    properties = follow(about, slot(about, content, 1))
    assert about[slot(about, properties, 0)] == 1  # RGB
    size = follow(about, slot(about, properties, 1))
    assert struct.unpack_from("<I", about, slot(about, size, 0)) == (24,)
    assert struct.unpack_from("<I", about, slot(about, size, 1)) == (32,)


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_example_runs(tmp_path, precision):
    graphs = {"float": paper_graph(SHAPE, "float"), "int8": paper_graph(SHAPE)}
    card = card_of(graphs["int8"])
    card = replace(card, input_spec=replace(card.input_spec, fit="crop"))
    for name, content in export_litert(graphs, card).items():
        (tmp_path / name).write_bytes(content)
    pixels = np.random.default_rng(2).integers(0, 256, (50, 61, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    model = [] if precision == "int8" else [str(tmp_path / "model-float.tflite")]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "example.py"), str(tmp_path / "photo.png"), *model],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(tmp_path).anchor,
    )
    assert done.returncode == 0, done.stderr
    scores = LiteRtModel((tmp_path / f"model-{precision}.tflite").read_bytes()).run(
        resize(pixels, card.input_spec)[None]
    )[0]
    probabilities = (scores.astype(float) + 128) / 256 if precision == "int8" else scores
    best = probabilities.argmax()
    assert done.stdout == f"class{best} {probabilities[best]:.4f}\n"
