"""Admitted roundings, compared with exact fractions; intervals, compared with graphs executed with other roundings."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import int8_oracle
import numpy as np
import pytest
from graph_samples import random_images, random_int8_graph

from thaw.graph.interpret import run, score_interval, trace
from thaw.graph.tensors import Quantization


def real_values(op, reads, arrays):
    """The output of an operation before rounding, in fractions of an output step, {index: value}, for one image."""
    scales = [Fraction(read.quantization.scale) for read in reads]
    zeros = [read.quantization.zero_point for read in reads]
    written = getattr(op, "quantization", None)
    step, zero = (Fraction(written.scale), written.zero_point) if written else (None, 0)
    if op.kind == "requantize":
        return {at: (int(v) - zeros[0]) * scales[0] / step + zero for at, v in np.ndenumerate(arrays[0])}
    if op.kind == "add":
        return {
            at: sum((int(array[at]) - z) * scale / step for array, z, scale in zip(arrays, zeros, scales, strict=True))
            + zero
            for at in np.ndindex(arrays[0].shape)
        }
    if op.kind == "dense":
        sums = {
            (channel,): sum((int(v) - zeros[0]) * int(w) for v, w in zip(arrays[0], row, strict=True))
            for channel, row in enumerate(op.weights)
        }
    elif op.kind == "average_pool2d":
        rows, columns, channels = op.infer(reads).shape
        kernel = list(np.ndindex(op.kernel))
        return {
            (i, j, c): Fraction(
                sum(int(arrays[0][i * op.stride[0] + r, j * op.stride[1] + s, c]) for r, s in kernel), len(kernel)
            )
            for i, j, c in np.ndindex(rows, columns, channels)
        }
    else:
        sums = convolution_sums(op, reads, arrays[0].astype(int) - zeros[0])
    return {
        at: (total + int(op.bias[at[-1]])) * scales[0] * Fraction(float(op.weight_scales[at[-1]])) / step + zero
        for at, total in sums.items()
    }


def convolution_sums(op, reads, centered):
    top, bottom, left, right = op.padding
    padded = np.pad(centered, ((top, bottom), (left, right), (0, 0)))
    rows, columns, channels = op.infer(reads).shape
    sums = {}
    for i, j, c in np.ndindex(rows, columns, channels):
        down, across = i * op.stride[0], j * op.stride[1]
        window = padded[down : down + op.kernel[0], across : across + op.kernel[1]]
        if op.kind == "conv2d":
            sums[i, j, c] = int((window * op.weights[c].astype(int)).sum())
        else:
            sums[i, j, c] = int((window[..., c] * op.weights[..., c].astype(int)).sum())
    return sums


ROUNDING = {"conv2d", "depthwise_conv2d", "dense", "requantize", "add", "average_pool2d"}


def test_admitted_numbers_surround_the_exact_result():
    """Both neighbors of a half, the specification's number, and nothing outside the slack."""
    narrow = total = 0
    kinds = set()
    for seed in range(14):
        rng = np.random.default_rng(seed)
        graph = random_int8_graph(rng)
        values = trace(graph, random_images(rng, graph, 3)[2:])
        for op in graph.ops:
            if op.kind not in ROUNDING:
                continue
            kinds.add(op.kind)
            reads = [graph.tensor(name) for name in op.inputs]
            arrays = [values[name] for name in op.inputs]
            low, high = (end[0].astype(int) for end in op.admitted(reads, arrays, arrays))
            assert ((low <= values[op.output][0]) & (values[op.output][0] <= high)).all()
            least = graph.tensor(op.output).quantization.zero_point if getattr(op, "activation", "") == "relu" else -128
            for at, real in real_values(op, reads, [array[0] for array in arrays]).items():
                nearest = {math.ceil(real - Fraction(1, 2)), math.floor(real + Fraction(1, 2))}
                clamped = {min(max(number, least, -128), 127) for number in nearest}
                assert min(clamped) >= low[at]
                assert max(clamped) <= high[at]
                # Slacks are at most 1/4, or 3/4 for a change of scale.
                reach = Fraction(5, 4) if op.kind == "requantize" else Fraction(3, 4)
                inside = min(max(real, least, -128), 127)
                assert max(abs(int(low[at]) - inside), abs(int(high[at]) - inside)) <= reach + Fraction(1, 100)
                narrow, total = narrow + (low[at] == high[at]), total + 1
    assert kinds == ROUNDING
    assert narrow / total > 0.8


def executed_otherwise(graph, image, choose):
    """Execute a graph; `choose` selects every number of every layer from the admitted ones."""
    values = {graph.input: image}
    for op in graph.ops:
        arrays = [values[name] for name in op.inputs]
        values[op.output] = choose(*op.admitted([graph.tensor(name) for name in op.inputs], arrays, arrays))
    return values[graph.outputs[-1]]


def test_intervals_contain_all_admitted_roundings():
    moved, coin = 0, np.random.default_rng(0)

    def either(low, high):
        return np.where(coin.random(low.shape) < 0.5, low, high)

    for seed in range(25):
        rng = np.random.default_rng(seed)
        graph = random_int8_graph(rng)
        images = random_images(rng, graph, 4)
        low, high = score_interval(graph, images)
        expected = run(graph, images)[graph.outputs[-1]]
        results = [executed_otherwise(graph, images, choose) for choose in (np.minimum, np.maximum, either)]
        for result in [expected, *results]:
            assert ((low <= result) & (result <= high)).all()
            moved += int((result != expected).sum())
    assert moved > 20


@pytest.mark.parametrize("scale", [0.02, 0.2, 1.0])
def test_softmax_interval_contains_every_combination(scale):
    graph = next(
        g for g in map(random_int8_graph, map(np.random.default_rng, range(50))) if g.ops[-1].kind == "softmax"
    )
    op, read = graph.ops[-1], graph.tensor(graph.ops[-1].inputs[0])
    scale = float(np.float32(scale))
    read = type(read)(name=read.name, shape=(3,), dtype="int8", quantization=Quantization(scale=scale, zero_point=0))
    rng = np.random.default_rng(3)
    for _ in range(20):
        low = rng.integers(-60, 60, 3)
        high = low + rng.integers(0, 4, 3)
        least, most = (end[0] for end in op.admitted([read], [low[None].astype(np.int8)], [high[None].astype(np.int8)]))
        every = np.array(
            [
                int8_oracle.softmax(scores, scale)
                for scores in itertools.product(*(range(a, b + 1) for a, b in zip(low, high, strict=True)))
            ]
        )
        assert (every >= least).all()
        assert (every <= most).all()
        # The ends are reached, up to the rounding of one number.
        assert (every.min(axis=0).astype(int) - least <= 1).all()
        assert (most.astype(int) - every.max(axis=0) <= 1).all()


def test_exact_operations_with_known_inputs_give_one_number():
    rng = np.random.default_rng(1)
    seen = set()
    for seed in range(40):
        graph = random_int8_graph(np.random.default_rng(seed))
        values = trace(graph, random_images(rng, graph, 3))
        for op in graph.ops:
            if op.kind in {"max_pool2d", "relu", "concat", "reshape", "argmax"}:
                arrays = [values[name] for name in op.inputs]
                low, high = op.admitted([graph.tensor(name) for name in op.inputs], arrays, arrays)
                assert (low == high).all()
                assert (low == values[op.output]).all()
                seen.add(op.kind)
    assert seen == {"max_pool2d", "relu", "concat", "reshape", "argmax"}
