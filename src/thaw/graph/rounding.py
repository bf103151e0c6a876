"""Which numbers an int8 operation may give in a runtime that rounds otherwise than the specification.

Whatever an int8 operation sums, compares or averages is exact in whole numbers; only what brings the result to its
scale rounds. The specification rescales by a fixed-point multiplier and rounds twice. Other runtimes round once, a half
to even, up or away from 0, and rescale in float32 or by another fixed-point multiplier. Admitted here is each whole
number that lies within 1/2 and a slack of the exact real result, where the slack is what two roundings and multipliers
of a limited number of digits can add. Maximum, ReLU, concatenation and reshape do not round.

The numbers of one layer, seen by themselves, can thus be told from numbers that are computed wrongly. Carried from the
pixels to the scores as intervals, they bound what roundings can add up to in a graph (interval arithmetic: R. E. Moore,
"Interval Analysis", 1966). In a deep graph that bound covers the whole scale of the scores.

Shapes: N images, K classes; arrays are [N, ...] of their tensor's shape and dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.errors import UsageError
from thaw.graph.graph import Graph
from thaw.graph.interpret import (
    Array,
    add_multipliers,
    execute,
    output_multipliers,
    reduce_windows,
    requantize_multiplier,
    sum_products,
)
from thaw.graph.operation import Weighted
from thaw.graph.ops import Add, ArgMax, AveragePool2d, Conv2d, Dense, DepthwiseConv2d, Op, Requantize, Softmax
from thaw.graph.tensors import SOFTMAX_QUANTIZATION, Quantization, Tensor
from thaw.quoting import shown

Floats = npt.NDArray[np.float64]
Interval = tuple[Array, Array]
"""The least and the largest number at each place; both ends are included."""

_FLOAT_STEPS = 2.0**-21
"""Eight units in the last place of a float32: a sum, the product of its scales, and their quotient, each rounded."""
_ADD_SLACK = 2.0**-11
"""In units of the coarser term's share of a step: XNNPACK scales terms (up to 255) by multipliers of 20 bits."""
_CONVERT_SLACK = 2.0**-9
"""Of the number that is converted: XNNPACK's multiplier from one scale to another has 8 binary places."""
_SOFTMAX_SLACK = 2.0**-5
"""Exponentials by tables, by series in fixed point, and in float32 lie at most so many units apart."""


def admitted(op: Op, reads: Sequence[Tensor], lows: Sequence[Array], highs: Sequence[Array]) -> Interval:
    """What one operation of an int8 graph may write when its inputs lie between `lows` and `highs`.

    Args:
        op: any but a `Scale`, which int8 graphs do not have.
        reads: the tensors that it reads.
        lows: the least numbers of each.
        highs: the largest; may be the same arrays, for inputs that are known.

    Raises:
        UsageError: for an operation without a scale.
    """
    find = _ADMITTED.get(type(op), _moved)
    return find(op, reads, lows, highs)


def score_interval(graph: Graph, images: npt.NDArray[np.uint8]) -> Interval:
    """What admitted roundings can make of the graph's last output for each image, [N, K] each.

    Args:
        graph: int8.
        images: uint8 [N, H, W, C], in one batch.
    """
    lows: dict[str, Array] = {graph.input: images}
    highs: dict[str, Array] = {graph.input: images}
    for op in graph.ops:
        reads = [graph.tensor(name) for name in op.inputs]
        lows[op.output], highs[op.output] = admitted(
            op, reads, [lows[name] for name in op.inputs], [highs[name] for name in op.inputs]
        )
    return lows[graph.outputs[-1]], highs[graph.outputs[-1]]


def _moved(op: Op, reads: Sequence[Tensor], lows: Sequence[Array], highs: Sequence[Array]) -> Interval:
    """What only moves or compares numbers: it is monotone, and does not round."""
    return execute(op, reads, lows), execute(op, reads, highs)


def _weighted(op: Weighted, reads: Sequence[Tensor], lows: Sequence[Array], highs: Sequence[Array]) -> Interval:
    """The middle of the sums, and how far weights carry the inputs' distance from their middle."""
    low, high = lows[0], highs[0]
    written, quantization = op.quantization, _quantization(reads[0])
    _, shifts = output_multipliers(op, reads[0])
    if written is None or op.weight_scales is None:
        raise UsageError(f"graph: {op.kind} {shown(op.name)} has no scales: expected an operation of an int8 graph")
    weights = op.weights.astype(np.float64)
    # Halves of whole numbers: exact in float64, as are sums of their products.
    middle = (low.astype(np.float64) + high) / 2
    sums = sum_products(op, middle - quantization.zero_point, weights) + op.bias
    factors = quantization.scale * op.weight_scales.astype(np.float64) / written.scale
    slack = np.where(shifts < 0, 0.5 * 2.0**shifts, 0.0)
    ends = [sums, sums]
    if low is not high and (low != high).any():
        reach = sum_products(op, high - middle, np.abs(weights))
        ends = [sums - reach, sums + reach]
    return _rounded(ends[0] * factors, ends[1] * factors, slack, written, op.activation)


def _requantize(op: Requantize, reads: Sequence[Tensor], lows: Sequence[Array], highs: Sequence[Array]) -> Interval:
    quantization = _quantization(reads[0])
    _, shift = requantize_multiplier(quantization, op.quantization)
    factor = quantization.scale / op.quantization.scale
    numbers = [end.astype(np.float64) - quantization.zero_point for end in (lows[0], highs[0])]
    slack = _CONVERT_SLACK * np.maximum(*map(np.abs, numbers)) + (0.5 * 2.0**shift if shift < 0 else 0.0)
    return _rounded(numbers[0] * factor, numbers[1] * factor, slack, op.quantization)


def _add(op: Add, reads: Sequence[Tensor], lows: Sequence[Array], highs: Sequence[Array]) -> Interval:
    if op.quantization is None:
        raise UsageError(f"graph: {op.kind} {shown(op.name)} has no scale: expected an operation of an int8 graph")
    scales = [_quantization(read) for read in reads]
    *_, (_, shift) = add_multipliers(scales[0], scales[1], op.quantization)
    factors = [scale.scale / op.quantization.scale for scale in scales]
    ends = [
        sum(
            (array.astype(np.float64) - scale.zero_point) * factor
            for array, scale, factor in zip(arrays, scales, factors, strict=True)
        )
        for arrays in (lows, highs)
    ]
    slack = _ADD_SLACK * max(factors) + (0.5 * 2.0**shift if shift < 0 else 0.0)
    return _rounded(np.asarray(ends[0]), np.asarray(ends[1]), slack, op.quantization, op.activation)


def _average_pool(op: AveragePool2d, _: Sequence[Tensor], lows: Sequence[Array], highs: Sequence[Array]) -> Interval:
    count = math.prod(op.kernel)
    ends = [reduce_windows(op, end.astype(np.float64), np.add) / count for end in (lows[0], highs[0])]
    # Where the mean is taken in float32, it adds `count` numbers up.
    return _rounded(ends[0], ends[1], 255.0 * count * 2.0**-24, None)


def _softmax(_: Softmax, reads: Sequence[Tensor], lows: Sequence[Array], highs: Sequence[Array]) -> Interval:
    """A probability is least where its own score is and all others are largest, and the other way round."""
    scale = _quantization(reads[0]).scale
    least, most = (
        np.stack([_softmax_against(*pair, scale=scale) for pair in zip(own, others, strict=True)])
        for own, others in ((lows[0], highs[0]), (highs[0], lows[0]))
    )
    return _rounded(least * 256.0, most * 256.0, _SOFTMAX_SLACK, SOFTMAX_QUANTIZATION)


def _softmax_against(own: Array, others: Array, *, scale: float) -> Floats:
    """float64 [K]: of each class, its share when it has its score of `own` and all others theirs of `others`."""
    distances = (others.astype(np.float64)[None, :] - own.astype(np.float64)[:, None]) * scale
    np.fill_diagonal(distances, 0.0)
    with np.errstate(over="ignore"):
        shares: Floats = 1.0 / np.exp(distances).sum(axis=1)
    return shares


def _argmax(_: ArgMax, _reads: Sequence[Tensor], lows: Sequence[Array], highs: Sequence[Array]) -> Interval:
    """The first and the last index that can be that of the largest number."""
    can_win = highs[0] >= lows[0].max(axis=-1, keepdims=True)
    last = can_win.shape[-1] - 1 - can_win[..., ::-1].argmax(axis=-1)
    return can_win.argmax(axis=-1)[..., None].astype(np.int32), last[..., None].astype(np.int32)


def _rounded(
    low: Floats, high: Floats, slack: Floats | float, written: Quantization | None, activation: str = "none"
) -> Interval:
    """Whole numbers within 1/2 and the slack of real ones from `low` to `high`, clamped as the operation clamps.

    Real numbers are in steps of what is written, from its zero point on; without one, from 0.
    """
    zero_point = 0 if written is None else written.zero_point
    least = max(-128, zero_point) if activation == "relu" else -128
    lows = np.ceil(low - _FLOAT_STEPS * np.abs(low) - slack - 0.5) + zero_point
    highs = np.floor(high + _FLOAT_STEPS * np.abs(high) + slack + 0.5) + zero_point
    return np.clip(lows, least, 127).astype(np.int8), np.clip(highs, least, 127).astype(np.int8)


def _quantization(tensor: Tensor) -> Quantization:
    if tensor.quantization is None:
        raise UsageError(f"graph: tensor {shown(tensor.name)} has no scale: expected one of an int8 graph")
    return tensor.quantization


_ADMITTED: Mapping[type[Op], Callable[[Any, Sequence[Tensor], Sequence[Array], Sequence[Array]], Interval]] = {
    Conv2d: _weighted,
    DepthwiseConv2d: _weighted,
    Dense: _weighted,
    Requantize: _requantize,
    Add: _add,
    AveragePool2d: _average_pool,
    Softmax: _softmax,
    ArgMax: _argmax,
}
