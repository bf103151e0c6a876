"""What a microcontroller executes: the steps of a graph, their order, and where each buffer lies in one arena.

Convolution, activation and pooling become one step; a flattening, the joining of vectors and what works in place become
none. Steps run in the order that needs the least memory, and buffers overlap wherever one is over before another
begins; a convolution may also write over the part of its input that it has read already, and an addition over an input
that nothing else reads.

Everything here follows from shapes, so a float32 graph is planned as the int8 graph that it will be quantized to.
Sizes are bytes of int8 numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from thaw.graph.graph import Graph
from thaw.graph.operation import Weighted
from thaw.graph.ops import (
    Add,
    AveragePool2d,
    Concat,
    Conv2d,
    Dense,
    DepthwiseConv2d,
    MaxPool2d,
    Op,
    Relu,
    Requantize,
    Reshape,
    Scale,
)
from thaw.graph.order import Task, best_order
from thaw.graph.packing import LANES, channel_bytes, padded_taps, weight_bytes
from thaw.graph.placement import Buffer, place
from thaw.graph.tensors import Tensor

Windowed: TypeAlias = Conv2d | DepthwiseConv2d | MaxPool2d | AveragePool2d

_ALIGNMENT = 4
"""Working memory begins at multiples of this, since it holds int16 pairs that are read as words."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One call of a kernel.

    Attributes:
        op: the operation; a convolution's activation is part of it.
        pool: the max pooling that is fused with a convolution, or None.
        reads: tensors that it reads, the pixels by the graph's input name.
        writes: the tensor that it writes: the pooling's where there is one.
        lead: how many bytes the result must begin before the (only) input, to be written over what has been read; None
            where the two must not overlap.
        scratch: bytes of working memory.
    """

    op: Op
    pool: MaxPool2d | None = None
    reads: tuple[str, ...]
    writes: str
    lead: int | None = None
    scratch: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryPlan:
    """Steps in the order in which they run, and where things lie.

    Attributes:
        steps: what runs.
        offsets: tensor -> byte in the arena, for each that a step reads or writes, but for the pixels.
        scratch_offsets: for each step, where its working memory lies; 0 where it needs none.
        arena_bytes: what all that takes, in whole words.
        pixels: tensors that are the caller's pixels and lie outside the arena.
    """

    steps: tuple[Step, ...]
    offsets: Mapping[str, int]
    scratch_offsets: tuple[int, ...]
    arena_bytes: int
    pixels: frozenset[str]


def plan_memory(graph: Graph) -> MemoryPlan:
    """The steps of an int8 or float32 graph and their memory; the graph's outputs live to the end."""
    fused = _Fused(graph)
    order = best_order(fused.tasks(), fused.sizes, [fused.root(name) for name in graph.outputs])
    steps = tuple(fused.steps[index] for index in order)
    buffers = list(_buffers(fused, steps))
    offsets, arena = place(buffers)
    at = {buffer.name: offset for buffer, offset in zip(buffers, offsets, strict=True)}
    return MemoryPlan(
        steps=steps,
        offsets={name: at[root] + offset for name, (root, offset) in fused.places.items() if root in at},
        scratch_offsets=tuple(at.get(_scratch_name(index), 0) for index in range(len(steps))),
        arena_bytes=-(-arena // _ALIGNMENT) * _ALIGNMENT,
        pixels=fused.pixels,
    )


def constant_bytes(graph: Graph) -> int:
    """Bytes of weights, biases, multipliers and shifts as the C keeps them, for an int8 or float32 graph.

    Weights that operations share count once, in a float32 graph as if they stayed shared.
    """
    weighted = [op for op in graph.ops if isinstance(op, Weighted)]
    return sum(channel_bytes(op) + (0 if op.shares else weight_bytes(op)) for op in weighted)


class _Fused:
    """The steps of a graph in its own order, and which tensors share memory.

    Attributes:
        places: tensor -> (the tensor whose buffer it lies in, offset in it).
        sizes: bytes of each buffer, by the name of its tensor.
        pixels: tensors that are the caller's pixels.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.readers: dict[str, list[Op]] = {}
        for op in graph.ops:
            for name in op.inputs:
                self.readers.setdefault(name, []).append(op)
        self.pixels = frozenset(self._pixel_tensors())
        self.places: dict[str, tuple[str, int]] = {}
        self.sizes: dict[str, int] = {}
        self.steps: list[Step] = []
        pooled: set[str] = set()
        for op in graph.ops:
            if op.output in self.pixels or op.name in pooled:
                continue
            pool = self._pool_after(op)
            if pool is not None:
                pooled.add(pool.name)
            self._add(op, pool)

    def root(self, name: str) -> str:
        """The tensor in whose buffer `name` lies."""
        return self.places[name][0]

    def tasks(self) -> list[Task]:
        """The steps by the buffers that they use."""
        return [
            Task(
                reads=tuple(self.root(name) for name in step.reads if name in self.places),
                writes=self.root(step.writes),
                scratch=step.scratch,
            )
            for step in self.steps
        ]

    def _pixel_tensors(self) -> Iterator[str]:
        """The input, and what is nothing but the input as int8 and read by convolutions only, or as floats."""
        graph = self.graph
        yield graph.input
        for op in graph.ops:
            if op.inputs == (graph.input,) and op.output not in graph.outputs:
                is_input = isinstance(op, Scale) or (isinstance(op, Requantize) and is_pixel_shift(graph, op))
                if is_input and all(isinstance(reader, Conv2d | DepthwiseConv2d) for reader in self._readers(op)):
                    yield op.output

    def _readers(self, op: Op) -> list[Op]:
        return self.readers.get(op.output, [])

    def _only_reader(self, name: str) -> Op | None:
        """The one operation that reads the tensor, if it is one and nobody else needs the tensor."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.graph.outputs else None

    def _pool_after(self, op: Op) -> MaxPool2d | None:
        """The pooling that can be taken while `op` is computed: of windows that do not overlap."""
        reader = self._only_reader(op.output) if isinstance(op, Conv2d) else None
        if isinstance(reader, MaxPool2d) and all(k <= s for k, s in zip(reader.kernel, reader.stride, strict=True)):
            return reader
        return None

    def _add(self, op: Op, pool: MaxPool2d | None) -> None:
        writes = op.output if pool is None else pool.output
        if isinstance(op, Reshape):
            self.places[writes] = self.places[op.inputs[0]] if op.inputs[0] not in self.pixels else (writes, 0)
            if op.inputs[0] not in self.pixels:
                return
        self._place(op, writes)
        if isinstance(op, Concat) and all(self.root(name) == writes for name in op.inputs):
            return
        written = self.graph.tensor(writes)
        self.steps.append(
            Step(
                op=op,
                pool=pool,
                reads=tuple(self.graph.input if name in self.pixels else name for name in op.inputs),
                writes=writes,
                lead=self._lead(op, pool, written),
                scratch=_scratch_bytes(op, pool, written),
            )
        )

    def _place(self, op: Op, writes: str) -> None:
        size = self.graph.tensor(writes).elements * (4 if self.graph.tensor(writes).dtype == "int32" else 1)
        overwritten = self._overwritten(op)
        if overwritten is not None:
            self.places[writes] = self.places[overwritten]
            return
        self.places[writes] = (writes, 0)
        self.sizes[writes] = size
        if isinstance(op, Concat) and len(self.graph.tensor(writes).shape) == 1:
            self._join(op, writes)

    def _overwritten(self, op: Op) -> str | None:
        """The input whose memory the result takes over, number by number; None where there is none."""
        if not isinstance(op, Relu | Requantize | Add) or len(op.inputs) != len(set(op.inputs)):
            return None
        return next((name for name in op.inputs if name not in self.pixels and self._dies(name)), None)

    def _dies(self, name: str) -> bool:
        """Whether the buffer of a tensor is wholly that tensor's, and has the one reader that it is asked for."""
        root, offset = self.places[name]
        same = [other for other, (owner, _) in self.places.items() if owner == root]
        return (
            offset == 0
            and self.sizes[root] == self.graph.tensor(name).elements
            and all(self._only_reader(other) is not None for other in same)
        )

    def _join(self, concat: Concat, writes: str) -> None:
        """Let the parts of a vector be written where they belong, if each has a buffer of its own until now."""
        roots = [self.places[name] for name in concat.inputs if name not in self.pixels]
        alone = [
            offset == 0
            and self.sizes[root] == self.graph.tensor(name).elements
            and all(self._only_reader(other) is not None for other, (owner, _) in self.places.items() if owner == root)
            for name, (root, offset) in zip(concat.inputs, roots, strict=False)
        ]
        if len(roots) != len(concat.inputs) or len({root for root, _ in roots}) != len(roots) or not all(alone):
            return
        offset = 0
        for name, (root, _) in zip(concat.inputs, roots, strict=True):
            for other, (owner, inner) in list(self.places.items()):
                if owner == root:
                    self.places[other] = (writes, offset + inner)
            del self.sizes[root]
            offset += self.graph.tensor(name).elements

    def _lead(self, op: Op, pool: MaxPool2d | None, written: Tensor) -> int | None:
        if not isinstance(op, Windowed) or op.inputs[0] in self.pixels:
            return None
        return _lead_bytes(op, pool, self.graph.tensor(op.inputs[0]), written)


def is_pixel_shift(graph: Graph, op: Requantize) -> bool:
    """Whether `op` takes 128 off its input and does nothing else, as C does by flipping a bit."""
    read = graph.tensor(op.inputs[0])
    scale, written = read.quantization, op.quantization
    if read.dtype != "uint8" or scale is None:
        return False
    return scale.scale == written.scale and scale.zero_point == written.zero_point + 128


def pooled_positions(pool: MaxPool2d | None) -> int:
    """Positions of the convolution that one written position takes."""
    return 1 if pool is None else pool.kernel[0] * pool.kernel[1]


def _scratch_bytes(op: Op, pool: MaxPool2d | None, written: Tensor) -> int:
    """Gathered inputs, as int16: for `LANES` positions at a time, or all that a window needs, or the only one."""
    if isinstance(op, Dense):
        return 2 * padded_taps(op)
    if not isinstance(op, Conv2d):
        return 0
    positions = pooled_positions(pool)
    is_single = positions == 1 and written.shape[:2] == (1, 1)
    return 2 * padded_taps(op) * (1 if is_single else -(-positions // LANES) * LANES)


def _lead_bytes(op: Windowed, pool: MaxPool2d | None, read: Tensor, written: Tensor) -> int:
    """How far before its input the result must begin, so that no position is overwritten that is still to be read.

    Windows are computed row by row. A convolution gathers a window before it writes, so that only later windows count.
    """
    rows, columns, channels = written.shape
    _, in_columns, in_channels = read.shape
    step_rows, step_columns = op.stride
    top, left = (op.padding[0], op.padding[2]) if isinstance(op, Conv2d | DepthwiseConv2d) else (0, 0)
    if pool is not None:
        step_rows, step_columns = step_rows * pool.stride[0], step_columns * pool.stride[1]
    ahead = 1 if isinstance(op, Conv2d) else 0
    index = np.arange(rows * columns - ahead)
    row, column = np.divmod(index + ahead, columns)
    # A later row begins further left, but never above this one.
    first = np.maximum(0, row * step_rows - top) * in_columns + np.maximum(0, column * step_columns - left)
    below = np.where(row + 1 < rows, np.maximum(0, (row + 1) * step_rows - top) * in_columns, first)
    needed = (index + 1) * channels - np.minimum(first, below) * in_channels
    return int(needed.max(initial=-read.elements))


def _scratch_name(index: int) -> str:
    return f"scratch of step {index}"


def _buffers(fused: _Fused, steps: Sequence[Step]) -> Iterator[Buffer]:
    """Every buffer with the first and the last step at which it is needed."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        for name in (*step.reads, step.writes):
            if name in fused.places:
                first.setdefault(fused.root(name), index)
                last[fused.root(name)] = index
    for name in fused.graph.outputs:
        last[fused.root(name)] = len(steps)
    over = _overwriting(fused, steps, first, last)
    for name, begin in first.items():
        yield Buffer(
            name=name,
            size=fused.sizes[name],
            first=begin,
            last=last[name],
            alignment=4 if fused.graph.tensor(name).dtype == "int32" else 1,
            over=over.get(name),
        )
    for index, step in enumerate(steps):
        if step.scratch:
            yield Buffer(
                name=_scratch_name(index), size=step.scratch, first=index, last=index, alignment=_ALIGNMENT, over=None
            )


def _overwriting(
    fused: _Fused, steps: Sequence[Step], first: Mapping[str, int], last: Mapping[str, int]
) -> dict[str, tuple[str, int]]:
    """Result -> (the input over which it may be written, lead), where nobody else needs either."""
    over = {}
    for index, step in enumerate(steps):
        if step.lead is None or step.writes != fused.root(step.writes) or step.reads[0] not in fused.places:
            continue
        root, offset = fused.places[step.reads[0]]
        if offset == 0 and last[root] == index and first[step.writes] == index:
            over[step.writes] = (root, step.lead)
    return over
