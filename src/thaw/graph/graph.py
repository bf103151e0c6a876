"""The Graph: operations in the order in which they run, and the tensors between them; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from thaw.errors import UsageError
from thaw.graph.ops import Op
from thaw.graph.sharing import check_shares
from thaw.graph.tensors import Tensor
from thaw.quoting import shown


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
            raise UsageError(
                f"graph: input {shown(image.name)} is {image.dtype} {image.shape}: expected uint8 (H, W, C)"
            )
        written = self._check_ops()
        check_shares(self.ops)
        never = sorted(set(self._by_name) - written)
        if never:
            raise UsageError(f"graph: no operation writes tensor {shown(never[0])}: remove it, or add what writes it")
        for name in self.outputs:
            if name not in written or name == self.input:
                raise UsageError(f"graph: output {shown(name)} is written by no operation")
        if not self.outputs:
            raise UsageError("graph: it has no outputs: expected at least one")

    def _check_ops(self) -> set[str]:
        """Walk the operations in order; the names of the tensors that are there at the end."""
        written = {self.input}
        for op in self.ops:
            for name in op.inputs:
                if name not in written:
                    reason = "before it is written" if name in self._by_name else "which is no tensor of the graph"
                    raise UsageError(f"graph: {op.kind} {shown(op.name)} reads {shown(name)}, {reason}")
            if op.output in written:
                raise UsageError(f"graph: {op.kind} {shown(op.name)} writes {shown(op.output)}, which is there already")
            made = op.infer([self.tensor(name) for name in op.inputs])
            declared = self.tensor(op.output)
            if declared != made:
                raise UsageError(
                    f"graph: {op.kind} {shown(op.name)} writes {made.dtype} {made.shape}, "
                    f"but tensor {shown(op.output)} is declared as {declared.dtype} {declared.shape}"
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
            raise UsageError(f"graph: there is no tensor {shown(name)}: it has {', '.join(map(repr, self._by_name))}")
        return self._by_name[name]


def _check_unique(label: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"graph: two {label} are named {shown(twice[0])}: expected unique names")
