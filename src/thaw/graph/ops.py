"""The closed set of inference operations, the tensors between them, and the Graph that orders them; free of torch.

Shapes are those of one image, without a batch axis: H rows, W columns, C channels, K classes. A feature map is
(H, W, C) and a vector is (C,); both lie in memory in that order, the last axis fastest (NHWC).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, NoReturn, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from thaw.errors import UsageError

FloatArray: TypeAlias = npt.NDArray[np.float32]
Shape: TypeAlias = tuple[int, ...]
DType = Literal["uint8", "float32"]
Activation = Literal["none", "relu"]

IMAGE = "image"
LOGITS = "logits"
PROBABILITIES = "probabilities"


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """What flows from one operation to another.

    Attributes:
        name: unique in its graph.
        shape: (H, W, C) or (C,), every side at least 1.
        dtype: "uint8" for raw pixels (0 to 255), else "float32".
    """

    name: str
    shape: Shape
    dtype: DType

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise UsageError(f"graph: a tensor is named {self.name!r}: expected a text that is not empty")
        if not _is_sizes(self.shape, least=1) or len(self.shape) not in (1, 3):
            raise UsageError(
                f"graph: tensor {self.name!r} has shape {self.shape}: expected (H, W, C) or (C,), each at least 1"
            )
        if self.dtype not in get_args(DType):
            raise UsageError(f"graph: tensor {self.name!r} is {self.dtype!r}: expected {' or '.join(get_args(DType))}")

    @property
    def elements(self) -> int:
        """How many values it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Operation(ABC):
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
                f"graph: an operation ({self.kind}) is named {self.name!r}: expected a text that is not empty"
            )
        if not isinstance(self.inputs, tuple) or not self.inputs:
            self._refuse(f"inputs are {self.inputs!r}: expected a tuple of at least one tensor name")

    @abstractmethod
    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """The tensor that this operation writes when it reads `inputs`.

        Raises:
            UsageError: when it cannot read them; the message says what it expected.
        """

    def _refuse(self, reason: str) -> NoReturn:
        raise UsageError(f"graph: {self.kind} {self.name!r}: {reason}")

    def _only(self, inputs: Sequence[Tensor], axes: int | None, dtype: DType = "float32") -> Tensor:
        """The single input, checked to have that many axes (None: any) and that dtype."""
        if len(inputs) != 1:
            self._refuse(f"it reads {len(inputs)} tensors: expected 1")
        read = inputs[0]
        if read.dtype != dtype or axes not in (None, len(read.shape)):
            expected = {1: " (C,)", 3: " (H, W, C)"}.get(axes or 0, "")
            self._refuse(f"it reads {read.dtype} {read.shape}: expected {dtype}{expected}")
        return read

    def _written(self, shape: Shape) -> Tensor:
        if min(shape) < 1:
            self._refuse(f"it would write {shape}: its input is too small for its kernel")
        return Tensor(name=self.output, shape=shape, dtype="float32")

    def _check_weights(self, weights: FloatArray, bias: FloatArray, axes: int) -> None:
        """Refuse what is not float32, finite, of `axes` axes and with one bias for each of the weights' first axis."""
        for label, array, expected in (("weights", weights, axes), ("bias", bias, 1)):
            if not isinstance(array, np.ndarray) or array.dtype != np.float32:
                self._refuse(f"{label} are {getattr(array, 'dtype', type(array).__name__)}: expected a float32 array")
            if array.ndim != expected or array.size == 0:
                self._refuse(f"{label} have shape {array.shape}: expected {expected} axes, each at least 1")
            if not _is_finite(array):
                self._refuse(f"{label} hold values that are not finite")
            view = array.view()
            view.flags.writeable = False
            object.__setattr__(self, label, view)
        if len(bias) != len(weights):
            self._refuse(f"{len(bias)} biases for {len(weights)} outputs: expected one each")

    def _check_activation(self, activation: str) -> None:
        if activation not in get_args(Activation):
            self._refuse(f"activation {activation!r}: expected one of {', '.join(get_args(Activation))}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale(_Operation):
    """Raw pixels to what the network was trained on: uint8 (H, W, C) -> float32 (H, W, C), `(x / 255 - mean) / std`.

    Attributes:
        mean: one a channel.
        std: one a channel, above 0.
    """

    kind: ClassVar[str] = "scale"

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mean) != len(self.std) or not all(map(math.isfinite, (*self.mean, *self.std))):
            self._refuse(f"mean {self.mean}, std {self.std}: expected as many finite numbers in both")
        if min(self.std, default=1.0) <= 0:
            self._refuse(f"std {self.std}: expected numbers above 0")

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """uint8 (H, W, C) -> float32 (H, W, C)."""
        read = self._only(inputs, 3, "uint8")
        if len(self.mean) != read.shape[2]:
            self._refuse(f"{len(self.mean)} means and deviations for {read.shape[2]} channels: expected one each")
        return self._written(read.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv2d(_Operation):
    """Convolution with stride 1, and the activation after it: (H, W, C) -> (H', W', C').

    H' = H + top + bottom - kh + 1, and W' likewise. On the padded input x,
    `y[i, j, o] = bias[o] + sum over r, s, c of x[i + r, j + s, c] * weights[o, r, s, c]`.

    A ReLU belongs to the operation, since an int8 result then spends none of its range on values that ReLU removes.

    Attributes:
        weights: float32 [C', kh, kw, C].
        bias: float32 [C'].
        padding: rows and columns of zeros (top, bottom, left, right).
        activation: "relu" or "none".
    """

    kind: ClassVar[str] = "conv2d"

    weights: FloatArray
    bias: FloatArray
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    activation: Activation = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_weights(self.weights, self.bias, 4)
        self._check_activation(self.activation)
        if not _is_sizes(self.padding, least=0) or len(self.padding) != 4:
            self._refuse(f"padding {self.padding}: expected (top, bottom, left, right), each at least 0")

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """float32 (H, W, C) -> float32 (H', W', C')."""
        rows, columns, channels = self._only(inputs, 3).shape
        filters, kernel_rows, kernel_columns, kernel_channels = self.weights.shape
        if channels != kernel_channels:
            self._refuse(f"its weights are for {kernel_channels} channels, but its input has {channels}")
        top, bottom, left, right = self.padding
        return self._written(
            (rows + top + bottom - kernel_rows + 1, columns + left + right - kernel_columns + 1, filters)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxPool2d(_Operation):
    """The largest value of each window, without padding: (H, W, C) -> ((H - kh) // sh + 1, (W - kw) // sw + 1, C).

    Rows and columns that fill no whole window are left out.

    Attributes:
        kernel: (kh, kw), the window's rows and columns.
        stride: (sh, sw), from one window to the next.
    """

    kind: ClassVar[str] = "max_pool2d"

    kernel: tuple[int, int]
    stride: tuple[int, int]

    def __post_init__(self) -> None:
        super().__post_init__()
        for label, pair in (("kernel", self.kernel), ("stride", self.stride)):
            if not _is_sizes(pair, least=1) or len(pair) != 2:
                self._refuse(f"{label} {pair}: expected (rows, columns), each at least 1")

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """float32 (H, W, C) -> float32 (H', W', C)."""
        rows, columns, channels = self._only(inputs, 3).shape
        (kernel_rows, kernel_columns), (stride_rows, stride_columns) = self.kernel, self.stride
        return self._written(
            ((rows - kernel_rows) // stride_rows + 1, (columns - kernel_columns) // stride_columns + 1, channels)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense(_Operation):
    """Every output from every input, and the activation after it: (C,) -> (C',), `weights @ x + bias`.

    Attributes:
        weights: float32 [C', C].
        bias: float32 [C'].
        activation: "relu" or "none".
    """

    kind: ClassVar[str] = "dense"

    weights: FloatArray
    bias: FloatArray
    activation: Activation = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_weights(self.weights, self.bias, 2)
        self._check_activation(self.activation)

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """float32 (C,) -> float32 (C',)."""
        (features,) = self._only(inputs, 1).shape
        if features != self.weights.shape[1]:
            self._refuse(f"its weights are for {self.weights.shape[1]} values, but its input has {features}")
        return self._written((len(self.weights),))


@dataclass(frozen=True, kw_only=True, eq=False)
class Softmax(_Operation):
    """Scores to probabilities: (C,) -> (C,), `exp(x) / sum(exp(x))`."""

    kind: ClassVar[str] = "softmax"

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """float32 (C,) -> float32 (C,)."""
        return self._written(self._only(inputs, 1).shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Concat(_Operation):
    """Its inputs one after another along the last axis: (..., C1), (..., C2), ... -> (..., C1 + C2 + ...)."""

    kind: ClassVar[str] = "concat"

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """float32 tensors that differ in their last axis only -> float32."""
        shapes = [self._only([read], None).shape for read in inputs]
        if len({shape[:-1] for shape in shapes}) != 1:
            self._refuse(f"it reads {', '.join(map(str, shapes))}: expected shapes that differ in their last axis only")
        return self._written((*shapes[0][:-1], sum(shape[-1] for shape in shapes)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Reshape(_Operation):
    """The same values in the same order under another shape: (H, W, C) -> (H * W * C,), for one.

    It moves nothing and takes no memory: its output is its input under another name.

    Attributes:
        shape: (H, W, C) or (C,), with as many values as the input.
    """

    kind: ClassVar[str] = "reshape"

    shape: Shape

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _is_sizes(self.shape, least=1):
            self._refuse(f"shape {self.shape}: expected (H, W, C) or (C,), each at least 1")

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """float32 of any shape -> float32 of `shape`."""
        read = self._only(inputs, None)
        if read.elements != math.prod(self.shape):
            self._refuse(f"{read.shape} cannot become {self.shape}: {read.elements} and {math.prod(self.shape)} values")
        return self._written(self.shape)


Op: TypeAlias = Scale | Conv2d | MaxPool2d | Dense | Softmax | Concat | Reshape


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """Operations in the order in which they run, and the tensors that they read and write.

    Every instance is valid: names are unique, every tensor is written once and before it is read, and its declared
    shape and dtype are those that follow from the operations.

    Attributes:
        tensors: the input, and the output of every operation.
        ops: the operations in order.
        input: name of the uint8 tensor (H, W, C) that takes raw pixels.
        outputs: names of the tensors that the graph is run for; they live until its end.

    Raises:
        UsageError: when made of parts that do not fit; the message names the tensor or operation.
    """

    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    input: str
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        if not all(isinstance(tensor, Tensor) for tensor in self.tensors) or not all(
            isinstance(op, Op) for op in self.ops
        ):
            raise UsageError("graph: expected Tensors in `tensors` and operations of this module in `ops`")
        for label, parts in (("tensors", self.tensors), ("operations", self.ops)):
            _check_unique(label, [part.name for part in parts])
        _check_unique("outputs", list(self.outputs))
        image = self.tensor(self.input)
        if image.dtype != "uint8" or len(image.shape) != 3:
            raise UsageError(f"graph: input {image.name!r} is {image.dtype} {image.shape}: expected uint8 (H, W, C)")
        written = self._check_ops()
        never = sorted(set(self._by_name) - written)
        if never:
            raise UsageError(f"graph: no operation writes tensor {never[0]!r}: remove it, or add what writes it")
        for name in self.outputs:
            if name not in written or name == self.input:
                raise UsageError(f"graph: output {name!r} is written by no operation")
        if not self.outputs:
            raise UsageError("graph: it has no outputs: expected at least one")

    def _check_ops(self) -> set[str]:
        """Walk the operations in order; the names of the tensors that are there at the end."""
        written = {self.input}
        for op in self.ops:
            for name in op.inputs:
                if name not in written:
                    reason = "before it is written" if name in self._by_name else "which is no tensor of the graph"
                    raise UsageError(f"graph: {op.kind} {op.name!r} reads {name!r}, {reason}")
            if op.output in written:
                raise UsageError(f"graph: {op.kind} {op.name!r} writes {op.output!r}, which is there already")
            made = op.infer([self.tensor(name) for name in op.inputs])
            declared = self.tensor(op.output)
            if declared != made:
                raise UsageError(
                    f"graph: {op.kind} {op.name!r} writes {made.dtype} {made.shape}, "
                    f"but tensor {op.output!r} is declared as {declared.dtype} {declared.shape}"
                )
            written.add(op.output)
        return written

    @cached_property
    def _by_name(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in self.tensors}

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name.

        Raises:
            UsageError: when there is none.
        """
        if name not in self._by_name:
            raise UsageError(f"graph: there is no tensor {name!r}: it has {', '.join(map(repr, self._by_name))}")
        return self._by_name[name]


def _check_unique(label: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"graph: two {label} are named {twice[0]!r}: expected unique names")


def _is_finite(array: FloatArray) -> bool:
    """Whether all values are; without a temporary array, and at once where an axis repeats one value (stride 0)."""
    distinct = array[tuple(slice(1 if stride == 0 else None) for stride in array.strides)]
    return bool(np.isfinite(distinct.min()) and np.isfinite(distinct.max()))


def _is_sizes(values: object, *, least: int) -> bool:
    """Whether it is a tuple of whole numbers, each at least `least`."""
    return isinstance(values, tuple) and all(type(value) is int and value >= least for value in values)
