"""The depthwise-separable block in compiled C: the results and gradients of torch, except for rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from compilers import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_samples import ROUNDING, channels_last

from thaw.kernels.separable import can_fuse, separable
from thaw.models.blocks import Separable, use_kernels


def block(channels_in, channels_out):
    """A block with scales and biases that are not those of the beginning."""
    torch.manual_seed(0)
    made = Separable(channels_in, channels_out).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for norm in (made.depthwise.norm, made.pointwise.norm):
            norm.weight.copy_(torch.linspace(0.5, 1.5, len(norm.weight)))
            norm.bias.copy_(torch.linspace(-0.5, 0.5, len(norm.bias)))
    use_kernels(made, compiled=True)
    return made


def errors(made, x, dy, dtype):
    """Distances from torch in float64, relative to the size: output, gradients, running statistics."""
    exact = copy.deepcopy(made).double()
    expected = exact(x.double())
    wanted = torch.autograd.grad(expected, [x, *exact.parameters()], dy.double())
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = made(x)
    assert y.dtype == dtype
    found = torch.autograd.grad(y, [x, *made.parameters()], dy.to(dtype))
    pairs = zip((y, *found, *made.buffers()), (expected.detach(), *wanted, *exact.buffers()), strict=True)
    return [float((mine.detach().double() - its).norm() / its.norm().clamp(min=1.0)) for mine, its in pairs]


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(2, 5), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20)),
    st.none() | st.integers(1, 70),
)
def test_values_and_gradients_are_those_of_torch(shape, channels_out):
    batch, channels, height, width = shape
    made = block(channels, channels_out or channels)
    x = channels_last(*shape, dtype=torch.float32).requires_grad_()
    dy = channels_last(batch, channels_out or channels, height, width, dtype=torch.float32, seed=1)
    # With a handful of values per channel, small variances make gradients large.
    assert max(errors(made, x, dy, torch.float32)) < (2e-5 if batch * height * width > 50 else 5e-3)


@needs_compiler
@pytest.mark.parametrize("channels_out", [24, 40])
def test_bfloat16(channels_out):
    x = channels_last(4, 24, 16, 16, dtype=torch.float32).bfloat16().requires_grad_()
    dy = channels_last(4, channels_out, 16, 16, dtype=torch.float32, seed=1)
    output, *gradients, _, _, _, _ = errors(block(24, channels_out), x, dy, torch.bfloat16)
    assert output < 2 * ROUNDING[torch.bfloat16]
    # A value that rounding moves across 0 passes a ReLU or not.
    assert max(gradients) < 0.1


@needs_compiler
def test_the_same_bits_again_and_no_gradient_of_an_image():
    made, x = block(12, 12), channels_last(5, 12, 9, 7, dtype=torch.float32)
    dy = channels_last(5, 12, 9, 7, dtype=torch.float32, seed=1)
    first, second = (torch.autograd.grad(made(x), list(made.parameters()), dy) for _ in range(2))
    assert all(map(torch.equal, first, second))
    x.requires_grad_()
    third = torch.autograd.grad(made(x), [x, *made.parameters()], dy.contiguous())[1:]
    assert all(map(torch.equal, first, third))


@needs_compiler
def test_nan_stays_nan():
    made, x = block(8, 8), channels_last(2, 8, 5, 5, dtype=torch.float32)
    x[0, 0, 0, 0] = float("nan")
    # A loss that is not finite has to be seen.
    assert made(x).isnan().any()


@needs_compiler
def test_training_uses_it_and_evaluation_does_not(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "thaw.models.blocks.separable",
        lambda *args, **kwargs: calls.append(args) or separable(*args, **kwargs),
    )
    made, x = block(6, 6), channels_last(2, 6, 4, 4, dtype=torch.float32)
    made(x)
    made(x.contiguous())
    made.eval()
    made(x)
    use_kernels(made, compiled=False)
    made.train()
    made(x)
    assert len(calls) == 1
    assert can_fuse(x)
    assert not can_fuse(x[:1, :, :1, :1])
