"""Depthwise convolution in compiled C: the results and gradients of torch, except for rounding."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from compilers import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_samples import ROUNDING, channels_last

from thaw.kernels import depthwise as kernel
from thaw.kernels.depthwise import can_convolve, depthwise
from thaw.models.blocks import ConvNorm, use_kernels
from thaw.models.depthwise import DepthwiseConv


def assert_close(found, expected, dtype):
    for mine, its in zip(found, expected, strict=True):
        assert mine.shape == its.shape
        assert (mine.double() - its).abs().max() <= 2 * ROUNDING[dtype] * its.abs().max().clamp(min=1.0)


def check(shape, side, stride, dtype):
    """Compare values and gradients with torch in float64."""
    x = channels_last(*shape, dtype=dtype).requires_grad_()
    weight = torch.randn(shape[1], 1, side, side, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert can_convolve(x)
    y = depthwise(x, weight, stride)
    dy = channels_last(*y.shape, dtype=dtype, seed=2)
    found = (y, *torch.autograd.grad(y, [x, weight], dy))
    exact = [leaf.detach().double().requires_grad_() for leaf in (x, weight)]
    expected = F.conv2d(*exact, stride=stride, padding=side // 2, groups=shape[1])
    assert_close(found, (expected, *torch.autograd.grad(expected, exact, dy.double())), dtype)
    assert y.is_contiguous(memory_format=torch.channels_last)


@needs_compiler
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(
    ("shape", "side", "stride"),
    [
        ((3, 24, 32, 32), 3, 1),
        ((2, 40, 16, 16), 5, 1),
        ((2, 64, 8, 8), 7, 1),
        ((2, 20, 15, 17), 3, 2),
        ((2, 16, 224, 70), 5, 2),
        ((3, 17, 4, 9), 1, 1),
        ((2, 3, 12, 5), 13, 1),
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_torch(shape, side, stride, dtype):
    check(shape, side, stride, dtype)


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 35), st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([3, 5, 7]),
    st.sampled_from([1, 2]),
    st.sampled_from(list(ROUNDING)),
)
def test_any_shape(shape, side, stride, dtype):
    check(shape, side, stride, dtype)


@needs_compiler
def test_the_statistics_and_the_backward_step_of_a_normalization():
    x = channels_last(6, 20, 9, 11, dtype=torch.float32)
    x[0] += 100.0  # unlike the other images
    weight = torch.randn(20, 1, 3, 3)
    statistics = torch.empty(2, 20, dtype=torch.float64)
    y = kernel.forward(x, weight, 1, statistics)
    exact = F.conv2d(x.double(), weight.double(), padding=1, groups=20)
    assert torch.allclose(statistics[0], exact.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    assert torch.allclose(statistics[1], exact.var((0, 2, 3), correction=0), rtol=1e-5)

    dy, also = (channels_last(6, 20, 9, 11, dtype=torch.float32, seed=seed) for seed in (3, 4))
    constants, back = torch.randn(4, 20), torch.randn(2, 20)
    factor, _, mean, _, slope, shift = (row.view(1, -1, 1, 1) for row in (*constants, *back))
    dx, dweight = kernel.backward(dy, x, weight, 1, normalized=(y, constants, back), also=also)
    plain_dx, plain_dweight = kernel.backward(factor * dy + slope * (y - mean) + shift, x, weight, 1)
    assert_close([dx, dweight], [plain_dx.double() + also, plain_dweight.double()], torch.float32)


@needs_compiler
def test_the_same_bits_again():
    x, weight = channels_last(7, 24, 16, 16, dtype=torch.float32), torch.randn(24, 1, 5, 5)
    dy = channels_last(7, 24, 16, 16, dtype=torch.float32, seed=1)
    first, second = (kernel.backward(dy, x, weight, 1) for _ in range(2))
    assert all(map(torch.equal, first, second))


@needs_compiler
def test_gradients_in_any_layout_and_of_an_image():
    x = channels_last(2, 8, 6, 5, dtype=torch.float32)
    weight = torch.randn(8, 1, 3, 3, requires_grad=True)
    y = depthwise(x, weight)
    dy = torch.randn(y.shape)
    (first,) = torch.autograd.grad(y, [weight], dy, retain_graph=True)
    (second,) = torch.autograd.grad(y, [weight], dy.to(memory_format=torch.channels_last))
    assert torch.equal(first, second)


def test_what_the_c_does_not_take_is_left_to_torch():
    x = channels_last(2, 4, 3, 3, dtype=torch.float32)
    assert can_convolve(x)
    assert not can_convolve(x.contiguous())
    assert not can_convolve(x.double())
    assert not can_convolve(x[:0])
    assert not can_convolve(x.to("meta"))


@needs_compiler
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("side", [3, 5, 7])
def test_a_block_trains_the_same_with_and_without(side, dtype, monkeypatch):
    calls = []
    monkeypatch.setattr("thaw.models.depthwise.depthwise", lambda *args: calls.append(args) or depthwise(*args))
    torch.manual_seed(0)
    blocks = [ConvNorm(12, 12, kernel=side, stride=2, groups=12)]
    blocks.append(copy.deepcopy(blocks[0]))
    use_kernels(blocks[1], compiled=True)
    x = channels_last(4, 12, 9, 9, dtype=torch.float32)
    results = []
    for block in blocks:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y = block(x)
        assert y.dtype == dtype
        results.append((y.double(), torch.autograd.grad(y.float().square().sum(), block.conv.weight)[0].double()))
    assert len(calls) == 1
    for mine, its in zip(*results, strict=True):
        assert (mine - its).abs().max() < 20 * ROUNDING[dtype] * its.abs().max()
    # An evaluation is torch's.
    for block in blocks:
        block.eval()
        blocks[1].load_state_dict(blocks[0].state_dict())
    assert torch.equal(*(block(x) for block in blocks))
    assert len(calls) == 1
    assert isinstance(blocks[0].conv, DepthwiseConv)
