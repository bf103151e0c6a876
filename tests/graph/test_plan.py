"""The memory plan: steps, order, placement, and no overlap of live buffers."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from export_samples import paper_graph
from graph_samples import random_int8_graph

from thaw.graph.graph import Graph
from thaw.graph.lower import lower
from thaw.graph.ops import Add, Concat, Conv2d, Dense, MaxPool2d, Reshape, Scale, Softmax
from thaw.graph.placement import Buffer, place
from thaw.graph.plan import constant_bytes, plan_memory
from thaw.graph.tensors import Tensor
from thaw.models.families import LoopedSpec, ResidualSpec, SeparableSpec


def scores_only(graph):
    return replace(graph, outputs=graph.outputs[-1:])


def test_plan_of_the_papers_network_by_hand():
    graph = scores_only(paper_graph((28, 28, 1)))
    plan = plan_memory(graph)
    # Two branches of convolution + pooling, convolution + pooling, classifier, softmax; then two dense layers, softmax.
    # The scores of both branches are written to their place in the concatenation, which is not a step.
    assert [step.op.kind for step in plan.steps].count("concat") == 0
    assert len(plan.steps) == 2 * 4 + 3
    assert [step.op.name for step in plan.steps if step.pool is not None] == [
        "branch1.conv1", "branch1.conv2", "branch2.conv1", "branch2.conv2",
    ]  # fmt: skip
    # The second convolution of the second branch needs most: 13 * 13 * 10 = 1,690 of input, which it overwrites with
    # its result; 10 scores of the first branch; gathered inputs of 4 positions, 4 * 90 * 2 = 720; rounded up to words.
    assert plan.arena_bytes == 1690 + 10 + 720
    # 14,400 + 40 + 4 weights: 2 * (3 * (3 + 1) * 10 + 90 * 20 + 500 * 10) + 20 * 32 + 32 * 10 = 14,800, and 9 bytes
    # for each of 2 * (10 + 20 + 10) + 32 + 10 = 122 channels.
    assert constant_bytes(graph) == 14_800 + 9 * 122


def test_float_graph_has_the_plan_of_its_int8_graph():
    for shape in [(28, 28, 1), (32, 32, 3)]:
        float_plan = plan_memory(scores_only(paper_graph(shape, "float")))
        int8_plan = plan_memory(scores_only(paper_graph(shape)))
        assert float_plan.arena_bytes == int8_plan.arena_bytes
        assert constant_bytes(paper_graph(shape, "float")) == constant_bytes(paper_graph(shape))


@pytest.mark.parametrize("seed", range(40))
def test_live_buffers_do_not_overlap(seed):
    """Checked independently of the planner's lifetimes, by the readers of each tensor after each step."""
    graph = scores_only(random_int8_graph(np.random.default_rng(seed)))
    plan = plan_memory(graph)
    produced = {graph.input}
    for step in plan.steps:
        assert set(step.reads) <= produced | set(parts_written(graph, plan, produced)), step.op.name
        produced.add(step.writes)
    for index, step in enumerate(plan.steps):
        begin = plan.offsets[step.writes]
        end = begin + size_of(graph, step.writes)
        assert 0 <= begin <= end <= plan.arena_bytes
        scratch = range(plan.scratch_offsets[index], plan.scratch_offsets[index] + step.scratch)
        later = {name for after in plan.steps[index + 1 :] for name in after.reads} | set(graph.outputs)
        for name in needed_later(graph, later, {other.writes for other in plan.steps[: index + 1]}, plan):
            if name == step.writes:
                continue
            other = range(plan.offsets[name], plan.offsets[name] + size_of(graph, name))
            aliased = plan.offsets[name] >= begin and other.stop <= end and is_part(graph, name, step.writes)
            assert aliased or not overlap(range(begin, end), other), (step.op.name, name)
            assert not overlap(scratch, other), (step.op.name, name)
        assert not overlap(scratch, range(begin, end))
        for name in step.reads:
            if name in plan.offsets:
                assert not overlap(scratch, range(plan.offsets[name], plan.offsets[name] + size_of(graph, name)))


def size_of(graph, name):
    tensor = graph.tensor(name)
    return tensor.elements * (4 if tensor.dtype == "int32" else 1)


def overlap(first, second):
    return len(first) > 0 and len(second) > 0 and first.start < second.stop and second.start < first.stop


def parts_written(graph, plan, produced):
    """Tensors that no step writes, because they are other tensors under another name, or concatenated ones."""
    known = set(produced)
    for op in graph.ops:
        if isinstance(op, Reshape | Concat) and set(op.inputs) <= known | plan.pixels:
            known.add(op.output)
    return known


def needed_later(graph, later, written, plan):
    """Tensors that are written and read by a later step, possibly under another name."""
    names, by_steps = set(later), {step.writes for step in plan.steps}
    for op in reversed(graph.ops):
        if isinstance(op, Reshape | Concat) and op.output in names - by_steps:
            names |= set(op.inputs)
    return {name for name in names if name in written and name in plan.offsets}


def is_part(graph, name, whole):
    """Whether `whole` contains `name` or is the same under another name."""
    writers = {op.output: op for op in graph.ops}
    pending = [whole]
    while pending:
        writer = writers.get(pending.pop())
        if isinstance(writer, Reshape | Concat):
            if name in writer.inputs:
                return True
            pending += writer.inputs
    return False


def test_branches_run_in_the_order_with_least_memory():
    """The larger of two branches runs first, since its small result can wait."""

    def branch(number, filters):
        weights = np.ones((filters, 3, 3, 1), np.float32)
        conv = Conv2d(
            name=f"c{number}",
            inputs=("scale",),
            output=f"c{number}",
            weights=weights,
            bias=np.ones(filters, np.float32),
        )
        flat = Reshape(name=f"f{number}", inputs=(f"c{number}",), output=f"f{number}", shape=(64 * filters,))
        dense = Dense(
            name=f"d{number}", inputs=(f"f{number}",), output=f"d{number}",
            weights=np.ones((50, 64 * filters), np.float32), bias=np.ones(50, np.float32),
        )  # fmt: skip
        return [conv, flat, dense]

    ops = [
        Scale(name="scale", inputs=("image",), output="scale", mean=(0.0,), std=(1.0,)),
        *branch(1, 1), *branch(2, 4),
        Add(name="join", inputs=("d1", "d2"), output="join"),
        Softmax(name="softmax", inputs=("join",), output="softmax"),
    ]  # fmt: skip
    tensors = {"image": Tensor(name="image", shape=(10, 10, 1), dtype="uint8")}
    for op in ops:
        tensors[op.output] = op.infer([tensors[name] for name in op.inputs])
    graph = Graph(tensors=tuple(tensors.values()), ops=tuple(ops), input="image", outputs=("softmax",))
    plan = plan_memory(graph)
    assert [step.op.name for step in plan.steps][:2] == ["c2", "d2"]
    # 64 * 4 = 256 of the large map, 2 * 256 gathered, and the 50 of the result, rounded up to words.
    assert plan.arena_bytes == 256 + 512 + 52


def planned(spec, shape):
    """The plan of a family's submodel, without allocating weights."""
    with torch.device("meta"):
        module = spec.build(shape, 10)
    graph = lower(module, shape=shape, mean=(0.0,) * shape[2], std=(1.0,) * shape[2], classes=10)
    return plan_memory(scores_only(graph))


@pytest.mark.parametrize(("blocks", "leads"), [((1, 1, 1), 1), ((3, 3, 3), 2)])
def test_residual_network_needs_two_maps(blocks, leads):
    """A block keeps its input; convolutions overwrite their input, and the sum overwrites the second result."""
    plan = planned(ResidualSpec(blocks=blocks), (32, 32, 3))
    # Two maps of 32 * 32 * 16; every result begins a row and a position, 33 * 16, before the map that it overwrites,
    # in one place or, between blocks, in both; gathered inputs of 4 positions, 4 * 144 * 2.
    assert plan.arena_bytes == 2 * 16_384 + leads * 33 * 16 + 1_152
    for step in plan.steps:
        if isinstance(step.op, Add):
            shortcut, second = step.reads
            assert plan.offsets[step.writes] == plan.offsets[second] != plan.offsets[shortcut]


def test_loop_and_separable_block_need_two_maps():
    looped = planned(LoopedSpec(stem=16, widths=(16, 16), passes=(4, 4), mixed=3), (32, 32, 3))
    assert looped.arena_bytes == 2 * 16_384 + 1_152
    # The depthwise convolution reads the shortcut; the pointwise one overwrites its result: 4 * 24 * 2 are gathered.
    assert planned(SeparableSpec(blocks=(2, 1, 1)), (32, 32, 3)).arena_bytes == 2 * 24_576 + 4 * 24 * 2
    # Without a shortcut it also overwrites its input, a row and two positions before it: a channel is written before
    # the next one is read.
    widths = planned(SeparableSpec(widths=(8, 12), blocks=(1, 1)), (32, 32, 3))
    (depthwise,) = (step for step in widths.steps if step.op.name == "stage2.block1.depthwise")
    assert depthwise.lead == 16 * 8 + 2 * 8
    assert widths.offsets[depthwise.reads[0]] - widths.offsets[depthwise.writes] >= depthwise.lead or (
        abs(widths.offsets[depthwise.reads[0]] - widths.offsets[depthwise.writes]) >= 16 * 16 * 8
    )


def test_addition_overwrites_a_dead_input():
    """It overwrites the second input if the first is read again, and neither if both are."""
    weights, bias = np.ones((1, 1, 1, 1), np.float32), np.ones(1, np.float32)
    start = [
        Scale(name="s", inputs=("image",), output="s", mean=(0.0,), std=(1.0,)),
        Conv2d(name="a", inputs=("s",), output="a", weights=weights, bias=bias),
        Conv2d(name="b", inputs=("s",), output="b", weights=weights, bias=bias),
        Add(name="add", inputs=("a", "b"), output="add"),
    ]
    for read_again, over in [((), "a"), (("a",), "b"), (("b",), "a"), (("a", "b"), None)]:
        ops, last = list(start), "add"
        for name in read_again:
            ops.append(Add(name=f"{name}2", inputs=(last, name), output=f"{name}2"))
            last = f"{name}2"
        tensors = {"image": Tensor(name="image", shape=(5, 5, 1), dtype="uint8")}
        for op in ops:
            tensors[op.output] = op.infer([tensors[name] for name in op.inputs])
        plan = plan_memory(Graph(tensors=tuple(tensors.values()), ops=tuple(ops), input="image", outputs=(last,)))
        same = {name for name in ("a", "b") if plan.offsets[name] == plan.offsets["add"]}
        assert same == ({over} if over else set())


def test_overlapping_windows_are_pooled_separately():
    conv = Conv2d(
        name="c", inputs=("s",), output="c", weights=np.ones((2, 3, 3, 1), np.float32), bias=np.ones(2, np.float32)
    )
    for stride, fused in [((1, 1), False), ((2, 2), True), ((3, 3), True)]:
        ops = [
            Scale(name="s", inputs=("image",), output="s", mean=(0.0,), std=(1.0,)),
            conv,
            MaxPool2d(name="p", inputs=("c",), output="p", kernel=(2, 2), stride=stride),
        ]
        tensors = {"image": Tensor(name="image", shape=(9, 9, 1), dtype="uint8")}
        for op in ops:
            tensors[op.output] = op.infer([tensors[name] for name in op.inputs])
        graph = Graph(tensors=tuple(tensors.values()), ops=tuple(ops), input="image", outputs=("p",))
        assert [step.pool is not None for step in plan_memory(graph).steps] == ([True] if fused else [False, False])


def test_placement_has_no_overlap_and_reaches_the_lower_bound():
    rng = np.random.default_rng(0)
    for _ in range(50):
        buffers = []
        for index in range(int(rng.integers(1, 9))):
            first = int(rng.integers(0, 6))
            last = first + int(rng.integers(0, 3))
            buffers.append(Buffer(name=str(index), size=int(rng.integers(1, 40)), first=first, last=last))
        offsets, top = place(buffers)
        assert top == max(offset + buffer.size for offset, buffer in zip(offsets, buffers, strict=True))
        bound = max(sum(b.size for b in buffers if b.first <= step <= b.last) for step in range(9))
        assert bound <= top <= 2 * bound
        for (one, at), (other, place_of) in combinations(zip(buffers, offsets, strict=True), 2):
            if one.first <= other.last and other.first <= one.last:
                assert at + one.size <= place_of or place_of + other.size <= at


def test_output_may_overlap_the_input_already_read():
    whole = Buffer(name="in", size=100, first=0, last=1)
    result = Buffer(name="out", size=60, first=1, last=2, over=("in", 4))
    assert place([whole, result])[1] == 104
    assert place([whole, replace(result, over=None)])[1] == 160


def test_chain_of_overlapping_outputs_uses_two_places():
    """Five buffers of 100 bytes, each overlapping the previous one, with a kept buffer for every second one."""
    buffers = []
    for index in range(5):
        kept = Buffer(name=f"kept{index}", size=100, first=2 * index, last=2 * index + 2)
        over = None if index == 0 else (f"kept{index - 1}", 10)
        buffers.append(kept if over is None else replace(kept, over=over, first=2 * index))
    offsets, top = place(buffers)
    assert top <= 100 + 4 * 10
    for (one, at), (other, after) in pairwise(zip(buffers, offsets, strict=True)):
        assert after + 10 <= at or after >= at + one.size, (one, other)


def test_weights_have_the_layout_of_the_kernels():
    weights = np.arange(1, 3 * 2 * 3 + 1, dtype=np.int8).reshape(3, 2, 3, 1)
    op = Conv2d(
        name="c", inputs=("x",), output="y", weights=weights, bias=np.zeros(3, np.int32),
        weight_scales=np.ones(3, np.float32), quantization=paper_graph((28, 28, 1)).ops[0].quantization,
    )  # fmt: skip
    # Filters 0 and 1, then 2 and none; rows of three taps are padded to four.
    expected = [1, 7, 2, 8, 3, 9, 0, 0, 4, 10, 5, 11, 6, 12, 0, 0]
    expected += [13, 0, 14, 0, 15, 0, 0, 0, 16, 0, 17, 0, 18, 0, 0, 0]
    assert op.packed_weights().tolist() == expected
    assert op.weight_bytes == len(expected)
    assert op.channel_bytes == 9 * 3
