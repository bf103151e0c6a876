"""Two submodels -> DualModel -> one network, and the order in which its units are unfrozen.

Shapes: B batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thaw.errors import UsageError
from thaw.models.blocks import ConvClassifier, DenseClassifier
from thaw.models.families import FamilySpec
from thaw.quoting import shown

Scores = Literal["softmax", "logits"]
Join = Literal["concatenate", "average", "distil"]
HEAD = "head"


@dataclass(frozen=True, kw_only=True)
class UnifySpec:
    """How two submodels become one.

    Attributes:
        join: "concatenate" their scores and put a head on top, as the paper does; "average" their weights; or "distil"
            both into a fresh submodel. The last two give one submodel, which costs half of both.
        hidden: width of the head's hidden layer, which concatenation puts on top.
        scores: what of each submodel is concatenated: its class probabilities ("softmax") or its "logits".
    """

    join: Join = "concatenate"
    hidden: int = 32
    scores: Scores = "softmax"

    def __post_init__(self) -> None:
        if self.join not in get_args(Join):
            raise UsageError(f"unify.join {shown(self.join)}: expected one of {', '.join(get_args(Join))}")
        if type(self.hidden) is not int or not 1 <= self.hidden <= 65536:
            raise UsageError(f"unify.hidden {shown(self.hidden)}: expected a whole number from 1 to 65536")
        if self.scores not in get_args(Scores):
            raise UsageError(f"unify.scores {shown(self.scores)}: expected one of {', '.join(get_args(Scores))}")

    def unfreezing_order(self, units: Sequence[str]) -> tuple[str, ...]:
        """Return the unified network's units in unfreezing order; `units` are a submodel's, from input to logits."""
        return (*((HEAD,) if self.join == "concatenate" else ()), *reversed(units))


class DualModel(nn.Module):
    """Two submodels side by side that share nothing: two inputs, two outputs."""

    def __init__(self, first: nn.Sequential, second: nn.Sequential) -> None:
        super().__init__()
        self.branches = nn.ModuleList([first, second])

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Two images [B, C, H, W] -> two logits [B, K]."""
        return self.branches[0](first), self.branches[1](second)


class Head(nn.Module):
    """What decides from the concatenated scores: dense, ReLU, dense: [B, 2K] -> logits [B, K]."""

    def __init__(self, scores: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(scores, hidden)
        self.output = nn.Linear(hidden, classes)

    def forward(self, scores: Tensor) -> Tensor:
        """[B, 2K] -> logits [B, K]."""
        logits: Tensor = self.output(F.relu(self.hidden(scores)))
        return logits


class UnifiedModel(nn.Module):
    """Both submodels on the same image, their class scores concatenated, a dense head on top: one input, one output."""

    def __init__(self, branches: list[nn.Sequential], head: Head, scores: Scores) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.head = head
        self.scores = scores

    def branch_scores(self, index: int, x: Tensor) -> Tensor:
        """The class scores [B, K] of branch `index` for images [B, C, H, W]; float32 whatever it computes in."""
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
        """Return the units in unfreezing order: the head, then the branches' units from the last to the first."""
        names = [name for name, _ in self.branches[0].named_children()]
        return (HEAD, *reversed(names))

    def units(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield every unit with its name; branches share the names of their units."""
        yield HEAD, self.head
        for branch in self.branches:
            yield from branch.named_children()


def unit_names(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the units of a unified model or a submodel, in unfreezing order."""
    if isinstance(network, UnifiedModel):
        return network.unit_names()
    return tuple(reversed([name for name, _ in network.named_children()]))


def units(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every unit of a unified model or a submodel with its name."""
    yield from network.units() if isinstance(network, UnifiedModel) else network.named_children()


def build_dual(spec: FamilySpec, shape: tuple[int, int, int], classes: int, *, alike: bool = False) -> DualModel:
    """Two submodels for images (H, W, C) and K classes, freshly initialized from torch's global generator.

    Where they are `alike` both start from the same weights, so that an average of what becomes of them means something:
    between networks that were initialized apart the loss is high half-way (arXiv 1912.05671).
    """
    first = spec.build(shape, classes)
    return DualModel(first, copy.deepcopy(first) if alike else spec.build(shape, classes))


def unify(dual: DualModel, unify_spec: UnifySpec) -> UnifiedModel:
    """The unified model: copies of the dual model's branches, dense layers rewritten as convolutions, a new head.

    The branches give the same numbers as before, to rounding. The head is initialized from torch's global generator.
    """
    branches = [_with_conv_classifier(branch) for branch in dual.branches]
    classes = cast("ConvClassifier", branches[0][-1]).conv.out_channels
    return UnifiedModel(branches, Head(classes * len(branches), unify_spec.hidden, classes), unify_spec.scores)


def average(dual: DualModel) -> nn.Sequential:
    """One submodel with the mean of both submodels' weights, and of their statistics.

    A normalization's statistics are those of what it reads, which no mean gives: they have to be measured anew.
    """
    first, second = dual.branches
    made = copy.deepcopy(first)
    if not isinstance(made, nn.Sequential):
        raise TypeError("a submodel is an nn.Sequential of named units")
    pairs = zip(made.state_dict().values(), second.state_dict().values(), strict=True)
    with torch.no_grad():
        for mine, other in pairs:
            # Whole numbers, such as a count of batches, have no mean.
            if mine.is_floating_point():
                mine.lerp_(other, 0.5)
    return made


def build_unified(spec: FamilySpec, unify_spec: UnifySpec, shape: tuple[int, int, int], classes: int) -> UnifiedModel:
    """A unified model with fresh weights: what a model file's tensors are loaded into."""
    return unify(build_dual(spec, shape, classes), unify_spec)


def build_network(
    spec: FamilySpec, unify_spec: UnifySpec | None, shape: tuple[int, int, int], classes: int
) -> nn.Module:
    """A network with fresh weights: two submodels joined as `unify` says, or one that stands alone for None."""
    return spec.build(shape, classes) if unify_spec is None else build_unified(spec, unify_spec, shape, classes)


def _with_conv_classifier(branch: nn.Module) -> nn.Sequential:
    copied = copy.deepcopy(branch)
    if not isinstance(copied, nn.Sequential) or not isinstance(copied[-1], DenseClassifier):
        raise TypeError("a submodel is an nn.Sequential of named units that ends in a DenseClassifier")
    copied[-1] = ConvClassifier.from_dense(copied[-1])
    return copied
