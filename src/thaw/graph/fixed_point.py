"""The integer arithmetic of the LiteRT (TFLite) int8 specification, on NumPy arrays.

The primitives are those of gemmlowp, in which the specification's reference kernels are written. The C of `thaw.export`
uses the same names. All arrays are int64, so that nothing here can overflow; values are those of int32 arithmetic
unless a docstring says otherwise.

Source: the TensorFlow Lite int8 quantization specification, and Jacob et al., "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference" (arXiv 1712.05877), appendix B.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Int64Array: TypeAlias = npt.NDArray[np.int64]

INT32_MAX = 2**31 - 1
INT32_MIN = -(2**31)

ADD_LEFT_SHIFT = 20
"""Left shift of the terms of an addition before they are rescaled."""

SOFTMAX_INTEGER_BITS = 5
"""Integer bits of the arguments of the exponential in a softmax."""
_ACCUMULATION_BITS = 12
"""Integer bits of the sum of exponentials."""


def quantize_multiplier(real: float) -> tuple[int, int]:
    """A positive real number as `multiplier * 2**(shift - 31)`: multiplier 2**30 to 2**31 - 1, shift -31 to 30.

    Numbers that are too small become 0, numbers that are too large become the largest.
    """
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * 2**31 + 0.5)
    if multiplier == 2**31:
        multiplier, shift = 2**30, shift + 1
    if shift < -31:
        return 0, 0
    if shift > 30:
        return INT32_MAX, 30
    return multiplier, shift


def saturating_rounding_doubling_high_mul(a: Int64Array, b: Int64Array | int) -> Int64Array:
    """The high half of `2 a b`, rounded to the nearest, halves up.

    gemmlowp adds a nudge that depends on the sign and truncates the quotient, which gives the same result. Only
    a = b = -2**31 would saturate, and multipliers are never negative.
    """
    return (a * b + (1 << 30)) >> 31


def rounding_divide_by_pot(x: Int64Array, exponent: Int64Array | int) -> Int64Array:
    """`x / 2**exponent`, rounded to the nearest, halves away from 0; exponent 0 to 31."""
    mask = (np.int64(1) << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + ((x & mask) > threshold)


def multiply_by_quantized_multiplier(
    x: Int64Array, multiplier: Int64Array | int, shift: Int64Array | int
) -> Int64Array:
    """`x * multiplier * 2**(shift - 31)` with the two roundings of the specification."""
    left = np.maximum(shift, 0)
    right = np.maximum(-np.asarray(shift), 0)
    return rounding_divide_by_pot(saturating_rounding_doubling_high_mul(x << left, multiplier), right)


def softmax_scaling(scale: float) -> tuple[int, int, int]:
    """(multiplier, left shift, least difference) of a softmax of int8 scores with this scale.

    A score whose difference from the largest is below the least difference has probability 0.
    """
    real = min(scale * 2.0 ** (31 - SOFTMAX_INTEGER_BITS), 2.0**31 - 1.0)
    multiplier, left = quantize_multiplier(real)
    radius = (2**SOFTMAX_INTEGER_BITS - 1) * 2.0 ** (31 - SOFTMAX_INTEGER_BITS) / 2.0**left
    return multiplier, left, -math.floor(radius)


def softmax(scores: Int64Array, scale: float) -> Int64Array:
    """int8 probabilities (scale 1/256, zero point -128) of int8 scores [..., K] with this scale."""
    multiplier, left, least = softmax_scaling(scale)
    difference = scores - scores.max(axis=-1, keepdims=True)
    kept = difference >= least
    rescaled = saturating_rounding_doubling_high_mul(np.where(kept, difference, 0) << left, multiplier)
    powers = np.where(kept, exp_on_negative_values(rescaled), 0)
    total = rounding_divide_by_pot(powers, _ACCUMULATION_BITS).sum(axis=-1, keepdims=True)
    reciprocal, bits_over_unit = _reciprocal(total)
    shares = rounding_divide_by_pot(saturating_rounding_doubling_high_mul(reciprocal, powers), bits_over_unit + 31 - 8)
    return np.where(kept, np.clip(shares - 128, -128, 127), -128)


def exp_on_negative_values(a: Int64Array) -> Int64Array:
    """`exp(a)` for a <= 0 with 5 integer bits; the result has none, so 2**31 - 1 represents 1."""
    fractional_bits = 31 - SOFTMAX_INTEGER_BITS
    quarter = 1 << (fractional_bits - 2)
    below_quarter = (a & (quarter - 1)) - quarter
    result = _exp_between_quarter_and_0(below_quarter << SOFTMAX_INTEGER_BITS)
    remainder = below_quarter - a
    for exponent, factor in enumerate(_EXP_OF_MINUS_POWERS, start=-2):
        bit = remainder & (1 << (fractional_bits + exponent))
        result = np.where(bit != 0, saturating_rounding_doubling_high_mul(result, factor), result)
    return np.where(a == 0, INT32_MAX, result)


_EXP_OF_MINUS_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
"""exp(-1/4), exp(-1/2), exp(-1), ... exp(-16), each times 2**31."""


def _exp_between_quarter_and_0(a: Int64Array) -> Int64Array:
    """`exp(a)` for -1/4 <= a < 0 without integer bits: a Taylor series around -1/8."""
    exp_of_eighth, third = 1895147668, 715827883
    mul = saturating_rounding_doubling_high_mul
    x = a + (1 << 28)
    x2 = mul(x, x)
    x3 = mul(x2, x)
    x4 = mul(x2, x2)
    series = rounding_divide_by_pot(mul(rounding_divide_by_pot(x4, 2) + x3, third) + x2, 1)
    return exp_of_eighth + mul(x + series, exp_of_eighth)


def _reciprocal(x: Int64Array) -> tuple[Int64Array, Int64Array]:
    """1 / x for x > 0 with 12 integer bits: (share of 2**31, how many bits x is above 1)."""
    leading_zeros = 32 - np.frexp(x.astype(np.float64))[1].astype(np.int64)
    fraction = (x << leading_zeros) - (1 << 31)
    return _one_over_one_plus(fraction), _ACCUMULATION_BITS - leading_zeros


def _one_over_one_plus(a: Int64Array) -> Int64Array:
    """1 / (1 + a) for 0 <= a < 1 without integer bits: three Newton-Raphson steps from 48/17 - 32/17 x."""
    mul = saturating_rounding_doubling_high_mul
    half_denominator = (a + INT32_MAX + 1) >> 1
    x = 1515870810 + mul(half_denominator, -1010580540)
    for _ in range(3):
        rest = (1 << 29) - mul(half_denominator, x)
        x = x + _saturate(mul(x, rest) << 2)
    return _saturate(x << 1)


def _saturate(x: Int64Array) -> Int64Array:
    return np.clip(x, INT32_MIN, INT32_MAX)
