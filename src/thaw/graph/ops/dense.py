"""Dense layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from thaw.graph.ops.weighted import Weighted
from thaw.graph.tensors import Array, Tensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense(Weighted):
    """A fully connected layer and its activation: (C,) -> (C',), `weights @ x + bias`.

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

    def sum_products(self, x: Array, weights: Array) -> Array:
        """[N, C] -> [N, C']."""
        sums: Array = x @ weights.T
        return sums

    def sum_products_in_torch(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """[B, C] -> [B, C']."""
        from torch.nn.functional import linear

        return linear(x, weights)

    def scratch_bytes(self, written: Tensor, pooled_positions: int) -> int:
        """The input as int16."""
        return 2 * self.padded_taps
