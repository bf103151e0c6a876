"""Placement of buffers in one small arena, so that buffers that are live at the same time do not overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """Bytes that are needed from one step to another.

    Attributes:
        name: unique.
        size: bytes, at least 1.
        first: the first step that needs it.
        last: the last step that needs it; may equal `first`.
        alignment: the offset is a multiple of this.
        over: (a buffer whose last step is this one's first, lead): the two may overlap if this one begins at least
            `lead` bytes before the other; None if there is no such buffer.
    """

    name: str
    size: int
    first: int
    last: int
    alignment: int = 1
    over: tuple[str, int] | None = None


def place(buffers: Sequence[Buffer]) -> tuple[list[int], int]:
    """An offset for each buffer, and the size of the arena.

    The best result of greedy first fit in several orders. It is optimal if it reaches the largest sum of live buffers,
    as usual for these networks.
    """
    orders = (
        lambda buffer: (-buffer.size, buffer.first),
        lambda buffer: (-buffer.size, -buffer.first),
        lambda buffer: (buffer.first, -buffer.size),
        lambda buffer: (-(buffer.last - buffer.first), -buffer.size),
        lambda buffer: (-buffer.size * (buffer.last - buffer.first + 1), buffer.first),
        lambda buffer: (-buffer.first, -buffer.size),
    )
    best: tuple[int, dict[str, int]] | None = None
    for order, prefers_over in product(orders, (False, True)):
        offsets = _first_fit(sorted(buffers, key=order), prefers_over=prefers_over)
        top = max((offsets[buffer.name] + buffer.size for buffer in buffers), default=0)
        if best is None or top < best[0]:
            best = (top, offsets)
    if best is None:
        raise AssertionError("there is at least one order")
    return [best[1][buffer.name] for buffer in buffers], best[0]


def _first_fit(buffers: Sequence[Buffer], *, prefers_over: bool) -> dict[str, int]:
    """The lowest offset that fits for each buffer in turn, or with `prefers_over`, the lowest with an allowed overlap.

    A chain of outputs that overwrite their inputs then alternates between two places instead of three.
    """
    placed: list[tuple[Buffer, int]] = []
    for buffer in buffers:
        over = {_aligned(offset, buffer.alignment) for offset in _overlapping(buffer, placed)}
        free = {_aligned(offset + other.size, buffer.alignment) for other, offset in placed} | {0}
        candidates = [*sorted(over), *sorted(free)] if prefers_over else sorted(over | free)
        for candidate in candidates:
            if all(_fits(buffer, candidate, other, offset) for other, offset in placed):
                placed.append((buffer, candidate))
                break
    return {buffer.name: offset for buffer, offset in placed}


def _overlapping(buffer: Buffer, placed: Sequence[tuple[Buffer, int]]) -> Iterator[int]:
    """Offsets at which it overlaps the buffer that it overwrites, or that overwrites it."""
    for other, offset in placed:
        if buffer.over is not None and buffer.over[0] == other.name:
            yield max(0, offset - buffer.over[1])
        if other.over is not None and other.over[0] == buffer.name:
            yield max(0, offset + other.over[1])


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _fits(buffer: Buffer, offset: int, other: Buffer, other_offset: int) -> bool:
    if buffer.last < other.first or other.last < buffer.first:
        return True
    if offset + buffer.size <= other_offset or other_offset + other.size <= offset:
        return True
    if buffer.over is not None and buffer.over[0] == other.name and offset + buffer.over[1] <= other_offset:
        return True
    return other.over is not None and other.over[0] == buffer.name and other_offset + other.over[1] <= offset
