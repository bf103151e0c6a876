"""Graph files: safetensors for arrays, and a JSON header for everything else. Without pickle; content is not trusted.

A reader gets the graph that was written, or a ModelFileError: names, kinds, fields, types and sizes are checked before
an operation is created, the operation checks its own fields, and a digest over header and arrays detects changed bits.

The header, version 1: "version", "name", "classes", "input" (the input specification), "facts", "sha256", and "graph"
with "input", "outputs", "tensors" and "ops". The arrays of operation i are the tensors "i.weights", "i.bias" and, in an
int8 graph, "i.weight_scales". An operation that shares weights names the owner under "shares", which others omit. In an
int8 graph it has no "i.weights".
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import numpy as np
from safetensors.numpy import load, save

from thaw.data.images import InputSpec
from thaw.errors import ModelFileError, ThawError
from thaw.graph.graph import Graph
from thaw.graph.ops import OPERATIONS, Activation, Operation, Weighted
from thaw.graph.tensors import Array, Quantization, Tensor
from thaw.plain import check_numbers
from thaw.quoting import shown
from thaw.tensor_file import read_tensor_file, write_tensor_file

GRAPH_VERSION = 1
HEADER = "thaw graph"

_MOST_OPS = 4096
_MOST_ELEMENTS = 1 << 28
"""Values of one tensor for one image: 1 GiB of float32."""
_MOST_FACTS_DEPTH = 8
# Exported code, files and tensors use these names, so they must not contain special characters.
_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_ARRAY_FIELDS = ("weights", "bias", "weight_scales")
_OPTIONAL_FIELDS = ("shares",)
"""Omitted when empty."""


@dataclass(frozen=True, kw_only=True)
class GraphHeader:
    """The metadata in a graph file.

    Attributes:
        name: name of the model, any text.
        classes: K names, in the order of the scores.
        input_spec: the input of the model.
        facts: other information; JSON-ready, finite numbers only.
    """

    name: str
    classes: tuple[str, ...]
    input_spec: InputSpec
    facts: Mapping[str, Any] = field(default_factory=dict)


def write_graph(path: Path, graph: Graph, header: GraphHeader) -> None:
    """Write `graph` and its header, atomically; the same graph and header give the same bytes.

    Raises:
        ModelFileError: for a graph that `read_graph` would refuse, such as one with a slash in a name.
        RunError: when it cannot be written.
    """
    arrays = {
        f"{index}.{name}": np.ascontiguousarray(array)
        for index, op in enumerate(graph.ops)
        for name, array in _arrays(op).items()
    }
    content: dict[str, Any] = {
        "version": GRAPH_VERSION,
        "name": header.name,
        "classes": list(header.classes),
        "input": header.input_spec.as_dict(),
        "facts": dict(header.facts),
        "graph": _describe(graph),
    }
    # Check the result, so that only readable files are written.
    _parse(content, arrays, str(path))
    write_tensor_file(path, HEADER, content, lambda metadata: save(arrays, metadata))


def read_graph(path: str | Path) -> tuple[Graph, GraphHeader]:
    """The graph and the header of a file that `write_graph` wrote.

    Raises:
        ModelFileError: when it is missing, truncated, changed, of another version, or not a valid graph; in one line.
    """
    file = read_tensor_file(Path(path), HEADER, load)
    file.check_version(GRAPH_VERSION)
    parsed = _parse(file.header, file.tensors, str(file.path))
    # The digest is checked last, so that an invalid value is reported by name.
    file.check_digest()
    return parsed


def _arrays(op: Operation) -> dict[str, Array]:
    """The arrays of an operation, by field."""
    if not isinstance(op, Weighted):
        return {}
    found = {name: getattr(op, name) for name in _ARRAY_FIELDS}
    if op.shares and op.quantization is not None:
        del found["weights"]
    return {name: array for name, array in found.items() if array is not None}


def _describe(graph: Graph) -> dict[str, Any]:
    """The JSON-ready form of a graph, without its arrays."""
    tensors = [
        {"name": each.name, "shape": each.shape, "dtype": each.dtype, "quantization": _written(each.quantization)}
        for each in graph.tensors
    ]
    ops = []
    for op in graph.ops:
        names = [item.name for item in dataclasses.fields(op) if item.name not in _ARRAY_FIELDS]
        names = [name for name in names if name not in _OPTIONAL_FIELDS or getattr(op, name)]
        ops.append({"kind": op.kind, **{name: _written(getattr(op, name)) for name in names}})
    described = {"input": graph.input, "outputs": graph.outputs, "tensors": tensors, "ops": ops}
    # Tuples become lists, as in a file.
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return plain


def _written(value: Any) -> Any:
    return {"scale": value.scale, "zero_point": value.zero_point} if isinstance(value, Quantization) else value


def _parse(content: Mapping[str, Any], arrays: Mapping[str, Array], where: str) -> tuple[Graph, GraphHeader]:
    try:
        _expect_keys("header", content, ("version", "name", "classes", "input", "facts", "graph"))
        graph = _graph(content["graph"], arrays)
        return graph, _header(content, graph)
    except (ThawError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())[:300]
        raise ModelFileError(f"{where} is not a valid thaw graph: {reason}", code="model-file-graph") from error


def _header(content: Mapping[str, Any], graph: Graph) -> GraphHeader:
    classes = tuple(_text("class", name) for name in _list("classes", content["classes"]))
    if len(set(classes)) != len(classes) or not classes:
        _refuse("classes", content["classes"], "unique names")
    scores = graph.tensor(graph.outputs[-1])
    if scores.dtype != "int32" and scores.shape != (len(classes),):
        raise ModelFileError(
            f"output {shown(scores.name)} has shape {scores.shape} for {len(classes)} classes", code="model-file-graph"
        )
    input_spec = InputSpec.from_dict(_object_of("input", content["input"]))
    if graph.tensor(graph.input).shape != input_spec.shape:
        found = graph.tensor(graph.input).shape
        raise ModelFileError(
            f"the graph takes images of {found}, but its input specification says {input_spec}", code="model-file-graph"
        )
    _check_plain(content["facts"])
    check_numbers(content["facts"], "facts")
    facts = _object_of("facts", content["facts"])
    return GraphHeader(name=_text("name", content["name"]), classes=classes, input_spec=input_spec, facts=facts)


def _check_plain(value: Any, depth: int = 0) -> None:
    """Refuse facts that are nested deeply or contain values that JSON cannot represent."""
    if depth > _MOST_FACTS_DEPTH:
        raise ModelFileError(f"facts are nested more than {_MOST_FACTS_DEPTH} levels deep", code="model-file-graph")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_plain(item, depth + 1)
    elif value is not None and not isinstance(value, str | int | float):
        _refuse("facts", value, "a JSON value")


def _graph(value: Any, arrays: Mapping[str, Array]) -> Graph:
    fields = _object_of("graph", value)
    _expect_keys("graph", fields, ("input", "outputs", "tensors", "ops"))
    described = _list("ops", fields["ops"])
    if len(described) > _MOST_OPS or len(_list("tensors", fields["tensors"])) > _MOST_OPS + 1:
        raise ModelFileError(f"it has more than {_MOST_OPS} operations", code="model-file-graph")
    left = dict(arrays)
    ops: list[Operation] = []
    for index, entry in enumerate(described):
        ops.append(_op(index, entry, left, ops))
    if left:
        _refuse("numbers", min(left), "arrays of its operations only")
    return Graph(
        tensors=tuple(_tensor(entry) for entry in fields["tensors"]),
        ops=tuple(ops),
        input=_name("input", fields["input"]),
        outputs=_names("outputs", fields["outputs"]),
    )


def _tensor(value: Any) -> Tensor:
    fields = _object_of("tensor", value)
    _expect_keys("tensor", fields, ("name", "shape", "dtype", "quantization"))
    shape = _whole_numbers("shape", fields["shape"])
    if len(shape) > 3 or math.prod(shape) > _MOST_ELEMENTS:
        _refuse("shape", shape, f"at most {_MOST_ELEMENTS:,} values")
    return Tensor(
        name=_name("tensor", fields["name"]),
        shape=shape,
        # The tensor itself checks the dtype.
        dtype=_text("dtype", fields["dtype"]),  # type: ignore[arg-type]
        quantization=_quantization("quantization", fields["quantization"]),
    )


def _op(index: int, value: Any, arrays: dict[str, Array], earlier: Sequence[Operation]) -> Operation:
    """The operation, with its own arrays, which are removed from `arrays`, or with those of an earlier operation."""
    fields = _object_of("operation", value)
    kind = OPERATIONS.get(_text("kind", fields.get("kind")))
    if kind is None:
        _refuse("operation", fields["kind"], f"one of {', '.join(OPERATIONS)}")
    names = [item.name for item in dataclasses.fields(kind)]
    plain = [name for name in names if name not in _ARRAY_FIELDS]
    absent = {name for name in _OPTIONAL_FIELDS if name not in fields}
    _expect_keys(f"operation {kind.kind}", fields, ("kind", *(name for name in plain if name not in absent)))
    hints = get_type_hints(kind)
    values = {name: _READERS[hints[name]](name, fields[name]) for name in fields if name != "kind"}
    for name in _ARRAY_FIELDS:
        if f"{index}.{name}" in arrays and name in names:
            values[name] = arrays.pop(f"{index}.{name}")
    if values.get("shares") and values.get("quantization") is not None:
        values["weights"] = _shared_weights(values, earlier)
    return kind(**values)


def _shared_weights(values: Mapping[str, Any], earlier: Sequence[Operation]) -> Array:
    """The weights of the earlier operation that an int8 operation names."""
    found = [op.weights for op in earlier if isinstance(op, Weighted) and op.name == values["shares"]]
    if not found or "weights" in values:
        _refuse("shares", values["shares"], "an earlier operation with weights, and none of its own")
    return found[0]


def _quantization(label: str, value: Any) -> Quantization | None:
    if value is None:
        return None
    fields = _object_of(label, value)
    _expect_keys(label, fields, ("scale", "zero_point"))
    return Quantization(scale=fields["scale"], zero_point=fields["zero_point"])


def _text(label: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        _refuse(label, value, "a non-empty string")
    return value


def _name(label: str, value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        _refuse(label, value, "a name of at most 128 letters, digits, dots, dashes and underscores")
    return value


def _names(label: str, value: Any) -> tuple[str, ...]:
    return tuple(_name(label, item) for item in _list(label, value))


def _numbers(label: str, value: Any) -> tuple[float, ...]:
    items = _list(label, value)
    if not all(isinstance(item, float) and math.isfinite(item) for item in items):
        _refuse(label, value, "finite numbers")
    return tuple(items)


def _whole_numbers(label: str, value: Any) -> tuple[int, ...]:
    items = _list(label, value)
    if not all(type(item) is int and 0 <= item <= _MOST_ELEMENTS for item in items):
        _refuse(label, value, f"integers up to {_MOST_ELEMENTS}")
    return tuple(items)


def _list(label: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        _refuse(label, value, "a list")
    return value


def _object_of(label: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        _refuse(label, value, "a JSON object")
    return value


def _expect_keys(label: str, found: Mapping[str, Any], expected: Sequence[str]) -> None:
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing:
        raise ModelFileError(f"{label} lacks {shown(missing[0])}", code="model-file-graph")
    if unknown:
        raise ModelFileError(f"{label} has an unknown key {shown(unknown[0])}", code="model-file-graph")


def _refuse(label: str, found: Any, expected: str) -> NoReturn:
    raise ModelFileError(f"{label} is {shown(found)}: expected {expected}", code="model-file-graph")


_READERS: Mapping[Any, Callable[[str, Any], Any]] = {
    str: _name,
    tuple[str, ...]: _names,
    tuple[float, ...]: _numbers,
    tuple[int, ...]: _whole_numbers,
    tuple[int, int]: _whole_numbers,
    tuple[int, int, int, int]: _whole_numbers,
    Activation: _text,
    Quantization: _quantization,
    Quantization | None: _quantization,
}
"""Type of a field of an operation -> its reader. The operation itself checks ranges and lengths."""
