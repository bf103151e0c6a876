"""A float32 graph -> its int8 graph, by the LiteRT (TFLite) int8 specification.

Weights are symmetric and per output channel, activations asymmetric and per tensor, biases int32 on the scale of input
times weight. Raw pixels are the input: their normalization is folded into the first convolutions. Operations that share
weights also share their int8 weights, with different scales.

Source: the TensorFlow Lite int8 quantization specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from thaw.errors import UsageError
from thaw.graph import fixed_point
from thaw.graph.graph import Graph
from thaw.graph.ops import Concat, Convolution, DepthwiseConv2d, Operation, Requantize, Scale, Softmax, Weighted
from thaw.graph.sharing import channel_factors, shared_names, weights_owner
from thaw.graph.tensors import FloatArray, Quantization, Range, Tensor, quantization_of
from thaw.quoting import shown

W = TypeVar("W", bound=Weighted)

_LARGEST_SUM = 2**28
"""Biases, and sums on the scale of the output, stay below this, so that int32 arithmetic cannot overflow.

A scale is widened for this only if a tensor is almost constant on the calibration images."""

_LEAST_SCORE_SCALE = 2.0 ** -(31 - fixed_point.SOFTMAX_INTEGER_BITS - 1)
"""LiteRT's softmax aborts on scales of at most half of this."""

_MOST_OUTPUT_STEPS = 128
"""Maximum number of output steps in one step of a sum. XNNPACK aborts on twice as many."""


def quantize(graph: Graph, ranges: Mapping[str, Range]) -> Graph:
    """The int8 graph of a float32 graph.

    Its input is uint8 with a scale. Tensors keep their names, except that the tensor of a `Scale` holds the pixels as
    int8 numbers instead of normalized ones.

    Args:
        graph: float32, with one `Scale`, which reads its input.
        ranges: the range, by name, of every tensor whose operation chooses its scale.

    Raises:
        UsageError: for a range that is missing or not finite, or a graph that is int8 already.
    """
    quantizer = _Quantizer(graph, _tied(graph, ranges))
    for op in graph.ops:
        match op:
            case Scale():
                quantizer.read_pixels(op)
            case Weighted():
                quantizer.append(quantizer.weighted(op))
            case _:
                op.quantize(quantizer)
    return Graph(
        tensors=tuple(quantizer.tensors.values()), ops=tuple(quantizer.ops), input=graph.input, outputs=graph.outputs
    )


class _Quantizer:
    """The int8 operations so far, and the tensors that they write."""

    def __init__(self, graph: Graph, ranges: Mapping[str, Range]) -> None:
        self.graph = graph
        self.ranges = ranges
        self.ops: list[Operation] = []
        self.tensors: dict[str, Tensor] = {}
        self.folded: dict[str, tuple[FloatArray, FloatArray]] = {}
        self.shared = shared_names(graph.ops)
        # Name of the float32 operation whose weights are shared -> its float32 and int8 form.
        self.bases: dict[str, tuple[Weighted, Weighted]] = {}
        self.scores = _scores(graph)
        image = graph.tensor(graph.input)
        if image.quantization is not None:
            raise UsageError("graph: already int8", code="usage-graph-quantize")
        scales = [op for op in graph.ops if isinstance(op, Scale)]
        if len(scales) != 1:
            raise UsageError(f"graph: {len(scales)} operations scale pixels: expected 1", code="usage-graph-quantize")
        self.tensors[image.name] = replace(image, quantization=scales[0].pixel_quantization())

    def append(self, op: Operation) -> None:
        """Add an int8 operation and the tensor that it writes."""
        self.ops.append(op)
        self.tensors[op.output] = op.infer([self.tensors[name] for name in op.inputs])

    def scale_of(self, tensor: str) -> Quantization:
        """The quantization of a tensor that has been written."""
        return self.tensors[tensor].scale()

    def choose_scale(self, tensor: str, least_scale: float) -> Quantization:
        """The quantization for the range of `tensor`, with a scale of at least `least_scale`."""
        if tensor not in self.ranges:
            raise UsageError(
                f"graph: the range of {shown(tensor)} is unknown: calibrate before quantizing",
                code="usage-graph-quantize",
            )
        least_score_scale = _LEAST_SCORE_SCALE if tensor in self.scores else 0.0
        return quantization_of(self.ranges[tensor], max(least_scale, least_score_scale))

    def read_pixels(self, op: Scale) -> None:
        """Read the pixels as int8, and fold the normalization into the convolutions that read it, or append it."""
        pixels = self.scale_of(op.inputs[0])
        as_int8 = Quantization(scale=pixels.scale, zero_point=pixels.zero_point - 128)
        factor, offset = op.folding(pixels)
        readers = [reader for reader in self.graph.ops if op.output in reader.inputs]
        if op.output not in self.graph.outputs and all(isinstance(reader, Convolution) for reader in readers):
            self.append(Requantize(name=op.name, inputs=op.inputs, output=op.output, quantization=as_int8))
            self.folded[op.output] = (factor, offset)
            return
        pixel_name = f"{op.name}.pixels"
        self.append(Requantize(name=pixel_name, inputs=op.inputs, output=pixel_name, quantization=as_int8))
        mean, std = np.array(op.mean), np.array(op.std)
        ends = np.stack([(0.0 - mean) / std, (1.0 - mean) / std])
        normalization = DepthwiseConv2d(
            name=op.name,
            inputs=(pixel_name,),
            output=op.output,
            weights=factor.reshape(1, 1, -1),
            bias=offset,
        )
        written = quantization_of((float(ends.min()), float(ends.max())))
        self.append(_int8_weights(normalization, as_int8, written, _weight_scales(normalization, as_int8)))

    def weighted(self, op: W) -> W:
        """The int8 form of an operation with weights."""
        read = self.tensors[op.inputs[0]].quantization
        if read is None:
            raise UsageError(
                f"graph: {op.kind} {shown(op.name)} reads raw pixels: expected a scale before it",
                code="usage-graph-quantize",
            )
        if op.inputs[0] in self.folded and isinstance(op, Convolution):
            op = _fold_scaling(op, *self.folded[op.inputs[0]])
        base = self.bases.get(weights_owner(op))
        shared_scales = None if base is None else _shared_scales(op, *base, read)
        scales = _weight_scales(op, read) if shared_scales is None else shared_scales
        step_scale = read.scale * float(scales.max()) / _MOST_OUTPUT_STEPS
        written = self.choose_scale(op.output, max(_largest_sum(op, read) / _LARGEST_SUM, step_scale))
        if base is not None and shared_scales is not None:
            _, numbers = base
            return replace(_int8_weights(op, read, written, scales), weights=numbers.weights, shares=numbers.name)
        made = replace(_int8_weights(op, read, written, scales), shares="")
        # If a bias widened the scale, the weights are coarser than those of the other operations.
        if base is None and weights_owner(op) in self.shared and not _is_widened(op, scales):
            self.bases[weights_owner(op)] = (op, made)
        return made


def _fold_scaling(op: W, factor: FloatArray, offset: FloatArray) -> W:
    """`op` on x as an operation on z, where x = z * factor + offset by channel."""
    weights = op.weights.astype(np.float64)
    added = (weights * offset.astype(np.float64)).sum(axis=op.summed_axes)
    return replace(
        op,
        weights=(weights * factor.astype(np.float64)).astype(np.float32),
        bias=(op.bias.astype(np.float64) + added).astype(np.float32),
    )


def _int8_weights(op: W, read: Quantization, written: Quantization, scales: FloatArray) -> W:
    """The int8 form of an operation with float32 weights, for the given scales [C']."""
    numbers = np.clip(np.rint(_by_channel(op) / scales[:, None]), -127, 127).astype(np.int8)
    bias = np.rint(op.bias.astype(np.float64) / (read.scale * scales.astype(np.float64)))
    return replace(
        op,
        weights=op.from_channel(numbers),
        bias=bias.astype(np.int32),
        weight_scales=scales,
        quantization=written,
    )


def _by_channel(op: Weighted) -> npt.NDArray[np.float64]:
    """The weights as float64 [C', terms]."""
    return op.by_channel(op.weights.astype(np.float64))


def _weight_scales(op: Weighted, read: Quantization) -> FloatArray:
    """One scale per channel: largest weight / 127, or more if int32 would overflow."""
    scales = np.abs(_by_channel(op)).max(axis=1) / 127.0
    scales = np.maximum(scales, np.abs(op.bias.astype(np.float64)) / (read.scale * _LARGEST_SUM))
    # Channels of zeros may have any scale that is not coarser than the others; the output's scale may depend on it.
    is_zero = scales < np.finfo(np.float32).tiny
    scales[is_zero] = 1.0 if is_zero.all() else scales.max()
    rounded: FloatArray = scales.astype(np.float32)
    return rounded


def _is_widened(op: Weighted, scales: FloatArray) -> bool:
    """Whether a channel has a coarser scale than its weights need, and so a lower precision."""
    largest = np.abs(_by_channel(op)).max(axis=1)
    return bool(((largest > np.finfo(np.float32).tiny) & (scales > 1.001 * largest / 127.0)).any())


def _shared_scales(op: Weighted, base: Weighted, numbers: Weighted, read: Quantization) -> FloatArray | None:
    """The scales with which the int8 weights of `base`, which are `numbers`, represent those of `op`.

    None if int32 would overflow, or if the normalization of pixels was folded into one of the two.
    """
    factors = channel_factors(op, base)
    if factors is None or numbers.weight_scales is None:
        return None
    scales = numbers.weight_scales * factors
    least = np.abs(op.bias.astype(np.float64)) / (read.scale * _LARGEST_SUM)
    # Channels of zeros may have any scale, as in `_weight_scales`.
    is_zero = ~_by_channel(numbers).any(axis=1)
    scales[is_zero] = np.maximum(1.0 if is_zero.all() else scales[~is_zero].max(), least[is_zero])
    if (scales < least).any() or scales.min() < np.finfo(np.float32).tiny:
        return None
    rounded: FloatArray = scales.astype(np.float32)
    return rounded


def _largest_sum(op: Weighted, read: Quantization) -> float:
    """An upper bound of the sums of `op`, as a real number, before any activation."""
    return float((np.abs(_by_channel(op)).sum(axis=1) * 255.0 * read.scale + np.abs(op.bias)).max())


def _scores(graph: Graph) -> set[str]:
    """The tensors whose scale a softmax reads, directly or through operations that keep the scale."""
    writers = {op.output: op for op in graph.ops}
    found: set[str] = set()
    pending = [op.inputs[0] for op in graph.ops if isinstance(op, Softmax)]
    while pending:
        name = pending.pop()
        writer = writers.get(name)
        if writer is not None and writer.output_scale == "chosen":
            found.add(name)
        elif writer is not None and writer.output_scale == "kept":
            pending += writer.inputs
    return found


def _tied(graph: Graph, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """`ranges`, widened so that the inputs of a concatenation have one scale wherever possible."""
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


def _source(name: str, writers: Mapping[str, Operation], readers: Mapping[str, int]) -> str | None:
    """The tensor that determines the scale of `name`, if changing it affects nothing else."""
    while readers.get(name, 0) == 1 and name in writers:
        writer = writers[name]
        if writer.output_scale == "chosen":
            return name
        if len(writer.inputs) != 1 or writer.output_scale == "fixed":
            return None
        name = writer.inputs[0]
    return None
