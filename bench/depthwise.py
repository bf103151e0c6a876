"""Time depthwise convolutions in compiled C against torch's, on one core.

    python bench/depthwise.py [--precision float32] [--batch 64]

Times are CPU time of the thread, the shortest of several calls from Python.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from timing import shortest

from thaw.kernels.depthwise import depthwise
from thaw.training.compute import precision_name

REPEATS = 15
SIDES = (3, 5, 7)
MAPS = ((16, 32), (24, 32), (40, 16), (64, 16), (64, 8), (96, 8))
"""Channels, and rows and columns."""


def main() -> None:
    """Print the table."""
    options = _options()
    torch.set_num_threads(1)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.precision]
    print(f"{precision_name(dtype)}, one core, batches of {options.batch}: ms\n")
    print("| kernel | channels | map | forward | torch | backward | torch |\n|---|--:|--:|--:|--:|--:|--:|")
    for side in SIDES:
        for channels, size in MAPS:
            times = " | ".join(
                f"{1e3 * each:.2f}" for each in _times(side, (options.batch, channels, size, size), dtype)
            )
            print(f"| {side}x{side} | {channels} | {size}x{size} | {times} |", flush=True)


def _times(side: int, shape: tuple[int, int, int, int], dtype: torch.dtype) -> list[float]:
    """Seconds of the forward pass in C and in torch, and of the backward pass."""
    x, dy = (torch.randn(shape, dtype=dtype).to(memory_format=torch.channels_last) for _ in range(2))
    weight = torch.randn(shape[1], 1, side, side)
    times = []
    for own in (True, False):
        leaves = [x.clone().requires_grad_(), (weight if own else weight.to(dtype)).clone().requires_grad_()]

        def forward(leaves: list[torch.Tensor] = leaves, *, own: bool = own) -> torch.Tensor:
            return depthwise(*leaves) if own else F.conv2d(*leaves, padding=side // 2, groups=shape[1])

        y = forward()
        backward = shortest(lambda y=y, leaves=leaves: torch.autograd.grad(y, leaves, dy, retain_graph=True), REPEATS)
        times.append((shortest(forward, REPEATS), backward))
    return [passes[number] for number in (0, 1) for passes in times]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=64)
    return parser.parse_args()


if __name__ == "__main__":
    main()
