"""The tensors of a graph: types, shapes, quantization, and the names that all networks have.

Shapes are those of one image, without a batch axis: H rows, W columns, C channels. A feature map is (H, W, C) and a
vector is (C,). Both are stored in that order, with the last axis contiguous (NHWC).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from thaw.errors import UsageError
from thaw.quoting import shown

Array: TypeAlias = npt.NDArray[Any]
FloatArray: TypeAlias = npt.NDArray[np.float32]
Int8Array: TypeAlias = npt.NDArray[np.int8]
Int32Array: TypeAlias = npt.NDArray[np.int32]
Interval: TypeAlias = tuple[Array, Array]
"""The smallest and the largest number at each position, both included."""
Range: TypeAlias = tuple[float, float]
"""The smallest and the largest real value of a tensor."""
Shape: TypeAlias = tuple[int, ...]
DType = Literal["uint8", "int8", "int32", "float32"]

IMAGE = "image"
LOGITS = "logits"
PROBABILITIES = "probabilities"

_ZERO_POINTS = {"uint8": (0, 255), "int8": (-128, 127)}


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How integers represent real values: `real = scale * (number - zero_point)`.

    Attributes:
        scale: finite, above 0, and exactly a float32 value, since files store it as float32.
        zero_point: the integer that represents 0, within the range of the tensor's dtype.
    """

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not isinstance(self.scale, float) or not 0.0 < self.scale < math.inf:
            raise UsageError(
                f"graph: scale {shown(self.scale)}: expected a finite number above 0", code="usage-graph-tensor"
            )
        if float(np.float32(self.scale)) != self.scale:
            raise UsageError(f"graph: scale {shown(self.scale)} is not a float32 number", code="usage-graph-tensor")
        if type(self.zero_point) is not int:
            raise UsageError(
                f"graph: zero point {shown(self.zero_point)}: expected an integer", code="usage-graph-tensor"
            )


SOFTMAX_QUANTIZATION = Quantization(scale=1.0 / 256.0, zero_point=-128)
"""The quantization that the int8 specification fixes for the output of a softmax."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A value that flows from one operation to another.

    Attributes:
        name: unique in its graph.
        shape: (H, W, C) or (C,), every side at least 1.
        dtype: "uint8" for raw pixels (0 to 255), "float32" or "int8" between operations, "int32" for an index.
        quantization: required for int8 tensors and for the pixels of an int8 graph; None for other dtypes.
    """

    name: str
    shape: Shape
    dtype: DType
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise UsageError(
                f"graph: tensor name {shown(self.name)}: expected a non-empty string", code="usage-graph-tensor"
            )
        if not is_sizes(self.shape, least=1) or len(self.shape) not in (1, 3):
            raise UsageError(
                f"graph: tensor {shown(self.name)} has shape {self.shape}: expected (H, W, C) or (C,), each at least 1",
                code="usage-graph-tensor",
            )
        if self.dtype not in get_args(DType):
            raise UsageError(
                f"graph: tensor {shown(self.name)} has dtype {shown(self.dtype)}: "
                f"expected one of {', '.join(get_args(DType))}",
                code="usage-graph-tensor",
            )
        self._check_quantization()

    def _check_quantization(self) -> None:
        if self.quantization is None:
            if self.dtype == "int8":
                raise UsageError(
                    f"graph: tensor {shown(self.name)} is int8 without a scale and a zero point",
                    code="usage-graph-tensor",
                )
            return
        if self.dtype not in _ZERO_POINTS:
            raise UsageError(
                f"graph: tensor {shown(self.name)} is {self.dtype}: expected no scale for this dtype",
                code="usage-graph-tensor",
            )
        least, most = _ZERO_POINTS[self.dtype]
        if not least <= self.quantization.zero_point <= most:
            raise UsageError(
                f"graph: tensor {shown(self.name)} has zero point {self.quantization.zero_point}: "
                f"expected {least} to {most}, the range of {self.dtype}",
                code="usage-graph-tensor",
            )

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def scale(self) -> Quantization:
        """The quantization of a tensor of an int8 graph.

        Raises:
            UsageError: when it has none.
        """
        if self.quantization is None:
            raise UsageError(
                f"graph: tensor {shown(self.name)} has no scale: expected one of an int8 graph",
                code="usage-graph-tensor",
            )
        return self.quantization


def quantization_of(values: Range, least_scale: float = 0.0) -> Quantization:
    """The scale and zero point that spread -128 to 127 over a range, which is widened to include 0."""
    low, high = min(values[0], 0.0), max(values[1], 0.0)
    step = max((high - low) / 255.0, least_scale)
    if not step <= float(np.finfo(np.float32).max):
        raise UsageError(
            f"a tensor has values from {low} to {high}, a step of {step}: expected a range that int8 can represent",
            code="usage-graph-tensor",
        )
    scale = float(np.float32(step))
    if scale < np.finfo(np.float32).tiny:
        # All values are 0: any scale works.
        return Quantization(scale=1.0, zero_point=-128)
    return Quantization(scale=scale, zero_point=int(np.clip(round(-128.0 - low / scale), -128, 127)))


def union_quantization(quantizations: Sequence[Quantization]) -> Quantization:
    """A quantization that covers the ranges of all the given ones."""
    lows = [(-128 - each.zero_point) * each.scale for each in quantizations]
    highs = [(127 - each.zero_point) * each.scale for each in quantizations]
    return quantization_of((min(lows), max(highs)))


def clamp(numbers: npt.NDArray[np.int64], quantization: Quantization, activation: str = "none") -> Int8Array:
    """Integers clipped to int8, and from below to the zero point after a ReLU."""
    return np.clip(numbers, least_number(quantization, activation), 127).astype(np.int8)


def least_number(quantization: Quantization | None, activation: str) -> int:
    """The smallest int8 number that an operation with this activation writes."""
    return max(-128, quantization.zero_point) if quantization is not None and activation == "relu" else -128


def is_sizes(values: object, *, least: int) -> bool:
    """Whether `values` is a tuple of integers, each at least `least`."""
    return isinstance(values, tuple) and all(type(value) is int and value >= least for value in values)
