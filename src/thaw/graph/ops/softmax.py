"""Softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from thaw.graph import fixed_point
from thaw.graph.ops.operation import Operation, OutputScale
from thaw.graph.rounding import Floats, rounded
from thaw.graph.tensors import SOFTMAX_QUANTIZATION, Array, Interval, Tensor

if TYPE_CHECKING:
    import torch

_SLACK = 2.0**-5
"""Maximum difference, in steps, of exponentials from tables, fixed-point series and float32."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Softmax(Operation):
    """Scores to probabilities: (C,) -> (C,), `exp(x) / sum(exp(x))`; int8 on the scale `SOFTMAX_QUANTIZATION`."""

    kind: ClassVar[str] = "softmax"
    output_scale: ClassVar[OutputScale] = "fixed"

    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """(C,) -> (C,)."""
        read = self._only(inputs, 1)
        return self._written(read.shape, read.dtype, None if read.dtype == "float32" else SOFTMAX_QUANTIZATION)

    def execute(self, reads: Sequence[Tensor], arrays: Sequence[Array]) -> Array:
        """[N, C] -> [N, C]."""
        x, quantization = arrays[0], reads[0].quantization
        if quantization is None:
            powers = np.exp(x - x.max(axis=-1, keepdims=True))
            shares: Array = powers / powers.sum(axis=-1, keepdims=True)
            return shares
        return fixed_point.softmax(x.astype(np.int64), quantization.scale).astype(np.int8)

    def fake_quantize(self, reads: Sequence[Tensor], arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """[B, C] -> [B, C]."""
        import torch

        from thaw.graph.fake_quantize import straight_through

        scores, scale = arrays[0], reads[0].scale().scale
        # There are few numbers per image, so the NumPy implementation is fast enough.
        exact = fixed_point.softmax(scores.detach().cpu().numpy().astype(np.int64), scale)
        smooth = torch.softmax(scores * scale, dim=1) * 256.0 - 128.0
        return straight_through(smooth, torch.from_numpy(exact).to(scores.device))

    def admitted(self, reads: Sequence[Tensor], lows: Sequence[Array], highs: Sequence[Array]) -> Interval:
        """A probability is smallest for the smallest own score and the largest other scores, and vice versa."""
        scale = reads[0].scale().scale
        least, most = (
            np.stack([_softmax_against(*pair, scale=scale) for pair in zip(own, others, strict=True)])
            for own, others in ((lows[0], highs[0]), (highs[0], lows[0]))
        )
        return rounded(least * 256.0, most * 256.0, _SLACK, SOFTMAX_QUANTIZATION)


def _softmax_against(own: Array, others: Array, *, scale: float) -> Floats:
    """The probability of each class with its score from `own` and all other scores from `others`, float64 [K]."""
    distances = (others.astype(np.float64)[None, :] - own.astype(np.float64)[:, None]) * scale
    np.fill_diagonal(distances, 0.0)
    with np.errstate(over="ignore"):
        shares: Floats = 1.0 / np.exp(distances).sum(axis=1)
    return shares
