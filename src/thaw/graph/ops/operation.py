"""The interface of an inference operation.

An operation works on float32 tensors (a float graph) or on int8 tensors (an int8 graph), depending on its inputs.
Shapes are those of one image (see `thaw.graph.tensors`); arrays have a batch axis N in front.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NoReturn, Protocol, get_args

from thaw.errors import UsageError
from thaw.graph.tensors import Array, DType, Interval, Quantization, Shape, Tensor, is_sizes
from thaw.quoting import shown

if TYPE_CHECKING:
    import torch

Activation = Literal["none", "relu"]
OutputScale = Literal["chosen", "kept", "fixed"]
_NUMBERS: tuple[DType, ...] = ("float32", "int8")


class Int8Builder(Protocol):
    """The int8 graph under construction, as passed to `Operation.quantize`."""

    def append(self, op: Operation) -> None:
        """Add an operation."""

    def scale_of(self, tensor: str) -> Quantization:
        """The quantization of a tensor that has been written."""

    def choose_scale(self, tensor: str, least_scale: float) -> Quantization:
        """The quantization for the calibrated range of `tensor`, with a scale of at least `least_scale`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation(ABC):
    """One step of inference.

    Array fields are stored as read-only views, not copies: the caller must not modify the arrays later.

    Class attributes:
        kind: name in files and tables.
        output_scale: in an int8 graph, whether the operation chooses the scale of its output (so that calibration
            must know its range), keeps the scale of its inputs, or has a fixed one.
        works_in_place: whether the C kernel may overwrite its input, number by number.
        is_view: whether the output is the input under another name and takes no memory.

    Attributes:
        name: unique in its graph.
        inputs: names of the tensors that it reads.
        output: name of the tensor that it writes.
    """

    kind: ClassVar[str]
    output_scale: ClassVar[OutputScale] = "kept"
    works_in_place: ClassVar[bool] = False
    is_view: ClassVar[bool] = False

    name: str
    inputs: tuple[str, ...]
    output: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise UsageError(
                f"graph: {self.kind} has name {shown(self.name)}: expected a non-empty string",
                code="usage-graph-operation",
            )
        if not isinstance(self.inputs, tuple) or not self.inputs:
            self._refuse(f"inputs are {shown(self.inputs)}: expected a tuple of at least one tensor name")

    @abstractmethod
    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """The tensor that this operation writes for `inputs`.

        Raises:
            UsageError: when it cannot read them; the message says what was expected.
        """

    @abstractmethod
    def execute(self, reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
        """The output [N, ...] for `arrays`, the values of the tensors `reads`, in NumPy.

        In an int8 graph the arithmetic is that of the LiteRT int8 specification, bit for bit.
        """

    def fake_quantize(self, reads: Sequence[Tensor], arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """`execute` of an int8 graph in torch: integers held in floats, with a gradient.

        Args:
            reads: the tensors of the int8 graph.
            arrays: float32 [B, C, H, W] or [B, C].

        Raises:
            UsageError: for an operation that int8 graphs do not have.
        """
        self._refuse("has no int8 form")

    def admitted(self, reads: Sequence[Tensor], lows: Sequence[Array], highs: Sequence[Array]) -> Interval:
        """The numbers that any correctly rounding runtime may write for inputs between `lows` and `highs`.

        The default is for a monotone operation that does not round.
        """
        return self.execute(reads, lows), self.execute(reads, highs)

    def quantize(self, builder: Int8Builder) -> None:
        """Append the int8 form of this float32 operation; by default the operation itself."""
        builder.append(self)

    def macs(self, output: Shape) -> int:
        """Multiply-accumulates for one image."""
        return 0

    def scratch_bytes(self, written: Tensor, pooled_positions: int) -> int:
        """Working memory of the C kernel, in bytes.

        Args:
            written: the output tensor, after the max pooling that the kernel includes, if any.
            pooled_positions: positions of this operation for one position of `written`.
        """
        return 0

    def lead_bytes(self, read: Tensor, written: Tensor, pool_stride: tuple[int, int]) -> int | None:
        """Bytes by which the output must begin before the input, for the C kernel to overwrite what it has read.

        Args:
            read: the (only) input.
            written: the output tensor, after the max pooling that the kernel includes, if any.
            pool_stride: of that max pooling; (1, 1) without one.

        Returns:
            None if the two must not overlap.
        """
        return None

    def _refuse(self, reason: str) -> NoReturn:
        raise UsageError(f"graph: {self.kind} {shown(self.name)}: {reason}", code="usage-graph-operation")

    def _only(self, inputs: Sequence[Tensor], axes: int | None, dtypes: Sequence[DType] = _NUMBERS) -> Tensor:
        """The single input, checked for its number of axes (None: any) and its dtype."""
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
        """The output of an operation that keeps dtype and scale."""
        return self._written(shape, read.dtype, read.quantization)

    def _computed(self, shape: Shape, read: Tensor, quantization: Quantization | None) -> Tensor:
        """The output of an operation that chooses its scale: required in an int8 graph, invalid in a float graph."""
        if (read.dtype == "float32") != (quantization is None):
            found = "without a quantization" if quantization is None else "with a quantization"
            self._refuse(f"it reads {read.dtype} {found}: expected a quantization for int8, and none for float32")
        return self._written(shape, read.dtype, quantization)

    def _check_activation(self, activation: str) -> None:
        if activation not in get_args(Activation):
            self._refuse(f"activation {shown(activation)}: expected one of {', '.join(get_args(Activation))}")

    def _check_pair(self, label: str, pair: object) -> None:
        if not is_sizes(pair, least=1) or len(pair) != 2:  # type: ignore[arg-type]
            self._refuse(f"{label} {pair}: expected (rows, columns), each at least 1")
