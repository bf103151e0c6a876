"""What a graph costs, counted from its operations: parameters, multiply-accumulates, memory.

Pure functions of a Graph. Shapes are those of one image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from thaw.graph.graph import Graph
from thaw.graph.operation import Weighted
from thaw.graph.ops import Conv2d, DepthwiseConv2d, Op, Reshape
from thaw.graph.plan import constant_bytes, plan_memory
from thaw.graph.sharing import shared_names
from thaw.graph.tensors import Shape, Tensor

FLOAT32_BYTES = 4
INT8_BYTES = 1
INT32_BYTES = 4  # the biases of an int8 network are int32: they are added to int32 sums

CODE_BYTES = 6656
"""Allowance for the code of the emitted C, built for a Cortex-M with -Os or -O2, what it takes of libgcc, and the
calls and descriptions of `_USUAL_STEPS` steps."""

_USUAL_STEPS = 32
_STEP_BYTES = 64
"""What a further step takes: the call of its kernel, and the sizes and scales that describe it."""

STACK_BYTES = 512
"""Allowance for the stack that `thaw_predict` and `thaw_preprocess` use, interrupts and their caller not included."""


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """What one operation costs.

    Attributes:
        name: such as "branch1.conv1".
        kind: the operation's, such as "conv2d".
        output: shape of what it writes, (H, W, C) or (C,).
        parameters: weights and biases. Where operations share weights, the first has them, and each has a factor and a
            bias a channel: what a normalization of its own learned.
        macs: multiply-accumulates for one image (see `layer_macs`).
        activation_bytes: bytes of what it writes, in float32; 0 for a reshape, which writes nothing.
    """

    name: str
    kind: str
    output: Shape
    parameters: int
    macs: int
    activation_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {
            "name": self.name,
            "kind": self.kind,
            "output": list(self.output),
            "parameters": self.parameters,
            "macs": self.macs,
            "activation_bytes": self.activation_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a whole graph costs, for one image.

    Attributes:
        layers: one entry an operation, in the order of execution.
        parameters: learned numbers, as the layers count them.
        macs: multiply-accumulates (see `layer_macs`).
        peak_activation_bytes_float32: see `peak_activation_bytes`, with 4 bytes a value.
        peak_activation_bytes_int8: the same with 1 byte a value.
        weight_bytes_float32: 4 bytes a parameter.
        weight_bytes_int8: 1 byte a weight and 4 any other learned number (a bias is int32), and nothing else: no scales
            of activations or of weights that are not shared, zero points or code.
        arena_bytes: the one buffer that the emitted int8 C works in, to the byte (see `plan_memory`).
        ram_bytes: all that running the emitted int8 C takes of a device's RAM: the arena, `STACK_BYTES`, and the
            caller's buffers for the image and the scores.
        flash_bytes: the weights, biases and multipliers that the emitted int8 C keeps, to the byte, weights that are
            shared once; `CODE_BYTES`; and in deep networks an allowance for each further step.
        image_bytes: the pixels of one image, uint8 [H, W, C], which the caller holds.
        score_bytes: the scores of one image, which the caller holds: int8 [K], or one int32 from an argmax.
    """

    layers: tuple[LayerCost, ...]
    parameters: int
    macs: int
    peak_activation_bytes_float32: int
    peak_activation_bytes_int8: int
    weight_bytes_float32: int
    weight_bytes_int8: int
    arena_bytes: int
    ram_bytes: int
    flash_bytes: int
    image_bytes: int
    score_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form: the `cost` part of metrics.json."""
        return {
            "layers": [layer.as_dict() for layer in self.layers],
            "parameters": self.parameters,
            "macs": self.macs,
            "peak_activation_bytes_float32": self.peak_activation_bytes_float32,
            "peak_activation_bytes_int8": self.peak_activation_bytes_int8,
            "weight_bytes_float32": self.weight_bytes_float32,
            "weight_bytes_int8": self.weight_bytes_int8,
            "arena_bytes": self.arena_bytes,
            "ram_bytes": self.ram_bytes,
            "flash_bytes": self.flash_bytes,
            "image_bytes": self.image_bytes,
            "score_bytes": self.score_bytes,
        }


def count_cost(graph: Graph) -> Cost:
    """Everything that can be counted from a float32 graph without running it."""
    shared = shared_names(graph.ops)
    layers = tuple(_layer_cost(graph, op, shared) for op in graph.ops)
    weights, others = (sum(counts) for counts in zip(*(_count_parameters(op, shared) for op in graph.ops), strict=True))
    # Artifacts give the last output only, so that nothing else has to be kept to the end.
    plan = plan_memory(replace(graph, outputs=graph.outputs[-1:]))
    further_steps = max(0, len(plan.steps) - _USUAL_STEPS)
    image_bytes = graph.tensor(graph.input).elements
    scores = graph.tensor(graph.outputs[-1])
    score_bytes = scores.elements * (INT32_BYTES if scores.dtype == "int32" else INT8_BYTES)
    return Cost(
        layers=layers,
        parameters=weights + others,
        macs=sum(layer.macs for layer in layers),
        peak_activation_bytes_float32=peak_activation_bytes(graph, FLOAT32_BYTES),
        peak_activation_bytes_int8=peak_activation_bytes(graph, INT8_BYTES),
        weight_bytes_float32=FLOAT32_BYTES * (weights + others),
        weight_bytes_int8=INT8_BYTES * weights + INT32_BYTES * others,
        arena_bytes=plan.arena_bytes,
        ram_bytes=plan.arena_bytes + STACK_BYTES + image_bytes + score_bytes,
        flash_bytes=constant_bytes(graph) + CODE_BYTES + _STEP_BYTES * further_steps,
        image_bytes=image_bytes,
        score_bytes=score_bytes,
    )


def layer_macs(op: Op, output: Shape) -> int:
    """Multiply-accumulates of one operation that writes shape `output`.

    - convolution: H' * W' * C' * kh * kw * C, products with padding included;
    - depthwise convolution: H' * W' * C * kh * kw, padding included;
    - dense: C' * C;
    - everything else: none. Input scaling, biases, pooling, ReLU and softmax are not counted.
    """
    if not isinstance(op, Weighted):
        return 0
    positions = math.prod(output[:2]) if isinstance(op, Conv2d | DepthwiseConv2d) else 1
    return positions * op.weights.size


def peak_activation_bytes(graph: Graph, value_bytes: int) -> int:
    """The most bytes of tensors that are alive at one operation, when they run one at a time in the graph's order.

    Alive at an operation are the tensors it reads, the tensor it writes, and whatever was there before it and is read
    later or is an output of the graph. Raw pixels count 1 byte a value, until the last operation that reads them has
    run; every other tensor counts `value_bytes`. A ReLU works in place and a reshape shares its input's memory, so
    neither adds any. No other operation overwrites its input, none is fused with the next, and working memory inside an
    operation is not counted.
    """
    owner = _memory_owners(graph)
    last_read = {owner[name]: index for index, op in enumerate(graph.ops) for name in (*op.inputs, op.output)}
    last_read |= {owner[name]: len(graph.ops) for name in graph.outputs}
    alive = {graph.input}
    peak = 0
    for index, op in enumerate(graph.ops):
        alive.add(owner[op.output])
        peak = max(peak, sum(_tensor_bytes(graph.tensor(name), value_bytes) for name in alive))
        alive = {name for name in alive if last_read[name] > index}
    return peak


def _memory_owners(graph: Graph) -> Mapping[str, str]:
    """Tensor -> the tensor whose memory it lies in: itself, or what a chain of reshapes began with."""
    owner = {graph.input: graph.input}
    for op in graph.ops:
        owner[op.output] = owner[op.inputs[0]] if isinstance(op, Reshape) else op.output
    return owner


def _tensor_bytes(tensor: Tensor, value_bytes: int) -> int:
    return tensor.elements * (1 if tensor.dtype == "uint8" else value_bytes)


def _layer_cost(graph: Graph, op: Op, shared: frozenset[str]) -> LayerCost:
    output = graph.tensor(op.output).shape
    return LayerCost(
        name=op.name,
        kind=op.kind,
        output=output,
        parameters=sum(_count_parameters(op, shared)),
        macs=layer_macs(op, output),
        activation_bytes=0 if isinstance(op, Reshape) else FLOAT32_BYTES * math.prod(output),
    )


def _count_parameters(op: Op, shared: frozenset[str]) -> tuple[int, int]:
    """(weights, other learned numbers): biases, and factors a channel where weights are shared, once."""
    if not isinstance(op, Weighted):
        return 0, 0
    numbers = 2 if op.shares or op.name in shared else 1
    return 0 if op.shares else op.weights.size, numbers * op.bias.size
