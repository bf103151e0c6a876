"""What LiteRT's kernels take for granted of each operator in a file that `thaw export` wrote.

Shapes are those of the file, with a batch axis of 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.graph.fixed_point import quantize_multiplier
from thaw.graph.interpret import add_multipliers
from thaw.graph.tensors import SOFTMAX_QUANTIZATION, DType, Quantization

_SOFTMAX_SCALE_ABOVE = 2.0**-26
"""LiteRT's softmax of int8 scores ends the process over a scale that is not: 31 bits, of which 5 are whole ones."""

_OUTPUT_STEPS_BELOW = 256
"""XNNPACK ends the process where a step of a weighted sum is not less than that many steps of the output."""

_SAME = 0
_MOST_STRIDE = 1 << 16


@dataclass(frozen=True, eq=False)
class FileTensor:
    """A tensor of a file.

    Attributes:
        name: text, perhaps empty.
        shape: each side at least 1.
        dtype: of what it holds.
        content: its values where they are in the file.
        scales: float32, one, or one a channel along `axis`; none for tensors that have no scale.
        zero_point: 0 where there are several scales.
        axis: that of several scales.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    content: npt.NDArray[Any] | None
    scales: npt.NDArray[np.float32]
    zero_point: int
    axis: int

    @property
    def quantization(self) -> Quantization | None:
        """The scale of the whole tensor, where it has one."""
        return Quantization(scale=float(self.scales[0]), zero_point=self.zero_point) if len(self.scales) == 1 else None


Reads = Sequence[FileTensor]
Options = Mapping[str, Any]
Rule = Callable[[Reads, FileTensor, Options], None]


def check_operator(kind: str, reads: Reads, written: FileTensor, options: Options) -> None:
    """Refuse an operator whose kernel could fail over it.

    Args:
        kind: the operator's name in the schema.
        reads: what it reads, in order.
        written: what it writes.
        options: by name.

    Raises:
        ValueError: naming the operator and what is wrong.
    """
    try:
        _RULES[kind](reads, written, options)
    except (ValueError, IndexError, OverflowError) as error:
        raise ValueError(f"operator {kind} that writes {written.name!r}: {error}") from None


def _need(condition: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"expected {expected}")


def _need_alike(*tensors: FileTensor) -> None:
    """One dtype, float32 or int8, and one scale."""
    _need(len({tensor.dtype for tensor in tensors}) == 1, "tensors of one type")
    _need(tensors[0].dtype == "float32" or len({_one_scale(tensor) for tensor in tensors}) == 1, "tensors of one scale")
    _need(tensors[0].dtype in ("float32", "int8"), "float32 or int8")


def _one_scale(tensor: FileTensor) -> Quantization:
    if tensor.quantization is None:
        raise ValueError(f"expected one scale for {tensor.name!r}")
    return tensor.quantization


def _requantize(reads: Reads, written: FileTensor, _options: Options) -> None:
    (read,) = reads
    _need(read.dtype in ("uint8", "int8") and written.dtype == "int8", "uint8 or int8 to int8")
    _need(read.shape == written.shape, "one shape")
    _need_multiplier(_one_scale(read).scale / _one_scale(written).scale)


def _dequantize(reads: Reads, written: FileTensor, _options: Options) -> None:
    (read,) = reads
    _need(read.dtype == "int8" and written.dtype == "float32" and read.shape == written.shape, "int8 to float32")
    _one_scale(read)


def _by_channel(reads: Reads, written: FileTensor, _options: Options) -> None:
    read, constant = reads
    _need({read.dtype, constant.dtype, written.dtype} == {"float32"}, "float32")
    _need(read.shape == written.shape and constant.shape == read.shape[-1:], "one number a channel")


def _pad(reads: Reads, written: FileTensor, _options: Options) -> None:
    read, sides = reads
    _need_alike(read, written)
    _need(sides.dtype == "int32" and sides.content is not None and sides.shape == (4, 2), "the padding of four axes")
    pairs = [] if sides.content is None else sides.content.tolist()
    _need(all(0 <= side <= 1 << 16 for pair in pairs for side in pair), "padding of at least 0")
    grown = [size + sum(pair) for size, pair in zip(read.shape, pairs, strict=True)]
    _need(list(written.shape) == grown and written.shape[0] == 1, f"it to write {grown}")


def _conv2d(reads: Reads, written: FileTensor, options: Options) -> None:
    read, weights, bias = reads
    channels, rows, columns, _ = weights.shape
    _need(weights.shape[3] == read.shape[3], "as many channels in weights as in what it reads")
    _need_weighted(read, weights, bias, written, 0)
    _need(written.shape == (1, *_windows(read, (rows, columns), options), channels), "another output shape")


def _depthwise(reads: Reads, written: FileTensor, options: Options) -> None:
    read, weights, bias = reads
    _, rows, columns, channels = weights.shape
    _need(options["DepthMultiplier"] == 1 and weights.shape[0] == 1, "one filter a channel")
    _need(channels == read.shape[3], "as many channels in weights as in what it reads")
    _need_weighted(read, weights, bias, written, 3)
    _need(written.shape == (1, *_windows(read, (rows, columns), options), channels), "another output shape")


def _fully_connected(reads: Reads, written: FileTensor, _options: Options) -> None:
    read, weights, bias = reads
    _need({tensor.dtype for tensor in (*reads, written)} == {"float32"}, "float32")
    _need(weights.content is not None and bias.content is not None, "weights in the file")
    outputs, inputs = weights.shape
    _need((read.shape, bias.shape, written.shape) == ((1, inputs), (outputs,), (1, outputs)), "shapes that fit")


def _need_weighted(
    read: FileTensor, weights: FileTensor, bias: FileTensor, written: FileTensor, channel_axis: int
) -> None:
    channels = weights.shape[channel_axis]
    _need(weights.content is not None and bias.content is not None and bias.shape == (channels,), "weights and biases")
    dtypes = (read.dtype, weights.dtype, bias.dtype, written.dtype)
    _need(dtypes in (("float32",) * 4, ("int8", "int8", "int32", "int8")), "float32, or int8 with int32 biases")
    if read.dtype == "float32":
        return
    _need(len(weights.scales) == channels, "one scale a channel")
    _need(channels == 1 or weights.axis == channel_axis, f"scales along axis {channel_axis}")
    _need(not len(bias.scales) or (len(bias.scales) == channels and bias.axis == 0), "as many scales of biases")
    _need(weights.zero_point == bias.zero_point == 0, "weights with zero point 0")
    ratio = _one_scale(read).scale / _one_scale(written).scale
    _need(ratio * float(weights.scales.max()) < _OUTPUT_STEPS_BELOW, "a scale of the output that is not so fine")


def _need_multiplier(real: float) -> None:
    """A factor within what its fixed-point form can hold."""
    _need(math.isfinite(real) and quantize_multiplier(real)[1] < 31, "scales nearer to each other")


def _windows(read: FileTensor, kernel: tuple[int, int], options: Options) -> tuple[int, ...]:
    """How many windows there are down and across."""
    strides = (options["StrideH"], options["StrideW"])
    _need(all(1 <= stride <= _MOST_STRIDE for stride in strides), "strides of at least 1")
    _need(all(options.get(f"Dilation{axis}Factor", 1) == 1 for axis in "HW"), "no dilation")
    sizes = read.shape[1:3]
    if options["Padding"] == _SAME:
        return tuple(-(-size // stride) for size, stride in zip(sizes, strides, strict=True))
    _need(all(1 <= length <= size for length, size in zip(kernel, sizes, strict=True)), "a window that fits")
    return tuple((size - length) // stride + 1 for size, length, stride in zip(sizes, kernel, strides, strict=True))


def _pool(reads: Reads, written: FileTensor, options: Options) -> None:
    (read,) = reads
    _need_alike(read, written)
    _need(options["Padding"] != _SAME, "no padding")
    windows = _windows(read, (options["FilterHeight"], options["FilterWidth"]), options)
    _need(written.shape == (1, *windows, read.shape[3]), "another output shape")


def _add(reads: Reads, written: FileTensor, _options: Options) -> None:
    first, second = reads
    _need(first.shape == second.shape == written.shape, "one shape")
    _need((first.dtype, second.dtype, written.dtype) in (("float32",) * 3, ("int8",) * 3), "float32 or int8")
    if first.dtype == "int8":
        scales = [_one_scale(tensor) for tensor in (first, second, written)]
        multiplier, shift = add_multipliers(*scales)[-1]
        # LiteRT ends the process over a multiplier of 1 or more.
        _need(multiplier == 0 or shift <= 0, f"a scale of the sum that is not as fine as {scales[-1].scale:g}")


def _concat(reads: Reads, written: FileTensor, options: Options) -> None:
    _need_alike(*reads, written)
    _need(options["Axis"] == len(written.shape) - 1, "the last axis")
    _need(all(read.shape[:-1] == written.shape[:-1] for read in reads), "shapes that differ in their last axis only")
    _need(sum(read.shape[-1] for read in reads) == written.shape[-1], "as many channels as go in")


def _softmax(reads: Reads, written: FileTensor, _options: Options) -> None:
    (read,) = reads
    _need(read.shape == written.shape and len(read.shape) == 2, "a vector")
    _need(read.dtype == written.dtype and read.dtype in ("float32", "int8"), "float32 or int8")
    if read.dtype == "int8":
        _need(_one_scale(read).scale > _SOFTMAX_SCALE_ABOVE, f"a scale of its scores above {_SOFTMAX_SCALE_ABOVE:g}")
        _need(_one_scale(written) == SOFTMAX_QUANTIZATION, "probabilities on the scale 1/256")


def _relu(reads: Reads, written: FileTensor, _options: Options) -> None:
    (read,) = reads
    _need_alike(read, written)
    _need(read.shape == written.shape, "one shape")


def _reshape(reads: Reads, written: FileTensor, options: Options) -> None:
    (read,) = reads
    if read.dtype != "int32":
        _need_alike(read, written)
    _need(read.dtype == written.dtype and math.prod(read.shape) == math.prod(written.shape), "as many values")
    _need(options["NewShape"] == written.shape, "the shape of what it writes")


def _argmax(reads: Reads, written: FileTensor, options: Options) -> None:
    read, axis = reads
    _need(axis.dtype == "int32" and axis.content is not None and axis.content.tolist() == [1], "axis 1")
    _need(read.dtype in ("float32", "int8") and len(read.shape) == 2, "a vector")
    _need(written.dtype == "int32" and written.shape == (1,) and options["OutputType"] == 2, "an int32 index")


_RULES: Mapping[str, Rule] = {
    "ADD": _add,
    "ARG_MAX": _argmax,
    "AVERAGE_POOL_2D": _pool,
    "CONCATENATION": _concat,
    "CONV_2D": _conv2d,
    "DEPTHWISE_CONV_2D": _depthwise,
    "DEQUANTIZE": _dequantize,
    "FULLY_CONNECTED": _fully_connected,
    "MAX_POOL_2D": _pool,
    "MUL": _by_channel,
    "PAD": _pad,
    "QUANTIZE": _requantize,
    "RELU": _relu,
    "RESHAPE": _reshape,
    "SOFTMAX": _softmax,
    "SUB": _by_channel,
}
