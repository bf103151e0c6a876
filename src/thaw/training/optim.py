"""Optimizers by name, and the moving average of the weights.

torch has no public API for operations on many tensors in one call; its own optimizers use the same private functions.

Shapes: C' output channels of a convolution, C input channels, kh and kw the sides of its kernel.
"""

# ruff: noqa: SLF001
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from thaw.kernels.optimizers import can_step
from thaw.plain import BelowOne, Real, checked_dataclass
from thaw.training.compiled_optim import CompiledNAdam, CompiledSGD
from thaw.training.optimizer import AnyOptimizer, Optimizer, refuse_closure

OptimizerName = Literal["nadam", "adamw", "sgd", "muon"]


@checked_dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimizer, and how weights are regularized and averaged."""

    optimizer: OptimizerName = "nadam"
    """"nadam", "adamw", "sgd" (with Nesterov momentum), or "muon"."""
    momentum: BelowOne = 0.9
    """Momentum of "sgd" and "muon"."""
    weight_decay: Annotated[Real, Field(ge=0)] = 0.0
    """Decoupled weight decay, times the learning rate in each step. Biases and normalizations are exempt."""
    ema: BelowOne = 0.0
    """Decay per step of the exponential moving average of the weights, which is then validated and saved. 0 validates
    and saves the weights themselves."""
    label_smoothing: BelowOne = 0.0
    """Fraction of the target that is spread over all classes (arXiv 1512.00567)."""


def make_optimizer(
    module: nn.Module, fit: OptimizerSettings, learning_rate: float, *, compiled: bool = False
) -> AnyOptimizer:
    """Return a new optimizer over all parameters of `module`; "nadam" and "sgd" can take their steps in compiled C."""
    compiled = compiled and can_step(module.parameters())
    trained = list(module.parameters())
    decayed = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": chosen, "weight_decay": decay}
        for chosen, decay in ((decayed, fit.weight_decay), (others, 0.0))
        if chosen
    ]
    match fit.optimizer:
        case "nadam":
            # Without weight decay there is one group, in the order of the module.
            kind = CompiledNAdam if compiled else torch.optim.NAdam
            return kind(groups if fit.weight_decay else trained, lr=learning_rate)
        case "adamw":
            return torch.optim.AdamW(groups, lr=learning_rate)
        case "sgd":
            sgd = CompiledSGD if compiled else torch.optim.SGD
            return sgd(groups, lr=learning_rate, momentum=fit.momentum, nesterov=fit.momentum > 0)
        case "muon":
            return Muon(groups, lr=learning_rate, momentum=fit.momentum)


class Muon(Optimizer):
    """Momentum with orthogonalized steps for convolutions, and Adam for all other parameters.

    A convolution's weights form a matrix [C', C kh kw]. Iterations of an odd polynomial move all singular values of the
    momentum's matrix toward 1, so that a step moves the weights along all directions and not only along those with
    large gradients. Networks with some ten thousand parameters underfit; with these steps they get much further in the
    same number of epochs.

    Depthwise kernels, dense layers, biases and normalizations use Adam, at `ADAM_SHARE` of the learning rate.

    Source: K. Jordan and others, "Muon: an optimizer for hidden layers in neural networks", 2024, including the
    coefficients; three iterations are enough, as in its CIFAR-10 programs.

    Args:
        groups: parameter groups, each with "weight_decay".
        lr: learning rate of convolutions.
        momentum: from 0 to below 1.
    """

    ADAM_SHARE = 0.5
    _BETAS = (0.9, 0.99)
    _EPSILON = 1e-8
    _COEFFICIENTS = (3.4445, -4.7750, 2.0315)
    _ITERATIONS = 3

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Take one step; parameters without a gradient are skipped."""
        refuse_closure(closure, "Muon")
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            others = [parameter for parameter in parameters if not _is_kernel(parameter)]
            # Small networks have many kernels of the same shape; their matrices are multiplied in one call.
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in filter(_is_kernel, parameters):
                by_shape.setdefault(parameter.shape, []).append(parameter)
            for alike in by_shape.values():
                self._move(alike, self._orthogonal(alike, group["momentum"]), group, 1.0)
            if others:
                self._move(others, self._adam(others), group, self.ADAM_SHARE)

    @staticmethod
    def _move(parameters: list[Tensor], updates: Sequence[Tensor], group: dict[str, Any], share: float) -> None:
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(updates), alpha=-group["lr"] * share)

    def _orthogonal(self, parameters: list[Tensor], momentum: float) -> list[Tensor]:
        """Return the steps of convolutions [C', C, kh, kw] of one shape, scaled by sqrt(max(1, C' / (C kh kw)))."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        gradients = [_gradient(parameter) for parameter in parameters]
        means = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(means, gradients, 1.0 - momentum)
        # Nesterov momentum: the mean after applying the same gradient once more.
        rows = torch.stack(torch._foreach_lerp(gradients, means, momentum)).flatten(2).float()
        scale = math.sqrt(max(1.0, rows.shape[1] / rows.shape[2]))
        made = orthogonalize(rows, self._COEFFICIENTS, self._ITERATIONS) * scale
        return [each.view(parameter.shape) for each, parameter in zip(made, parameters, strict=True)]

    def _adam(self, parameters: list[Tensor]) -> Sequence[Tensor]:
        """Return Adam's steps (arXiv 1412.6980), without the learning rate."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] |= {
                    "mean": torch.zeros_like(parameter),
                    "square": torch.zeros_like(parameter),
                    "step": torch.zeros(()),
                }
        states = [self.state[parameter] for parameter in parameters]
        for state in states:
            state["step"] += 1
        first, second = self._BETAS
        gradients = [_gradient(parameter) for parameter in parameters]
        means, squares = [state["mean"] for state in states], [state["square"] for state in states]
        torch._foreach_lerp_(means, gradients, 1.0 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1.0 - second)
        steps = [float(state["step"]) for state in states]
        roots = torch._foreach_sqrt(torch._foreach_div(squares, [1.0 - second**count for count in steps]))
        torch._foreach_add_(roots, self._EPSILON)
        return torch._foreach_div(torch._foreach_div(means, [1.0 - first**count for count in steps]), roots)


def _is_kernel(parameter: Tensor) -> bool:
    """Whether a parameter is the weights [C', C, kh, kw] of a convolution that mixes channels."""
    return parameter.ndim == 4 and parameter.shape[1] > 1


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise AssertionError("the parameter has no gradient")
    return parameter.grad


def orthogonalize(matrices: Tensor, coefficients: tuple[float, float, float], iterations: int) -> Tensor:
    """Return matrices float32 [..., m, n] with singular values moved toward 1, each by x <- a x + b x^3 + c x^5."""
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = coefficients
    for _ in range(iterations):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    made: Tensor = x.mT if is_tall else x
    return made


class WeightAverage:
    """The exponential moving average of a module's weights and statistics.

    In step n the decay is at most (1 + n) / (10 + n), so that the initial weights soon lose their influence.

    Args:
        module: the module to average.
        decay: from 0 to below 1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        # Integers, such as the number of batches, are not averaged.
        followed = {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
        self._current = list(followed.values())
        self.tensors = {name: tensor.detach().clone() for name, tensor in followed.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average after a step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.tensors.values()), self._current, 1.0 - decay)
        self.steps += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the module the averaged weights inside the context."""
        own = [tensor.detach().clone() for tensor in self._current]
        self._set(self.tensors.values())
        try:
            yield
        finally:
            self._set(own)

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Continue from `tensors` and `steps` of an earlier average of the same module."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
        self.steps = steps

    @torch.no_grad()
    def _set(self, tensors: Iterable[Tensor]) -> None:
        for mine, given in zip(self._current, tensors, strict=True):
            mine.copy_(given)
