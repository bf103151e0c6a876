"""Families of submodels: one frozen spec and one builder each.

A submodel is an `nn.Sequential` of named units from the image to the logits, the last of which is a `DenseClassifier`.
That is all that fusion and the training stages know of it: units are what thaws, one at a time, from the last to the
first.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from thaw.errors import UsageError
from thaw.models.blocks import ConvReluPool, DenseClassifier


@dataclass(frozen=True, kw_only=True)
class PaperSpec:
    """The submodel of arXiv 2501.15547: twice 3x3 convolution, pooling and ReLU, then dropout and a dense layer.

    Attributes:
        filters: filters of the two convolutions.
        dropout: probability that a feature is zeroed before the dense layer, 0 to below 1.
    """

    family: ClassVar[str] = "paper"
    units: ClassVar[tuple[str, ...]] = ("conv1", "conv2", "dense")

    filters: tuple[int, ...] = (10, 20)
    dropout: float = 0.3

    def __post_init__(self) -> None:
        if len(self.filters) != 2 or min(self.filters, default=0) < 1 or max(self.filters) > 4096:
            raise UsageError(f"model.filters {list(self.filters)}: expected two whole numbers from 1 to 4096")
        if not 0.0 <= self.dropout < 1.0:
            raise UsageError(f"model.dropout {self.dropout}: expected a probability from 0 to below 1")

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
        """The submodel for images (H, W, C) and K classes: [B, C, H, W] -> logits [B, K].

        Raises:
            UsageError: when the image is too small for the layers (below 10x10).
        """
        height, width, channels = shape
        rows, columns = (ConvReluPool.output_side(ConvReluPool.output_side(side)) for side in (height, width))
        if rows < 1 or columns < 1:
            raise UsageError(
                f"images of {height}x{width} are too small for the paper's network: at least 10x10 are needed"
            )
        if classes < 2:
            raise UsageError(f"{classes} class: a classifier needs at least 2")
        first, second = self.filters
        return nn.Sequential(
            OrderedDict(
                conv1=ConvReluPool(channels, first),
                conv2=ConvReluPool(first, second),
                dense=DenseClassifier((second, rows, columns), classes, self.dropout),
            )
        )


FamilySpec = PaperSpec
FAMILIES: dict[str, type[FamilySpec]] = {PaperSpec.family: PaperSpec}
