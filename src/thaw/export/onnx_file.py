"""ONNX files as data: the `onnx` package, and the checks of a file before a runtime loads it.

Shapes: N images, H rows, W columns, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from types import ModuleType
from typing import Any

from thaw.errors import MissingDependencyError, ModelFileError
from thaw.quoting import shown

OPSET = 13
"""The first opset with per-channel scales of weights; supported by onnxruntime and onnxruntime-web since 2020."""

IR_VERSION = 7
"""The IR version of the same ONNX release (1.8)."""

MOST_ELEMENTS = 2**26
"""Maximum size of a tensor for one image. A file that exceeds it is rejected before memory is allocated."""


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


def read_onnx(content: bytes, operations: Collection[str]) -> Any:
    """The `ModelProto` of a consistent file that uses only the given operations.

    Raises:
        ModelFileError: for anything else: truncated, other operations, data in other files, tensors out of bounds.
    """
    onnx = onnx_package()
    try:
        model = onnx.ModelProto.FromString(content)
    except Exception as error:  # noqa: BLE001 (protobuf has a DecodeError for each of its implementations)
        raise ModelFileError(f"not an ONNX file, or a damaged one: {one_line(error)}", code="model-file-onnx") from None
    graph = model.graph
    if not graph.node or len(graph.input) != 1 or len(graph.output) != 1:
        raise ModelFileError(
            f"ONNX file with {len(graph.node)} operations, {len(graph.input)} inputs and {len(graph.output)} outputs: "
            "expected one image in and one result out",
            code="model-file-onnx",
        )
    # A string that is not UTF-8 is read as bytes.
    others = {repr(node.op_type[:80]) for node in graph.node if node.domain or node.op_type not in operations}
    if others or model.functions or graph.sparse_initializer:
        found = ", ".join(sorted(others)[:3]) or "functions or sparse tensors"
        raise ModelFileError(f"ONNX file with {found}: expected only what `thaw export` writes", code="model-file-onnx")
    for constant in graph.initializer:
        _check_constant(constant)
    _check_shapes(onnx, model)
    return model


def _check_constant(constant: Any) -> None:
    """Reject data in another file, since its path is not trusted, and constants without data."""
    if constant.external_data or constant.data_location:
        raise ModelFileError(
            f"ONNX file with external data for {shown(constant.name)}: expected all data inside", code="model-file-onnx"
        )
    if not constant.raw_data and 0 not in constant.dims:
        raise ModelFileError(
            f"ONNX file has no raw data for {shown(constant.name)}: expected what `thaw export` writes",
            code="model-file-onnx",
        )


def _check_shapes(onnx: ModuleType, model: Any) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except Exception as error:  # noqa: BLE001 (checker and inference raise several kinds, also bare RuntimeErrors)
        raise ModelFileError(f"ONNX file that contradicts itself: {one_line(error)}", code="model-file-onnx") from None
    graph = inferred.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        # The batch axis is symbolic: 0 in this field.
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if min(sizes, default=0) < 0 or math.prod(max(size, 1) for size in sizes) > MOST_ELEMENTS:
            raise ModelFileError(
                f"ONNX file with {shown(value.name)} of shape {sizes}: too large for a model of thaw",
                code="model-file-onnx",
            )


def with_all_outputs(model: Any) -> tuple[bytes, dict[str, str]]:
    """A copy of a model that also returns every tensor of the graph.

    The file declares exactly those tensors (`value_info`). The output of an int8 model is the dequantized form of the
    graph's last tensor; the copy returns that tensor itself.

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
"""Operations that the exporter may put between the graph's last tensor and the model's output."""


def one_line(error: Exception) -> str:
    """The message of an exception on one line, at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
