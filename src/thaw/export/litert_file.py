"""Reads a LiteRT (`.tflite`) file that `thaw export` wrote, and refuses any other.

LiteRT's interpreter checks that the offsets of a file lie within it, but ends the whole process over some
contradictions between tensors and operators. What its kernels take for granted is therefore checked here first.

Shapes are those of the file, with a batch axis of 1.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.errors import ModelFileError
from thaw.export.litert_model import IDENTIFIER, KINDS, TYPES, litert_schema
from thaw.export.litert_rules import FileTensor, check_operator

MOST_VALUES = 1 << 26
"""Of one tensor, and of all that operators write together; more is refused before memory is taken."""

# The process ends in XNNPACK over subnormal scales, and in additions over those whose 2**20th multiple is infinite.
_LEAST_SCALE, _LARGEST_SCALE = float(np.finfo(np.float32).tiny), 2.0**100

_LEAST_BYTES = 16
_OUTPUTS_FIELD = 8
"""Where a subgraph's table says where its outputs are listed: after two numbers of 16 bits, its third field."""

_DTYPES = {number: dtype for dtype, number in TYPES.items()}
_ZERO_POINTS = {"uint8": (0, 255), "int8": (-128, 127), "int32": (0, 0)}
_DAMAGED = (struct.error, IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError, RuntimeError)
"""What reading past the end of a FlatBuffer, or a number that is no length, comes to in Python."""


@dataclass(frozen=True, eq=False)
class LiteRtFile:
    """What there is to know of a file before it is run.

    Attributes:
        image: the tensor that takes pixels, uint8 [1, H, W, C].
        scores: the tensor that comes out.
        written: the tensors that operators write, by their number in the file.
    """

    image: FileTensor
    scores: FileTensor
    written: dict[int, FileTensor]


def read_litert(model: bytes) -> LiteRtFile:
    """Check a file, and tell its tensors.

    Raises:
        MissingDependencyError: without the package `ai-edge-litert`.
        ModelFileError: for a file that is damaged or is not one that `thaw export` writes.
    """
    if len(model) < _LEAST_BYTES or model[4:8] != IDENTIFIER.encode():
        raise ModelFileError("not a LiteRT file: it does not say TFL3 at its byte 4")
    try:
        return walk_litert(model)
    except _DAMAGED as error:
        raise ModelFileError(f"LiteRT file that is damaged, or that thaw did not write: {error}") from None


def walk_litert(model: bytes) -> LiteRtFile:
    """`read_litert` for content that cannot be damaged, since it was written just now.

    Raises:
        ValueError: saying what LiteRT's kernels could fail over.
    """
    return _Reader(litert_schema(), model).read()


def with_all_outputs(model: bytes) -> bytes:
    """A copy of a file that gives every tensor that an operator writes, in the order of their numbers.

    The list of outputs is a new one behind the rest of the file, and the only thing that is changed is where it lies.

    Raises:
        ModelFileError: as for `read_litert`.
    """
    numbers = sorted(read_litert(model).written)
    subgraph = litert_schema().Model.GetRootAs(model, 0).Subgraphs(0)._tab  # noqa: SLF001 (as generated code does)
    place = subgraph.Pos + subgraph.Offset(_OUTPUTS_FIELD)
    start = len(model) + -len(model) % 4
    listed = struct.pack(f"<I{len(numbers)}i", len(numbers), *numbers)
    moved = model[:place] + struct.pack("<I", start - place) + model[place + 4 :]
    return moved.ljust(start, b"\0") + listed


class _Reader:
    """Walks one file; whatever is not as `ModelWriter` makes it is a ValueError."""

    def __init__(self, schema: ModuleType, model: bytes) -> None:
        self.schema = schema
        self.model = schema.Model.GetRootAs(model, 0)
        self.most = len(model) // 4
        if self._count(self.model.SubgraphsLength()) != 1 or self.model.Version() != 3:
            raise ValueError("expected one subgraph, of version 3 of the schema")
        self.graph = self.model.Subgraphs(0)

    def read(self) -> LiteRtFile:
        """All of it."""
        self._check_entries()
        tensors = [self._tensor(index) for index in range(self._count(self.graph.TensorsLength()))]
        image, scores = self._only(self.graph, "Inputs", tensors), self._only(self.graph, "Outputs", tensors)
        if tensors[image].dtype != "uint8" or len(tensors[image].shape) != 4 or tensors[image].content is not None:
            raise ValueError("expected an input uint8 [1, H, W, C]")
        codes = [self._code(index) for index in range(self._count(self.model.OperatorCodesLength()))]
        known = {image, *(index for index, tensor in enumerate(tensors) if tensor.content is not None)}
        written: dict[int, FileTensor] = {}
        for index in range(self._count(self.graph.OperatorsLength())):
            output = self._operator(self.graph.Operators(index), codes, tensors, known)
            known.add(output)
            written[output] = tensors[output]
        if scores not in written:
            raise ValueError("no operator writes its output")
        if sum(math.prod(tensor.shape) for tensor in written.values()) > MOST_VALUES:
            raise ValueError(f"its tensors hold more than {MOST_VALUES:,} values")
        return LiteRtFile(tensors[image], tensors[scores], written)

    def _count(self, length: int) -> int:
        """A length, which is at most what fits into the file."""
        if not 0 <= length <= self.most:
            raise ValueError(f"a list of {length} entries is longer than the file")
        return length

    def _check_entries(self) -> None:
        """Buffers lie within the file; signatures and metadata refer to what is there."""
        buffers = self._count(self.model.BuffersLength())
        for index in range(buffers):
            if self.model.Buffers(index).Offset() or self.model.Buffers(index).Size():
                raise ValueError("a buffer lies outside of the model")
        if any(
            self.model.Metadata(index).Buffer() >= buffers for index in range(self._count(self.model.MetadataLength()))
        ):
            raise ValueError("metadata in a buffer that is not there")
        for index in range(self._count(self.model.SignatureDefsLength())):
            signature = self.model.SignatureDefs(index)
            maps = [signature.Inputs(at) for at in range(self._count(signature.InputsLength()))]
            maps += [signature.Outputs(at) for at in range(self._count(signature.OutputsLength()))]
            if signature.SubgraphIndex() or any(each.TensorIndex() >= self.graph.TensorsLength() for each in maps):
                raise ValueError("a signature of tensors that are not there")
            if not signature.SignatureKey() or not all(each.Name() for each in maps):
                raise ValueError("a signature without names")

    def _tensor(self, index: int) -> FileTensor:
        tensor = self.graph.Tensors(index)
        shape = tuple(int(side) for side in self._numbers(tensor, "Shape"))
        dtype = _DTYPES[tensor.Type()]
        if not 1 <= len(shape) <= 4 or min(shape) < 1 or math.prod(shape) > MOST_VALUES:
            raise ValueError(f"a tensor of shape {list(shape)}")
        if tensor.IsVariable() or tensor.Sparsity() or tensor.ShapeSignatureLength() or tensor.VariantTensorsLength():
            raise ValueError("a tensor that is variable, sparse or of several shapes")
        # Schemas of older packages do not know of these.
        if "ExternalBuffer" in dir(tensor) and tensor.ExternalBuffer():
            raise ValueError("a tensor in another file")
        name = (tensor.Name() or b"").decode()
        content = self._content(tensor.Buffer(), shape, np.dtype(dtype).newbyteorder("<"))
        return FileTensor(name, shape, dtype, content, *self._scales(tensor.Quantization(), shape, dtype))

    def _content(self, number: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
        if number >= self.model.BuffersLength():
            raise ValueError(f"a tensor in buffer {number}, which is not there")
        buffer = self.model.Buffers(number)
        if not self._bytes(buffer.DataLength()):
            return None
        return np.frombuffer(buffer.DataAsNumpy().tobytes(), dtype).reshape(shape)

    def _bytes(self, length: int) -> int:
        if not 0 <= length <= 4 * self.most:
            raise ValueError(f"a buffer of {length} bytes is longer than the file")
        return length

    def _scales(
        self, quantization: Any, shape: tuple[int, ...], dtype: str
    ) -> tuple[npt.NDArray[np.float32], int, int]:
        """(scales, zero point, axis); no scales for a tensor that has none."""
        if quantization is None:
            return np.zeros(0, np.float32), 0, 0
        scales = np.array(self._numbers(quantization, "Scale"), np.float32)
        zero_points = [int(value) for value in self._numbers(quantization, "ZeroPoint")]
        axis = quantization.QuantizedDimension()
        least, most = _ZERO_POINTS[dtype]
        if not len(scales) or not np.isfinite(scales).all() or len(zero_points) != len(scales):
            raise ValueError("scales that are not finite numbers with a zero point each")
        if scales.min() < _LEAST_SCALE or scales.max() > _LARGEST_SCALE:
            raise ValueError(f"scales from {scales.min():g} to {scales.max():g}")
        if not 0 <= axis < len(shape) or len(scales) not in (1, shape[axis]):
            raise ValueError(f"{len(scales)} scales along axis {axis} of {list(shape)}")
        if not least <= min(zero_points) <= max(zero_points) <= most or (len(scales) > 1 and any(zero_points)):
            raise ValueError(f"zero points {min(zero_points)} to {max(zero_points)} for {dtype}")
        if quantization.DetailsType():
            raise ValueError("a scale of another kind")
        return scales, zero_points[0], axis

    def _numbers(self, table: Any, field: str) -> Any:
        self._count(getattr(table, f"{field}Length")())
        return () if getattr(table, f"{field}IsNone")() else getattr(table, f"{field}AsNumpy")()

    def _only(self, table: Any, field: str, tensors: list[FileTensor]) -> int:
        (index,) = map(int, self._numbers(table, field))
        if not 0 <= index < len(tensors):
            raise ValueError(f"tensor {index}, which is not there")
        return index

    def _code(self, index: int) -> str:
        code = self.model.OperatorCodes(index)
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        for kind, versions in KINDS.items():
            if getattr(self.schema.BuiltinOperator, kind) == number and code.CustomCode() is None:
                if code.Version() not in (versions.float_version, versions.int8_version):
                    raise ValueError(f"version {code.Version()} of operator {kind}")
                return kind
        raise ValueError(f"operator {number}, which no file of thaw has")

    def _operator(self, operator: Any, codes: list[str], tensors: list[FileTensor], known: set[int]) -> int:
        """Check one operator; the number of the tensor that it writes."""
        kind = codes[operator.OpcodeIndex()]
        inputs = [int(index) for index in self._numbers(operator, "Inputs")]
        output = self._only(operator, "Outputs", tensors)
        if not set(inputs) <= known or output in known:
            raise ValueError(f"operator {kind} reads what is not there yet, or writes what is there already")
        if operator.IntermediatesLength() or operator.MutatingVariableInputsLength() or operator.CustomOptionsLength():
            raise ValueError(f"operator {kind} has entries that no file of thaw has")
        if operator.BuiltinOptions2Type() or operator.LargeCustomOptionsOffset():
            raise ValueError(f"operator {kind} has entries that no file of thaw has")
        options = self._options(kind, operator)
        check_operator(kind, [tensors[index] for index in inputs], tensors[output], options)
        return output

    def _options(self, kind: str, operator: Any) -> dict[str, Any]:
        """The options of an operator by name."""
        table = KINDS[kind].options
        if operator.BuiltinOptionsType() != (getattr(self.schema.BuiltinOptions, table) if table else 0):
            raise ValueError(f"operator {kind} has options of another kind")
        if not table:
            return {}
        found = getattr(self.schema, table)()
        found.Init(operator.BuiltinOptions().Bytes, operator.BuiltinOptions().Pos)
        options = {name: getattr(found, name)() for name in _OPTIONS if hasattr(found, name)}
        if table == "ReshapeOptions":
            options["NewShape"] = tuple(int(side) for side in self._numbers(found, "NewShape"))
        if options.get("FusedActivationFunction", 0) not in (0, 1) or options.get("WeightsFormat", 0):
            raise ValueError(f"operator {kind} has options that no file of thaw has")
        if options.get("Padding", 0) not in (0, 1) or options.get("Beta", 1.0) != 1.0:
            raise ValueError(f"operator {kind} has options that no file of thaw has")
        if any(options.get(name) for name in ("KeepNumDims", "AsymmetricQuantizeInputs", "QuantizedBiasType")):
            raise ValueError(f"operator {kind} has options that no file of thaw has")
        return options


_OPTIONS = (
    "AsymmetricQuantizeInputs",
    "Axis",
    "Beta",
    "DepthMultiplier",
    "DilationHFactor",
    "DilationWFactor",
    "FilterHeight",
    "FilterWidth",
    "FusedActivationFunction",
    "KeepNumDims",
    "OutputType",
    "Padding",
    "QuantizedBiasType",
    "StrideH",
    "StrideW",
    "WeightsFormat",
)
