"""The cost of a graph: parameters, multiply-accumulates and memory for one image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from thaw.graph.graph import Graph
from thaw.graph.ops import Operation, Weighted
from thaw.graph.plan import constant_bytes, plan_memory
from thaw.graph.sharing import shared_names
from thaw.graph.tensors import Shape, Tensor

FLOAT32_BYTES = 4
INT8_BYTES = 1
INT32_BYTES = 4  # the biases of an int8 network are int32: they are added to int32 sums

CODE_BYTES = 6656
"""Estimate of the code of the exported C, built for a Cortex-M with -Os or -O2: kernels, libgcc functions, and the
calls and descriptors of `_USUAL_STEPS` steps."""

_USUAL_STEPS = 32
_STEP_BYTES = 64
"""For each further step: the call of its kernel and its descriptor."""

STACK_BYTES = 512
"""Estimate of the stack of `thaw_predict` and `thaw_preprocess`, without interrupts and their caller."""


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """The cost of one operation.

    Attributes:
        name: name of the operation, such as "branch1.conv1".
        kind: kind of the operation, such as "conv2d".
        output: shape of the output, (H, W, C) or (C,).
        parameters: weights and biases. If operations share weights, the first one counts them, and every one counts a
            factor and a bias per channel, which its own normalization learned.
        macs: multiply-accumulates for one image (see `count_macs`).
        activation_bytes: bytes of the output in float32; 0 for a reshape, which writes nothing.
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
    """The cost of a graph, for one image.

    Attributes:
        layers: one entry per operation, in execution order.
        parameters: learned numbers, as the layers count them.
        macs: multiply-accumulates (see `count_macs`).
        peak_activation_bytes_float32: see `peak_activation_bytes`, with 4 bytes per value.
        peak_activation_bytes_int8: the same with 1 byte per value.
        weight_bytes_float32: 4 bytes per parameter.
        weight_bytes_int8: 1 byte per weight and 4 bytes per other parameter (biases are int32), without scales, zero
            points and code.
        arena_bytes: the working memory of the exported int8 C, exact (see `plan_memory`).
        ram_bytes: RAM that the exported int8 C needs on a device: the arena, `STACK_BYTES`, and the caller's buffers
            for the image and the scores.
        flash_bytes: the weights (shared ones once), biases and multipliers of the exported int8 C, exact; plus
            `CODE_BYTES`, and in deep networks an estimate for each further step.
        image_bytes: the input buffer, uint8 [H, W, C], which belongs to the caller.
        score_bytes: the output buffer, which belongs to the caller: int8 [K], or one int32 after an argmax.
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
    """The cost of a float32 graph, counted without running it."""
    shared = shared_names(graph.ops)
    layers = tuple(_layer_cost(graph, op, shared) for op in graph.ops)
    weights, others = (sum(counts) for counts in zip(*(_count_parameters(op, shared) for op in graph.ops), strict=True))
    # Artifacts return only the last output, so no other one must live to the end.
    plan = plan_memory(replace(graph, outputs=graph.outputs[-1:]))
    further_steps = max(0, len(plan.steps) - _USUAL_STEPS)
    image_bytes = graph.tensor(graph.input).elements
    scores = graph.tensor(graph.outputs[-1])
    score_bytes = scores.elements * (INT32_BYTES if scores.dtype == "int32" else INT8_BYTES)
    return Cost(
        layers=layers,
        parameters=weights + others,
        macs=count_macs(graph),
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


def count_macs(graph: Graph) -> int:
    """Multiply-accumulates of a graph for one image: the products of convolutions and dense layers.

    Products with padding count. Input normalization, biases, pooling, ReLU and softmax do not.
    """
    return sum(op.macs(graph.tensor(op.output).shape) for op in graph.ops)


def peak_activation_bytes(graph: Graph, value_bytes: int) -> int:
    """The largest sum of live tensors, in bytes, when operations run one at a time in the graph's order.

    The live tensors at an operation are its inputs, its output, and every earlier tensor that is read later or is an
    output of the graph. Raw pixels count 1 byte per value until their last reader has run; other tensors count
    `value_bytes` per value. A reshape shares its input's memory. No other operation overwrites its input, operations
    are not fused, and working memory inside an operation is not counted.
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
    """Tensor -> the tensor whose memory it uses: itself, or the first of a chain of reshapes."""
    owner = {graph.input: graph.input}
    for op in graph.ops:
        owner[op.output] = owner[op.inputs[0]] if op.is_view else op.output
    return owner


def _tensor_bytes(tensor: Tensor, value_bytes: int) -> int:
    return tensor.elements * (1 if tensor.dtype == "uint8" else value_bytes)


def _layer_cost(graph: Graph, op: Operation, shared: frozenset[str]) -> LayerCost:
    output = graph.tensor(op.output).shape
    return LayerCost(
        name=op.name,
        kind=op.kind,
        output=output,
        parameters=sum(_count_parameters(op, shared)),
        macs=op.macs(output),
        activation_bytes=0 if op.is_view else FLOAT32_BYTES * math.prod(output),
    )


def _count_parameters(op: Operation, shared: frozenset[str]) -> tuple[int, int]:
    """(weights, other parameters): the latter are biases, and factors per channel if weights are shared."""
    if not isinstance(op, Weighted):
        return 0, 0
    numbers = 2 if op.shares or op.name in shared else 1
    return 0 if op.shares else op.weights.size, numbers * op.bias.size
