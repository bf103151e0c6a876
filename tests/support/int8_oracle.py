"""The LiteRT (TFLite) int8 specification in plain Python: loops over unbounded integers.

Divisions and shifts are written as gemmlowp and the reference kernels write them (C divides toward zero). Nothing is
shared with `thaw.graph.fixed_point` or `thaw.graph.interpret`. Maps are nested as NumPy indexes them, (H, W, C).
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def divide(a: int, b: int) -> int:
    """Truncating division, as in C."""
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def wrapped(x: int) -> int:
    """The value as int32."""
    return (x + 2**31) % 2**32 - 2**31


def saturated(x: int) -> int:
    return min(max(x, INT32_MIN), INT32_MAX)


def high_mul(a: int, b: int) -> int:
    """gemmlowp's SaturatingRoundingDoublingHighMul."""
    if a == b == INT32_MIN:
        return INT32_MAX
    nudge = (1 << 30) if a * b >= 0 else 1 - (1 << 30)
    return divide(a * b + nudge, 1 << 31)


def divide_by_pot(x: int, exponent: int) -> int:
    """gemmlowp's RoundingDivideByPOT."""
    mask = (1 << exponent) - 1
    remainder = x & mask
    threshold = (mask >> 1) + (1 if x < 0 else 0)
    return (x >> exponent) + (1 if remainder > threshold else 0)


def real_multiplier(real: Fraction) -> tuple[int, int]:
    """QuantizeMultiplier: real = multiplier / 2**31 * 2**shift with a multiplier from 1/2 to 1, halves away from 0."""
    shift = 0
    while real >= 1:
        real, shift = real / 2, shift + 1
    while real < Fraction(1, 2):
        real, shift = real * 2, shift - 1
    multiplier = int(real * 2**31 + Fraction(1, 2))
    if multiplier == 2**31:
        multiplier, shift = 2**30, shift + 1
    if shift < -31:
        return 0, 0
    return (INT32_MAX, 30) if shift > 30 else (multiplier, shift)


def multiply(x: int, multiplier: int, shift: int) -> int:
    """MultiplyByQuantizedMultiplier with two roundings."""
    left, right = max(shift, 0), max(-shift, 0)
    return divide_by_pot(high_mul(x * (1 << left), multiplier), right)


def double(real: float) -> Fraction:
    """The value of a quotient or product in double precision, as in C."""
    return Fraction(float(real))


def limits(op, written):
    least = max(-128, written.zero_point) if getattr(op, "activation", "none") == "relu" else -128
    return least, 127


def weighted(op, read, x):
    """Convolutions and dense layers: int8 input without a batch axis -> int8 output without a batch axis."""
    written = op.quantization
    least, most = limits(op, written)
    kind = type(op).__name__
    pairs = []
    for scale in op.weight_scales:
        if kind == "Dense" and len(op.weight_scales) == 1:
            product = float(np.float32(read.scale) * scale)
        else:
            product = float(read.scale) * float(scale)
        pairs.append(real_multiplier(double(product / float(written.scale))))

    def finish(total, channel):
        scaled = multiply(wrapped(total + int(op.bias[channel])), *pairs[channel])
        return min(max(scaled + written.zero_point, least), most)

    if kind == "Dense":
        return np.array(
            [
                finish(sum((int(v) - read.zero_point) * int(w) for v, w in zip(x, row, strict=True)), channel)
                for channel, row in enumerate(op.weights)
            ],
            np.int8,
        )
    rows, columns = op.kernel
    top, bottom, left, right = op.padding
    height = (x.shape[0] + top + bottom - rows) // op.stride[0] + 1
    width = (x.shape[1] + left + right - columns) // op.stride[1] + 1
    made = np.zeros((height, width, len(pairs)), np.int8)
    for i in range(height):
        for j in range(width):
            for channel in range(len(pairs)):
                total = 0
                for r in range(rows):
                    for s in range(columns):
                        row, column = i * op.stride[0] + r - top, j * op.stride[1] + s - left
                        if not (0 <= row < x.shape[0] and 0 <= column < x.shape[1]):
                            continue
                        if kind == "DepthwiseConv2d":
                            total += (int(x[row, column, channel]) - read.zero_point) * int(op.weights[r, s, channel])
                            continue
                        for c in range(x.shape[2]):
                            total += (int(x[row, column, c]) - read.zero_point) * int(op.weights[channel, r, s, c])
                made[i, j, channel] = finish(total, channel)
    return made


def pooled(op, x):
    height = (x.shape[0] - op.kernel[0]) // op.stride[0] + 1
    width = (x.shape[1] - op.kernel[1]) // op.stride[1] + 1
    made = np.zeros((height, width, x.shape[2]), np.int8)
    for i in range(height):
        for j in range(width):
            for c in range(x.shape[2]):
                top, left = i * op.stride[0], j * op.stride[1]
                values = [int(x[top + r, left + s, c]) for r in range(op.kernel[0]) for s in range(op.kernel[1])]
                if op.kind == "max_pool2d":
                    made[i, j, c] = max(values)
                else:
                    total, count = sum(values), len(values)
                    half = count // 2
                    made[i, j, c] = divide(total + half if total > 0 else total - half, count)
    return made


def added(op, first, second, x, y):
    written = op.quantization
    least, most = limits(op, written)
    twice = 2.0 * max(first.scale, second.scale)
    by_first, by_second, by_sum = (
        real_multiplier(double(real))
        for real in (first.scale / twice, second.scale / twice, twice / ((1 << 20) * written.scale))
    )
    made = []
    for a, b in zip(x.ravel(), y.ravel(), strict=True):
        total = multiply((int(a) - first.zero_point) * (1 << 20), *by_first)
        total += multiply((int(b) - second.zero_point) * (1 << 20), *by_second)
        made.append(min(max(multiply(total, *by_sum) + written.zero_point, least), most))
    return np.array(made, np.int8).reshape(x.shape)


def requantized(op, read, x):
    pair = real_multiplier(double(read.scale / op.quantization.scale))
    numbers = [multiply(int(v) - read.zero_point, *pair) + op.quantization.zero_point for v in x.ravel()]
    return np.array([min(max(number, -128), 127) for number in numbers], np.int8).reshape(x.shape)


_EXPONENTIALS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)


def exponential(a: int) -> int:
    """gemmlowp's exp_on_negative_values from 5 integer bits to none."""
    if a == 0:
        return INT32_MAX
    quarter = 1 << 24
    within = (a & (quarter - 1)) - quarter
    x = (within << 5) + (1 << 28)
    x2 = high_mul(x, x)
    x3 = high_mul(x2, x)
    x4 = high_mul(x2, x2)
    inner = divide_by_pot(high_mul(divide_by_pot(x4, 2) + x3, 715827883) + x2, 1)
    result = 1895147668 + high_mul(1895147668, x + inner)
    remainder = within - a
    for place, factor in zip(range(24, 31), _EXPONENTIALS, strict=True):
        if remainder & (1 << place):
            result = high_mul(result, factor)
    return result


def one_over_one_plus(a: int) -> int:
    """gemmlowp's one_over_one_plus_x_for_x_in_0_1."""
    total = a + INT32_MAX
    half = divide(total + (1 if total >= 0 else -1), 2)
    x = 1515870810 + high_mul(half, -1010580540)
    for _ in range(3):
        x += saturated(high_mul(x, (1 << 29) - high_mul(half, x)) * 4)
    return saturated(x * 2)


def softmax(scores, scale: float):
    """int8 scores of one image -> int8 probabilities."""
    multiplier, left = real_multiplier(min(double(scale * (1 << 26)), Fraction(INT32_MAX)))
    least = -int(Fraction(31 * (1 << 26), 1 << left))
    largest = max(int(score) for score in scores)
    powers = []
    for score in scores:
        difference = int(score) - largest
        powers.append(exponential(high_mul(difference * (1 << left), multiplier)) if difference >= least else None)
    total = sum(divide_by_pot(power, 12) for power in powers if power is not None)
    leading_zeros = 32 - total.bit_length()
    reciprocal = one_over_one_plus((total << leading_zeros) - (1 << 31))
    exponent = (12 - leading_zeros) + 31 - 8
    shares = [None if power is None else divide_by_pot(high_mul(reciprocal, power), exponent) for power in powers]
    return np.array([-128 if share is None else min(max(share - 128, -128), 127) for share in shares], np.int8)


def execute(op, reads, arrays):  # noqa: PLR0911 (one a kind of operation)
    """The output of one operation of an int8 graph for one image, [...] without a batch axis."""
    x = arrays[0]
    quantization = reads[0].quantization
    match op.kind:
        case "conv2d" | "depthwise_conv2d" | "dense":
            return weighted(op, quantization, x)
        case "max_pool2d" | "average_pool2d":
            return pooled(op, x)
        case "add":
            return added(op, quantization, reads[1].quantization, *arrays)
        case "relu":
            return np.array([max(int(v), quantization.zero_point) for v in x.ravel()], np.int8).reshape(x.shape)
        case "softmax":
            return softmax(x, quantization.scale)
        case "argmax":
            return np.array([[int(v) for v in x].index(max(int(v) for v in x))], np.int32)
        case "concat":
            return np.concatenate(arrays, axis=-1)
        case "reshape":
            return x.reshape(op.shape)
        case "requantize":
            return requantized(op, quantization, x)
        case _:
            raise AssertionError(f"{op.kind} is not an int8 operation")
