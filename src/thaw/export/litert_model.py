"""The tensors, buffers and operators of a LiteRT (`.tflite`) file, by LiteRT's schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from thaw.errors import MissingDependencyError
from thaw.export.card import ModelCard
from thaw.export.flat_writer import FlatWriter
from thaw.export.litert_metadata import metadata
from thaw.graph.graph import Graph
from thaw.graph.ops import Dense, Operation
from thaw.graph.tensors import DType, Quantization
from thaw.quoting import printable

IDENTIFIER = "TFL3"
"""The identifier at byte 4 of every `.tflite` file."""

TYPES: Mapping[DType, int] = {"float32": 0, "int32": 2, "uint8": 3, "int8": 9}
"""Tensor types of the schema."""

_SCHEMA_VERSION = 3


class Kind(NamedTuple):
    """Versions of an operator for float32 and for int8, and the schema's table of its options."""

    float_version: int
    int8_version: int
    options: str = ""


_RUNTIME_VERSION = "2.2.0"
"""The first version of TensorFlow Lite with all of these operators in these versions."""


def litert_schema() -> ModuleType:
    """The schema of `.tflite` files.

    Raises:
        MissingDependencyError: without the package `ai-edge-litert`.
    """
    try:
        import ai_edge_litert.schema_py_generated as schema
    except ImportError:
        raise MissingDependencyError("LiteRT files need ai-edge-litert: pip install 'thaw-cnn[litert]'") from None
    module: ModuleType = schema
    return module


class ModelWriter:
    """The tensors, buffers and operators of a file so far.

    Args:
        graph: the graph that is written.
        kinds: the operators by their names in the schema.
    """

    def __init__(self, graph: Graph, kinds: Mapping[str, Kind]) -> None:
        self.graph = graph
        self.kinds = kinds
        self.schema = litert_schema()
        self.flat = FlatWriter()
        # Buffer 0 is empty; tensors without content refer to it.
        self.buffers = [self.table("Buffer")]
        self.content: dict[bytes, int] = {}
        self.tensors: list[int] = []
        self.operators: list[int] = []
        self.codes: list[int] = []
        self.is_int8 = graph.tensor(graph.input).quantization is not None
        image = graph.tensor(graph.input)
        # A float graph's pixels represent 0 to 1 until its `Scale` subtracts the mean.
        pixels = image.quantization or Quantization(scale=float(np.float32(1.0 / 255.0)), zero_point=0)
        # Vectors that also have a tensor of shape [1, 1, 1, C].
        self.pixels: dict[str, int] = {}
        self.index = {image.name: self.tensor(image.name, (1, *image.shape), "uint8", self.scale_of(pixels))}

    def table(self, kind: str, **fields: Any) -> int:
        """Append a table of the `.tflite` schema."""
        return self.flat.table(self.schema, kind, **fields)

    def tensor(
        self, name: str, shape: Sequence[int], dtype: DType, quantization: int | None = None, buffer: int = 0
    ) -> int:
        """Append a tensor and return its index."""
        fields: dict[str, Any] = {"Shape": self.flat.numbers(shape, "<i4"), "Type": TYPES[dtype], "Buffer": buffer}
        fields["Name"] = self.flat.text(name)
        if quantization is not None:
            fields["Quantization"] = quantization
        self.tensors.append(self.table("Tensor", **fields))
        return len(self.tensors) - 1

    def scale_of(self, quantization: Quantization) -> int:
        """One scale for a whole tensor."""
        return self.table(
            "QuantizationParameters",
            Scale=self.flat.numbers([quantization.scale], "<f4"),
            ZeroPoint=self.flat.numbers([quantization.zero_point], "<i8"),
        )

    def scales_of(self, scales: npt.NDArray[Any], axis: int) -> int:
        """One scale per channel along `axis`, with zero points of 0."""
        return self.table(
            "QuantizationParameters",
            Scale=self.flat.numbers(scales, "<f4"),
            ZeroPoint=self.flat.numbers(np.zeros(len(scales)), "<i8"),
            QuantizedDimension=axis,
        )

    def constant(self, name: str, array: npt.NDArray[Any], dtype: DType, quantization: int | None = None) -> int:
        """Append a tensor with content; equal contents share a buffer."""
        content = np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<")).tobytes()
        if content not in self.content:
            self.content[content] = len(self.buffers)
            self.buffers.append(self.table("Buffer", Data=self.flat.data(content)))
        return self.tensor(name, array.shape, dtype, quantization, self.content[content])

    def written(self, name: str, like: str, shape: Sequence[int] | None = None) -> int:
        """Append a tensor without content: dtype, scale and, unless it is given, shape of the graph's tensor `like`."""
        model = self.graph.tensor(like)
        scale = None if model.quantization is None else self.scale_of(model.quantization)
        return self.tensor(name, (1, *model.shape) if shape is None else shape, model.dtype, scale)

    def output(self, op: Operation) -> int:
        """Append the tensor that `op` writes."""
        self.index[op.output] = self.written(op.output, op.output)
        return self.index[op.output]

    def add(self, kind: str, inputs: Sequence[int], output: int, **options: Any) -> None:
        """Append an operator."""
        options_table = self.kinds[kind].options
        fields: dict[str, Any] = {
            "OpcodeIndex": self._code(kind),
            "Inputs": self.flat.numbers(inputs, "<i4"),
            "Outputs": self.flat.numbers([output], "<i4"),
        }
        if options_table:
            fields["BuiltinOptionsType"] = getattr(self.schema.BuiltinOptions, options_table)
            fields["BuiltinOptions"] = self.table(options_table, **options)
        self.operators.append(self.table("Operator", **fields))

    def reshape(self, read: int, output: int, shape: Sequence[int]) -> None:
        """Append a reshape."""
        self.add("RESHAPE", [read], output, NewShape=self.flat.numbers(shape, "<i4"))

    def as_pixel(self, name: str) -> int:
        """The graph's vector `name` as a feature map of one pixel."""
        if name not in self.pixels:
            shape = (1, 1, 1, *self.graph.tensor(name).shape)
            self.pixels[name] = self.written(f"{name}.pixel", name, shape)
            self.reshape(self.index[name], self.pixels[name], shape)
        return self.pixels[name]

    def is_read_as_vector(self, name: str) -> bool:
        """Whether the graph's vector `name` is read as a vector, which int8 dense layers do not do."""
        readers = [op for op in self.graph.ops if name in op.inputs]
        return name == self.graph.outputs[-1] or not readers or not all(isinstance(op, Dense) for op in readers)

    def _code(self, kind: str) -> int:
        code = getattr(self.schema.BuiltinOperator, kind)
        version = self.kinds[kind].int8_version if self.is_int8 else self.kinds[kind].float_version
        table = self.table("OperatorCode", DeprecatedBuiltinCode=code, BuiltinCode=code, Version=version)
        if table not in self.codes:
            self.codes.append(table)
        return self.codes.index(table)

    def finish(self, card: ModelCard) -> bytes:
        """The content of the file, without the archive at its end."""
        flat, table, name = self.flat, self.table, self.graph.outputs[-1]
        image, scores = self.index[self.graph.input], self.index[name]
        subgraph = table(
            "SubGraph",
            Tensors=flat.offsets(self.tensors),
            Inputs=flat.numbers([image], "<i4"),
            Outputs=flat.numbers([scores], "<i4"),
            Operators=flat.offsets(self.operators),
            Name=flat.text("main"),
        )
        signature = table(
            "SignatureDef",
            Inputs=flat.offsets([table("TensorMap", Name=flat.text(self.graph.input), TensorIndex=image)]),
            Outputs=flat.offsets([table("TensorMap", Name=flat.text(name), TensorIndex=scores)]),
            SignatureKey=flat.text("serving_default"),
        )
        gives_index = self.graph.tensor(name).dtype == "int32"
        about = metadata(card, image=self.graph.input, scores=name, gives_index=gives_index)
        runtime = _RUNTIME_VERSION.encode().ljust(16, b"\0")
        entries = [self._metadata(*entry) for entry in (("min_runtime_version", runtime), ("TFLITE_METADATA", about))]
        model = table(
            "Model",
            Version=_SCHEMA_VERSION,
            OperatorCodes=flat.offsets(self.codes),
            Subgraphs=flat.offsets([subgraph]),
            Description=flat.text(printable(card.name)),
            Buffers=flat.offsets(self.buffers),
            Metadata=flat.offsets(entries),
            SignatureDefs=flat.offsets([signature]),
        )
        return flat.finish(model, IDENTIFIER)

    def _metadata(self, name: str, content: bytes) -> int:
        self.buffers.append(self.table("Buffer", Data=self.flat.data(content)))
        return self.table("Metadata", Name=self.flat.text(name), Buffer=len(self.buffers) - 1)
