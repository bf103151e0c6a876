"""ReLU as a separate operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from thaw.graph.ops.operation import Operation
from thaw.graph.tensors import Array, Tensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Relu(Operation):
    """`max(x, 0)`; in an int8 graph, `max(x, zero point)`."""

    kind: ClassVar[str] = "relu"
    works_in_place: ClassVar[bool] = True

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """Any shape -> the same."""
        read = self._only(inputs, None)
        return self._moved(read.shape, read)

    def execute(self, reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
        """Any shape -> the same."""
        quantization = reads[0].quantization
        return np.maximum(arrays[0], np.float32(0.0) if quantization is None else np.int8(quantization.zero_point))

    def fake_quantize(self, reads: Sequence[Tensor], arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """Any shape -> the same."""
        return arrays[0].clamp(min=reads[0].scale().zero_point)
