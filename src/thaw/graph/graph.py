"""The Graph: operations in execution order and the tensors between them, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from thaw.errors import UsageError
from thaw.graph.ops import Operation
from thaw.graph.sharing import check_shares
from thaw.graph.tensors import Tensor
from thaw.quoting import shown


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """Operations in execution order, and the tensors that they read and write.

    Every instance is valid: names are unique, every tensor is written once and before it is read, and declared shapes
    and dtypes match those that the operations infer.

    Attributes:
        tensors: the input, and the output of every operation.
        ops: in execution order.
        input: name of the uint8 tensor (H, W, C) that takes raw pixels.
        outputs: names of the results. Artifacts return the last one only.

    Raises:
        UsageError: when the parts do not fit together; the message names the tensor or operation.
    """

    tensors: tuple[Tensor, ...]
    ops: tuple[Operation, ...]
    input: str
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        if not all(isinstance(tensor, Tensor) for tensor in self.tensors) or not all(
            isinstance(op, Operation) for op in self.ops
        ):
            raise UsageError("graph: expected Tensors in `tensors` and Operations in `ops`", code="usage-graph")
        for label, parts in (("tensors", self.tensors), ("operations", self.ops)):
            _check_unique(label, [part.name for part in parts])
        _check_unique("outputs", list(self.outputs))
        image = self.tensor(self.input)
        if image.dtype != "uint8" or len(image.shape) != 3:
            raise UsageError(
                f"graph: input {shown(image.name)} is {image.dtype} {image.shape}: expected uint8 (H, W, C)",
                code="usage-graph",
            )
        written = self._check_ops()
        check_shares(self.ops)
        never = sorted(set(self._by_name) - written)
        if never:
            raise UsageError(
                f"graph: no operation writes tensor {shown(never[0])}: remove it, or add the operation",
                code="usage-graph",
            )
        for name in self.outputs:
            if name not in written or name == self.input:
                raise UsageError(f"graph: no operation writes output {shown(name)}", code="usage-graph")
        if not self.outputs:
            raise UsageError("graph: it has no outputs: expected at least one", code="usage-graph")

    def _check_ops(self) -> set[str]:
        """Check the operations in order and return the names of all tensors that are written."""
        written = {self.input}
        for op in self.ops:
            for name in op.inputs:
                if name not in written:
                    reason = "before it is written" if name in self._by_name else "which is not a tensor of the graph"
                    raise UsageError(
                        f"graph: {op.kind} {shown(op.name)} reads {shown(name)}, {reason}", code="usage-graph"
                    )
            if op.output in written:
                raise UsageError(
                    f"graph: {op.kind} {shown(op.name)} writes {shown(op.output)} a second time", code="usage-graph"
                )
            made = op.infer([self.tensor(name) for name in op.inputs])
            declared = self.tensor(op.output)
            if declared != made:
                raise UsageError(
                    f"graph: {op.kind} {shown(op.name)} writes {made.dtype} {made.shape}, "
                    f"but tensor {shown(op.output)} is declared as {declared.dtype} {declared.shape}",
                    code="usage-graph",
                )
            written.add(op.output)
        return written

    def needed_ops(self) -> list[Operation]:
        """The operations that the last output depends on, in execution order."""
        needed, ops = {self.outputs[-1]}, []
        for op in reversed(self.ops):
            if op.output in needed:
                needed.update(op.inputs)
                ops.append(op)
        return ops[::-1]

    @cached_property
    def _by_name(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in self.tensors}

    def tensor(self, name: str) -> Tensor:
        """The tensor with this name.

        Raises:
            UsageError: when there is none.
        """
        if name not in self._by_name:
            raise UsageError(
                f"graph: no tensor {shown(name)}: expected one of {', '.join(map(repr, self._by_name))}",
                code="usage-graph",
            )
        return self._by_name[name]


def _check_unique(label: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"graph: {label}: the name {shown(twice[0])} is used twice", code="usage-graph")
