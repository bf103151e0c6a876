"""How the C keeps weights: the layout that its kernels read, and what it takes.

Two filters at a time, and of each two taps at a time (a tap is one position of the kernel in one channel): filter 0 tap
a, filter 1 tap a, filter 0 tap b, filter 1 tap b. As one word, that is what the DSP instruction SXTB16 takes apart into
the pairs of 16-bit numbers that SMLAD multiplies. An odd number of filters, or of taps in a row of the kernel, is
filled up with zeros.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thaw.graph.operation import Weighted
from thaw.graph.ops import Conv2d, DepthwiseConv2d

LANES = 4
"""Positions of a convolution that the kernels compute at a time."""
_CHANNEL_BYTES = 4 + 4 + 1  # bias, multiplier, shift


def padded_taps(op: Weighted) -> int:
    """Products that one output takes, where each row of the kernel is filled up to whole pairs."""
    rows, row_taps = _rows(op)
    return rows * _even(row_taps)


def _rows(op: Weighted) -> tuple[int, int]:
    """(rows of the kernel, taps a row)."""
    rows = op.kernel[0] if isinstance(op, Conv2d) else 1
    return rows, op.weights.size // op.channels // rows


def _even(number: int) -> int:
    return -(-number // 2) * 2


def weight_bytes(op: Weighted) -> int:
    """Bytes of an operation's weights."""
    return op.weights.size if isinstance(op, DepthwiseConv2d) else _even(op.channels) * padded_taps(op)


def channel_bytes(op: Weighted) -> int:
    """Bytes of an operation's biases, multipliers and shifts."""
    return _CHANNEL_BYTES * op.channels


def pack_weights(op: Weighted) -> npt.NDArray[np.int8]:
    """The weights of an int8 convolution or dense layer in that layout, int8 [bytes]; depthwise ones as they are."""
    if isinstance(op, DepthwiseConv2d):
        return op.weights.reshape(-1).astype(np.int8)
    rows, row_taps = _rows(op)
    filled = np.zeros((_even(op.channels), rows, _even(row_taps)), np.int8)
    filled[: op.channels, :, :row_taps] = op.weights.reshape(op.channels, rows, row_taps)
    pairs = filled.reshape(_even(op.channels) // 2, 2, -1, 2)
    return np.ascontiguousarray(pairs.transpose(0, 2, 3, 1)).reshape(-1)
