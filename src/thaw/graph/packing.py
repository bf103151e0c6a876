"""How the C keeps weights: the layout that its kernels read, and what it takes.

Two filters at a time, and of each two taps at a time (a tap is one position of the kernel in one channel): filter 0 tap
a, filter 1 tap a, filter 0 tap b, filter 1 tap b. As one word, that is what the DSP instruction SXTB16 takes apart into
the pairs of 16-bit numbers that SMLAD multiplies. An odd filter or tap is filled up with zeros.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thaw.graph.operation import Weighted
from thaw.graph.ops import DepthwiseConv2d

LANES = 4
"""Positions of a convolution that the kernels compute at a time."""
_FILTERS, _TAPS = 2, 2
_CHANNEL_BYTES = 4 + 4 + 1  # bias, multiplier, shift


def padded_taps(op: Weighted) -> int:
    """Products that one output takes, rounded up to whole pairs."""
    taps = op.weights.size // op.channels
    return -(-taps // _TAPS) * _TAPS


def packed_bytes(op: Weighted) -> int:
    """Bytes of an operation's weights, biases, multipliers and shifts."""
    if isinstance(op, DepthwiseConv2d):
        return op.weights.size + _CHANNEL_BYTES * op.channels
    filters = -(-op.channels // _FILTERS) * _FILTERS
    return filters * padded_taps(op) + _CHANNEL_BYTES * op.channels


def pack_weights(op: Weighted) -> npt.NDArray[np.int8]:
    """The weights of an int8 convolution or dense layer in that layout, int8 [bytes]; depthwise ones as they are."""
    if isinstance(op, DepthwiseConv2d):
        return op.weights.reshape(-1).astype(np.int8)
    rows = op.weights.reshape(op.channels, -1)
    filters = -(-op.channels // _FILTERS) * _FILTERS
    filled = np.zeros((filters, padded_taps(op)), np.int8)
    filled[: rows.shape[0], : rows.shape[1]] = rows
    pairs = filled.reshape(filters // _FILTERS, _FILTERS, -1, _TAPS)
    return np.ascontiguousarray(pairs.transpose(0, 2, 3, 1)).reshape(-1)
