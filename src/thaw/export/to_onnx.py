"""A graph -> ONNX: float32, and int8 with QuantizeLinear and DequantizeLinear around every operation (QDQ).

The model takes raw pixels, uint8 [N, H, W, C], and returns float32 [N, K], in its int8 form too. ONNX feature maps are
[N, C, H, W], so the pixels are transposed first, and a map is transposed back before it becomes a vector.

Each tensor of the graph keeps its name in the file, which declares it (`value_info`); intermediate tensors are not
declared. Only the last tensor of an int8 model has another name, since the output is its dequantized form.

In QDQ form, a runtime reads the real-valued network and the scale of every tensor, and fuses DequantizeLinear,
operation and QuantizeLinear into one integer operation. Two details make this possible in onnxruntime on any processor:

- int8 activations and their zero points are stored as uint8, 128 higher, which represents the same real values. On x86
  onnxruntime only computes with uint8 activations and int8 weights; the first layer then takes the pixels directly.
- No Relu comes between an operation and its QuantizeLinear. If the zero point is the smallest number, saturation has
  the same effect; otherwise the numbers are clipped after it.

Shapes: N images, H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw._version import __version__
from thaw.export.card import ModelCard, Precision
from thaw.export.onnx_file import IR_VERSION, OPSET, onnx_package
from thaw.graph.graph import Graph
from thaw.graph.ops import (
    Activation,
    Add,
    ArgMax,
    AveragePool2d,
    Concat,
    Conv2d,
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
from thaw.graph.tensors import Shape, Tensor
from thaw.quoting import json_text, printable

OPERATIONS = frozenset(
    {"Add", "ArgMax", "AveragePool", "Cast", "Clip", "Concat", "Conv", "DequantizeLinear", "Gemm", "Identity"}
    | {"MaxPool", "Mul", "QuantizeLinear", "Relu", "Reshape", "Softmax", "Transpose"}
)
"""All operations that the exporter writes. None of them loops, calls functions, reads files, or enlarges a tensor."""

BATCH_AXIS = "N"
_TO_NCHW, _TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
_TO_UINT8 = 128
"""The offset of stored numbers from the int8 numbers of the graph."""


def export_onnx(graphs: Mapping[Precision, Graph], card: ModelCard) -> dict[str, bytes]:
    """The files of the ONNX folder: a model for each graph, and a program that runs them on image files.

    The models return the graph's last output. Their metadata contain the card as JSON.

    Args:
        graphs: the graphs by precision; at least one.
        card: the model card.

    Returns:
        content by file name; the same bytes for the same arguments and version of `onnx`.

    Raises:
        MissingDependencyError: when `onnx` is not installed.
    """
    made = {f"model-{precision}.onnx": _model(graph, card) for precision, graph in sorted(graphs.items())}
    examples = files("thaw.export") / "examples"
    for name, source in (("example.py", "onnx_example.py"), ("preprocess.py", "preprocess.py")):
        made[name] = (examples / source).read_bytes()
    return made


def _model(graph: Graph, card: ModelCard) -> bytes:
    onnx = onnx_package()
    writer = _Writer(graph)
    model = onnx.helper.make_model(
        writer.graph_proto(printable(card.name) or "thaw"),
        producer_name="thaw",
        producer_version=__version__,
        ir_version=IR_VERSION,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    )
    facts = {printable(key): json_text(value, sort_keys=True) for key, value in sorted(card.as_dict().items())}
    onnx.helper.set_model_props(model, facts)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


class _Writer:
    """The nodes so far, and the constants that they read."""

    def __init__(self, graph: Graph) -> None:
        self.onnx = onnx_package()
        self.graph = graph
        self.output = graph.tensor(graph.outputs[-1])
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.taken = {tensor.name for tensor in graph.tensors}
        # Tensor -> name in the file, if it differs from the name in the graph.
        self.renamed = {graph.input: self.fresh(f"{graph.input}.nchw")}
        if self.output.dtype == "int8":
            self.renamed[self.output.name] = self.fresh(f"{self.output.name}.int8")
        elif len(self.output.shape) == 3:
            self.renamed[self.output.name] = self.fresh(f"{self.output.name}.nchw")

    def graph_proto(self, name: str) -> Any:
        """The part of the graph that its last output depends on."""
        ops = self.graph.needed_ops()
        self.node("Transpose", [self.graph.input], self.name(self.graph.input), perm=_TO_NCHW)
        for op in ops:
            _WRITE[type(op)](self, op)
        self._write_output()
        image = self.graph.tensor(self.graph.input)
        inner = [op.output for op in ops if self.name(op.output) != self.output.name]
        return self.onnx.helper.make_graph(
            self.nodes,
            name,
            inputs=[self._declared(image.name, "uint8", image.shape)],
            outputs=[self._declared(self.output.name, _without_scale(self.output), self.output.shape)],
            initializer=list(self.constants.values()),
            value_info=[self._declared_inner(self.graph.tensor(name)) for name in inner],
        )

    def _write_output(self) -> None:
        """The model's output from the graph's last tensor: real numbers, a map as [N, H, W, C]."""
        made = self.name(self.output.name)
        if self.output.dtype == "int8":
            last = self.output.name if len(self.output.shape) == 1 else self.fresh(f"{self.output.name}.nchw")
            made = self.dequantized(self.output, last)
        if made != self.output.name:
            self.node("Transpose", [made], self.output.name, perm=_TO_NHWC)

    def _declared(self, name: str, dtype: str, shape: Sequence[int]) -> Any:
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.onnx.helper.make_tensor_value_info(name, kind, [BATCH_AXIS, *shape])

    def _declared_inner(self, tensor: Tensor) -> Any:
        dtype = "uint8" if tensor.dtype == "int8" else tensor.dtype
        return self._declared(self.name(tensor.name), dtype, _channels_first(tensor.shape))

    def fresh(self, name: str) -> str:
        """`name`, or a similar one if it is taken."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def name(self, tensor: str) -> str:
        """The name in the file of a tensor of the graph."""
        return self.renamed.get(tensor, tensor)

    def node(self, kind: str, reads: Sequence[str], written: str, **attributes: Any) -> str:
        """Append an ONNX operation; returns the name of its output."""
        self.nodes.append(self.onnx.helper.make_node(kind, reads, [written], name=f"{kind} {written}", **attributes))
        return written

    def constant(self, name: str, values: npt.ArrayLike, dtype: str) -> str:
        """Append a constant; returns its name."""
        fresh = self.fresh(name)
        self.constants[fresh] = self.onnx.numpy_helper.from_array(np.array(values, dtype, order="C"), fresh)
        return fresh

    def scale_and_zero_point(self, tensor: Tensor) -> list[str]:
        """The two constants of a tensor with a scale, created once."""
        names = [f"{self.name(tensor.name)}.{part}" for part in ("scale", "zero_point")]
        if names[0] in self.constants:
            return names
        scale, zero_point = _stored(tensor)
        return [self.constant(names[0], scale, "float32"), self.constant(names[1], zero_point, "uint8")]

    def read(self, name: str) -> str:
        """The real values of a tensor: itself, or dequantized for this reader only, so that runtimes can fuse it."""
        tensor = self.graph.tensor(name)
        if tensor.quantization is None:
            return self.name(name)
        return self.dequantized(tensor, self.fresh(f"{name}.real"))

    def dequantized(self, tensor: Tensor, written: str) -> str:
        """The real values of a tensor with a scale, under the name `written`."""
        return self.node("DequantizeLinear", [self.name(tensor.name), *self.scale_and_zero_point(tensor)], written)

    def quantized(self, tensor: Tensor, real: str, written: str) -> str:
        """Real values as the numbers of an int8 tensor, under the name `written`."""
        return self.node("QuantizeLinear", [real, *self.scale_and_zero_point(tensor)], written)

    def compute(
        self, op: Operation, kind: str, reads: Sequence[str], activation: Activation = "none", **attributes: Any
    ) -> None:
        """Append `kind` on real values, the activation, and in an int8 graph the quantization of the output."""
        tensor, written = self.graph.tensor(op.output), self.name(op.output)
        if tensor.quantization is None:
            sums = written if activation == "none" else self.fresh(f"{op.output}.before_relu")
            self.node(kind, reads, sums, **attributes)
            if activation == "relu":
                self.node("Relu", [sums], written)
            return
        real = self.node(kind, reads, self.fresh(f"{op.output}.computed"), **attributes)
        if activation == "none" or _stored(tensor)[1] == 0:
            self.quantized(tensor, real, written)
            return
        self.clip(tensor, self.quantized(tensor, real, self.fresh(f"{op.output}.before_relu")))

    def clip(self, tensor: Tensor, read: str) -> None:
        """Append the ReLU of an int8 tensor, which clips at the zero point."""
        least = self.constant(f"{tensor.name}.least", _stored(tensor)[1], "uint8")
        self.node("Clip", [read, least], self.name(tensor.name))

    def weights(self, op: Weighted, array: npt.NDArray[Any]) -> list[str]:
        """Names of the weights and of the biases; `array` has the weights with output channels first."""
        read = self.graph.tensor(op.inputs[0]).quantization
        if op.weight_scales is None or read is None:
            return [
                self.constant(f"{op.name}.weights", array, "float32"),
                self.constant(f"{op.name}.bias", op.bias, "float32"),
            ]
        zeros = np.zeros(op.channels, np.int8)
        return [
            self._dequantized_constant(f"{op.name}.weights", array, op.weight_scales, zeros),
            self._dequantized_constant(f"{op.name}.bias", op.bias, np.float32(read.scale) * op.weight_scales, None),
        ]

    def _dequantized_constant(
        self, name: str, array: npt.NDArray[Any], scales: npt.NDArray[np.float32], zeros: npt.NDArray[np.int8] | None
    ) -> str:
        # Shared weights are written for each operation: with "session.x64quantprecision", onnxruntime 1.32 refuses a
        # model in which two nodes read them.
        reads = [self.constant(name, array, array.dtype.name), self.constant(f"{name}.scales", scales, "float32")]
        if zeros is not None:
            reads.append(self.constant(f"{name}.zero_points", zeros, "int8"))
        return self.node("DequantizeLinear", reads, self.fresh(f"{name}.real"), axis=0)


def _scale(writer: _Writer, op: Scale) -> None:
    image = writer.node("Cast", [writer.name(op.inputs[0])], writer.fresh(f"{op.output}.pixels"), to=1)
    std, mean = (np.array(values, np.float64).reshape(-1, 1, 1) for values in (op.std, op.mean))
    factor = writer.constant(f"{op.name}.factor", 1.0 / (255.0 * std), "float32")
    offset = writer.constant(f"{op.name}.offset", -mean / std, "float32")
    scaled = writer.node("Mul", [image, factor], writer.fresh(f"{op.output}.scaled"))
    writer.node("Add", [scaled, offset], writer.name(op.output))


def _conv2d(writer: _Writer, op: Conv2d) -> None:
    _convolve(writer, op, op.weights.transpose(0, 3, 1, 2), group=1)


def _depthwise_conv2d(writer: _Writer, op: DepthwiseConv2d) -> None:
    _convolve(writer, op, op.weights.transpose(2, 0, 1)[:, None], group=op.channels)


def _convolve(writer: _Writer, op: Conv2d | DepthwiseConv2d, weights: npt.NDArray[Any], *, group: int) -> None:
    """Weights [C', C / group, kh, kw]."""
    top, bottom, left, right = op.padding
    writer.compute(
        op,
        "Conv",
        [writer.read(op.inputs[0]), *writer.weights(op, weights)],
        op.activation,
        group=group,
        kernel_shape=op.kernel,
        pads=(top, left, bottom, right),
        strides=op.stride,
    )


def _dense(writer: _Writer, op: Dense) -> None:
    reads = [writer.read(op.inputs[0]), *writer.weights(op, op.weights)]
    writer.compute(op, "Gemm", reads, op.activation, transB=1)


def _pool(kind: str) -> Callable[[_Writer, MaxPool2d | AveragePool2d], None]:
    def write(writer: _Writer, op: MaxPool2d | AveragePool2d) -> None:
        writer.compute(op, kind, [writer.read(op.inputs[0])], kernel_shape=op.kernel, strides=op.stride)

    return write


def _add(writer: _Writer, op: Add) -> None:
    writer.compute(op, "Add", [writer.read(name) for name in op.inputs], op.activation)


def _relu(writer: _Writer, op: Relu) -> None:
    tensor, read = writer.graph.tensor(op.output), writer.name(op.inputs[0])
    if tensor.quantization is None:
        writer.node("Relu", [read], writer.name(op.output))
    else:
        writer.clip(tensor, read)


def _softmax(writer: _Writer, op: Softmax) -> None:
    writer.compute(op, "Softmax", [writer.read(op.inputs[0])], axis=-1)


def _argmax(writer: _Writer, op: ArgMax) -> None:
    # On int8 numbers, whose order is that of the real values.
    index = writer.fresh(f"{op.output}.int64")
    writer.node("ArgMax", [writer.name(op.inputs[0])], index, axis=-1, keepdims=1)
    writer.node("Cast", [index], writer.name(op.output), to=writer.onnx.TensorProto.INT32)


def _concat(writer: _Writer, op: Concat) -> None:
    writer.compute(op, "Concat", [writer.read(name) for name in op.inputs], axis=1)


def _reshape(writer: _Writer, op: Reshape) -> None:
    """Transposed to [N, H, W, C] and back where the order differs; directly on int8 numbers."""
    read, values = writer.graph.tensor(op.inputs[0]).shape, writer.name(op.inputs[0])
    if _has_order(read):
        values = writer.node("Transpose", [values], writer.fresh(f"{op.output}.nhwc"), perm=_TO_NHWC)
    turns = _has_order(op.shape)
    reshaped = writer.fresh(f"{op.output}.reshaped") if turns else writer.name(op.output)
    # 0 keeps the axis.
    sizes = writer.constant(f"{op.name}.shape", (0, *(op.shape if turns else _channels_first(op.shape))), "int64")
    writer.node("Reshape", [values, sizes], reshaped)
    if turns:
        writer.node("Transpose", [reshaped], writer.name(op.output), perm=_TO_NCHW)


def _requantize(writer: _Writer, op: Requantize) -> None:
    read, written = writer.graph.tensor(op.inputs[0]), writer.graph.tensor(op.output)
    if _stored(read) != _stored(written):
        writer.quantized(written, writer.read(read.name), writer.name(written.name))
    else:
        writer.node("Identity", [writer.name(read.name)], writer.name(written.name))


_WRITE: Mapping[type[Operation], Callable[[_Writer, Any], None]] = {
    Scale: _scale,
    Conv2d: _conv2d,
    DepthwiseConv2d: _depthwise_conv2d,
    Dense: _dense,
    MaxPool2d: _pool("MaxPool"),
    AveragePool2d: _pool("AveragePool"),
    Add: _add,
    Relu: _relu,
    Softmax: _softmax,
    ArgMax: _argmax,
    Concat: _concat,
    Reshape: _reshape,
    Requantize: _requantize,
}


def _stored(tensor: Tensor) -> tuple[float, int]:
    """Scale and zero point in the file of a tensor of an int8 graph."""
    if tensor.quantization is None:
        raise AssertionError("the tensors of an int8 graph have scales")
    zero_point = tensor.quantization.zero_point
    return tensor.quantization.scale, zero_point + _TO_UINT8 if tensor.dtype == "int8" else zero_point


def _channels_first(shape: Shape) -> Shape:
    """(H, W, C) -> (C, H, W); a vector unchanged."""
    return (shape[2], *shape[:2]) if len(shape) == 3 else shape


def _has_order(shape: Shape) -> bool:
    """Whether (H, W, C) and (C, H, W) are different orders of the same values."""
    return len(shape) == 3 and shape[2] > 1 and shape[0] * shape[1] > 1


def _without_scale(tensor: Tensor) -> str:
    """The dtype of a tensor after dequantization."""
    return "float32" if tensor.dtype == "int8" else tensor.dtype
