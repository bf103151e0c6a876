"""Optimisers by name, and the running mean of the weights.

Shapes: C' output channels of a convolution, C input channels, kh and kw the sides of its kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from thaw.errors import UsageError

OptimizerName = Literal["nadam", "adamw", "sgd", "muon"]


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How gradients become weights, beside the learning rate and its schedule.

    Attributes:
        optimizer: "nadam", "adamw", "sgd" (with Nesterov's momentum), or "muon" (see `Muon`).
        momentum: of "sgd" and "muon", 0 to below 1.
        weight_decay: share of a weight that a step takes off, times the learning rate; for weights with more than one
            axis only, so that biases and normalisations keep what they have. From 0.
        ema: decay a step of the running mean of the weights, which is then what is validated and kept; 0 for the last
            weights themselves, else below 1.
        label_smoothing: share of the target that is spread over all classes, 0 to below 1 (arXiv 1512.00567).
    """

    optimizer: OptimizerName = "nadam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    ema: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in get_args(OptimizerName):
            raise UsageError(f"fit.optimizer {self.optimizer!r}: expected one of {', '.join(get_args(OptimizerName))}")
        for name in ("momentum", "ema", "label_smoothing"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UsageError(f"fit.{name} {getattr(self, name)}: expected a number from 0 to below 1")
        if not 0.0 <= self.weight_decay < math.inf:
            raise UsageError(f"fit.weight_decay {self.weight_decay}: expected a finite number from 0")


def make_optimizer(module: nn.Module, fit: FitSettings, learning_rate: float) -> torch.optim.Optimizer:
    """A fresh optimiser over all parameters of `module`."""
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
            # Without decay, the groups are one, in the module's own order.
            return torch.optim.NAdam(groups if fit.weight_decay else trained, lr=learning_rate)
        case "adamw":
            return torch.optim.AdamW(groups, lr=learning_rate)
        case "sgd":
            return torch.optim.SGD(groups, lr=learning_rate, momentum=fit.momentum, nesterov=fit.momentum > 0)
        case "muon":
            return Muon(groups, lr=learning_rate, momentum=fit.momentum)


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, for convolutions; Adam for everything else.

    A convolution's weights are taken as a matrix [C', C kh kw]. Of the momentum's matrix only the directions count: its
    singular values are all moved to about 1, by iterations of an odd polynomial. So a step moves a network along all
    directions that it has, and not along the few in which gradients are large; networks of some ten thousand
    parameters, which underfit, come much further in as many epochs.

    Depthwise kernels, dense layers, biases and normalisations take Adam's step, at `ADAM_SHARE` of the rate.

    Source: K. Jordan and others, "Muon: an optimizer for hidden layers in neural networks", 2024; the coefficients are
    those given there, and three iterations do as in its CIFAR-10 programs.

    Args:
        groups: parameter groups, with "weight_decay" each.
        lr: learning rate of convolutions.
        momentum: 0 to below 1.
    """

    ADAM_SHARE = 0.5
    _BETAS = (0.9, 0.99)
    _EPSILON = 1e-8
    _COEFFICIENTS = (3.4445, -4.7750, 2.0315)
    _ITERATIONS = 3

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step along the gradients that are there."""
        if closure is not None:
            raise TypeError("Muon takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                is_kernel = parameter.ndim == 4 and parameter.shape[1] > 1
                update = self._orthogonal(parameter, group["momentum"]) if is_kernel else self._adam(parameter)
                rate = group["lr"] * (1.0 if is_kernel else self.ADAM_SHARE)
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)

    def _orthogonal(self, parameter: Tensor, momentum: float) -> Tensor:
        """The step of a convolution [C', C, kh, kw]: orthogonal, scaled by sqrt(max(1, C' / (C kh kw)))."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient = _gradient(parameter)
        mean = state["momentum"].lerp_(gradient, 1.0 - momentum)
        rows = torch.lerp(gradient, mean, momentum).flatten(1).float()
        made = orthogonalise(rows, self._COEFFICIENTS, self._ITERATIONS)
        return made.view(parameter.shape) * math.sqrt(max(1.0, rows.shape[0] / rows.shape[1]))

    def _adam(self, parameter: Tensor) -> Tensor:
        """Adam's step (arXiv 1412.6980), without its rate."""
        state = self.state[parameter]
        if not state:
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] = torch.zeros(())
        state["step"] += 1
        first, second = self._BETAS
        steps = float(state["step"])
        gradient = _gradient(parameter)
        mean = state["mean"].lerp_(gradient, 1.0 - first) / (1.0 - first**steps)
        square = state["square"].mul_(second).addcmul_(gradient, gradient, value=1.0 - second)
        step: Tensor = mean / (torch.sqrt(square / (1.0 - second**steps)) + self._EPSILON)
        return step


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise AssertionError("a step is taken along a gradient")
    return parameter.grad


def orthogonalise(matrix: Tensor, coefficients: tuple[float, float, float], iterations: int) -> Tensor:
    """A matrix float32 [m, n] with its singular values moved towards 1, by x <- a x + b x^3 + c x^5 on each of them."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide / (wide.norm() + 1e-7)
    a, b, c = coefficients
    for _ in range(iterations):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    made: Tensor = x.T if matrix.shape[0] > matrix.shape[1] else x
    return made


class WeightAverage:
    """The exponential running mean of a module's weights and statistics.

    The decay rises as (1 + n) / (10 + n) over the first steps n, so that the initial weights do not linger.

    Args:
        module: whose tensors are followed.
        decay: 0 to below 1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        # Whole numbers, such as a count of batches, have no mean.
        followed = {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
        self._current = list(followed.values())
        self.tensors = {name: tensor.detach().clone() for name, tensor in followed.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after a step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.tensors.values()), self._current, 1.0 - decay)
        self.steps += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module has the mean's weights for as long as the context lasts."""
        own = [tensor.detach().clone() for tensor in self._current]
        self._set(self.tensors.values())
        try:
            yield
        finally:
            self._set(own)

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Go on from `tensors` and `steps` of an earlier average of the same module."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
        self.steps = steps

    @torch.no_grad()
    def _set(self, tensors: Iterable[Tensor]) -> None:
        for mine, given in zip(self._current, tensors, strict=True):
            mine.copy_(given)
