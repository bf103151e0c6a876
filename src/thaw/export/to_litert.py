"""Graph -> LiteRT (`.tflite`), float32 or full-integer int8, written from the graph without a converter.

Only operations of TensorFlow Lite for Microcontrollers are used. Each tensor of the graph keeps its name in the file;
in int8, a vector between dense layers is [1, 1, 1, C]. The input is raw pixels, uint8 [1, H, W, C]; the output is the
graph's last output, [1, ...].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.export.card import ModelCard, Precision
from thaw.export.litert_metadata import with_files
from thaw.export.litert_model import TYPES, Kind, ModelWriter
from thaw.graph.graph import Graph
from thaw.graph.ops import (
    Add,
    ArgMax,
    AveragePool2d,
    Concat,
    Conv2d,
    Convolution,
    Dense,
    DepthwiseConv2d,
    MaxPool2d,
    Operation,
    Relu,
    Requantize,
    Reshape,
    Scale,
    Softmax,
    Weighted,
)
from thaw.graph.tensors import Quantization

_SAME, _VALID = 0, 1
_KINDS = {
    "ADD": Kind(1, 2, "AddOptions"),
    "ARG_MAX": Kind(1, 2, "ArgMaxOptions"),
    "AVERAGE_POOL_2D": Kind(1, 2, "Pool2DOptions"),
    "CONCATENATION": Kind(1, 2, "ConcatenationOptions"),
    "CONV_2D": Kind(1, 3, "Conv2DOptions"),
    "DEPTHWISE_CONV_2D": Kind(1, 3, "DepthwiseConv2DOptions"),
    "DEQUANTIZE": Kind(2, 2, "DequantizeOptions"),
    "FULLY_CONNECTED": Kind(1, 4, "FullyConnectedOptions"),
    "MAX_POOL_2D": Kind(1, 2, "Pool2DOptions"),
    "MUL": Kind(1, 2, "MulOptions"),
    "PAD": Kind(1, 2, "PadOptions"),
    "QUANTIZE": Kind(2, 2, "QuantizeOptions"),
    "RELU": Kind(1, 2),
    "RESHAPE": Kind(1, 1, "ReshapeOptions"),
    "SOFTMAX": Kind(1, 2, "SoftmaxOptions"),
    "SUB": Kind(1, 2, "SubOptions"),
}

_ACTIVATIONS = {"none": 0, "relu": 1}

_MOST_CONCATENATED = 10
"""Maximum number of inputs of a concatenation in the kernels for microcontrollers."""


def export_litert(graphs: Mapping[Precision, Graph], card: ModelCard) -> dict[str, bytes]:
    """`model-float.tflite`, `model-int8.tflite` and an example: file name -> content.

    Args:
        graphs: the graphs by precision; one file per graph.
        card: the model card.

    Raises:
        MissingDependencyError: when the packages of the extra `litert` are missing.
    """
    files = {f"model-{precision}.tflite": write_litert(graph, card) for precision, graph in graphs.items()}
    examples = resources.files("thaw.export") / "examples"
    files["example.py"] = (examples / "litert_example.py").read_bytes()
    files["preprocess.py"] = (examples / "preprocess.py").read_bytes()
    return files


def write_litert(graph: Graph, card: ModelCard) -> bytes:
    """The content of a `.tflite` file; equal for an equal graph and card.

    Raises:
        MissingDependencyError: as `export_litert`.
    """
    writer = ModelWriter(graph, _KINDS)
    for op in graph.needed_ops():
        _WRITE[type(op)](writer, op)
    return with_files(writer.finish(card), card)


def _scale(writer: ModelWriter, op: Scale) -> None:
    # Convert through int8, since not all kernels for microcontrollers convert uint8 to float32.
    shape = (1, *writer.graph.tensor(op.output).shape)
    pixels = writer.scale_of(Quantization(scale=float(np.float32(1.0 / 255.0)), zero_point=-128))
    as_int8 = writer.tensor(f"{op.output}.int8", shape, "int8", pixels)
    as_float = writer.written(f"{op.output}.float", op.output)
    centered = writer.written(f"{op.output}.centered", op.output)
    mean = writer.constant(f"{op.name}.mean", np.array(op.mean), "float32")
    factor = writer.constant(f"{op.name}.factor", 1.0 / np.array(op.std), "float32")
    writer.add("QUANTIZE", [writer.index[op.inputs[0]]], as_int8)
    writer.add("DEQUANTIZE", [as_int8], as_float)
    writer.add("SUB", [as_float, mean], centered)
    writer.add("MUL", [centered, factor], writer.output(op))


def _conv2d(writer: ModelWriter, op: Conv2d) -> None:
    _convolution(writer, op, "CONV_2D", op.weights, 0)


def _depthwise_conv2d(writer: ModelWriter, op: DepthwiseConv2d) -> None:
    _convolution(writer, op, "DEPTHWISE_CONV_2D", op.weights[None], 3, DepthMultiplier=1)


def _convolution(
    writer: ModelWriter, op: Convolution, kind: str, weights: npt.NDArray[Any], axis: int, **options: int
) -> None:
    read, padding = writer.index[op.inputs[0]], _VALID
    if any(op.padding):
        if op.padding == _same_padding(op, writer.graph.tensor(op.inputs[0]).shape):
            padding = _SAME
        else:
            read = _pad(writer, op)
    writer.add(
        kind,
        [read, *_weights(writer, op, weights, axis)],
        writer.output(op),
        Padding=padding,
        StrideH=op.stride[0],
        StrideW=op.stride[1],
        FusedActivationFunction=_ACTIVATIONS[op.activation],
        **options,
    )


def _same_padding(op: Convolution, shape: Sequence[int]) -> tuple[int, ...]:
    """The padding "SAME" of the schema: a window for each stride, the odd row or column at the end."""
    sides: list[int] = []
    for size, length, step in zip(shape, op.kernel, op.stride, strict=False):
        total = max((-(-size // step) - 1) * step + length - size, 0)
        sides += [total // 2, total - total // 2]
    return tuple(sides)


def _pad(writer: ModelWriter, op: Convolution) -> int:
    """The padded input of `op`."""
    rows, columns, channels = writer.graph.tensor(op.inputs[0]).shape
    top, bottom, left, right = op.padding
    shape = (1, rows + top + bottom, columns + left + right, channels)
    sides = np.array([[0, 0], [top, bottom], [left, right], [0, 0]])
    padded = writer.written(f"{op.output}.padded", op.inputs[0], shape)
    writer.add("PAD", [writer.index[op.inputs[0]], writer.constant(f"{op.name}.padding", sides, "int32")], padded)
    return padded


def _dense(writer: ModelWriter, op: Dense) -> None:
    activation = _ACTIVATIONS[op.activation]
    if op.quantization is None:
        tensors = [writer.index[op.inputs[0]], *_weights(writer, op, op.weights, 0)]
        writer.add("FULLY_CONNECTED", tensors, writer.output(op), FusedActivationFunction=activation)
        return
    # In int8, a convolution of one pixel computes the same sums and rounds them by the specification. FULLY_CONNECTED
    # of LiteRT 2.3 rounds once instead of twice, even in its reference kernel, and older kernels for microcontrollers
    # do not support per-channel scales for it.
    read = writer.as_pixel(op.inputs[0])
    is_vector_read = writer.is_read_as_vector(op.output)
    name = f"{op.output}.pixel" if is_vector_read else op.output
    pixel = writer.written(name, op.output, (1, 1, 1, op.channels))
    tensors = [read, *_weights(writer, op, op.weights[:, None, None, :], 0)]
    writer.add("CONV_2D", tensors, pixel, Padding=_VALID, StrideH=1, StrideW=1, FusedActivationFunction=activation)
    writer.pixels[op.output] = pixel
    if is_vector_read:
        writer.reshape(pixel, writer.output(op), (1, op.channels))


def _weights(writer: ModelWriter, op: Weighted, weights: npt.NDArray[Any], axis: int) -> list[int]:
    """The tensors of weights and bias. They have no names, since the operator that reads them identifies them."""
    if op.weight_scales is None:
        return [writer.constant("", array, "float32") for array in (weights, op.bias)]
    read = writer.graph.tensor(op.inputs[0]).quantization
    if read is None:
        raise AssertionError("an operation with int8 weights reads a tensor with a scale")
    # No kernel uses the scales of a bias, but they must not be 0.
    bias_scales = np.maximum(np.float32(read.scale) * op.weight_scales, np.finfo(np.float32).tiny)
    return [
        writer.constant("", weights, "int8", writer.scales_of(op.weight_scales, axis)),
        writer.constant("", op.bias, "int32", writer.scales_of(bias_scales, 0)),
    ]


def _max_pool(writer: ModelWriter, op: MaxPool2d) -> None:
    _pool(writer, op, "MAX_POOL_2D")


def _average_pool(writer: ModelWriter, op: AveragePool2d) -> None:
    _pool(writer, op, "AVERAGE_POOL_2D")


def _pool(writer: ModelWriter, op: MaxPool2d | AveragePool2d, kind: str) -> None:
    (rows, columns), (down, across) = op.kernel, op.stride
    writer.add(
        kind,
        [writer.index[op.inputs[0]]],
        writer.output(op),
        Padding=_VALID,
        StrideH=down,
        StrideW=across,
        FilterHeight=rows,
        FilterWidth=columns,
    )


def _add(writer: ModelWriter, op: Add) -> None:
    terms = [writer.index[name] for name in op.inputs]
    writer.add("ADD", terms, writer.output(op), FusedActivationFunction=_ACTIVATIONS[op.activation])


def _relu(writer: ModelWriter, op: Relu) -> None:
    writer.add("RELU", [writer.index[op.inputs[0]]], writer.output(op))


def _softmax(writer: ModelWriter, op: Softmax) -> None:
    writer.add("SOFTMAX", [writer.index[op.inputs[0]]], writer.output(op), Beta=1.0)


def _argmax(writer: ModelWriter, op: ArgMax) -> None:
    axis = writer.constant(f"{op.name}.axis", np.array([1]), "int32")
    # The operator removes its axis; the reshape restores it.
    index = writer.written(f"{op.output}.index", op.output, (1,))
    writer.add("ARG_MAX", [writer.index[op.inputs[0]], axis], index, OutputType=TYPES["int32"])
    writer.reshape(index, writer.output(op), (1, 1))


def _concat(writer: ModelWriter, op: Concat) -> None:
    axis = len(writer.graph.tensor(op.output).shape)
    parts = [writer.index[name] for name in op.inputs]
    channels = [writer.graph.tensor(name).shape[-1] for name in op.inputs]
    shape = (1, *writer.graph.tensor(op.output).shape[:-1])
    while len(parts) > _MOST_CONCATENATED:
        first, channels = sum(channels[:_MOST_CONCATENATED]), channels[_MOST_CONCATENATED:]
        joined = writer.written(f"{op.output}.first{first}", op.output, (*shape, first))
        writer.add("CONCATENATION", parts[:_MOST_CONCATENATED], joined, Axis=axis)
        parts, channels = [joined, *parts[_MOST_CONCATENATED:]], [first, *channels]
    writer.add("CONCATENATION", parts, writer.output(op), Axis=axis)


def _reshape(writer: ModelWriter, op: Reshape) -> None:
    read = writer.index[op.inputs[0]]
    if writer.graph.tensor(op.inputs[0]).shape == (1, 1, *op.shape):
        writer.pixels[op.output] = read
    writer.reshape(read, writer.output(op), (1, *op.shape))


def _requantize(writer: ModelWriter, op: Requantize) -> None:
    writer.add("QUANTIZE", [writer.index[op.inputs[0]]], writer.output(op))


_WRITE: Mapping[type[Operation], Callable[[ModelWriter, Any], None]] = {
    Scale: _scale,
    Conv2d: _conv2d,
    DepthwiseConv2d: _depthwise_conv2d,
    Dense: _dense,
    MaxPool2d: _max_pool,
    AveragePool2d: _average_pool,
    Add: _add,
    Relu: _relu,
    Softmax: _softmax,
    ArgMax: _argmax,
    Concat: _concat,
    Reshape: _reshape,
    Requantize: _requantize,
}
