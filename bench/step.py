"""Time a training step of a recipe's network on one core, with torch's operations and with compiled kernels.

    python bench/step.py best-cifar10-19k [--batch 64] [--rounds 5]

A round times each for some seconds, one after the other, on random images; the table has the medians over the rounds.
Seconds are CPU time, so that other programs on the machine matter less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from thaw.errors import ThawError
from thaw.models.blocks import use_kernels
from thaw.models.compiling import compile_kernels
from thaw.recipe.recipe import load_recipe
from thaw.training.compute import (
    autocast,
    kernels_name,
    precision_name,
    resolve_arithmetic,
)

CPU = torch.device("cpu")
SHAPES = {"cifar10": (32, 32, 3), "mnist": (28, 28, 1), "fashion": (28, 28, 1)}
CLASSES = 10


def main() -> None:
    """Time one recipe."""
    options = _options()
    torch.set_num_threads(1)
    name, recipe = load_recipe(options.recipe, options.overrides)
    shape = next((shape for word, shape in SHAPES.items() if word in name), SHAPES["cifar10"])
    layers = recipe.trainer_settings().kernel_layers
    dtype = resolve_arithmetic(replace(recipe.compute, kernels="compiled"), CPU, layers, threads=1).dtype
    module = recipe.model.build(shape, CLASSES).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    compile_kernels(module, dtype)
    step = _step(module, shape, options.batch, dtype)
    rates: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(options.rounds):
        for compiled, measured in rates.items():
            use_kernels(module, compiled=compiled)
            measured.append(options.batch * _steps_a_second(step, options.seconds))
    print(f"{name}, {precision_name(dtype)}, one core, batches of {options.batch}: images/s")
    for compiled, measured in rates.items():
        median, low, high = statistics.median(measured), min(measured), max(measured)
        print(f"  {kernels_name(compiled=compiled):8} {median:8,.0f} ({low:,.0f} to {high:,.0f})")


def _step(module: nn.Module, shape: tuple[int, int, int], batch: int, dtype: torch.dtype) -> Callable[[], None]:
    """Run a forward and a backward pass."""
    height, width, channels = shape
    x = torch.randn(batch, channels, height, width).to(memory_format=torch.channels_last)
    labels = torch.arange(batch) % CLASSES
    parameters = list(module.parameters())

    def step() -> None:
        with autocast(dtype, CPU):
            logits = module(x)
        torch.autograd.grad(F.cross_entropy(logits.float(), labels), parameters)

    return step


def _steps_a_second(step: Callable[[], None], seconds: float) -> float:
    for _ in range(3):
        step()
    started, count = time.thread_time(), 0
    while time.thread_time() - started < seconds:
        step()
        count += 1
    return count / (time.thread_time() - started)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except ThawError as error:
        raise SystemExit(f"error: {error}") from None
