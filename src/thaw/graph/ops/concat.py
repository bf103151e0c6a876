"""Concatenation along the last axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from thaw.graph.ops.operation import Int8Builder, Operation
from thaw.graph.ops.requantize import Requantize
from thaw.graph.tensors import Array, Tensor, union_quantization

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Concat(Operation):
    """Concatenation along the last axis: (..., C1), (..., C2), ... -> (..., C1 + C2 + ...).

    In an int8 graph all inputs have the same scale; `quantize` inserts a `Requantize` before inputs with another one.
    """

    kind: ClassVar[str] = "concat"

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """Tensors of one dtype and scale that differ in their last axis only -> one."""
        reads = [self._only([read], None) for read in inputs]
        shapes = [read.shape for read in reads]
        if len({shape[:-1] for shape in shapes}) != 1:
            self._refuse(f"it reads {', '.join(map(str, shapes))}: expected shapes that differ only in their last axis")
        if len({(read.dtype, read.quantization) for read in reads}) != 1:
            self._refuse("its inputs differ in dtype or scale: expected one for all")
        return self._moved((*shapes[0][:-1], sum(shape[-1] for shape in shapes)), reads[0])

    def execute(self, reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
        """[N, ..., C1], [N, ..., C2], ... -> [N, ..., C1 + C2 + ...]."""
        return np.concatenate(arrays, axis=-1)

    def fake_quantize(self, reads: Sequence[Tensor], arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """[B, C1, ...], [B, C2, ...], ... -> [B, C1 + C2 + ..., ...]."""
        import torch

        return torch.cat(list(arrays), dim=1)

    def quantize(self, builder: Int8Builder) -> None:
        """Insert a `Requantize` before every input whose scale differs."""
        scales = [builder.scale_of(name) for name in self.inputs]
        target = union_quantization(scales) if len(set(scales)) > 1 else scales[0]
        names = []
        for number, (name, scale) in enumerate(zip(self.inputs, scales, strict=True), start=1):
            if scale == target:
                names.append(name)
                continue
            moved = f"{self.name}.input{number}"
            builder.append(Requantize(name=moved, inputs=(name,), output=moved, quantization=target))
            names.append(moved)
        builder.append(replace(self, inputs=tuple(names)))
