"""The tensors of a graph: their types, shapes and scales, and the names that every network has.

Shapes are those of one image, without a batch axis: H rows, W columns, C channels. A feature map is (H, W, C) and a
vector is (C,); both lie in memory in that order, the last axis fastest (NHWC).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from thaw.errors import UsageError
from thaw.quoting import shown

FloatArray: TypeAlias = npt.NDArray[np.float32]
Int8Array: TypeAlias = npt.NDArray[np.int8]
Int32Array: TypeAlias = npt.NDArray[np.int32]
Shape: TypeAlias = tuple[int, ...]
DType = Literal["uint8", "int8", "int32", "float32"]

IMAGE = "image"
LOGITS = "logits"
PROBABILITIES = "probabilities"

_ZERO_POINTS = {"uint8": (0, 255), "int8": (-128, 127)}


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What the whole numbers of a tensor stand for: `real = scale * (number - zero_point)`.

    Attributes:
        scale: finite and above 0; a float32 number, since that is what files keep.
        zero_point: the number that stands for 0, within the range of the tensor's dtype.
    """

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not isinstance(self.scale, float) or not 0.0 < self.scale < math.inf:
            raise UsageError(f"graph: scale {shown(self.scale)}: expected a finite number above 0")
        if float(np.float32(self.scale)) != self.scale:
            raise UsageError(f"graph: scale {shown(self.scale)} is not a float32 number")
        if type(self.zero_point) is not int:
            raise UsageError(f"graph: zero point {shown(self.zero_point)}: expected a whole number")


SOFTMAX_QUANTIZATION = Quantization(scale=1.0 / 256.0, zero_point=-128)
"""What the int8 specification fixes for the output of a softmax."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """What flows from one operation to another.

    Attributes:
        name: unique in its graph.
        shape: (H, W, C) or (C,), every side at least 1.
        dtype: "uint8" for raw pixels (0 to 255), "float32" or "int8" between operations, "int32" for an index.
        quantization: what int8 numbers stand for; also of the pixels of an int8 graph; None for other dtypes.
    """

    name: str
    shape: Shape
    dtype: DType
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise UsageError(f"graph: a tensor is named {shown(self.name)}: expected a text that is not empty")
        if not is_sizes(self.shape, least=1) or len(self.shape) not in (1, 3):
            raise UsageError(
                f"graph: tensor {shown(self.name)} has shape {self.shape}: expected (H, W, C) or (C,), each at least 1"
            )
        if self.dtype not in get_args(DType):
            raise UsageError(
                f"graph: tensor {shown(self.name)} is {shown(self.dtype)}: expected one of {_listed(DType)}"
            )
        self._check_quantization()

    def _check_quantization(self) -> None:
        if self.quantization is None:
            if self.dtype == "int8":
                raise UsageError(f"graph: tensor {shown(self.name)} is int8 without a scale and a zero point")
            return
        if self.dtype not in _ZERO_POINTS:
            raise UsageError(f"graph: tensor {shown(self.name)} is {self.dtype}, which has no scale")
        least, most = _ZERO_POINTS[self.dtype]
        if not least <= self.quantization.zero_point <= most:
            raise UsageError(
                f"graph: tensor {shown(self.name)} has zero point {self.quantization.zero_point}: "
                f"expected {least} to {most}, the range of {self.dtype}"
            )

    @property
    def elements(self) -> int:
        """How many values it holds."""
        return math.prod(self.shape)


def is_sizes(values: object, *, least: int) -> bool:
    """Whether it is a tuple of whole numbers, each at least `least`."""
    return isinstance(values, tuple) and all(type(value) is int and value >= least for value in values)


def _listed(choices: object) -> str:
    return ", ".join(get_args(choices))
