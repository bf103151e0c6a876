"""The closed set of inference operations; free of torch.

Each operation works on float32 tensors (a float graph) or on int8 tensors (an int8 graph), by what it reads. What
computes sums chooses the scale of what it writes, so in an int8 graph it carries that `quantization`; what moves,
compares or averages numbers writes them on the scale on which it read them.

Shapes are those of one image: H rows, W columns, C channels; see `thaw.graph.tensors`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from thaw.data.images import check_statistics
from thaw.graph.operation import Activation, Convolution, Operation, Weighted, windows
from thaw.graph.tensors import SOFTMAX_QUANTIZATION, Quantization, Shape, Tensor, is_sizes
from thaw.quoting import shown


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale(Operation):
    """Raw pixels to what the network was trained on: uint8 (H, W, C) -> float32 (H, W, C), `(x / 255 - mean) / std`.

    An int8 graph has none: it reads pixels through a `Requantize`, and the first convolution does the rest.

    Attributes:
        mean: one a channel.
        std: one a channel, above 0.
    """

    kind: ClassVar[str] = "scale"

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_statistics(f"graph: {self.kind} {shown(self.name)}", self.mean, self.std, len(self.mean))

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """uint8 (H, W, C) -> float32 (H, W, C)."""
        read = self._only(inputs, 3, ("uint8",))
        if len(self.mean) != read.shape[2]:
            self._refuse(f"{len(self.mean)} means and deviations for {read.shape[2]} channels: expected one each")
        return self._written(read.shape, "float32", None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv2d(Convolution):
    """Convolution and the activation after it: (H, W, C) -> (H', W', C').

    H' = (H + top + bottom - kh) // sh + 1, and W' likewise. On the padded input x,
    `y[i, j, o] = bias[o] + sum over r, s, c of x[sh i + r, sw j + s, c] * weights[o, r, s, c]`.

    Attributes:
        weights: [C', kh, kw, C].
    """

    kind: ClassVar[str] = "conv2d"
    axes: ClassVar[int] = 4

    @property
    def kernel(self) -> tuple[int, int]:
        """(kh, kw)."""
        return self.weights.shape[1], self.weights.shape[2]


@dataclass(frozen=True, kw_only=True, eq=False)
class DepthwiseConv2d(Convolution):
    """Convolution of each channel with a kernel of its own, and the activation after it: (H, W, C) -> (H', W', C).

    On the padded input x, `y[i, j, c] = bias[c] + sum over r, s of x[sh i + r, sw j + s, c] * weights[r, s, c]`.

    Attributes:
        weights: [kh, kw, C].
    """

    kind: ClassVar[str] = "depthwise_conv2d"
    axes: ClassVar[int] = 3
    channel_axis: ClassVar[int] = 2

    @property
    def kernel(self) -> tuple[int, int]:
        """(kh, kw)."""
        return self.weights.shape[0], self.weights.shape[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense(Weighted):
    """Every output from every input, and the activation after it: (C,) -> (C',), `weights @ x + bias`.

    Attributes:
        weights: [C', C].
    """

    kind: ClassVar[str] = "dense"
    axes: ClassVar[int] = 2

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """(C,) -> (C',)."""
        read = self._only(inputs, 1)
        if read.shape[0] != self.weights.shape[1]:
            self._refuse(f"its weights are for {self.weights.shape[1]} values, but its input has {read.shape[0]}")
        return self._computed((self.channels,), read, self.quantization)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pool(Operation):
    """A window over a feature map, without padding: (H, W, C) -> ((H - kh) // sh + 1, (W - kw) // sw + 1, C).

    Rows and columns that fill no whole window are left out.

    Attributes:
        kernel: (kh, kw), the window's rows and columns.
        stride: (sh, sw), from one window to the next.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_pair("kernel", self.kernel)
        self._check_pair("stride", self.stride)

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """(H, W, C) -> (H', W', C)."""
        read = self._only(inputs, 3)
        return self._moved((*windows(read.shape[:2], self.kernel, self.stride), read.shape[2]), read)


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxPool2d(_Pool):
    """The largest value of each window: (H, W, C) -> (H', W', C)."""

    kind: ClassVar[str] = "max_pool2d"


@dataclass(frozen=True, kw_only=True, eq=False)
class AveragePool2d(_Pool):
    """The mean of each window: (H, W, C) -> (H', W', C); with a window of (H, W) it is global pooling.

    In an int8 graph the mean of the numbers is rounded to the nearest, halves away from 0.
    """

    kind: ClassVar[str] = "average_pool2d"


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Operation):
    """Two tensors of one shape, added, and the activation after it.

    Attributes:
        activation: "relu" or "none".
        quantization: of what it writes; None in a float graph.
    """

    kind: ClassVar[str] = "add"

    activation: Activation = "none"
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_activation(self.activation)

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """Two tensors of the same dtype and shape -> one."""
        if len(inputs) != 2:
            self._refuse(f"it reads {len(inputs)} tensors: expected 2")
        first, second = (self._only([read], None) for read in inputs)
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            self._refuse(f"it reads {first.dtype} {first.shape} and {second.dtype} {second.shape}: expected alike")
        return self._computed(first.shape, first, self.quantization)


@dataclass(frozen=True, kw_only=True, eq=False)
class Relu(Operation):
    """`max(x, 0)` where it cannot belong to the operation before it; in an int8 graph, `max(x, zero point)`."""

    kind: ClassVar[str] = "relu"

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """Any shape -> the same."""
        read = self._only(inputs, None)
        return self._moved(read.shape, read)


@dataclass(frozen=True, kw_only=True, eq=False)
class Softmax(Operation):
    """Scores to probabilities: (C,) -> (C,), `exp(x) / sum(exp(x))`; int8 on the scale `SOFTMAX_QUANTIZATION`."""

    kind: ClassVar[str] = "softmax"

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """(C,) -> (C,)."""
        read = self._only(inputs, 1)
        return self._written(read.shape, read.dtype, None if read.dtype == "float32" else SOFTMAX_QUANTIZATION)


@dataclass(frozen=True, kw_only=True, eq=False)
class ArgMax(Operation):
    """The index of the largest value, the first of several: (C,) -> int32 (1,)."""

    kind: ClassVar[str] = "argmax"

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """(C,) -> int32 (1,)."""
        self._only(inputs, 1)
        return self._written((1,), "int32", None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Concat(Operation):
    """Its inputs one after another along the last axis: (..., C1), (..., C2), ... -> (..., C1 + C2 + ...).

    In an int8 graph all inputs have one scale: whoever builds it puts a `Requantize` before those that have not.
    """

    kind: ClassVar[str] = "concat"

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """Tensors of one dtype and scale that differ in their last axis only -> one."""
        reads = [self._only([read], None) for read in inputs]
        shapes = [read.shape for read in reads]
        if len({shape[:-1] for shape in shapes}) != 1:
            self._refuse(f"it reads {', '.join(map(str, shapes))}: expected shapes that differ in their last axis only")
        if len({(read.dtype, read.quantization) for read in reads}) != 1:
            self._refuse("its inputs differ in dtype or scale: expected one for all")
        return self._moved((*shapes[0][:-1], sum(shape[-1] for shape in shapes)), reads[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Reshape(Operation):
    """The same values in the same order under another shape: (H, W, C) -> (H * W * C,), for one.

    It moves nothing and takes no memory: its output is its input under another name.

    Attributes:
        shape: (H, W, C) or (C,), with as many values as the input.
    """

    kind: ClassVar[str] = "reshape"

    shape: Shape

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_sizes(self.shape, least=1) or len(self.shape) not in (1, 3):
            self._refuse(f"shape {self.shape}: expected (H, W, C) or (C,), each at least 1")

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """Any shape -> `shape`."""
        read = self._only(inputs, None)
        if read.elements != math.prod(self.shape):
            self._refuse(f"{read.shape} cannot become {self.shape}: {read.elements} and {math.prod(self.shape)} values")
        return self._moved(self.shape, read)


@dataclass(frozen=True, kw_only=True, eq=False)
class Requantize(Operation):
    """The same real values on another scale; how an int8 graph reads raw pixels: uint8 or int8 -> int8, any shape.

    Attributes:
        quantization: of what it writes.
    """

    kind: ClassVar[str] = "requantize"

    quantization: Quantization

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """Any shape -> the same, int8."""
        read = self._only(inputs, None, ("uint8", "int8"))
        if read.quantization is None:
            self._refuse("it reads pixels without a scale: those of an int8 graph have one")
        return self._written(read.shape, "int8", self.quantization)


Op: TypeAlias = (
    Scale
    | Conv2d
    | DepthwiseConv2d
    | Dense
    | MaxPool2d
    | AveragePool2d
    | Add
    | Relu
    | Softmax
    | ArgMax
    | Concat
    | Reshape
    | Requantize
)
