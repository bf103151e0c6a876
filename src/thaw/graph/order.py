"""The order of steps that needs the least memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

_MOST_STATES = 1_000
"""The given order is kept if more sets of finished steps than this have the same size."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A step, with the names of its buffers.

    Attributes:
        reads: buffers that it reads; it must run after all earlier steps that write them.
        writes: the buffer that it writes.
        scratch: bytes of additional working memory.
    """

    reads: tuple[str, ...]
    writes: str
    scratch: int


def best_order(tasks: Sequence[Task], sizes: Mapping[str, int], kept: Collection[str]) -> list[int]:
    """The order with the smallest peak of live buffers; among equals, the one closest to the given order.

    Dynamic programming over the sets of finished steps: the live buffers after a set do not depend on its order. Sets
    are integers with one bit per step or buffer.

    Args:
        tasks: the steps, in a valid order.
        sizes: bytes of each buffer.
        kept: buffers that live to the end.
    """
    problem = _Problem(tasks, sizes, kept)
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    for _ in tasks:
        grown: dict[int, tuple[int, tuple[int, ...]]] = {}
        for done, (peak, order) in best.items():
            for index, needed in problem.steps_after(done):
                after, found = done | 1 << index, (max(peak, needed), (*order, index))
                if after not in grown or found < grown[after]:
                    grown[after] = found
        best = grown
        if len(best) > _MOST_STATES:
            return list(range(len(tasks)))
    ((_, order),) = best.values()
    return list(order)


class _Problem:
    """Steps and buffers as bits."""

    def __init__(self, tasks: Sequence[Task], sizes: Mapping[str, int], kept: Collection[str]) -> None:
        names = list(dict.fromkeys(name for task in tasks for name in (*task.reads, task.writes)))
        self.tasks = tasks
        # (bit, bytes, steps that use it, whether it lives to the end)
        self.buffers = [
            (
                1 << number,
                sizes[name],
                _bits(index for index, task in enumerate(tasks) if name in (*task.reads, task.writes)),
                name in kept,
            )
            for number, name in enumerate(names)
        ]
        self.touches = [_bits(names.index(name) for name in {*task.reads, task.writes}) for task in tasks]
        self.needs = [
            _bits(earlier for earlier in range(index) if tasks[earlier].writes in task.reads)
            for index, task in enumerate(tasks)
        ]

    def steps_after(self, done: int) -> list[tuple[int, int]]:
        """The steps that can run after the steps `done`: (step, bytes in use while it runs)."""
        alive, used = 0, 0
        for bit, size, users, is_kept in self.buffers:
            if users & done and (is_kept or users & ~done):
                alive |= bit
                used += size
        return [
            (index, used + self._size(self.touches[index] & ~alive) + task.scratch)
            for index, task in enumerate(self.tasks)
            if not done >> index & 1 and not self.needs[index] & ~done
        ]

    def _size(self, buffers: int) -> int:
        return sum(size for bit, size, _, _ in self.buffers if bit & buffers) if buffers else 0


def _bits(numbers: Iterable[int]) -> int:
    return sum(1 << number for number in numbers)
