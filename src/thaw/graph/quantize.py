"""A float32 graph -> the int8 graph that computes nearly the same, by the LiteRT (TFLite) int8 specification.

Weights are symmetric and per output channel, activations asymmetric and per tensor, biases int32 on the scale of input
times weight. Raw pixels go in as they are: their scaling and offset move into the first convolutions. Weights that are
shared are so in int8 too; their scales differ.

Source: the TensorFlow Lite int8 quantization specification.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from thaw.errors import UsageError
from thaw.graph import fixed_point
from thaw.graph.graph import Graph
from thaw.graph.operation import Convolution, Weighted
from thaw.graph.ops import Add, ArgMax, Concat, DepthwiseConv2d, Op, Requantize, Scale, Softmax
from thaw.graph.sharing import channel_factors, shared_names, weights_owner
from thaw.graph.tensors import FloatArray, Quantization, Tensor
from thaw.quoting import shown

W = TypeVar("W", bound=Weighted)

Range = tuple[float, float]
"""The least and the largest real value that a tensor's int8 numbers have to tell apart."""

_LARGEST_SUM = 2**28
"""Biases, and sums on the scale of the output, are kept below this, so that int32 arithmetic cannot overflow.

A scale that is widened for it is that of a tensor which calibration found all but constant."""

_LEAST_SCORE_SCALE = 2.0 ** -(31 - fixed_point.SOFTMAX_INTEGER_BITS - 1)
"""LiteRT's softmax ends the process over scales that are not above half of it."""

_MOST_OUTPUT_STEPS = 128
"""How many steps of the output a step of a sum may be; XNNPACK ends the process over twice as many."""


def chooses_scale(op: Op) -> bool:
    """Whether what `op` writes in an int8 graph has a scale of its own, so that its range has to be known."""
    return isinstance(op, Weighted | Add)


def quantization_of(values: Range, least_scale: float = 0.0) -> Quantization:
    """The scale and zero point that spread -128 to 127 over a range, which is widened so that it holds 0."""
    low, high = min(values[0], 0.0), max(values[1], 0.0)
    step = max((high - low) / 255.0, least_scale)
    if not step <= float(np.finfo(np.float32).max):
        raise UsageError(f"a tensor has values from {low} to {high}, a step of {step}: it cannot be int8")
    scale = float(np.float32(step))
    if scale < np.finfo(np.float32).tiny:
        # Nothing but zeros: any scale will do.
        return Quantization(scale=1.0, zero_point=-128)
    return Quantization(scale=scale, zero_point=int(np.clip(round(-128.0 - low / scale), -128, 127)))


def quantize(graph: Graph, ranges: Mapping[str, Range]) -> Graph:
    """The int8 graph of a float32 graph.

    Its input is uint8 with a scale; tensors keep their names, except that the tensor of a `Scale` holds the pixels as
    int8 numbers instead of scaled ones.

    Args:
        graph: float32, with at most one `Scale`, which reads its input.
        ranges: of every tensor that an operation writes which chooses its scale (`chooses_scale`), by name.

    Raises:
        UsageError: for a range that is missing or not finite, or a graph that is int8 already.
    """
    builder = _Builder(graph, _tied(graph, ranges))
    for op in graph.ops:
        builder.add(op)
    return Graph(
        tensors=tuple(builder.tensors.values()), ops=tuple(builder.ops), input=graph.input, outputs=graph.outputs
    )


class _Builder:
    """The int8 operations so far, and the tensors that follow from them."""

    def __init__(self, graph: Graph, ranges: Mapping[str, Range]) -> None:
        self.graph = graph
        self.ranges = ranges
        self.ops: list[Op] = []
        self.tensors: dict[str, Tensor] = {}
        self.folded: dict[str, tuple[FloatArray, FloatArray]] = {}
        self.shared = shared_names(graph.ops)
        # By the name of the float32 operation whose weights are shared: the float32 and int8 form that has the numbers.
        self.bases: dict[str, tuple[Weighted, Weighted]] = {}
        self.scores = _scores(graph)
        image = graph.tensor(graph.input)
        if image.quantization is not None:
            raise UsageError("graph: it is int8 already")
        scales = [op for op in graph.ops if isinstance(op, Scale)]
        if len(scales) != 1:
            raise UsageError(f"graph: {len(scales)} operations scale pixels: expected 1")
        self.tensors[image.name] = replace(image, quantization=_pixel_quantization(scales[0]))

    def add(self, op: Op) -> None:
        """Append the int8 form of `op`."""
        match op:
            case Scale():
                self._read_pixels(op)
            case Weighted():
                self._append(self._weighted(op))
            case Add():
                self._append(replace(op, quantization=self._sum_quantization(op)))
            case Concat():
                self._append(self._on_one_scale(op))
            case _:
                self._append(op)

    def _append(self, op: Op) -> None:
        self.ops.append(op)
        self.tensors[op.output] = op.infer([self.tensors[name] for name in op.inputs])

    def _read_pixels(self, op: Scale) -> None:
        """The pixels as int8, and what turns them into scaled ones: in the convolutions that read them, or alone."""
        pixels = self.tensors[op.inputs[0]].quantization
        if pixels is None:
            raise AssertionError("the pixels of an int8 graph have a scale")
        as_int8 = Quantization(scale=pixels.scale, zero_point=pixels.zero_point - 128)
        mean, std = np.array(op.mean), np.array(op.std)
        factor, offset = pixel_scaling(op, pixels)
        readers = [reader for reader in self.graph.ops if op.output in reader.inputs]
        if op.output not in self.graph.outputs and all(isinstance(reader, Convolution) for reader in readers):
            self._append(Requantize(name=op.name, inputs=op.inputs, output=op.output, quantization=as_int8))
            self.folded[op.output] = (factor, offset)
            return
        pixel_name = f"{op.name}.pixels"
        self._append(Requantize(name=pixel_name, inputs=op.inputs, output=pixel_name, quantization=as_int8))
        ends = np.stack([(0.0 - mean) / std, (1.0 - mean) / std])
        scaling = DepthwiseConv2d(
            name=op.name,
            inputs=(pixel_name,),
            output=op.output,
            weights=factor.reshape(1, 1, -1),
            bias=offset,
        )
        written = quantization_of((float(ends.min()), float(ends.max())))
        self._append(_int8_weights(scaling, as_int8, written, _weight_scales(scaling, as_int8)))

    def _weighted(self, op: W) -> W:
        read = self.tensors[op.inputs[0]].quantization
        if read is None:
            raise UsageError(f"graph: {op.kind} {shown(op.name)} reads raw pixels: expected a scale before it")
        if op.inputs[0] in self.folded and isinstance(op, Convolution):
            op = _fold_scaling(op, *self.folded[op.inputs[0]])
        base = self.bases.get(weights_owner(op))
        shared_scales = None if base is None else _shared_scales(op, *base, read)
        scales = _weight_scales(op, read) if shared_scales is None else shared_scales
        step_scale = read.scale * float(scales.max()) / _MOST_OUTPUT_STEPS
        least_scale = max(_largest_sum(op, read) / _LARGEST_SUM, step_scale, self._least_scale(op.output))
        written = quantization_of(self._range(op.output), least_scale)
        if base is not None and shared_scales is not None:
            _, numbers = base
            return replace(_int8_weights(op, read, written, scales), weights=numbers.weights, shares=numbers.name)
        made = replace(_int8_weights(op, read, written, scales), shares="")
        # Numbers that a bias made coarse are not those of the others.
        if base is None and weights_owner(op) in self.shared and not _is_widened(op, scales):
            self.bases[weights_owner(op)] = (op, made)
        return made

    def _sum_quantization(self, op: Add) -> Quantization:
        scales = [self.tensors[name].quantization for name in op.inputs]
        largest = max(scale.scale for scale in scales if scale is not None)
        least_scale = max(largest / 2.0 ** (fixed_point.ADD_LEFT_SHIFT - 2), self._least_scale(op.output))
        return quantization_of(self._range(op.output), least_scale)

    def _least_scale(self, written: str) -> float:
        return _LEAST_SCORE_SCALE if written in self.scores else 0.0

    def _range(self, written: str) -> Range:
        if written not in self.ranges:
            raise UsageError(f"graph: the range of {shown(written)} is not known: calibrate before quantizing")
        return self.ranges[written]

    def _on_one_scale(self, op: Concat) -> Concat:
        """`op` with a `Requantize` before each input that lies on another scale than the widest."""
        scales = [self.tensors[name].quantization for name in op.inputs]
        widest = max((scale for scale in scales if scale is not None), key=lambda scale: scale.scale)
        target = _union([scale for scale in scales if scale is not None]) if len(set(scales)) > 1 else widest
        names = []
        for number, (name, scale) in enumerate(zip(op.inputs, scales, strict=True), start=1):
            if scale == target:
                names.append(name)
                continue
            moved = f"{op.name}.input{number}"
            self._append(Requantize(name=moved, inputs=(name,), output=moved, quantization=target))
            names.append(moved)
        return replace(op, inputs=tuple(names))


def pixel_scaling(scale: Scale, pixels: Quantization) -> tuple[FloatArray, FloatArray]:
    """(factor, offset), float32, one a channel: `scale` makes z * factor + offset of a pixel that stands for z."""
    mean, std = np.array(scale.mean), np.array(scale.std)
    factor = 1.0 / (255.0 * pixels.scale * std)
    offset = (pixels.zero_point / 255.0 - mean) / std
    return factor.astype(np.float32), offset.astype(np.float32)


def _pixel_quantization(scale: Scale) -> Quantization:
    """What raw pixels stand for: as near to `scale` as one scale and one whole zero point come.

    The rest is folded into weights and biases, which is exact, but for padding: the zeros that pad a scaled image
    become zero points, which are off by up to half a gray level in a gray image, and in a colored one by as much as a
    channel's mean differs from the mean of all.
    """
    mean, std = float(np.mean(scale.mean)), float(np.mean(scale.std))
    zero_point = int(np.clip(round(255.0 * mean), 0, 255))
    return Quantization(scale=float(np.float32(1.0 / (255.0 * std))), zero_point=zero_point)


def _fold_scaling(op: W, factor: FloatArray, offset: FloatArray) -> W:
    """`op` on input x as an operation on z, where x = z * factor + offset a channel."""
    weights = op.weights.astype(np.float64)
    shift = weights * offset.astype(np.float64)
    added = shift.sum(axis=(0, 1)) if isinstance(op, DepthwiseConv2d) else shift.sum(axis=(1, 2, 3))
    return replace(
        op,
        weights=(weights * factor.astype(np.float64)).astype(np.float32),
        bias=(op.bias.astype(np.float64) + added).astype(np.float32),
    )


def _int8_weights(op: W, read: Quantization, written: Quantization, scales: FloatArray) -> W:
    """The int8 form of an operation with float32 weights, whose scales are given, one a channel."""
    axis = op.channel_axis
    numbers = np.clip(np.rint(_by_channel(op) / scales[:, None]), -127, 127).astype(np.int8)
    shape = list(op.weights.shape)
    channels_first = [shape.pop(axis), *shape]
    bias = np.rint(op.bias.astype(np.float64) / (read.scale * scales.astype(np.float64)))
    return replace(
        op,
        weights=np.ascontiguousarray(np.moveaxis(numbers.reshape(channels_first), 0, axis)),
        bias=bias.astype(np.int32),
        weight_scales=scales,
        quantization=written,
    )


def _by_channel(op: Weighted) -> npt.NDArray[np.float64]:
    """The weights as [C', terms]."""
    return np.moveaxis(op.weights.astype(np.float64), op.channel_axis, 0).reshape(op.channels, -1)


def _weight_scales(op: Weighted, read: Quantization) -> FloatArray:
    """One scale a channel: largest weight / 127, or more where int32 would overflow."""
    scales = np.abs(_by_channel(op)).max(axis=1) / 127.0
    scales = np.maximum(scales, np.abs(op.bias.astype(np.float64)) / (read.scale * _LARGEST_SUM))
    # Nothing but zeros: any scale will do that is no coarser than the others, which the output's may have to follow.
    is_zero = scales < np.finfo(np.float32).tiny
    scales[is_zero] = 1.0 if is_zero.all() else scales.max()
    rounded: FloatArray = scales.astype(np.float32)
    return rounded


def _is_widened(op: Weighted, scales: FloatArray) -> bool:
    """Whether a channel has a coarser scale than its weights ask for, on which they keep few of their digits."""
    largest = np.abs(_by_channel(op)).max(axis=1)
    return bool(((largest > np.finfo(np.float32).tiny) & (scales > 1.001 * largest / 127.0)).any())


def _shared_scales(op: Weighted, base: Weighted, numbers: Weighted, read: Quantization) -> FloatArray | None:
    """The scales on which the int8 weights of `base`, which are `numbers`, are those of `op`; None where none are.

    That is so where int32 would overflow on them, or where the pixels' scaling was folded into one of the two.
    """
    factors = channel_factors(op, base)
    if factors is None or numbers.weight_scales is None:
        return None
    scales = numbers.weight_scales * factors
    least = np.abs(op.bias.astype(np.float64)) / (read.scale * _LARGEST_SUM)
    # Where all numbers are 0 any scale will do, as in `_weight_scales`.
    is_zero = ~_by_channel(numbers).any(axis=1)
    scales[is_zero] = np.maximum(1.0 if is_zero.all() else scales[~is_zero].max(), least[is_zero])
    if (scales < least).any() or scales.min() < np.finfo(np.float32).tiny:
        return None
    rounded: FloatArray = scales.astype(np.float32)
    return rounded


def _largest_sum(op: Weighted, read: Quantization) -> float:
    """A bound of what a channel of `op` can sum up to, as a real number, before any activation."""
    return float((np.abs(_by_channel(op)).sum(axis=1) * 255.0 * read.scale + np.abs(op.bias)).max())


def _scores(graph: Graph) -> set[str]:
    """The tensors with a scale of their own which a softmax reads, be it by way of operations that keep the scale."""
    writers = {op.output: op for op in graph.ops}
    found: set[str] = set()
    pending = [op.inputs[0] for op in graph.ops if isinstance(op, Softmax)]
    while pending:
        name = pending.pop()
        writer = writers.get(name)
        if writer is None or isinstance(writer, Scale | Softmax | ArgMax):
            continue
        if chooses_scale(writer):
            found.add(name)
        else:
            pending += writer.inputs
    return found


def _tied(graph: Graph, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """`ranges`, widened where a concatenation's inputs can be written on one scale from the start."""
    tied = {name: (float(low), float(high)) for name, (low, high) in ranges.items()}
    writers = {op.output: op for op in graph.ops}
    readers: dict[str, int] = {}
    for name in (name for op in graph.ops for name in op.inputs):
        readers[name] = readers.get(name, 0) + 1
    for concat in (op for op in graph.ops if isinstance(op, Concat)):
        sources = [_source(name, writers, readers) for name in concat.inputs]
        if all(source in tied for source in sources):
            low = min(tied[str(source)][0] for source in sources)
            high = max(tied[str(source)][1] for source in sources)
            tied.update({str(source): (low, high) for source in sources})
    return tied


def _source(name: str, writers: Mapping[str, Op], readers: Mapping[str, int]) -> str | None:
    """The tensor whose scale `name` has, when a change of it would reach nothing else."""
    while readers.get(name, 0) == 1 and name in writers:
        writer = writers[name]
        if chooses_scale(writer):
            return name
        if len(writer.inputs) != 1 or type(writer).__name__ in {"Softmax", "ArgMax", "Scale"}:
            return None
        name = writer.inputs[0]
    return None


def _union(quantizations: Sequence[Quantization]) -> Quantization:
    """A scale that covers the ranges of all."""
    lows = [(-128 - each.zero_point) * each.scale for each in quantizations]
    highs = [(127 - each.zero_point) * each.scale for each in quantizations]
    return quantization_of((min(lows), max(highs)))
