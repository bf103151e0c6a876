"""The common base of operations with weights: convolutions and dense layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from thaw.graph import fixed_point
from thaw.graph.ops.operation import Activation, Operation, OutputScale
from thaw.graph.rounding import rounded
from thaw.graph.tensors import (
    Array,
    FloatArray,
    Int8Array,
    Int32Array,
    Interval,
    Quantization,
    Shape,
    Tensor,
    clamp,
)

if TYPE_CHECKING:
    import torch

# float32 represents all integers up to 2**24, float64 up to 2**53. Within that range BLAS sums exactly in any order,
# much faster than NumPy sums integers.
_LARGEST_PRODUCT = 255 * 127
_EXACT_TERMS_FLOAT32 = 2**24 // _LARGEST_PRODUCT

_CHANNEL_BYTES = 4 + 4 + 1  # bias, multiplier, shift


@dataclass(frozen=True, kw_only=True, eq=False)
class Weighted(Operation):
    """An operation with weights.

    Attributes:
        weights: float32, or int8 from -127 to 127.
        bias: [C'], float32, or int32 on the scale of input times weights.
        activation: "relu" or "none". ReLU is part of the operation, so that the range of an int8 output excludes values
            that ReLU removes.
        weight_scales: float32 [C'], above 0; None in a float graph. `real = scale * weight`.
        quantization: quantization of the output; None in a float graph.
        shares: name of an earlier operation of the same kind with the same weights, up to one positive factor per
            output channel, which an int8 graph stores only in `weight_scales`; "" for none.
    """

    output_scale: ClassVar[OutputScale] = "chosen"
    axes: ClassVar[int]
    channel_axis: ClassVar[int] = 0

    weights: FloatArray | Int8Array
    bias: FloatArray | Int32Array
    activation: Activation = "none"
    weight_scales: FloatArray | None = None
    quantization: Quantization | None = None
    shares: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_int8 = self.quantization is not None
        self._check_array("weights", self.weights, "int8" if is_int8 else "float32", self.axes)
        self._check_array("bias", self.bias, "int32" if is_int8 else "float32", 1)
        channels = self.channels
        if len(self.bias) != channels:
            self._refuse(f"{len(self.bias)} biases for {channels} outputs: expected one per output")
        if is_int8 != (self.weight_scales is not None):
            self._refuse("weight_scales and quantization go together: expected both or neither")
        if self.weight_scales is not None:
            self._check_array("weight_scales", self.weight_scales, "float32", 1)
            if len(self.weight_scales) != channels or float(self.weight_scales.min()) <= 0.0:
                self._refuse(f"weight_scales: expected {channels} numbers above 0, one per output")
            if int(self.weights.min()) < -127:
                self._refuse("weights contain -128: expected int8 weights from -127 to 127")
        self._check_activation(self.activation)

    @property
    def channels(self) -> int:
        """Output channels, C'."""
        return int(self.weights.shape[self.channel_axis])

    @property
    def kernel_rows(self) -> int:
        """Rows of the kernel."""
        return 1

    @property
    def summed_axes(self) -> tuple[int, ...]:
        """The axes of the weights that are summed for an output."""
        return tuple(axis for axis in range(self.axes) if axis != self.channel_axis)

    def by_channel(self, values: Array) -> Array:
        """Values of the shape of the weights as [C', terms]."""
        return np.moveaxis(values, self.channel_axis, 0).reshape(self.channels, -1)

    def from_channel(self, values: Array) -> Array:
        """The inverse of `by_channel`."""
        shape = list(self.weights.shape)
        channels_first = [shape.pop(self.channel_axis), *shape]
        return np.ascontiguousarray(np.moveaxis(values.reshape(channels_first), 0, self.channel_axis))

    @abstractmethod
    def sum_products(self, x: Array, weights: Array) -> Array:
        """Sums of products, without bias and scale: [N, ...] -> [N, ..., C'].

        Args:
            x: [N, H, W, C] or [N, C], float, with the zero point subtracted.
            weights: float, with the shape of the operation's weights.
        """

    @abstractmethod
    def sum_products_in_torch(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """`sum_products` in torch: [B, C, H, W] -> [B, C', H', W'], or [B, C] -> [B, C']."""

    def output_multipliers(self, read: Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(multipliers, shifts), int64 [C'], that convert the sums of an int8 operation to the output's scale."""
        if read.quantization is None or self.quantization is None or self.weight_scales is None:
            self._refuse("has no scales: expected an operation of an int8 graph")
        scales = self.weight_scales.astype(np.float64)
        products = [read.quantization.scale * float(scale) for scale in scales]
        pairs = [fixed_point.quantize_multiplier(product / self.quantization.scale) for product in products]
        multipliers, shifts = (np.array(values, np.int64) for values in zip(*pairs, strict=True))
        return multipliers, shifts

    def execute(self, reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
        """Sums, bias, activation and, in an int8 graph, conversion to the output's scale."""
        x, weights = self._operands(reads[0], arrays[0])
        sums = self.sum_products(x, weights)
        if self.quantization is None:
            sums = sums + self.bias
            return np.maximum(sums, np.float32(0.0)) if self.activation == "relu" else sums
        multipliers, shifts = self.output_multipliers(reads[0])
        # int32 arithmetic wraps around.
        total = (sums.astype(np.int64) + self.bias).astype(np.int32).astype(np.int64)
        scaled = fixed_point.multiply_by_quantized_multiplier(total, multipliers, shifts)
        return clamp(scaled + self.quantization.zero_point, self.quantization, self.activation)

    def _operands(self, read: Tensor, x: Array) -> tuple[Array, Array]:
        """Input (minus its zero point) and weights, in a float dtype in which their sums are exact."""
        if read.quantization is None:
            return x, self.weights
        terms = self.weights.size // self.channels
        if terms > 2**31 // _LARGEST_PRODUCT:
            self._refuse(f"adds {terms} products, which can overflow int32")
        dtype = np.dtype(np.float32 if terms <= _EXACT_TERMS_FLOAT32 else np.float64)
        centered: Array = np.subtract(x, read.quantization.zero_point, dtype=dtype)
        return centered, self.weights.astype(dtype)

    def admitted(self, reads: Sequence[Tensor], lows: Sequence[Array], highs: Sequence[Array]) -> Interval:
        """Interval arithmetic: the sums for the center of the inputs, plus or minus |weights| times the radius."""
        low, high = lows[0], highs[0]
        read = reads[0].scale()
        _, shifts = self.output_multipliers(reads[0])
        if self.quantization is None or self.weight_scales is None:
            raise AssertionError("output_multipliers refuses an operation without scales")
        weights = self.weights.astype(np.float64)
        # Halves of integers are exact in float64, as are the sums of their products.
        middle = (low.astype(np.float64) + high) / 2
        sums = self.sum_products(middle - read.zero_point, weights) + self.bias
        factors = read.scale * self.weight_scales.astype(np.float64) / self.quantization.scale
        slack = np.where(shifts < 0, 0.5 * 2.0**shifts, 0.0)
        ends = [sums, sums]
        if low is not high and (low != high).any():
            reach = self.sum_products(high - middle, np.abs(weights))
            ends = [sums - reach, sums + reach]
        return rounded(ends[0] * factors, ends[1] * factors, slack, self.quantization, self.activation)

    def macs(self, output: Shape) -> int:
        """One product per weight."""
        return self.weights.size

    # Layout of weights in the C. The kernels read two taps of two filters at a time (a tap is one position of the
    # kernel in one channel): filter 0 tap a, filter 1 tap a, filter 0 tap b, filter 1 tap b. The DSP instruction SXTB16
    # splits this word into the pairs of 16-bit numbers that SMLAD multiplies. An odd number of filters, or of taps in a
    # row of the kernel, is padded with zeros.

    @property
    def channel_bytes(self) -> int:
        """Bytes of biases, multipliers and shifts in the C."""
        return _CHANNEL_BYTES * self.channels

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights in the C."""
        return even(self.channels) * self.padded_taps

    @property
    def padded_taps(self) -> int:
        """Products for one output in the C, with each row of the kernel padded to an even number of taps."""
        return self.kernel_rows * even(self._row_taps)

    @property
    def _row_taps(self) -> int:
        return self.weights.size // self.channels // self.kernel_rows

    def packed_weights(self) -> Int8Array:
        """The int8 weights as the C stores them, int8 [weight_bytes]."""
        rows, taps = self.kernel_rows, self._row_taps
        padded = np.zeros((even(self.channels), rows, even(taps)), np.int8)
        padded[: self.channels, :, :taps] = self.weights.reshape(self.channels, rows, taps)
        pairs = padded.reshape(even(self.channels) // 2, 2, -1, 2)
        return np.ascontiguousarray(pairs.transpose(0, 2, 3, 1)).reshape(-1)

    def _check_array(self, label: str, array: object, dtype: str, axes: int) -> None:
        """Check dtype, number of axes and finite values, and store a read-only view."""
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            found = getattr(array, "dtype", type(array).__name__)
            self._refuse(f"{label} are {found}: expected a {dtype} array")
        if array.ndim != axes or array.size == 0:
            self._refuse(f"{label} have shape {array.shape}: expected {axes} axes, each at least 1")
        if dtype == "float32" and not _is_finite(array):
            self._refuse(f"{label} contain values that are not finite")
        view = array.view()
        view.flags.writeable = False
        object.__setattr__(self, label, view)


def even(number: int) -> int:
    """The next even number, or the number itself."""
    return -(-number // 2) * 2


def without_repeats(*arrays: Array) -> tuple[Array, ...]:
    """Arrays of one shape, with axes along which all of them are constant (stride 0) reduced to length 1."""
    kept = tuple(slice(None if any(strides) else 1) for strides in zip(*(each.strides for each in arrays), strict=True))
    return tuple(each[kept] for each in arrays)


def _is_finite(array: FloatArray) -> bool:
    """Whether all values are finite, without a temporary array, and without visiting repeated values."""
    (distinct,) = without_repeats(array)
    return bool(np.isfinite(distinct.min()) and np.isfinite(distinct.max()))
