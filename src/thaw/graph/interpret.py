"""The reference interpreter: executes float32 and int8 graphs in NumPy, a batch at a time.

What an int8 graph gives here is what every artifact has to give, to the byte. The arithmetic is that of the LiteRT
(TFLite) int8 specification (`thaw.graph.fixed_point`); no other runtime has a part in it.

Shapes: N images, H rows, W columns, C channels; a batch of a tensor (H, W, C) is [N, H, W, C].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from thaw.errors import UsageError
from thaw.finite import check_finite
from thaw.graph import fixed_point
from thaw.graph.graph import Graph
from thaw.graph.operation import Convolution, Weighted
from thaw.graph.ops import (
    Add,
    ArgMax,
    AveragePool2d,
    Concat,
    Conv2d,
    Dense,
    DepthwiseConv2d,
    MaxPool2d,
    Op,
    Relu,
    Requantize,
    Reshape,
    Scale,
    Softmax,
)
from thaw.graph.tensors import Quantization, Tensor
from thaw.quoting import shown

Array: TypeAlias = npt.NDArray[Any]
BATCH = 250

# A float32 holds every whole number up to 2**24, a float64 up to 2**53. While a sum of products cannot leave that
# range, BLAS adds it up exactly in whatever order, much faster than integers would be.
_LARGEST_PRODUCT = 255 * 127
_EXACT_TERMS_FLOAT32 = 2**24 // _LARGEST_PRODUCT


def run(graph: Graph, images: npt.NDArray[np.uint8], *, batch: int = BATCH) -> dict[str, Array]:
    """The graph's outputs by name, each [N, ...] of its tensor's dtype.

    Args:
        graph: float32 or int8.
        images: uint8 [N, H, W, C] of the graph's input shape.
        batch: images at a time, at least 1; it changes how much memory is used and nothing else in an int8 graph.

    Raises:
        UsageError: for images of another type or shape.
        NotFiniteError: when a float graph computes NaN or infinity.
    """
    _check_images(graph, images)
    made: dict[str, Array] = {}
    for name in graph.outputs:
        tensor = graph.tensor(name)
        made[name] = np.empty((len(images), *tensor.shape), tensor.dtype)
    for start in range(0, len(images), batch):
        # What overflows is told by its result, below.
        with np.errstate(over="ignore", invalid="ignore"):
            values = trace(graph, images[start : start + batch], keep=graph.outputs)
        for name in graph.outputs:
            made[name][start : start + batch] = values[name]
    for answers in made.values():
        check_finite(answers, "the network")
    return made


def trace(graph: Graph, images: npt.NDArray[np.uint8], *, keep: Sequence[str] | None = None) -> dict[str, Array]:
    """Every tensor of the graph by name (or those in `keep`), [N, ...], for images uint8 [N, H, W, C] in one batch."""
    _check_images(graph, images)
    last_read = {name: index for index, op in enumerate(graph.ops) for name in op.inputs}
    values: dict[str, Array] = {graph.input: np.asarray(images)}
    for index, op in enumerate(graph.ops):
        reads = [graph.tensor(name) for name in op.inputs]
        values[op.output] = execute(op, reads, [values[name] for name in op.inputs])
        if keep is not None:
            for name in op.inputs:
                if last_read[name] == index and name not in keep:
                    values.pop(name, None)
    return values


def execute(op: Op, reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
    """What one operation writes, [N, ...], when it reads `arrays`, whose tensors are `reads`."""
    return _EXECUTE[type(op)](op, reads, arrays)


def output_multipliers(op: Weighted, read: Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(multipliers, shifts), int64 [C'] each, that take an int8 operation's sums to the scale of its output."""
    if read.quantization is None or op.quantization is None or op.weight_scales is None:
        raise UsageError(f"graph: {op.kind} {shown(op.name)} has no scales: expected an operation of an int8 graph")
    scales = op.weight_scales.astype(np.float64)
    products = [read.quantization.scale * float(scale) for scale in scales]
    pairs = [fixed_point.quantize_multiplier(product / op.quantization.scale) for product in products]
    multipliers, shifts = (np.array(values, np.int64) for values in zip(*pairs, strict=True))
    return multipliers, shifts


def requantize_multiplier(read: Quantization, written: Quantization) -> tuple[int, int]:
    """(multiplier, shift) that take numbers on one scale to another."""
    return fixed_point.quantize_multiplier(read.scale / written.scale)


def add_multipliers(first: Quantization, second: Quantization, written: Quantization) -> tuple[tuple[int, int], ...]:
    """(multiplier, shift) of the two terms and of their sum."""
    twice_largest = 2.0 * max(first.scale, second.scale)
    return (
        fixed_point.quantize_multiplier(first.scale / twice_largest),
        fixed_point.quantize_multiplier(second.scale / twice_largest),
        fixed_point.quantize_multiplier(twice_largest / (2**fixed_point.ADD_LEFT_SHIFT * written.scale)),
    )


def _check_images(graph: Graph, images: npt.NDArray[np.uint8]) -> None:
    shape = graph.tensor(graph.input).shape
    found = np.asarray(images)
    if found.dtype != np.uint8 or found.ndim != 4 or found.shape[1:] != shape:
        expected = ", ".join(map(str, shape))
        raise UsageError(f"images are {found.dtype} {list(found.shape)}: expected uint8 [N, {expected}]")


def _scale(op: Scale, _reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
    mean, std = np.array(op.mean, np.float32), np.array(op.std, np.float32)
    return (arrays[0].astype(np.float32) / np.float32(255.0) - mean) / std


def _weighted(op: Weighted, reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
    x, weights = _operands(op, reads[0], arrays[0], op.weights.size // op.channels)
    return _finish(op, reads[0], sum_products(op, x, weights))


def sum_products(op: Weighted, x: Array, weights: Array) -> Array:
    """What `op` adds up before bias and scale, [N, ..., C'].

    Args:
        op: a convolution or dense layer, whose geometry counts and nothing else.
        x: [N, H, W, C] or [N, C], float, its zero point taken off.
        weights: float, of the shape of the operation's own.
    """
    sums: Array
    if not isinstance(op, Convolution):
        sums = x @ weights.T
    elif isinstance(op, DepthwiseConv2d):
        sums = np.einsum("nijrsc,rsc->nijc", _patches(op, x), weights)
    else:
        patches, filters = _patches(op, x), weights.reshape(len(weights), -1)
        products = patches.reshape(-1, filters.shape[1]) @ filters.T
        sums = products.reshape(*patches.shape[:3], len(filters))
    return sums


def _operands(op: Weighted, read: Tensor, x: Array, terms: int) -> tuple[Array, Array]:
    """The input, its zero point taken off, and the weights, in a float dtype in which sums of `terms` are exact."""
    if read.quantization is None:
        return x, op.weights
    if terms > 2**31 // _LARGEST_PRODUCT:
        raise UsageError(f"graph: {op.kind} {shown(op.name)} adds {terms} products, which can overflow int32")
    dtype = np.dtype(np.float32 if terms <= _EXACT_TERMS_FLOAT32 else np.float64)
    centered: Array = np.subtract(x, read.quantization.zero_point, dtype=dtype)
    return centered, op.weights.astype(dtype)


def _patches(op: Convolution, x: Array) -> Array:
    """A view of the windows of the padded input: [N, H, W, C] -> [N, H', W', kh, kw, C]."""
    top, bottom, left, right = op.padding
    # Zeros, also in an int8 graph, where the zero point is taken off by now.
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0))) if any(op.padding) else x
    return _windows(padded, op.kernel, op.stride)


def _windows(x: Array, kernel: tuple[int, int], stride: tuple[int, int]) -> Array:
    """[N, H, W, C] -> [N, H', W', kh, kw, C], a view."""
    view = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(1, 2))
    return view[:, :: stride[0], :: stride[1]].transpose(0, 1, 2, 4, 5, 3)


def _finish(op: Weighted, read: Tensor, sums: Array) -> Array:
    """Bias, activation and, in an int8 graph, the output's scale, for sums [..., C']."""
    if op.quantization is None:
        sums = sums + op.bias
        return np.maximum(sums, np.float32(0.0)) if op.activation == "relu" else sums
    multipliers, shifts = output_multipliers(op, read)
    # int32 arithmetic wraps round, so must this.
    total = (sums.astype(np.int64) + op.bias).astype(np.int32).astype(np.int64)
    scaled = fixed_point.multiply_by_quantized_multiplier(total, multipliers, shifts)
    return _clamp(scaled + op.quantization.zero_point, op.quantization, op.activation)


def _clamp(numbers: npt.NDArray[np.int64], quantization: Quantization, activation: str) -> npt.NDArray[np.int8]:
    least = max(-128, quantization.zero_point) if activation == "relu" else -128
    return np.clip(numbers, least, 127).astype(np.int8)


def _max_pool(op: MaxPool2d, _reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
    return reduce_windows(op, arrays[0], np.maximum)


def _average_pool(op: AveragePool2d, reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
    count = math.prod(op.kernel)
    if reads[0].quantization is None:
        return reduce_windows(op, arrays[0], np.add) / np.float32(count)
    sums = reduce_windows(op, arrays[0].astype(np.int64), np.add)
    halves_away = np.where(sums > 0, sums + count // 2, sums - count // 2)
    return np.clip(np.trunc(halves_away / count), -128, 127).astype(np.int8)


def reduce_windows(op: MaxPool2d | AveragePool2d, x: Array, combine: Callable[[Array, Array], Array]) -> Array:
    """Combine the positions of each window, one position at a time: [N, H, W, C] -> [N, H', W', C]."""
    made: Array | None = None
    for term in _positions(_windows(x, op.kernel, op.stride)):
        made = term.copy() if made is None else combine(made, term)
    if made is None:
        raise AssertionError("a window has at least one position")
    return made


def _positions(view: Array) -> Iterator[Array]:
    for row in range(view.shape[3]):
        for column in range(view.shape[4]):
            yield view[:, :, :, row, column]


def _add(op: Add, reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
    first, second = (read.quantization for read in reads)
    if op.quantization is None or first is None or second is None:
        total = arrays[0] + arrays[1]
        return np.maximum(total, np.float32(0.0)) if op.activation == "relu" else total
    *terms, (multiplier, shift) = add_multipliers(first, second, op.quantization)
    multiply = fixed_point.multiply_by_quantized_multiplier
    scaled = [
        multiply((array.astype(np.int64) - quantization.zero_point) << fixed_point.ADD_LEFT_SHIFT, *term)
        for array, quantization, term in zip(arrays, (first, second), terms, strict=True)
    ]
    total = multiply(scaled[0] + scaled[1], multiplier, shift)
    return _clamp(total + op.quantization.zero_point, op.quantization, op.activation)


def _relu(_op: Relu, reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
    quantization = reads[0].quantization
    return np.maximum(arrays[0], np.float32(0.0) if quantization is None else np.int8(quantization.zero_point))


def _softmax(_op: Softmax, reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
    x, quantization = arrays[0], reads[0].quantization
    if quantization is None:
        powers = np.exp(x - x.max(axis=-1, keepdims=True))
        shares: Array = powers / powers.sum(axis=-1, keepdims=True)
        return shares
    return fixed_point.softmax(x.astype(np.int64), quantization.scale).astype(np.int8)


def _argmax(_op: ArgMax, _reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
    index: Array = arrays[0].argmax(axis=-1)[..., None].astype(np.int32)
    return index


def _concat(_op: Concat, _reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
    return np.concatenate(arrays, axis=-1)


def _reshape(op: Reshape, _reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
    return arrays[0].reshape(len(arrays[0]), *op.shape)


def _requantize(op: Requantize, reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
    quantization = reads[0].quantization
    if quantization is None:
        raise AssertionError("a requantize reads a tensor with a scale")
    numbers = arrays[0].astype(np.int64) - quantization.zero_point
    scaled = fixed_point.multiply_by_quantized_multiplier(
        numbers, *requantize_multiplier(quantization, op.quantization)
    )
    return _clamp(scaled + op.quantization.zero_point, op.quantization, "none")


_EXECUTE: Mapping[type[Op], Callable[[Any, Sequence[Tensor], Sequence[Array]], Array]] = {
    Scale: _scale,
    Conv2d: _weighted,
    DepthwiseConv2d: _weighted,
    Dense: _weighted,
    MaxPool2d: _max_pool,
    AveragePool2d: _average_pool,
    Add: _add,
    Relu: _relu,
    Softmax: _softmax,
    ArgMax: _argmax,
    Concat: _concat,
    Reshape: _reshape,
    Requantize: _requantize,
}
