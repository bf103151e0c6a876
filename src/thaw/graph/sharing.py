"""Operations that share the weights of another one, up to one factor per output channel.

A convolution that a network runs several times with different normalizations becomes several operations whose float32
weights differ by one positive factor per output channel. Their int8 weights are identical, and a device stores them
once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from thaw.errors import UsageError
from thaw.graph.ops.operation import Operation
from thaw.graph.ops.weighted import Weighted, without_repeats
from thaw.quoting import shown

_TOLERANCE = 1e-4
"""Tolerance relative to a channel's largest weight; an int8 step is 1/127 of it."""
_NOTHING = 1e-30
"""Weights below this count as 0: near the smallest float32 number they lose digits."""


def check_shares(ops: Sequence[Operation]) -> None:
    """Check that operations have the weights that they claim to share.

    Raises:
        UsageError: when one does not; the message names it.
    """
    earlier: dict[str, Weighted] = {}
    for op in ops:
        if not isinstance(op, Weighted):
            continue
        if op.shares:
            _check_share(op, earlier.get(op.shares))
        earlier[op.name] = op


def shared_names(ops: Sequence[Operation]) -> frozenset[str]:
    """Names of the operations whose weights others share."""
    return frozenset(op.shares for op in ops if isinstance(op, Weighted) and op.shares)


def weights_owner(op: Weighted) -> str:
    """Name of the operation that owns these weights: itself, or the one it shares with."""
    return op.shares or op.name


def channel_factors(op: Weighted, base: Weighted) -> npt.NDArray[np.float64] | None:
    """The positive factors [C'] between the float32 weights of `op` and `base`; None if there are none."""
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
    found = f"graph: {op.kind} {shown(op.name)} shares the weights of {shown(op.shares)}"
    if base is None:
        raise UsageError(f"{found}: expected the name of an earlier operation with weights", code="usage-graph-shares")
    if base.shares:
        raise UsageError(
            f"{found}, which are those of {shown(base.shares)}: expected that name", code="usage-graph-shares"
        )
    if (base.kind, base.weights.shape) != (op.kind, op.weights.shape):
        raise UsageError(
            f"{found}, a {base.kind} with weights {base.weights.shape}: expected a {op.kind} with {op.weights.shape}",
            code="usage-graph-shares",
        )
    if op.quantization is not None:
        if not np.array_equal(op.weights, base.weights):
            raise UsageError(f"{found}, but has other values", code="usage-graph-shares")
    elif channel_factors(op, base) is None:
        raise UsageError(
            f"{found}, but differs by more than a positive factor per output channel", code="usage-graph-shares"
        )
