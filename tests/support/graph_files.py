"""Reads and writes graph files without the code under test."""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np
from safetensors.numpy import save

from thaw.data.images import InputSpec
from thaw.graph.graph import Graph
from thaw.graph.graph_file import HEADER, GraphHeader


def parts_of(content: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    """The thaw header and the arrays of a file, read without the code under test."""
    size = struct.unpack("<Q", content[:8])[0]
    outer = json.loads(content[8 : 8 + size])
    types = {"F32": np.float32, "I8": np.int8, "I32": np.int32}
    arrays = {}
    for name, entry in outer.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            raw = content[8 + size + start : 8 + size + end]
            arrays[name] = np.frombuffer(raw, types[entry["dtype"]]).reshape(entry["shape"])
    return json.loads(outer["__metadata__"][HEADER]), arrays


def sealed(header: dict, arrays: dict[str, np.ndarray]) -> bytes:
    """A file with a valid digest, so that later checks are reached."""
    header = {key: value for key, value in header.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + arrays[name].tobytes())
    return save(arrays, {HEADER: json.dumps({**header, "sha256": digest.hexdigest()})})


def header_of(graph: Graph) -> GraphHeader:
    """A header that fits a graph."""
    height, width, channels = graph.tensor(graph.input).shape
    scores = graph.tensor(graph.outputs[-1])
    count = 3 if scores.dtype == "int32" else scores.shape[0]
    return GraphHeader(
        name="a model",
        classes=tuple(f"class {index}" for index in range(count)),
        input_spec=InputSpec(height=height, width=width, channels=channels),
        facts={"seed": 3, "test accuracy": 0.5, "nested": {"list": [1, None, True, "text"]}},
    )
