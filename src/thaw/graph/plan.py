"""The execution plan of a microcontroller: steps, their order, and the place of each buffer in one arena.

Convolution, activation and max pooling become one step; a reshape and a concatenation of vectors become none. Steps run
in the order that needs the least memory, and buffers overlap unless both are live at one step. A convolution may also
overwrite the part of its input that it has already read, and an addition an input that nothing else reads.

The plan depends on shapes only, so a float32 graph has the plan of its int8 graph. Sizes are bytes of int8 numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from thaw.graph.graph import Graph
from thaw.graph.ops import Concat, Conv2d, Convolution, MaxPool2d, Operation, Requantize, Scale, Weighted
from thaw.graph.order import Task, best_order
from thaw.graph.placement import Buffer, place
from thaw.graph.tensors import Tensor

_ALIGNMENT = 4
"""Alignment of working memory, which holds int16 pairs that are read as words."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One call of a kernel.

    Attributes:
        op: the operation, with its activation.
        pool: the max pooling that is fused with a convolution, or None.
        reads: tensors that it reads; the pixels have the graph's input name.
        writes: the tensor that it writes: the output of `pool` if there is one.
        lead: bytes by which the output must begin before the (only) input to overwrite it; None if the two must not
            overlap.
        scratch: bytes of working memory.
    """

    op: Operation
    pool: MaxPool2d | None = None
    reads: tuple[str, ...]
    writes: str
    lead: int | None = None
    scratch: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryPlan:
    """Steps in execution order, and the layout of the arena.

    Attributes:
        steps: in execution order.
        offsets: tensor -> offset in the arena, for each tensor that a step reads or writes, except the pixels.
        scratch_offsets: for each step, the offset of its working memory; 0 for none.
        arena_bytes: size of the arena, in whole words.
        pixels: tensors that are the caller's pixels, outside the arena.
    """

    steps: tuple[Step, ...]
    offsets: Mapping[str, int]
    scratch_offsets: tuple[int, ...]
    arena_bytes: int
    pixels: frozenset[str]


def plan_memory(graph: Graph) -> MemoryPlan:
    """The plan of an int8 or float32 graph; the graph's outputs live to the end."""
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
    """Bytes of weights, biases, multipliers and shifts in the C, for an int8 or float32 graph.

    Shared weights count once, also in a float32 graph.
    """
    weighted = [op for op in graph.ops if isinstance(op, Weighted)]
    return sum(op.channel_bytes + (0 if op.shares else op.weight_bytes) for op in weighted)


class _Fused:
    """The steps of a graph in the graph's order, and which tensors share memory.

    Attributes:
        places: tensor -> (the tensor that owns its buffer, offset in it).
        sizes: bytes of each buffer, by the name of its owner.
        pixels: tensors that are the caller's pixels.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.readers: dict[str, list[Operation]] = {}
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
        """The tensor that owns the buffer of `name`."""
        return self.places[name][0]

    def tasks(self) -> list[Task]:
        """The steps, by the buffers that they use."""
        return [
            Task(
                reads=tuple(self.root(name) for name in step.reads if name in self.places),
                writes=self.root(step.writes),
                scratch=step.scratch,
            )
            for step in self.steps
        ]

    def _pixel_tensors(self) -> Iterator[str]:
        """The input, and its int8 or float form if only convolutions read it."""
        graph = self.graph
        yield graph.input
        for op in graph.ops:
            if op.inputs == (graph.input,) and op.output not in graph.outputs:
                is_input = isinstance(op, Scale) or (isinstance(op, Requantize) and is_pixel_shift(graph, op))
                if is_input and all(isinstance(reader, Convolution) for reader in self._readers(op)):
                    yield op.output

    def _readers(self, op: Operation) -> list[Operation]:
        return self.readers.get(op.output, [])

    def _only_reader(self, name: str) -> Operation | None:
        """The only reader of a tensor that is not an output; None if there are several."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.graph.outputs else None

    def _pool_after(self, op: Operation) -> MaxPool2d | None:
        """The max pooling to fuse with the convolution `op`: its windows must not overlap."""
        reader = self._only_reader(op.output) if isinstance(op, Conv2d) else None
        if isinstance(reader, MaxPool2d) and all(k <= s for k, s in zip(reader.kernel, reader.stride, strict=True)):
            return reader
        return None

    def _add(self, op: Operation, pool: MaxPool2d | None) -> None:
        writes = op.output if pool is None else pool.output
        if op.is_view:
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
                scratch=op.scratch_bytes(written, pooled_positions(pool)),
            )
        )

    def _place(self, op: Operation, writes: str) -> None:
        size = self.graph.tensor(writes).elements * (4 if self.graph.tensor(writes).dtype == "int32" else 1)
        overwritten = self._overwritten(op)
        if overwritten is not None:
            self.places[writes] = self.places[overwritten]
            return
        self.places[writes] = (writes, 0)
        self.sizes[writes] = size
        if isinstance(op, Concat) and len(self.graph.tensor(writes).shape) == 1:
            self._join(op, writes)

    def _overwritten(self, op: Operation) -> str | None:
        """The input that the output may overwrite number by number, or None."""
        if not op.works_in_place or len(op.inputs) != len(set(op.inputs)):
            return None
        return next((name for name in op.inputs if name not in self.pixels and self._dies(name)), None)

    def _dies(self, name: str) -> bool:
        """Whether a tensor fills its buffer, and every tensor there has a single reader."""
        root, offset = self.places[name]
        same = [other for other, (owner, _) in self.places.items() if owner == root]
        return (
            offset == 0
            and self.sizes[root] == self.graph.tensor(name).elements
            and all(self._only_reader(other) is not None for other in same)
        )

    def _join(self, concat: Concat, writes: str) -> None:
        """Write the parts of a vector directly into it, if each has its own buffer so far."""
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

    def _lead(self, op: Operation, pool: MaxPool2d | None, written: Tensor) -> int | None:
        if op.inputs[0] in self.pixels:
            return None
        return op.lead_bytes(self.graph.tensor(op.inputs[0]), written, (1, 1) if pool is None else pool.stride)


def is_pixel_shift(graph: Graph, op: Requantize) -> bool:
    """Whether `op` only subtracts 128, which the C does by flipping a bit."""
    read = graph.tensor(op.inputs[0])
    scale, written = read.quantization, op.quantization
    if read.dtype != "uint8" or scale is None:
        return False
    return scale.scale == written.scale and scale.zero_point == written.zero_point + 128


def pooled_positions(pool: MaxPool2d | None) -> int:
    """Positions of the convolution for one output position."""
    return 1 if pool is None else pool.kernel[0] * pool.kernel[1]


def _scratch_name(index: int) -> str:
    return f"scratch of step {index}"


def _buffers(fused: _Fused, steps: Sequence[Step]) -> Iterator[Buffer]:
    """Every buffer, with its first and its last step."""
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
    """Output -> (the input that it may overwrite, lead), for tensors that nothing else needs."""
    over = {}
    for index, step in enumerate(steps):
        if step.lead is None or step.writes != fused.root(step.writes) or step.reads[0] not in fused.places:
            continue
        root, offset = fused.places[step.reads[0]]
        if offset == 0 and last[root] == index and first[step.writes] == index:
            over[step.writes] = (root, step.lead)
    return over
