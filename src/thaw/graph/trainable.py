"""A graph that trains: a torch module that computes what the int8 graph made of it computes, to the byte.

Beside `lower.py` this is the only file of the room that knows torch: gradients need it, and the arithmetic belongs with
that of `interpret.py` and `fixed_point.py`, to which tests hold it. The whole numbers of an int8 graph are held exactly
in floats. Rounding passes gradients straight through; what a range cuts off passes none. The int8 weights, scales and
multipliers are made by `quantize` itself in each pass, so there is no second definition of them. Operations that share
weights train one tensor, and a factor above 0 for each channel of each of them but the first.

Shapes: B batch, C channels, H rows, W columns, K classes; here [B, C, H, W] or [B, C], where the graph has (H, W, C) or
(C,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thaw.data.batches import channels_last
from thaw.errors import UsageError
from thaw.graph import fixed_point
from thaw.graph.graph import Graph
from thaw.graph.interpret import add_multipliers, output_multipliers, requantize_multiplier
from thaw.graph.operation import Convolution, Weighted
from thaw.graph.ops import (
    Add,
    ArgMax,
    AveragePool2d,
    Concat,
    DepthwiseConv2d,
    MaxPool2d,
    Op,
    Relu,
    Requantize,
    Reshape,
    Scale,
    Softmax,
)
from thaw.graph.quantize import Range, pixel_scaling, quantize
from thaw.graph.sharing import channel_factors
from thaw.graph.tensors import LOGITS, Quantization
from thaw.graph.tensors import Tensor as GraphTensor
from thaw.quoting import shown

# The float32 range of exact whole numbers, and how far an int8 number can lie from its zero point.
_EXACT_FLOAT32 = 2**24
_LARGEST_STEP = 255
# Numbers that are scaled at a time: 512 KiB of int64, which stays in a core's cache over the passes.
_CHUNK = 1 << 16

Scaling: TypeAlias = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


class TrainableGraph(nn.Module):
    """Takes normalized images, as training batches hold them, and gives the logits of the int8 graph.

    Args:
        graph: float32, with one `Scale` that reads its input; its weights and biases are what trains.
        ranges: as `quantize` takes them; they stay as they are.
        logits: name of the tensor (K,) that is given.
    """

    def __init__(self, graph: Graph, ranges: Mapping[str, Range], *, logits: str = LOGITS) -> None:
        super().__init__()
        graph.tensor(logits)
        self.graph = graph
        self.ranges = dict(ranges)
        self.logits = logits
        trained = [op for op in graph.ops if isinstance(op, Weighted)]
        self.trained = {op.name: op for op in trained}
        self.places = {op.name: place for place, op in enumerate(trained)}
        # Of an operation that shares weights, the logarithms of its factors, which therefore stay above 0.
        self.weights = nn.ParameterList(torch.tensor(_own_numbers(op, graph)) for op in trained)
        self.biases = nn.ParameterList(torch.tensor(op.bias) for op in trained)

    def float_graph(self) -> Graph:
        """The float32 graph with the weights as they are now."""
        return replace(self.graph, ops=tuple(self._with_weights(op) for op in self.graph.ops))

    def int8_graph(self) -> Graph:
        """The int8 graph with the weights as they are now: what this module computes."""
        return quantize(self.float_graph(), self.ranges)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [B, C, H, W], scaled as the graph's `Scale` says -> real logits, float32 [B, K]."""
        int8 = self.int8_graph()
        quantization = int8.tensor(self.logits).quantization
        if quantization is None:
            raise UsageError(f"graph: {shown(self.logits)} has no scale in the int8 graph: expected scores")
        scale = self._scale()
        mean, std = (torch.tensor(values, device=x.device).view(1, -1, 1, 1) for values in (scale.mean, scale.std))
        pixels = ((x * std + mean) * 255.0).round_().clamp_(0.0, 255.0)
        return (self.numbers(int8, pixels)[self.logits] - quantization.zero_point) * quantization.scale

    def numbers(self, int8: Graph, pixels: Tensor) -> dict[str, Tensor]:
        """Every tensor of `int8_graph()` by name, whole numbers in floats; pixels float32 [B, C, H, W], 0 to 255."""
        values = {int8.input: channels_last(pixels)}
        folded = self._folded(int8)
        for op in int8.ops:
            reads = [int8.tensor(name) for name in op.inputs]
            arrays = [values[name] for name in op.inputs]
            if isinstance(op, Weighted):
                values[op.output] = self._weighted(op, reads[0], arrays[0], folded.get(op.inputs[0]))
            else:
                values[op.output] = _EXECUTE[type(op)](op, reads, arrays)
        return values

    def _with_weights(self, op: Op) -> Op:
        if not isinstance(op, Weighted):
            return op
        return replace(op, weights=_array(self._weights_of(op)), bias=_array(self.biases[self.places[op.name]]))

    def _weights_of(self, op: Weighted) -> Tensor:
        """The weights as they are now, with a gradient to what they are made of."""
        own: Tensor = self.weights[self.places[op.name]]
        if not op.shares:
            return own
        shared: Tensor = self.weights[self.places[op.shares]]
        by_channel = [-1 if axis == op.channel_axis else 1 for axis in range(op.axes)]
        return shared * own.exp().view(by_channel)

    def _scale(self) -> Scale:
        return next(op for op in self.graph.ops if isinstance(op, Scale))

    def _folded(self, int8: Graph) -> dict[str, Scaling]:
        """What `quantize` moved from the scaling of pixels into the operations that read this tensor."""
        scale = self._scale()
        if not any(op.name == scale.name and isinstance(op, Requantize) for op in int8.ops):
            return {}
        return {scale.output: pixel_scaling(scale, _quantization(int8.tensor(int8.input)))}

    def _weighted(self, op: Weighted, read: GraphTensor, x: Tensor, folded: Scaling | None) -> Tensor:
        written = op.quantization
        if written is None:
            raise AssertionError("an operation of an int8 graph has a scale")
        weights, bias = self._trained_numbers(op, read, folded, x.device)
        dtype = _exact_dtype(op, x.device)
        sums = _sum_products(op, (x - _quantization(read).zero_point).to(dtype), weights.to(dtype))
        multipliers, shifts = (torch.from_numpy(values).to(x.device) for values in output_multipliers(op, read))
        plan = _Plan(
            bias=torch.tensor(op.bias, dtype=torch.int64, device=x.device),
            multipliers=multipliers,
            shifts=shifts,
            factors=(multipliers * 2.0 ** (shifts - 31).double()).float(),
            zero_point=written.zero_point,
            least=_least(written, op.activation),
        )
        made: Tensor = _Finish.apply(sums, bias, plan)  # type: ignore[no-untyped-call]
        return made

    def _trained_numbers(
        self, op: Weighted, read: GraphTensor, folded: Scaling | None, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """(weights, bias) of an int8 operation as numbers, with gradients to the parameters where it has any."""
        weights = torch.tensor(op.weights, dtype=torch.float32, device=device)
        bias = torch.tensor(op.bias, dtype=torch.float32, device=device)
        if op.name not in self.places:
            return weights, bias
        # The float32 operation: where int8 numbers cannot be shared, the int8 one says that it has its own.
        smooth = self._weights_of(self.trained[op.name])
        smooth_bias = self.biases[self.places[op.name]]
        if folded is not None:
            factor, offset = (torch.from_numpy(values).to(device) for values in folded)
            summed = tuple(axis for axis in range(smooth.ndim) if axis != op.channel_axis)
            smooth, smooth_bias = smooth * factor, smooth_bias + (smooth * offset).sum(summed)
        scales = torch.tensor(op.weight_scales, device=device)
        by_channel = [-1 if axis == op.channel_axis else 1 for axis in range(smooth.ndim)]
        smooth = smooth / scales.view(by_channel)
        smooth_bias = smooth_bias / (scales * _quantization(read).scale)
        return _straight_through(smooth, weights), _straight_through(smooth_bias, bias)


@dataclass(frozen=True)
class _Plan:
    """What brings sums [..., C'] to the scale of the output: all int64 [C'], but for `factors`, which is real."""

    bias: Tensor
    multipliers: Tensor
    shifts: Tensor
    factors: Tensor
    zero_point: int
    least: int


def multiply_by_quantized_multiplier(x: Tensor, multiplier: Tensor | int, shift: Tensor | int) -> Tensor:
    """`fixed_point.multiply_by_quantized_multiplier` for int64 [..., C'], in place; multiplier and shift by channel."""
    shifts = torch.as_tensor(shift, device=x.device)
    left, right = shifts.clamp(min=0), (-shifts).clamp(min=0)
    if bool(left.any()):
        x <<= left
    x *= multiplier
    x += 1 << 30
    x >>= 31
    if not bool(right.any()):
        return x
    # Half a step is added to a number of at least 0 and a little less to one below, so that halves go away from 0.
    nudge = (x >> 63) * (right > 0)
    x += (1 << right) >> 1
    x += nudge
    x >>= right
    return x


class _Finish(torch.autograd.Function):
    """Bias, scale and activation after a sum of products: `interpret`'s arithmetic, with the slope of the real one."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, bias: Tensor, plan: _Plan) -> Tensor:  # noqa: ARG004 - its gradient is wanted
        """Sums [B, C', H, W] or [B, C'] -> numbers of the same shape, float32."""
        rows = _channels_at_the_end(sums)
        made = torch.empty(rows.shape, dtype=torch.float32, device=sums.device)
        outside = torch.empty(rows.shape, dtype=torch.bool, device=sums.device)
        step = max(1, _CHUNK // rows.shape[1]) if sums.device.type == "cpu" else len(rows)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            # `quantize` keeps sums within int32, so nothing wraps round.
            numbers = rows[part].to(torch.int64).add_(plan.bias)
            numbers = multiply_by_quantized_multiplier(numbers, plan.multipliers, plan.shifts).add_(plan.zero_point)
            torch.logical_or(numbers < plan.least, numbers > 127, out=outside[part])
            made[part] = numbers.clamp_(plan.least, 127)
        ctx.save_for_backward(outside, plan.factors)
        return _channels_second(made, sums)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """What is cut off gets no gradient; all else the output's scale."""
        outside, factors = ctx.saved_tensors
        gradient = gradients[0]
        rows = (_channels_at_the_end(gradient) * factors).masked_fill_(outside, 0.0)
        return _channels_second(rows, gradient), rows.sum(0), None


class _StraightThrough(torch.autograd.Function):
    """The value of one tensor, the gradient of another."""

    @staticmethod
    def forward(ctx: Any, smooth: Tensor, exact: Tensor) -> Tensor:  # noqa: ARG004 - torch's signature
        """`exact`."""
        return exact.to(smooth.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004 - torch's signature
        """To `smooth`, as it is."""
        return gradients[0], None


def _straight_through(smooth: Tensor, exact: Tensor) -> Tensor:
    made: Tensor = _StraightThrough.apply(smooth, exact)  # type: ignore[no-untyped-call]
    return made


def _channels_at_the_end(x: Tensor) -> Tensor:
    """[B, C, H, W] or [B, C] -> [rows, C], contiguous; a view where channels are last in memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]) if x.ndim == 4 else x.contiguous()


def _channels_second(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_channels_at_the_end` for a tensor of the shape of `like`."""
    if like.ndim == 2:
        return rows
    batch, channels, height, width = like.shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _exact_dtype(op: Weighted, device: torch.device) -> torch.dtype:
    """A type in which the sums are exact in any order. On a GPU a float32 convolution may be none, but a transform."""
    rows = np.moveaxis(np.abs(op.weights.astype(np.int64)), op.channel_axis, 0).reshape(op.channels, -1)
    is_exact = device.type == "cpu" and int(rows.sum(axis=1).max()) * _LARGEST_STEP < _EXACT_FLOAT32
    return torch.float32 if is_exact else torch.float64


def _sum_products(op: Weighted, x: Tensor, weights: Tensor) -> Tensor:
    """Sums of products, without the bias: [B, C, H, W] -> [B, C', H', W'], or [B, C] -> [B, C']."""
    if not isinstance(op, Convolution):
        return F.linear(x, weights)
    top, bottom, left, right = op.padding
    padded = F.pad(x, (left, right, top, bottom)) if any(op.padding) else x
    if isinstance(op, DepthwiseConv2d):
        return F.conv2d(padded, weights.permute(2, 0, 1)[:, None], stride=op.stride, groups=op.channels)
    return F.conv2d(padded, weights.permute(0, 3, 1, 2), stride=op.stride)


def _least(quantization: Quantization, activation: str) -> int:
    return max(-128, quantization.zero_point) if activation == "relu" else -128


def _quantization(tensor: GraphTensor) -> Quantization:
    if tensor.quantization is None:
        raise AssertionError(f"{tensor.name!r} of an int8 graph has a scale")
    return tensor.quantization


def _own_numbers(op: Weighted, graph: Graph) -> npt.NDArray[np.float32]:
    """What trains of an operation beside its biases: its weights, or where it shares them, log of its factors [C']."""
    if not op.shares:
        return op.weights.astype(np.float32)
    base = next(each for each in graph.ops if each.name == op.shares)
    factors = channel_factors(op, base) if isinstance(base, Weighted) else None
    if factors is None:
        raise AssertionError("a graph's operations share weights up to factors")
    logarithms: npt.NDArray[np.float32] = np.log(factors).astype(np.float32)
    return logarithms


def _array(parameter: Tensor) -> npt.NDArray[np.float32]:
    """A copy, since torch trains in place."""
    copied: npt.NDArray[np.float32] = parameter.detach().cpu().numpy().copy()
    return copied


def _moved(x: Tensor, read: Quantization, written: Quantization) -> Tensor:
    """Numbers on another scale, not yet cut to a range, with a gradient and not rounded."""
    return (x - read.zero_point) * (read.scale / written.scale)


def _cut(smooth: Tensor, exact: Tensor, written: Quantization, activation: str) -> Tensor:
    """Both shifted by the zero point and cut to the range: the value of `exact`, the gradient of `smooth`."""
    low = _least(written, activation)
    shifted = (smooth + written.zero_point).clamp(low, 127)
    return _straight_through(shifted, (exact + written.zero_point).clamp_(low, 127))


def _requantize(op: Requantize, reads: Sequence[GraphTensor], arrays: Sequence[Tensor]) -> Tensor:
    read, written = _quantization(reads[0]), op.quantization
    numbers = arrays[0].detach().to(torch.int64) - read.zero_point
    exact = multiply_by_quantized_multiplier(numbers, *requantize_multiplier(read, written))
    return _cut(_moved(arrays[0], read, written), exact, written, "none")


def _add(op: Add, reads: Sequence[GraphTensor], arrays: Sequence[Tensor]) -> Tensor:
    first, second = (_quantization(read) for read in reads)
    if op.quantization is None:
        raise AssertionError("an addition of an int8 graph has a scale")
    *terms, last = add_multipliers(first, second, op.quantization)
    scaled = [
        multiply_by_quantized_multiplier(
            (array.detach().to(torch.int64) - read.zero_point) << fixed_point.ADD_LEFT_SHIFT, *term
        )
        for array, read, term in zip(arrays, (first, second), terms, strict=True)
    ]
    smooth = _moved(arrays[0], first, op.quantization) + _moved(arrays[1], second, op.quantization)
    exact = multiply_by_quantized_multiplier(scaled[0] + scaled[1], *last)
    return _cut(smooth, exact, op.quantization, op.activation)


def _max_pool(op: MaxPool2d, _reads: Sequence[GraphTensor], arrays: Sequence[Tensor]) -> Tensor:
    return F.max_pool2d(arrays[0], op.kernel, op.stride)


def _average_pool(op: AveragePool2d, _reads: Sequence[GraphTensor], arrays: Sequence[Tensor]) -> Tensor:
    count = math.prod(op.kernel)
    mean = F.avg_pool2d(arrays[0], op.kernel, op.stride)
    sums = F.avg_pool2d(arrays[0].detach().double(), op.kernel, op.stride, divisor_override=1).to(torch.int64)
    halves_away = torch.where(sums > 0, sums + count // 2, sums - count // 2)
    return _straight_through(mean, halves_away.div(count, rounding_mode="trunc").clamp_(-128, 127))


def _relu(_op: Relu, reads: Sequence[GraphTensor], arrays: Sequence[Tensor]) -> Tensor:
    return arrays[0].clamp(min=_quantization(reads[0]).zero_point)


def _softmax(_op: Softmax, reads: Sequence[GraphTensor], arrays: Sequence[Tensor]) -> Tensor:
    scores, scale = arrays[0], _quantization(reads[0]).scale
    # A few numbers an image, so NumPy's definition serves here too.
    exact = fixed_point.softmax(scores.detach().cpu().numpy().astype(np.int64), scale)
    smooth = F.softmax(scores * scale, dim=1) * 256.0 - 128.0
    return _straight_through(smooth, torch.from_numpy(exact).to(scores.device))


def _argmax(_op: ArgMax, _reads: Sequence[GraphTensor], arrays: Sequence[Tensor]) -> Tensor:
    return arrays[0].argmax(dim=1, keepdim=True)


def _concat(_op: Concat, _reads: Sequence[GraphTensor], arrays: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(arrays), dim=1)


def _reshape(op: Reshape, _reads: Sequence[GraphTensor], arrays: Sequence[Tensor]) -> Tensor:
    x = arrays[0]
    positions = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
    made = positions.reshape(len(x), *op.shape)
    return made.permute(0, 3, 1, 2) if len(op.shape) == 3 else made


# The operations differ in type, so their common parameter has to be Any.
_EXECUTE: Mapping[type[Op], Callable[[Any, Sequence[GraphTensor], Sequence[Tensor]], Tensor]] = {
    Add: _add,
    ArgMax: _argmax,
    AveragePool2d: _average_pool,
    Concat: _concat,
    MaxPool2d: _max_pool,
    Relu: _relu,
    Requantize: _requantize,
    Reshape: _reshape,
    Softmax: _softmax,
}
