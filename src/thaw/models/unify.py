"""Two submodels -> DualModel -> one network, and the order in which its units are unfrozen.

Shapes: B batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from thaw.models.blocks import ConvClassifier, DenseClassifier
from thaw.models.families import FamilySpec
from thaw.plain import Whole, checked_dataclass

Scores = Literal["softmax", "logits"]
Join = Literal["concatenate", "average", "distil"]
HEAD = "head"


@checked_dataclass(frozen=True, kw_only=True)
class UnifySpec:
    """How two submodels become one network."""

    join: Join = "concatenate"
    """"concatenate" the class scores of both and put a dense head on top, as the paper does; "average" their weights;
    or "distil" both into a new submodel. The last two give one submodel, at half of the cost."""
    hidden: Annotated[Whole, Field(ge=1, le=65536)] = 32
    """Width of the hidden layer of the head. Only for "concatenate"."""
    scores: Scores = "softmax"
    """Class scores that are concatenated: probabilities ("softmax") or "logits"."""

    def unfreezing_order(self, units: Sequence[str]) -> tuple[str, ...]:
        """The order in which the network is unfrozen, for submodels with `units` from the image to the logits."""
        return (*((HEAD,) if self.join == "concatenate" else ()), *reversed(units))


class DualModel(nn.Module):
    """Two independent submodels: two inputs, two outputs."""

    def __init__(self, first: nn.Sequential, second: nn.Sequential) -> None:
        super().__init__()
        self.branches = nn.ModuleList([first, second])

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Two images [B, C, H, W] -> two logits [B, K]."""
        return self.branches[0](first), self.branches[1](second)


class Head(nn.Module):
    """Dense, ReLU, dense on the concatenated scores: [B, 2K] -> logits [B, K]."""

    def __init__(self, scores: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(scores, hidden)
        self.output = nn.Linear(hidden, classes)

    def forward(self, scores: Tensor) -> Tensor:
        """[B, 2K] -> logits [B, K]."""
        logits: Tensor = self.output(F.relu(self.hidden(scores)))
        return logits


class UnifiedModel(nn.Module):
    """Two submodels on one image, with concatenated class scores and a dense head: one input, one output."""

    def __init__(self, branches: list[nn.Sequential], head: Head, scores: Scores) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.head = head
        self.scores = scores

    def branch_scores(self, index: int, x: Tensor) -> Tensor:
        """The class scores [B, K] of branch `index` for images [B, C, H, W], always float32."""
        logits = self.branches[index](x).float()
        return F.softmax(logits, dim=1) if self.scores == "softmax" else logits

    def decide(self, scores: list[Tensor]) -> Tensor:
        """The head's logits [B, K] from each branch's scores [B, K]."""
        logits: Tensor = self.head(torch.cat(scores, dim=1))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, K]."""
        return self.decide([self.branch_scores(index, x) for index in range(len(self.branches))])

    def unit_names(self) -> tuple[str, ...]:
        """The units in the order of unfreezing: the head, then the branches' units from the last to the first."""
        names = [name for name, _ in self.branches[0].named_children()]
        return (HEAD, *reversed(names))

    def units(self) -> Iterator[tuple[str, nn.Module]]:
        """All units with their names. A name occurs once per branch."""
        yield HEAD, self.head
        for branch in self.branches:
            yield from branch.named_children()


def unit_names(network: nn.Module) -> tuple[str, ...]:
    """The units of a unified model or of one submodel, in the order of unfreezing."""
    if isinstance(network, UnifiedModel):
        return network.unit_names()
    return tuple(reversed([name for name, _ in network.named_children()]))


def units(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All units of a unified model or of one submodel, with their names."""
    yield from network.units() if isinstance(network, UnifiedModel) else network.named_children()


def build_dual(spec: FamilySpec, shape: tuple[int, int, int], classes: int, *, alike: bool = False) -> DualModel:
    """Two submodels for images (H, W, C) and K classes, freshly initialized from torch's global generator.

    If `alike`, both start from the same weights, so that their weights can be averaged after training. The loss is high
    halfway between networks that were initialized independently (arXiv 1912.05671).
    """
    first = spec.build(shape, classes)
    return DualModel(first, copy.deepcopy(first) if alike else spec.build(shape, classes))


def unify(dual: DualModel, unify_spec: UnifySpec) -> UnifiedModel:
    """The unified model: copies of the dual model's branches, dense layers converted to convolutions, and a new head.

    The results of the branches are unchanged up to rounding. The head is initialized from torch's global generator.
    """
    branches = [_with_conv_classifier(branch) for branch in dual.branches]
    classes = cast("ConvClassifier", branches[0][-1]).conv.out_channels
    return UnifiedModel(branches, Head(classes * len(branches), unify_spec.hidden, classes), unify_spec.scores)


def average(dual: DualModel) -> nn.Sequential:
    """One submodel with the mean of both submodels' weights and statistics.

    The mean of the normalization statistics is not that of the averaged network, so it must be measured again.
    """
    first, second = dual.branches
    made = copy.deepcopy(first)
    if not isinstance(made, nn.Sequential):
        raise TypeError("expected a submodel that is an nn.Sequential of named units")
    pairs = zip(made.state_dict().values(), second.state_dict().values(), strict=True)
    with torch.no_grad():
        for mine, other in pairs:
            # Integers, such as a number of batches, are not averaged.
            if mine.is_floating_point():
                mine.lerp_(other, 0.5)
    return made


def build_unified(spec: FamilySpec, unify_spec: UnifySpec, shape: tuple[int, int, int], classes: int) -> UnifiedModel:
    """A unified model with new weights, for loading a model file."""
    return unify(build_dual(spec, shape, classes), unify_spec)


def build_network(
    spec: FamilySpec, unify_spec: UnifySpec | None, shape: tuple[int, int, int], classes: int
) -> nn.Module:
    """A network with new weights: two submodels unified by `unify_spec`, or a single one if it is None."""
    return spec.build(shape, classes) if unify_spec is None else build_unified(spec, unify_spec, shape, classes)


def _with_conv_classifier(branch: nn.Module) -> nn.Sequential:
    copied = copy.deepcopy(branch)
    if not isinstance(copied, nn.Sequential) or not isinstance(copied[-1], DenseClassifier):
        raise TypeError("expected a submodel that is an nn.Sequential of named units and ends in a DenseClassifier")
    copied[-1] = ConvClassifier.from_dense(copied[-1])
    return copied
