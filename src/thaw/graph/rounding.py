"""Bounds on the int8 numbers that a runtime with other rounding rules may produce.

The sums, maxima and averages of an int8 operation are exact integers; only rescaling the result rounds. The
specification rescales by a fixed-point multiplier and rounds twice. Other runtimes round once (half to even, half up,
or half away from 0) and rescale in float32 or by another fixed-point multiplier. An operation's `admitted` therefore
allows every integer within 1/2 plus a slack of the exact real result. The slack bounds the error of two roundings and
of multipliers with limited precision. Maximum, ReLU, concatenation and reshape do not round.

For single layers, the bounds distinguish rounding from wrong arithmetic. Propagated from the pixels to the scores
as intervals (`interpret.score_interval`), they bound the total effect of rounding in a graph (interval arithmetic:
R. E. Moore, "Interval Analysis", 1966). In a deep graph that bound covers the whole range of the scores.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from thaw.graph.tensors import Interval, Quantization, least_number

Floats: TypeAlias = npt.NDArray[np.float64]

_FLOAT_STEPS = 2.0**-21
"""Eight units in the last place of a float32: a sum, the product of its scales, and their quotient, each rounded."""


def shift_slack(shift: int) -> float:
    """The slack of the second rounding of a fixed-point multiplication that shifts right by `-shift` bits."""
    return 0.5 * 2.0**shift if shift < 0 else 0.0


def rounded(
    low: Floats, high: Floats, slack: Floats | float, written: Quantization | None, activation: str = "none"
) -> Interval:
    """The int8 numbers within 1/2 plus the slack of real results from `low` to `high`, clamped as by the operation.

    Args:
        low: the smallest real results, in steps of the output scale, relative to its zero point.
        high: the largest real results, in the same unit.
        slack: the slack, in the same unit.
        written: quantization of the output; None for a zero point of 0.
        activation: activation of the operation.
    """
    zero_point = 0 if written is None else written.zero_point
    least = least_number(written, activation)
    lows = np.ceil(low - _FLOAT_STEPS * np.abs(low) - slack - 0.5) + zero_point
    highs = np.floor(high + _FLOAT_STEPS * np.abs(high) + slack + 0.5) + zero_point
    return np.clip(lows, least, 127).astype(np.int8), np.clip(highs, least, 127).astype(np.int8)
