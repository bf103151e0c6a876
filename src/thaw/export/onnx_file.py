"""ONNX files as data: the `onnx` package, and what a file has to be like before a runtime is given it.

The only file that imports `onnx`. Shapes: N images, H rows, W columns, C channels.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

from thaw.errors import MissingDependencyError, ModelFileError
from thaw.quoting import shown

OPSET = 13
"""The first in which weights may have a scale a channel; every onnxruntime and onnxruntime-web since 2020 takes it."""

IR_VERSION = 7
"""That of the same release of ONNX (1.8)."""

OPERATIONS = frozenset(
    {"Add", "ArgMax", "AveragePool", "Cast", "Clip", "Concat", "Conv", "DequantizeLinear", "Gemm", "Identity"}
    | {"MaxPool", "Mul", "QuantizeLinear", "Relu", "Reshape", "Softmax", "Transpose"}
)
"""All that the exporter writes. None loops, calls, reads files, or makes a tensor larger than its inputs say."""

MOST_ELEMENTS = 2**26
"""Of one tensor for one image: a file that asks for more is refused before memory is taken."""


def onnx_package() -> ModuleType:
    """The `onnx` package.

    Raises:
        MissingDependencyError: when it is not installed.
    """
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
        import onnx.shape_inference
    except ImportError as error:
        raise MissingDependencyError(f"ONNX files need {error.name or 'onnx'}: pip install 'thaw-cnn[onnx]'") from None
    return onnx


def read_onnx(content: bytes) -> Any:
    """The `ModelProto` of a file that holds together and keeps to what `export_onnx` writes.

    Raises:
        ModelFileError: for anything else: truncated, other operations, data in other files, tensors out of bounds.
    """
    onnx = onnx_package()
    try:
        model = onnx.ModelProto.FromString(content)
    except Exception as error:  # noqa: BLE001 (protobuf has a DecodeError for each of its implementations)
        raise ModelFileError(f"not an ONNX file, or a damaged one: {_line(error)}") from None
    graph = model.graph
    if not graph.node or len(graph.input) != 1 or len(graph.output) != 1:
        raise ModelFileError(
            f"ONNX file with {len(graph.node)} operations, {len(graph.input)} inputs and {len(graph.output)} outputs: "
            "expected one image in and one result out"
        )
    # A text that is not UTF-8 comes as bytes.
    others = {repr(node.op_type[:80]) for node in graph.node if node.domain or node.op_type not in OPERATIONS}
    if others or model.functions or graph.sparse_initializer:
        told = ", ".join(sorted(others)[:3]) or "functions or sparse tensors"
        raise ModelFileError(f"ONNX file with {told}: expected only what `thaw export` writes")
    for constant in graph.initializer:
        _check_constant(constant)
    _check_shapes(onnx, model)
    return model


def _check_constant(constant: Any) -> None:
    """Refuse data kept in another file, whose path could lead anywhere, and sizes that are not those of the data."""
    if constant.external_data or constant.data_location:
        raise ModelFileError(f"ONNX file keeps {shown(constant.name)} in another file: expected all data inside")
    if not constant.raw_data and 0 not in constant.dims:
        raise ModelFileError(
            f"ONNX file has no raw data for {shown(constant.name)}: expected what `thaw export` writes"
        )


def _check_shapes(onnx: ModuleType, model: Any) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except Exception as error:  # noqa: BLE001 (checker and inference raise several kinds, also bare RuntimeErrors)
        raise ModelFileError(f"ONNX file that contradicts itself: {_line(error)}") from None
    graph = inferred.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        # The batch axis is symbolic: 0 in this field.
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if min(sizes, default=0) < 0 or math.prod(max(size, 1) for size in sizes) > MOST_ELEMENTS:
            raise ModelFileError(f"ONNX file with {shown(value.name)} of shape {sizes}: too large for a model of thaw")


def with_all_outputs(model: Any) -> tuple[bytes, dict[str, str]]:
    """A copy of a model that gives every tensor of the graph it was made from, and what they are called in the copy.

    The file declares exactly those tensors (`value_info`). The output of an int8 model is the dequantized form of the
    graph's last tensor; the copy gives that tensor itself.

    Returns:
        the copy, and {name of the graph's tensor: name of the copy's output}.
    """
    onnx = onnx_package()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    declared = {value.name: value for value in copy.graph.value_info}
    names = {name: name for name in declared}
    last = source = copy.graph.output[0].name
    writers = {name: node for node in copy.graph.node for name in node.output}
    while source not in declared and source in writers and writers[source].op_type in _WRAPPERS:
        source = writers[source].input[0]
    names.pop(source, None)
    names[last] = source
    copy.graph.output.extend(declared.values())
    return copy.SerializeToString(deterministic=True), names


_WRAPPERS = frozenset({"DequantizeLinear", "Transpose"})
"""What the exporter may put between the graph's last tensor and the model's output."""


def _line(error: Exception) -> str:
    """The first lines of a message, as one of moderate length."""
    return " ".join(str(error).split())[:200] or type(error).__name__
