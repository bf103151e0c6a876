"""Reshape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from thaw.graph.ops.operation import Operation
from thaw.graph.tensors import Array, Shape, Tensor, is_sizes

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Reshape(Operation):
    """The same values in the same order under another shape, such as (H, W, C) -> (H * W * C,).

    It copies nothing: the output is the input under another name.

    Attributes:
        shape: (H, W, C) or (C,), with as many values as the input.
    """

    kind: ClassVar[str] = "reshape"
    is_view: ClassVar[bool] = True

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

    def execute(self, reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
        """[N, ...] -> [N, *shape]."""
        return arrays[0].reshape(len(arrays[0]), *self.shape)

    def fake_quantize(self, reads: Sequence[Tensor], arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """As `execute`, on [B, C, H, W] or [B, C]."""
        x = arrays[0]
        positions = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
        made = positions.reshape(len(x), *self.shape)
        return made.permute(0, 3, 1, 2) if len(self.shape) == 3 else made
