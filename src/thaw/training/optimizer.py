"""What all optimizers have in common, without `torch.compile`.

`torch.optim.Optimizer` imports `torch._dynamo` when it is first used, to exclude itself from compilation. That takes
about 3 s, as long as the import of torch, and small networks train in seconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Optimizer(ABC):
    """Groups of parameters with their settings, and the state of each parameter, as in `torch.optim.Optimizer`.

    Args:
        params: parameters, or dicts of a group's parameters ("params") and the settings that differ from `defaults`.
        defaults: settings of a group, "lr" among them.

    Raises:
        ValueError: without parameters.

    Attributes:
        param_groups: dicts of each group's parameters ("params") and settings.
        state: tensors by name, by parameter.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], defaults: dict[str, Any]) -> None:
        given: list[Any] = list(params)
        if not given:
            raise ValueError("an optimizer of no parameters: expected at least one")
        groups = given if isinstance(given[0], dict) else [{"params": given}]
        self.param_groups = [{**defaults, **group, "params": list(group["params"])} for group in groups]
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)

    @abstractmethod
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Take one step."""

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters of all groups, in the order by which `state_dict` numbers them."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def zero_grad(self) -> None:
        """Remove the gradients: they become None, not 0."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The state by the number of the parameter, and the settings of the groups."""
        numbers = {id(parameter): number for number, parameter in enumerate(self.parameters)}
        return {
            "state": {numbers[id(parameter)]: slots for parameter, slots in self.state.items() if slots},
            "param_groups": [
                {**group, "params": [numbers[id(parameter)] for parameter in group["params"]]}
                for group in self.param_groups
            ],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the result of `state_dict`, or of that of torch's optimizer of the same kind."""
        parameters = self.parameters
        self.state.clear()
        for number, slots in state_dict["state"].items():
            parameter = parameters[number]
            # Counters of steps have no dimension and stay on the CPU.
            self.state[parameter] = {
                name: value.detach().clone().to(parameter.device if value.ndim else "cpu")
                for name, value in slots.items()
                if value is not None
            }
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group |= {name: value for name, value in saved.items() if name != "params" and name in group}


AnyOptimizer = Optimizer | torch.optim.Optimizer


def refuse_closure(closure: Callable[[], float] | None, optimizer: str) -> None:
    """Raise TypeError for a closure, which could change the gradients of a step."""
    if closure is not None:
        raise TypeError(f"{optimizer} takes no closure")
