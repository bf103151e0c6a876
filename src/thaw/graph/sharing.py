"""Operations that use the weights of another one: whether they do, and by which factors theirs differ.

A convolution that a network runs many times, each time with a normalization of its own, becomes that many operations,
whose float32 weights differ by one positive factor an output channel. Their int8 weights are then one and the same, and
a device keeps them once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from thaw.errors import UsageError
from thaw.graph.operation import Weighted, without_repeats
from thaw.graph.ops import Op
from thaw.quoting import shown

_TOLERANCE = 1e-4
"""Of a channel's largest weight, of which an int8 step is 1/127."""
_NOTHING = 1e-30
"""Weights below this count as 0: toward the least float32 number they have fewer and fewer digits."""


def check_shares(ops: Sequence[Op]) -> None:
    """Refuse an operation that does not have the weights of the one that it says it shares with.

    Raises:
        UsageError: with the name of the operation.
    """
    earlier: dict[str, Weighted] = {}
    for op in ops:
        if not isinstance(op, Weighted):
            continue
        if op.shares:
            _check_share(op, earlier.get(op.shares))
        earlier[op.name] = op


def shared_names(ops: Sequence[Op]) -> frozenset[str]:
    """Operations with weights that others share."""
    return frozenset(op.shares for op in ops if isinstance(op, Weighted) and op.shares)


def weights_owner(op: Weighted) -> str:
    """The operation that has these weights: itself, or the one that it shares with."""
    return op.shares or op.name


def channel_factors(op: Weighted, base: Weighted) -> npt.NDArray[np.float64] | None:
    """The factors above 0, [C'], by which the float32 weights of `op` are those of `base`; None where they are not."""
    own, shared = (_by_channel(each, op.channel_axis) for each in without_repeats(op.weights, base.weights))
    squares = (shared * shared).sum(axis=1)
    products = (own * shared).sum(axis=1)
    factors = np.divide(products, squares, out=np.ones_like(squares), where=squares > _NOTHING**2)
    if factors.min() < 0:
        return None
    factors = np.maximum(factors, _NOTHING)
    largest = np.abs(own).max(axis=1, keepdims=True)
    is_alike = np.abs(own - factors[:, None] * shared) <= _TOLERANCE * largest + _NOTHING
    return np.broadcast_to(factors, (op.channels,)) if is_alike.all() else None


def _by_channel(weights: npt.NDArray[np.float32], channel_axis: int) -> npt.NDArray[np.float64]:
    """[C', terms], in a precision in which no product underflows."""
    return np.moveaxis(weights.astype(np.float64), channel_axis, 0).reshape(weights.shape[channel_axis], -1)


def _check_share(op: Weighted, base: Weighted | None) -> None:
    told = f"graph: {op.kind} {shown(op.name)} shares the weights of {shown(op.shares)}"
    if base is None:
        raise UsageError(f"{told}: expected the name of an earlier operation with weights")
    if base.shares:
        raise UsageError(f"{told}, which are those of {shown(base.shares)}: expected that name")
    if (base.kind, base.weights.shape) != (op.kind, op.weights.shape):
        raise UsageError(
            f"{told}, a {base.kind} with weights {base.weights.shape}: expected a {op.kind} with {op.weights.shape}"
        )
    if op.quantization is not None:
        if not np.array_equal(op.weights, base.weights):
            raise UsageError(f"{told}, but its numbers are others")
    elif channel_factors(op, base) is None:
        raise UsageError(f"{told}, but differs by more than a positive factor an output channel")
