"""One step of a memory plan as C: its constants and the call of its kernel."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thaw.errors import UsageError
from thaw.graph import fixed_point
from thaw.graph.graph import Graph
from thaw.graph.ops import (
    Add,
    ArgMax,
    AveragePool2d,
    Concat,
    Conv2d,
    Dense,
    DepthwiseConv2d,
    MaxPool2d,
    Relu,
    Requantize,
    Reshape,
    Softmax,
    Weighted,
)
from thaw.graph.plan import MemoryPlan, Step
from thaw.graph.sharing import weights_owner
from thaw.graph.tensors import Quantization, Tensor
from thaw.quoting import c_comment, shown

KERNELS = (
    "common.c",
    "convolution_gather.c",
    "convolution_dot.c",
    "convolution_portable.c",
    "convolution_avx2.c",
    "convolution.c",
    "depthwise.c",
    "pool.c",
    "max_pool.c",
    "average_pool.c",
    "add.c",
    "relu.c",
    "requantize.c",
    "concat.c",
    "softmax.c",
    "argmax.c",
)
"""Kernel files, in the order of their dependencies."""

CONVOLUTION = ("common.c", *(name for name in KERNELS if name.startswith("convolution")))

_LARGEST_SUM = 2**30 - 1
_LARGEST_SIDE = 2**15 - 1


@dataclass(frozen=True, kw_only=True)
class Emitted:
    """A step in C.

    Attributes:
        kernels: the kernel files that it needs.
        constants: definitions of its constants; "" for none.
        call: one or more statements.
        offset: offset of the output in the arena.
        size: size of the output in bytes.
    """

    kernels: tuple[str, ...]
    constants: str
    call: str
    offset: int
    size: int


def emit_step(graph: Graph, plan: MemoryPlan, index: int) -> Emitted:
    """Step `index` of the plan of an int8 graph.

    Raises:
        UsageError: for sums that could exceed 30 bits, sides above 32,767, or a float32 operation.
    """
    return _Emitter(graph, plan, index).emit()


class _Emitter:
    def __init__(self, graph: Graph, plan: MemoryPlan, index: int) -> None:
        self.graph = graph
        self.plan = plan
        self.index = index
        self.step: Step = plan.steps[index]
        self.op = self.step.op
        self.reads = [graph.tensor(name) for name in self.op.inputs]
        self.written = graph.tensor(self.step.writes)
        sides = [side for tensor in (*self.reads, self.written) for side in tensor.shape[:2]]
        if max(sides) > _LARGEST_SIDE:
            raise UsageError(
                f"C: {shown(self.op.name)} has a side of {max(sides)}: expected at most {_LARGEST_SIDE}", code="usage-c"
            )

    def emit(self) -> Emitted:
        """The step."""
        match self.op:
            case Conv2d():
                kernels, constants, call = self._convolution(self.op)
            case Dense():
                kernels, constants, call = self._dense(self.op)
            case DepthwiseConv2d():
                kernels, constants, call = self._depthwise(self.op)
            case MaxPool2d() | AveragePool2d():
                kernels, constants, call = self._pooling(self.op)
            case Add():
                kernels, constants, call = self._addition(self.op)
            case Requantize():
                kernels, constants, call = self._requantization(self.op)
            case Softmax():
                kernels, constants, call = self._softmax()
            case _:
                kernels, constants, call = self._simple()
        size = self.written.elements * (4 if self.written.dtype == "int32" else 1)
        return Emitted(
            kernels=kernels,
            constants=constants,
            call=call,
            offset=self.plan.offsets[self.step.writes],
            size=size,
        )

    def _address(self, name: str) -> str:
        return f"thaw_arena.bytes + {self.plan.offsets[name]}"

    def _input(self, number: int = 0) -> str:
        """Address of an int8 input."""
        return self._address(self.op.inputs[number])

    def _raw_input(self) -> str:
        """Address of the input as raw bytes: the pixels, or int8 numbers."""
        if self._is_pixels():
            return "pixels"
        return f"(const uint8_t *)({self._input()})"

    def _is_pixels(self) -> bool:
        return self.op.inputs[0] in self.plan.pixels

    def _columns(self) -> str:
        return f"thaw_arena.columns + {self.plan.scratch_offsets[self.index] // 2}"

    @property
    def _layer(self) -> str:
        return f"&thaw_layer_{self.index}"

    @property
    def output(self) -> str:
        """Address of the output."""
        return self._address(self.step.writes)

    def _struct(self, kind: str, fields: Iterable[object]) -> str:
        values = textwrap.fill(", ".join(map(str, fields)), width=110, initial_indent="    ", subsequent_indent="    ")
        return f"/* {c_comment(self.op.name)} */\nstatic const {kind} thaw_layer_{self.index} = {{\n{values}}};\n"

    def _weighted_constants(self, op: Weighted, bias: npt.NDArray[np.int64]) -> str:
        """The arrays of an operation with weights; without the weights if an earlier step has them."""
        multipliers, shifts = op.output_multipliers(self.reads[0])
        _refuse_large_sums(op, bias, shifts)
        is_first = self._weights_step(op) == self.index
        return (
            (_array("int8_t", f"thaw_weights_{self.index}", op.packed_weights(), " THAW_WORDS") if is_first else "")
            + _array("int32_t", f"thaw_bias_{self.index}", bias)
            + _array("int32_t", f"thaw_multiplier_{self.index}", multipliers)
            + _array("int8_t", f"thaw_shift_{self.index}", shifts)
        )

    def _weights_step(self, op: Weighted) -> int:
        """The first step with the weights of `op`, which is not always the owner."""
        owners = (weights_owner(step.op) if isinstance(step.op, Weighted) else "" for step in self.plan.steps)
        return list(owners).index(weights_owner(op))

    def _arrays(self, op: Weighted) -> tuple[str, ...]:
        own = (f"thaw_{name}_{self.index}" for name in ("bias", "multiplier", "shift"))
        return (f"thaw_weights_{self._weights_step(op)}", *own)

    def _input_zero_point(self) -> int:
        """The zero point of the input; for pixels, on the scale of uint8."""
        return _quantization(self.reads[0]).zero_point + (128 if self._is_pixels() else 0)

    def _output_zero_point(self, op: Weighted) -> tuple[int, int]:
        """(zero point, smallest number) of the output."""
        zero_point = _quantization(self.written).zero_point
        return zero_point, zero_point if op.activation == "relu" else -128

    def _convolution(self, op: Conv2d) -> tuple[tuple[str, ...], str, str]:
        rows, columns, channels = self.reads[0].shape
        pool = self.step.pool
        return self._gathered(
            op,
            (rows, columns, channels, *op.kernel, *op.stride, op.padding[0], op.padding[2], *self.written.shape),
            (1, 1, 1, 1) if pool is None else (*pool.kernel, *pool.stride),
        )

    def _dense(self, op: Dense) -> tuple[tuple[str, ...], str, str]:
        # A convolution of one row, with a kernel as wide as the input.
        width = op.weights.shape[1]
        if width > _LARGEST_SIDE:
            raise UsageError(
                f"C: {shown(op.name)} has {width} inputs: expected at most {_LARGEST_SIDE}", code="usage-c"
            )
        return self._gathered(op, (1, width, 1, 1, width, 1, 1, 0, 0, 1, 1, op.channels), (1, 1, 1, 1))

    def _gathered(
        self, op: Conv2d | Dense, sizes: Sequence[int], pool: Sequence[int]
    ) -> tuple[tuple[str, ...], str, str]:
        zero_point = self._input_zero_point()
        sums = op.weights.reshape(op.channels, -1).sum(axis=1, dtype=np.int64)
        bias = op.bias.astype(np.int64) - zero_point * sums
        fields = (*self._arrays(op), *sizes, *pool, zero_point, *self._output_zero_point(op), int(self._is_pixels()))
        constants = self._weighted_constants(op, bias) + self._struct("thaw_convolution", fields)
        call = f"thaw_convolve({self._layer}, {self._raw_input()}, {self.output}, {self._columns()});"
        return CONVOLUTION, constants, call

    def _depthwise(self, op: DepthwiseConv2d) -> tuple[tuple[str, ...], str, str]:
        fields = (
            *self._arrays(op),
            *self.reads[0].shape,
            *op.kernel,
            *op.stride,
            op.padding[0],
            op.padding[2],
            *self.written.shape[:2],
            self._input_zero_point(),
            *self._output_zero_point(op),
            int(self._is_pixels()),
        )
        constants = self._weighted_constants(op, op.bias.astype(np.int64)) + self._struct("thaw_depthwise", fields)
        call = f"thaw_convolve_depthwise({self._layer}, {self._raw_input()}, {self.output});"
        return ("common.c", "depthwise.c"), constants, call

    def _pooling(self, op: MaxPool2d | AveragePool2d) -> tuple[tuple[str, ...], str, str]:
        name = "max_pool" if isinstance(op, MaxPool2d) else "average_pool"
        fields = (*self.reads[0].shape[1:], *op.kernel, *op.stride, *self.written.shape[:2])
        call = f"thaw_{name}({self._layer}, {self._input()}, {self.output});"
        return ("pool.c", f"{name}.c"), self._struct("thaw_pooling", fields), call

    def _addition(self, op: Add) -> tuple[tuple[str, ...], str, str]:
        first, second, written = (_quantization(tensor) for tensor in (*self.reads, self.written))
        multipliers, shifts = zip(*op.multipliers(self.reads), strict=True)
        zero_points = [each.zero_point for each in (first, second, written)]
        least = written.zero_point if op.activation == "relu" else -128
        fields = (_braced(multipliers), _braced(shifts), _braced(zero_points), least)
        call = f"thaw_add({self._layer}, {self._input()}, {self._input(1)}, {self.written.elements}, {self.output});"
        return ("common.c", "add.c"), self._struct("thaw_addition", fields), call

    def _requantization(self, op: Requantize) -> tuple[tuple[str, ...], str, str]:
        read, written = _quantization(self.reads[0]), op.quantization
        multiplier, shift = op.multiplier(self.reads[0])
        if 255 << max(shift, 0) > _LARGEST_SUM:
            raise UsageError(
                f"C: the output scale of {shown(op.name)} is {read.scale / written.scale:.3g} times finer",
                code="usage-c",
            )
        fields = (multiplier, shift, read.zero_point, written.zero_point, int(self.reads[0].dtype == "uint8"))
        call = f"thaw_requantize({self._layer}, {self._raw_or_pixels()}, {self.written.elements}, {self.output});"
        return ("common.c", "requantize.c"), self._struct("thaw_requantization", fields), call

    def _raw_or_pixels(self) -> str:
        return "pixels" if self.op.inputs[0] == self.graph.input else self._raw_input()

    def _softmax(self) -> tuple[tuple[str, ...], str, str]:
        multiplier, left, least = fixed_point.softmax_scaling(_quantization(self.reads[0]).scale)
        call = f"thaw_softmax({self._layer}, {self._input()}, {self.written.elements}, {self.output});"
        constants = self._struct("thaw_softmax_scale", (multiplier, left, max(least, -256)))
        return ("common.c", "softmax.c"), constants, call

    def _simple(self) -> tuple[tuple[str, ...], str, str]:
        """Operations without constants."""
        elements = self.written.elements
        match self.op:
            case Relu():
                zero_point = _quantization(self.written).zero_point
                return ("relu.c",), "", f"thaw_relu({self._input()}, {elements}, {zero_point}, {self.output});"
            case ArgMax():
                words = f"thaw_arena.words + {self.plan.offsets[self.step.writes] // 4}"
                return ("argmax.c",), "", f"thaw_argmax({self._input()}, {self.reads[0].elements}, {words});"
            case Concat():
                return ("concat.c",), "", self._concat_calls()
            case Reshape():
                # Only the pixels are copied: any other reshape shares its input's memory.
                return (), "", f"memcpy({self.output}, pixels, {elements});"
            case _:
                raise UsageError(
                    f"C: {self.op.kind} {shown(self.op.name)} is not an operation of an int8 graph", code="usage-c"
                )

    def _concat_calls(self) -> str:
        pitch = self.written.shape[-1]
        positions = self.written.elements // pitch
        lines, offset = [], self.plan.offsets[self.step.writes]
        for number, tensor in enumerate(self.reads):
            channels = tensor.shape[-1]
            lines.append(
                f"thaw_concat({self._input(number)}, {positions}, {channels}, {pitch}, thaw_arena.bytes + {offset});"
            )
            offset += channels
        return "\n    ".join(lines)


def _quantization(tensor: Tensor) -> Quantization:
    if tensor.quantization is None:
        raise UsageError(f"C: tensor {shown(tensor.name)} is {tensor.dtype}: expected an int8 graph", code="usage-c")
    return tensor.quantization


def _refuse_large_sums(op: Weighted, bias: npt.NDArray[np.int64], shifts: npt.NDArray[np.int64]) -> None:
    """Refuse int32 sums that could exceed 30 bits, before or after a left shift."""
    weights = op.by_channel(np.abs(op.weights.astype(np.int64)))
    largest = (weights.sum(axis=1) * 255 + np.abs(bias)) << np.maximum(shifts, 0)
    if int(largest.max()) > _LARGEST_SUM:
        raise UsageError(
            f"C: sums of {shown(op.name)} can reach {int(largest.max())}: expected at most {_LARGEST_SUM}",
            code="usage-c",
        )


def _braced(values: Iterable[int]) -> str:
    return "{" + ", ".join(map(str, values)) + "}"


def _array(kind: str, name: str, values: npt.NDArray[np.integer], attribute: str = "") -> str:
    numbers = ", ".join(str(value) if value != -(2**31) else "INT32_MIN" for value in values.tolist())
    lines = textwrap.fill(numbers, width=116, initial_indent="    ", subsequent_indent="    ")
    return f"static const {kind} {name}[{len(values)}]{attribute} = {{\n{lines}}};\n"
