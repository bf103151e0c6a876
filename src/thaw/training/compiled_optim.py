"""NAdam and SGD of torch, with their steps in compiled C (`thaw.kernels.optimizers`).

Their state has the slots of torch's, so a checkpoint of torch's optimizer can be continued.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thaw.kernels.optimizers import NAdamStep, SGDStep, Slots, Table, in_format_of
from thaw.training.optimizer import Optimizer, refuse_closure


class CompiledNAdam(Optimizer):
    """NAdam with torch's default settings and L2 weight decay.

    The parameters of a group are stepped together, since the C has one count of steps for them.
    """

    def __init__(self, params: Any, *, lr: float) -> None:
        settings = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "momentum_decay": 4e-3}
        super().__init__(params, {"lr": lr, **settings})
        self._tables: list[Table] = []
        # Steps, and the product of the momenta in float32 as in torch, by group.
        self._counts: list[tuple[int, np.float32]] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Take one step.

        Raises:
            RuntimeError: when some parameters of a group have no gradient.
        """
        refuse_closure(closure, "a compiled optimizer")
        for group in self.param_groups:
            lacking = sum(parameter.grad is None for parameter in group["params"])
            if lacking:
                raise RuntimeError(f"{lacking} of {len(group['params'])} parameters have no gradient: expected all")
        if not self._tables:
            self._begin()
        for index, (group, table) in enumerate(zip(self.param_groups, self._tables, strict=True)):
            (beta1, beta2), rate, decay = group["betas"], group["lr"], group["momentum_decay"]
            count, product = self._counts[index]
            count += 1
            now, following = (beta1 * (1.0 - 0.5 * 0.96 ** (step * decay)) for step in (count, count + 1))
            product *= np.float32(now)
            self._counts[index] = count, product
            table.step(
                NAdamStep(
                    decay=group["weight_decay"],
                    one_minus_beta1=1 - beta1,
                    beta2=beta2,
                    one_minus_beta2=1 - beta2,
                    bias2=1 - beta2**count,
                    epsilon=group["eps"],
                    gradient_rate=-rate * (1.0 - now) / (1.0 - float(product)),
                    mean_rate=-rate * following / (1.0 - float(product) * following),
                )
            )

    def _begin(self) -> None:
        for group in self.param_groups:
            slots = []
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state |= {"step": torch.tensor(0.0), "mu_product": torch.tensor(1.0)}
                first, second = (_moment(state, name, parameter) for name in ("exp_avg", "exp_avg_sq"))
                slots.append(Slots(parameter, first, second))
            state = self.state[group["params"][0]]
            self._counts.append((int(state["step"]), np.float32(state["mu_product"].item())))
            self._tables.append(Table(slots))

    def state_dict(self) -> dict[str, Any]:
        """The state, as that of torch's optimizer."""
        for group, (count, product) in zip(self.param_groups, self._counts, strict=False):
            for parameter in group["params"]:
                self.state[parameter]["step"].fill_(count)
                self.state[parameter]["mu_product"].fill_(float(product))
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the result of `state_dict`."""
        super().load_state_dict(state_dict)
        self._tables, self._counts = [], []


class CompiledSGD(Optimizer):
    """SGD with momentum, which may be Nesterov's, and L2 weight decay."""

    def __init__(self, params: Any, *, lr: float, momentum: float, nesterov: bool = False) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "nesterov": nesterov})
        self._tables: list[Table] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Take one step; parameters without a gradient are skipped."""
        refuse_closure(closure, "a compiled optimizer")
        if not self._tables:
            for group in self.param_groups:
                moments = [_moment(self.state[each], "momentum_buffer", each) for each in group["params"]]
                self._tables.append(Table([Slots(*pair) for pair in zip(group["params"], moments, strict=True)]))
        for group, table in zip(self.param_groups, self._tables, strict=True):
            table.step(
                SGDStep(
                    decay=group["weight_decay"],
                    momentum=group["momentum"],
                    rate=-group["lr"],
                    nesterov=group["nesterov"],
                )
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the result of `state_dict`."""
        super().load_state_dict(state_dict)
        self._tables = []


def _moment(state: dict[str, Any], name: str, parameter: Tensor) -> Tensor:
    """The moment of a parameter in its optimizer state, in the memory format of the parameter; 0 if there is none."""
    found = state.get(name)
    state[name] = torch.zeros_like(parameter) if found is None else in_format_of(parameter, found)
    moment: Tensor = state[name]
    return moment
