"""What inference operations have in common: names, what is checked, the dtype and scale of what they write.

Shapes are those of one image: H rows, W columns, C channels; see `thaw.graph.tensors`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NoReturn, get_args

import numpy as np
import numpy.typing as npt

from thaw.errors import UsageError
from thaw.graph.tensors import DType, FloatArray, Int8Array, Int32Array, Quantization, Shape, Tensor, is_sizes
from thaw.quoting import shown

Activation = Literal["none", "relu"]
_NUMBERS: tuple[DType, ...] = ("float32", "int8")


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation(ABC):
    """What all operations have: a name, the tensors it reads, the one tensor it writes.

    Weights are kept as read-only views, not copies: whoever makes an operation gives up the right to change them.
    """

    kind: ClassVar[str]

    name: str
    inputs: tuple[str, ...]
    output: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise UsageError(
                f"graph: an operation ({self.kind}) is named {shown(self.name)}: expected a text that is not empty"
            )
        if not isinstance(self.inputs, tuple) or not self.inputs:
            self._refuse(f"inputs are {shown(self.inputs)}: expected a tuple of at least one tensor name")

    @abstractmethod
    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """The tensor that this operation writes when it reads `inputs`.

        Raises:
            UsageError: when it cannot read them; the message says what it expected.
        """

    def _refuse(self, reason: str) -> NoReturn:
        raise UsageError(f"graph: {self.kind} {shown(self.name)}: {reason}")

    def _only(self, inputs: Sequence[Tensor], axes: int | None, dtypes: Sequence[DType] = _NUMBERS) -> Tensor:
        """The single input, checked to have that many axes (None: any) and one of those dtypes."""
        if len(inputs) != 1:
            self._refuse(f"it reads {len(inputs)} tensors: expected 1")
        read = inputs[0]
        if read.dtype not in dtypes or axes not in (None, len(read.shape)):
            expected = {1: " (C,)", 3: " (H, W, C)"}.get(axes or 0, "")
            self._refuse(f"it reads {read.dtype} {read.shape}: expected {' or '.join(dtypes)}{expected}")
        return read

    def _written(self, shape: Shape, dtype: DType, quantization: Quantization | None) -> Tensor:
        if min(shape) < 1:
            self._refuse(f"it would write {shape}: its input is too small for its kernel")
        return Tensor(name=self.output, shape=shape, dtype=dtype, quantization=quantization)

    def _moved(self, shape: Shape, read: Tensor) -> Tensor:
        """What it writes when numbers keep the dtype and the scale on which they were read."""
        return self._written(shape, read.dtype, read.quantization)

    def _computed(self, shape: Shape, read: Tensor, quantization: Quantization | None) -> Tensor:
        """What it writes when it chooses the scale itself, which it must in an int8 graph and cannot in a float one."""
        if (read.dtype == "float32") != (quantization is None):
            says = "has none" if quantization is None else "has one"
            self._refuse(f"it reads {read.dtype}, but {says}: a quantization goes with int8, and only with it")
        return self._written(shape, read.dtype, quantization)

    def _check_activation(self, activation: str) -> None:
        if activation not in get_args(Activation):
            self._refuse(f"activation {shown(activation)}: expected one of {', '.join(get_args(Activation))}")

    def _check_pair(self, label: str, pair: object) -> None:
        if not is_sizes(pair, least=1) or len(pair) != 2:  # type: ignore[arg-type]
            self._refuse(f"{label} {pair}: expected (rows, columns), each at least 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class Weighted(Operation):
    """An operation with weights.

    Attributes:
        weights: float32, or int8 from -127 to 127.
        bias: float32, or int32 on the scale of input times weights; one an output channel.
        activation: "relu" or "none". A ReLU belongs to the operation, since an int8 result then spends none of its
            range on values that ReLU removes.
        weight_scales: float32, one an output channel, each above 0; None in a float graph. `real = scale * weight`.
        quantization: of what it writes; None in a float graph.
        shares: name of an earlier operation of the same kind whose weights these are, up to one positive factor an
            output channel, which an int8 graph has in `weight_scales` alone; "" where it shares none.
    """

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
            self._refuse(f"{len(self.bias)} biases for {channels} outputs: expected one each")
        if is_int8 != (self.weight_scales is not None):
            self._refuse("weight_scales and quantization go together: expected both or neither")
        if self.weight_scales is not None:
            self._check_array("weight_scales", self.weight_scales, "float32", 1)
            if len(self.weight_scales) != channels or float(self.weight_scales.min()) <= 0.0:
                self._refuse(f"weight_scales: expected {channels} numbers above 0, one an output")
            if int(self.weights.min()) < -127:
                self._refuse("weights hold -128: int8 weights go from -127 to 127")
        self._check_activation(self.activation)

    @property
    def channels(self) -> int:
        """Output channels, C'."""
        return int(self.weights.shape[self.channel_axis])

    def _check_array(self, label: str, array: object, dtype: str, axes: int) -> None:
        """Refuse what is not finite, of that dtype and of that many axes; keep a read-only view."""
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            found = getattr(array, "dtype", type(array).__name__)
            self._refuse(f"{label} are {found}: expected a {dtype} array")
        if array.ndim != axes or array.size == 0:
            self._refuse(f"{label} have shape {array.shape}: expected {axes} axes, each at least 1")
        if dtype == "float32" and not _is_finite(array):
            self._refuse(f"{label} hold values that are not finite")
        view = array.view()
        view.flags.writeable = False
        object.__setattr__(self, label, view)


@dataclass(frozen=True, kw_only=True, eq=False)
class Convolution(Weighted):
    """What the two convolutions share.

    Attributes:
        padding: rows and columns of zeros (top, bottom, left, right); in an int8 graph, of the input's zero point.
        stride: (rows, columns) from one window to the next.
    """

    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    stride: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_sizes(self.padding, least=0) or len(self.padding) != 4:
            self._refuse(f"padding {self.padding}: expected (top, bottom, left, right), each at least 0")
        self._check_pair("stride", self.stride)
        rows, columns = self.kernel
        if max(self.padding[:2]) >= rows or max(self.padding[2:]) >= columns:
            self._refuse(f"padding {self.padding}: expected less than the kernel's {rows}x{columns}")

    @property
    @abstractmethod
    def kernel(self) -> tuple[int, int]:
        """(kh, kw), the window's rows and columns."""

    @property
    def in_channels(self) -> int:
        """Channels that it reads, C."""
        return int(self.weights.shape[-1])

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """(H, W, C) -> (H', W', C')."""
        read = self._only(inputs, 3)
        rows, columns, channels = read.shape
        if channels != self.in_channels:
            self._refuse(f"its weights are for {self.in_channels} channels, but its input has {channels}")
        top, bottom, left, right = self.padding
        shape = windows((rows + top + bottom, columns + left + right), self.kernel, self.stride)
        return self._computed((*shape, self.channels), read, self.quantization)


def windows(size: Sequence[int], kernel: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    """How many windows fit into (rows, columns): (rows, columns) of them, below 1 where none does."""
    rows, columns = ((side - window) // step + 1 for side, window, step in zip(size, kernel, stride, strict=True))
    return rows, columns


def without_repeats(*arrays: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Arrays of one shape, each axis along which all repeat one value (stride 0) cut to length 1."""
    kept = tuple(slice(None if any(strides) else 1) for strides in zip(*(each.strides for each in arrays), strict=True))
    return tuple(each[kept] for each in arrays)


def _is_finite(array: FloatArray) -> bool:
    """Whether all values are; without a temporary array, and at once where an axis repeats one value."""
    (distinct,) = without_repeats(array)
    return bool(np.isfinite(distinct.min()) and np.isfinite(distinct.max()))
