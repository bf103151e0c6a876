"""Graph files: round trip, and rejection of changed files."""

from __future__ import annotations

import dataclasses
import json
import struct

import numpy as np
import pytest
from error_matching import raises
from graph_files import header_of, parts_of, sealed
from graph_samples import random_graph, random_images, random_int8_graph

from thaw.errors import ModelFileError
from thaw.graph.graph import Graph
from thaw.graph.graph_file import HEADER, read_graph, write_graph
from thaw.graph.interpret import run
from thaw.graph.ops import Weighted


def a_graph(seed: int = 2) -> Graph:
    return random_int8_graph(np.random.default_rng(seed))


@pytest.fixture
def written(tmp_path):
    graph = a_graph()
    path = tmp_path / "model.safetensors"
    write_graph(path, graph, header_of(graph))
    return path


def refused(path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        read_graph(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


@pytest.mark.parametrize("seed", range(30))
def test_round_trip(tmp_path, seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(rng) if seed % 2 else random_int8_graph(rng)
    path = tmp_path / "graph.safetensors"
    write_graph(path, graph, header_of(graph))
    found, header = read_graph(path)
    assert header == header_of(graph)
    assert (found.tensors, found.input, found.outputs) == (graph.tensors, graph.input, graph.outputs)
    for op, expected in zip(found.ops, graph.ops, strict=True):
        assert type(op) is type(expected)
        for item in dataclasses.fields(op):
            value, other = getattr(op, item.name), getattr(expected, item.name)
            if isinstance(value, np.ndarray):
                assert value.dtype == other.dtype
                np.testing.assert_array_equal(value, other)
            else:
                assert value == other
    images = random_images(rng, graph, 4)
    for name, value in run(graph, images).items():
        assert run(found, images)[name].tobytes() == value.tobytes()


def test_same_graph_gives_the_same_bytes(tmp_path, written):
    graph, header = read_graph(written)
    write_graph(tmp_path / "again", graph, header)
    assert (tmp_path / "again").read_bytes() == written.read_bytes()


def test_truncated_file_is_rejected(written):
    content = written.read_bytes()
    for length in [*range(64), *range(64, len(content), 7)]:
        refused(written, content[:length])
    refused(written, content + b"\0")


def test_flipped_bit_is_detected(written):
    content = written.read_bytes()
    graph, header = read_graph(written)
    chance = np.random.default_rng(0)
    for place in range(len(content)):
        if place > 64 and place % 3:
            continue
        changed = bytearray(content)
        changed[place] ^= 1 << int(chance.integers(8))
        written.write_bytes(changed)
        try:
            found, other = read_graph(written)
        except ModelFileError:
            continue
        # Only white space of the container may change without effect.
        assert other == header
        assert found.tensors == graph.tensors
        for op, expected in zip(found.ops, graph.ops, strict=True):
            if isinstance(op, Weighted):
                assert op.weights.tobytes() == expected.weights.tobytes()


def first(header: dict, kind: str) -> dict:
    return next(op for op in header["graph"]["ops"] if op["kind"] == kind)


def op_set(kind: str, key: str, value):
    return lambda header, _: first(header, kind).__setitem__(key, value)


def array_set(name: str, change):
    return lambda _, arrays: arrays.__setitem__(name, change(arrays[name]))


def named(header: dict, kind: str, suffix: str) -> str:
    kinds = [op["kind"] for op in header["graph"]["ops"]]
    return f"{kinds.index(kind)}.{suffix}"


def deep(depth: int):
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


CHANGES = {
    "no version": (lambda h, _: h.pop("version"), "format version None"),
    "another version": (lambda h, _: h.update(version=2), "format version 2, this thaw reads version 1"),
    "a version of another type": (lambda h, _: h.update(version="1"), "format version '1'"),
    "an unknown key": (lambda h, _: h.update(more=1), "an unknown key 'more'"),
    "no classes": (lambda h, _: h.update(classes=[]), "unique names"),
    "equal classes": (lambda h, _: h.update(classes=["a"] * len(h["classes"])), "unique names"),
    "one class too many": (lambda h, _: h["classes"].append("more"), "classes"),
    "a class that is no text": (lambda h, _: h["classes"].__setitem__(0, 5), "class is 5"),
    "another input": (lambda h, _: h["input"].update(height=500), "input specification says 500x"),
    "a huge input": (lambda h, _: h["input"].update(height=10**12), "input.height"),
    "an input that is no number": (lambda h, _: h["input"].update(height=4.0), "input.height = 4.0"),
    "a mean that is no number": (lambda h, _: h["input"].update(mean=["0"]), "input.mean[0] = '0'"),
    "an unknown fit": (lambda h, _: h["input"].update(fit="squash"), "expected one of stretch, crop"),
    "deep facts": (lambda h, _: h.update(facts={"a": deep(20)}), "nested"),
    "very deep facts": (lambda h, _: h.update(facts={"a": deep(900)}), ""),
    "a fact beyond floats": (lambda h, _: h.update(facts={"a": [2**63]}), "facts.a[0] = 9223372036854775808"),
    "a fact below floats": (lambda h, _: h.update(facts={"a": 1e-320}), "facts.a = 1e-320"),
    "an infinite fact": (lambda h, _: h.update(facts={"a": float("inf")}), ""),
    "facts that are a list": (lambda h, _: h.update(facts=[]), "a JSON object"),
    "no graph": (lambda h, _: h.update(graph=None), "a JSON object"),
    "an unknown operation": (op_set("dense", "kind", "exec"), "expected one of scale, conv2d"),
    "a kind that is a list": (op_set("dense", "kind", ["dense"]), "kind is ['dense']"),
    "an unknown field": (op_set("dense", "threads", 1), "an unknown key 'threads'"),
    "a missing field": (lambda h, _: first(h, "dense").pop("activation"), "lacks 'activation'"),
    "another activation": (op_set("dense", "activation", "tanh"), "expected one of none, relu"),
    "a path for a name": (op_set("dense", "name", "../../etc/passwd"), "expected a name"),
    "a path among inputs": (op_set("dense", "inputs", ["/etc/passwd"]), "expected a name"),
    "dots that go up": (op_set("dense", "name", "a..b"), "expected a name"),
    "a name with a line break": (op_set("dense", "name", "a\nb"), "expected a name"),
    "a long name": (op_set("dense", "name", "a" * 1000), "expected a name"),
    "a name twice": (
        lambda h, _: [op.update(name="same") for op in h["graph"]["ops"]],
        "operations: the name 'same' is used twice",
    ),
    "a tensor twice": (lambda h, _: h["graph"]["tensors"].append(h["graph"]["tensors"][0]), "tensors: the name"),
    "a tensor that nothing writes": (
        lambda h, _: h["graph"]["tensors"].append({**h["graph"]["tensors"][0], "name": "more"}),
        "no operation writes tensor 'more'",
    ),
    "no tensors": (lambda h, _: h["graph"].update(tensors=[]), "no tensor"),
    "no operations": (lambda h, _: h["graph"].update(ops=[]), "arrays of its operations only"),
    "too many operations": (lambda h, _: h["graph"].update(ops=[{}] * 5000), "more than 4096 operations"),
    "an output that is not there": (lambda h, _: h["graph"].update(outputs=["nowhere"]), "nowhere"),
    "no outputs": (lambda h, _: h["graph"].update(outputs=[]), "no outputs"),
    "inputs of another type": (op_set("dense", "inputs", "image"), "expected a list"),
    "a huge shape": (
        lambda h, _: h["graph"]["tensors"][0].update(shape=[2**28, 2**28, 3]),
        "at most 268,435,456 values",
    ),
    "a shape of zero": (lambda h, _: h["graph"]["tensors"][0].update(shape=[0, 4, 1]), "each at least 1"),
    "a negative shape": (lambda h, _: h["graph"]["tensors"][0].update(shape=[-4, 4, 1]), "integers"),
    "a shape of truths": (lambda h, _: h["graph"]["tensors"][0].update(shape=[True, True, True]), "integers"),
    "another dtype": (lambda h, _: h["graph"]["tensors"][0].update(dtype="float64"), "expected one of uint8"),
    "another scale": (lambda h, _: h["graph"]["tensors"][-1].update(quantization=None), ""),
    "a scale of 0": (op_set("dense", "quantization", {"scale": 0.0, "zero_point": 0}), "finite number above 0"),
    "a scale that is no float32": (op_set("dense", "quantization", {"scale": 0.1, "zero_point": 0}), "float32"),
    "a scale that is a text": (op_set("dense", "quantization", {"scale": "1", "zero_point": 0}), "finite number"),
    "a zero point far out": (op_set("dense", "quantization", {"scale": 1.0, "zero_point": 10**9}), "zero point"),
    "a zero point that is real": (op_set("dense", "quantization", {"scale": 1.0, "zero_point": 0.5}), "integer"),
    "a float dense": (op_set("dense", "quantization", None), ""),
    "more numbers": (lambda _, a: a.__setitem__("99.weights", np.zeros(1, np.int8)), "99.weights"),
    "numbers at a path": (lambda _, a: a.__setitem__("../weights", np.zeros(1, np.int8)), "../weights"),
    "no bias": (lambda h, a: a.pop(named(h, "dense", "bias")), "bias"),
    "no weight scales": (lambda h, a: a.pop(named(h, "dense", "weight_scales")), "weight_scales"),
    "float weights": (
        lambda h, a: a.update({(n := named(h, "dense", "weights")): a[n].astype(np.float32)}),
        "expected a int8 array",
    ),
    "weights of another shape": (
        lambda h, a: a.update({(n := named(h, "dense", "weights")): np.repeat(a[n], 2, axis=1)}),
        "its weights are for",
    ),
    "weights of no shape": (
        lambda h, a: a.update({named(h, "dense", "weights"): np.zeros((0, 0), np.int8)}),
        "each at least 1",
    ),
    "a weight of -128": (
        lambda h, a: a.update({(n := named(h, "dense", "weights")): np.full_like(a[n], -128)}),
        "-128",
    ),
    "a scale that is NaN": (
        lambda h, a: a.update({(n := named(h, "dense", "weight_scales")): np.full_like(a[n], np.nan)}),
        "not finite",
    ),
    "a negative weight scale": (lambda h, a: a.update({(n := named(h, "dense", "weight_scales")): -a[n]}), "above 0"),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_invalid_header_is_rejected(written, change):
    apply, words = CHANGES[change]
    header, arrays = parts_of(written.read_bytes())
    apply(header, arrays)
    assert words in refused(written, sealed(header, arrays))


def test_unchanged_header_is_accepted(written):
    before = read_graph(written)[1]
    written.write_bytes(sealed(*parts_of(written.read_bytes())))
    assert read_graph(written)[1] == before


ODD_VALUES = (None, True, -1, 0, 2**31, 10**30, 1.5, -0.0, "", "x", "../x", [], [[]], {}, {"a": 1}, [None], ["x"] * 3)


def test_any_value_in_any_place_gives_a_graph_or_an_error(written):
    content = written.read_bytes()
    chance = np.random.default_rng(1)
    for _ in range(1500):
        header, arrays = parts_of(content)
        node, key = header, None
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = keys[int(chance.integers(len(keys)))]
            below = node[key]
            if not isinstance(below, dict | list) or not below or chance.random() < 0.15:
                break
            node = below
        if chance.random() < 0.1 and isinstance(node, dict):
            del node[key]
        else:
            node[key] = ODD_VALUES[int(chance.integers(len(ODD_VALUES)))]
        written.write_bytes(sealed(header, arrays))
        try:
            graph, _ = read_graph(written)
        except ModelFileError:
            continue
        run(graph, random_images(chance, graph, 1))


def with_metadata(text: str, body: bytes = b"") -> bytes:
    outer = json.dumps({"__metadata__": {HEADER: text}}).encode()
    return struct.pack("<Q", len(outer)) + outer + body


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 100,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**40) + b"{" * 1000,
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        with_metadata("[" * 100_000),
        with_metadata("null"),
        with_metadata("[]"),
        with_metadata("{}"),
        with_metadata('{"version": NaN}'),
        with_metadata('{"version": 1, "version": 1}'),
        with_metadata('{"version": ' + "9" * 5000 + "}"),
        b"PK\x03\x04" + b"\0" * 200,
        b"\x80\x04\x95" + b"\0" * 200,
    ],
)
def test_rejects_files_that_are_not_graphs(tmp_path, content):
    refused(tmp_path / "file", content)


def test_false_sizes_allocate_no_memory(tmp_path):
    import resource

    outer = {
        "__metadata__": {HEADER: "{}"},
        "0.weights": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
    }
    text = json.dumps(outer).encode()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "file", struct.pack("<Q", len(text)) + text + bytes(64))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_missing_file_or_folder_is_reported(tmp_path):
    with raises("model-file-missing"):
        read_graph(tmp_path / "nothing")
    with pytest.raises(ModelFileError):
        read_graph(tmp_path)


def test_unreadable_graph_is_not_written(tmp_path):
    graph = a_graph()
    header = header_of(graph)
    path = tmp_path / "graph"
    for wrong in (
        dataclasses.replace(header, classes=(*header.classes, "more")),
        dataclasses.replace(header, facts={"share": float("nan")}),
        dataclasses.replace(header, facts={"path": path}),
    ):
        with pytest.raises(ModelFileError):
            write_graph(path, graph, wrong)
    renamed = dataclasses.replace(graph.ops[0], name="a/b")
    with raises("model-file-graph"):
        write_graph(path, dataclasses.replace(graph, ops=(renamed, *graph.ops[1:])), header)
    assert not path.exists()
