"""Quantization-aware training: a graph as a torch module whose output equals that of its int8 graph, bit for bit.

Each pass calls `quantize` for the int8 weights, scales and multipliers, so there is no second definition of them.
Operations that share weights train one tensor, and all except the first one a positive factor per channel.

Shapes: B batch, C channels, H rows, W columns, K classes; here [B, C, H, W] or [B, C], where the graph has (H, W, C) or
(C,).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from thaw.data.batches import channels_last
from thaw.graph.fake_quantize import OutputScaling, scale_sums, straight_through
from thaw.graph.graph import Graph
from thaw.graph.ops import Operation, Requantize, Scale, Weighted
from thaw.graph.quantize import quantize
from thaw.graph.sharing import channel_factors
from thaw.graph.tensors import LOGITS, Range, least_number
from thaw.graph.tensors import Tensor as GraphTensor

# float32 represents all integers up to 2**24; an int8 number is at most 255 from its zero point.
_EXACT_FLOAT32 = 2**24
_LARGEST_STEP = 255

Folding: TypeAlias = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


class TrainableGraph(nn.Module):
    """Maps normalized images, as in training batches, to the logits of the int8 graph.

    Args:
        graph: float32, with one `Scale`, which reads its input. Its weights and biases are the parameters.
        ranges: as for `quantize`; constant during training.
        logits: name of the output tensor (K,).
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
        # The factors of operations that share weights are stored as logarithms, which keeps them above 0.
        self.weights = nn.ParameterList(torch.tensor(_own_numbers(op, graph)) for op in trained)
        self.biases = nn.ParameterList(torch.tensor(op.bias) for op in trained)

    def float_graph(self) -> Graph:
        """The float32 graph with the current weights."""
        return replace(self.graph, ops=tuple(self._with_weights(op) for op in self.graph.ops))

    def int8_graph(self) -> Graph:
        """The int8 graph with the current weights, which this module computes."""
        return quantize(self.float_graph(), self.ranges)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [B, C, H, W], normalized as by the graph's `Scale` -> real logits, float32 [B, K]."""
        int8 = self.int8_graph()
        quantization = int8.tensor(self.logits).scale()
        scale = self._scale()
        mean, std = (torch.tensor(values, device=x.device).view(1, -1, 1, 1) for values in (scale.mean, scale.std))
        pixels = ((x * std + mean) * 255.0).round_().clamp_(0.0, 255.0)
        return (self.numbers(int8, pixels)[self.logits] - quantization.zero_point) * quantization.scale

    def numbers(self, int8: Graph, pixels: Tensor) -> dict[str, Tensor]:
        """Every tensor of `int8_graph()` by name, as integers in floats; pixels float32 [B, C, H, W], 0 to 255."""
        values = {int8.input: channels_last(pixels)}
        folded = self._folded(int8)
        for op in int8.ops:
            reads = [int8.tensor(name) for name in op.inputs]
            arrays = [values[name] for name in op.inputs]
            if isinstance(op, Weighted):
                values[op.output] = self._weighted(op, reads[0], arrays[0], folded.get(op.inputs[0]))
            else:
                values[op.output] = op.fake_quantize(reads, arrays)
        return values

    def _with_weights(self, op: Operation) -> Operation:
        if not isinstance(op, Weighted):
            return op
        return replace(op, weights=_array(self._weights_of(op)), bias=_array(self.biases[self.places[op.name]]))

    def _weights_of(self, op: Weighted) -> Tensor:
        """The current weights, with a gradient to the parameters."""
        own: Tensor = self.weights[self.places[op.name]]
        if not op.shares:
            return own
        shared: Tensor = self.weights[self.places[op.shares]]
        return shared * _along_channels(own.exp(), op)

    def _scale(self) -> Scale:
        return next(op for op in self.graph.ops if isinstance(op, Scale))

    def _folded(self, int8: Graph) -> dict[str, Folding]:
        """The part of pixel normalization that `quantize` folded into the operations that read this tensor."""
        scale = self._scale()
        if not any(op.name == scale.name and isinstance(op, Requantize) for op in int8.ops):
            return {}
        return {scale.output: scale.folding(int8.tensor(int8.input).scale())}

    def _weighted(self, op: Weighted, read: GraphTensor, x: Tensor, folded: Folding | None) -> Tensor:
        written = op.quantization
        if written is None:
            raise AssertionError("an operation of an int8 graph has a scale")
        weights, bias = self._trained_numbers(op, read, folded, x.device)
        dtype = _exact_dtype(op, x.device)
        sums = op.sum_products_in_torch((x - read.scale().zero_point).to(dtype), weights.to(dtype))
        multipliers, shifts = (torch.from_numpy(values).to(x.device) for values in op.output_multipliers(read))
        scaling = OutputScaling(
            bias=torch.tensor(op.bias, dtype=torch.int64, device=x.device),
            multipliers=multipliers,
            shifts=shifts,
            factors=(multipliers * 2.0 ** (shifts - 31).double()).float(),
            zero_point=written.zero_point,
            least=least_number(written, op.activation),
        )
        return scale_sums(sums, bias, scaling)

    def _trained_numbers(
        self, op: Weighted, read: GraphTensor, folded: Folding | None, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """(weights, bias) of an int8 operation as integers in floats, with gradients to the parameters, if any."""
        weights = torch.tensor(op.weights, dtype=torch.float32, device=device)
        bias = torch.tensor(op.bias, dtype=torch.float32, device=device)
        if op.name not in self.places:
            return weights, bias
        # Ask the float32 operation: the int8 one does not share if the int8 numbers differ.
        smooth = self._weights_of(self.trained[op.name])
        smooth_bias = self.biases[self.places[op.name]]
        if folded is not None:
            factor, offset = (torch.from_numpy(values).to(device) for values in folded)
            smooth, smooth_bias = smooth * factor, smooth_bias + (smooth * offset).sum(op.summed_axes)
        scales = torch.tensor(op.weight_scales, device=device)
        smooth = smooth / _along_channels(scales, op)
        smooth_bias = smooth_bias / (scales * read.scale().scale)
        return straight_through(smooth, weights), straight_through(smooth_bias, bias)


def _along_channels(values: Tensor, op: Weighted) -> Tensor:
    """[C'] in a shape that broadcasts to the weights."""
    return values.view([-1 if axis == op.channel_axis else 1 for axis in range(op.axes)])


def _exact_dtype(op: Weighted, device: torch.device) -> torch.dtype:
    """A dtype in which the sums are exact in any order.

    Always float64 on a GPU, where a float32 convolution may be computed by a transform.
    """
    rows = op.by_channel(np.abs(op.weights.astype(np.int64)))
    is_exact = device.type == "cpu" and int(rows.sum(axis=1).max()) * _LARGEST_STEP < _EXACT_FLOAT32
    return torch.float32 if is_exact else torch.float64


def _own_numbers(op: Weighted, graph: Graph) -> npt.NDArray[np.float32]:
    """The parameters of an operation without biases: its weights, or the logarithms of its factors if it shares."""
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
