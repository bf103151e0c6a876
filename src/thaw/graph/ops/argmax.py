"""Index of the largest value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from thaw.graph.ops.operation import Operation, OutputScale
from thaw.graph.tensors import Array, Interval, Tensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class ArgMax(Operation):
    """The index of the largest value, the first of several: (C,) -> int32 (1,)."""

    kind: ClassVar[str] = "argmax"
    output_scale: ClassVar[OutputScale] = "fixed"

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """(C,) -> int32 (1,)."""
        self._only(inputs, 1)
        return self._written((1,), "int32", None)

    def execute(self, reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
        """[N, C] -> int32 [N, 1]."""
        index: Array = arrays[0].argmax(axis=-1)[..., None].astype(np.int32)
        return index

    def fake_quantize(self, reads: Sequence[Tensor], arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """[B, C] -> [B, 1], without a gradient."""
        return arrays[0].argmax(dim=1, keepdim=True)

    def admitted(self, reads: Sequence[Tensor], lows: Sequence[Array], highs: Sequence[Array]) -> Interval:
        """The first and the last possible index of the largest number."""
        can_win = highs[0] >= lows[0].max(axis=-1, keepdims=True)
        last = can_win.shape[-1] - 1 - can_win[..., ::-1].argmax(axis=-1)
        return can_win.argmax(axis=-1)[..., None].astype(np.int32), last[..., None].astype(np.int32)
