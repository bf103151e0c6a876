"""Dropout and a dense layer in compiled C: the results of torch, up to rounding, and the same mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compilers import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st

from thaw.kernels.dropout_dense import KEYS, Drop, can_compute, dropout_dense, kept
from thaw.models.blocks import ConvClassifier, DenseClassifier, Dropout
from thaw.training.compute import autocast

CPU = torch.device("cpu")
ROUNDING = 2e-6
LAYOUTS = [torch.channels_last, torch.contiguous_format]


def leaves(size, classes, seed, layouts=(torch.channels_last, torch.contiguous_format)):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=draw).contiguous(memory_format=layouts[0])
    weight = torch.randn((classes, *size[1:]), generator=draw).contiguous(memory_format=layouts[1])
    return [each.requires_grad_() for each in (x, weight, torch.randn(classes, generator=draw))]


def in_torch(x, weight, bias, drop):
    mask = kept(x.shape, drop.probability, torch.tensor(drop.key))
    return F.linear((x * mask / (1.0 - drop.probability)).flatten(1), weight.flatten(1), bias)


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 11), st.integers(1, 24), st.integers(1, 6), st.integers(1, 6)),
    classes=st.integers(1, 40),
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 2),
    drop=st.builds(Drop, st.sampled_from([0.0, 0.1, 0.5, 0.9]), st.integers(0, KEYS - 1)),
)
def test_values_and_gradients_are_those_of_torch(size, classes, layouts, drop):
    own = leaves(size, classes, drop.key % 1000, layouts)
    exact = [each.detach().double().requires_grad_() for each in own]
    logits, expected = dropout_dense(*own, drop), in_torch(*exact, drop)
    dlogits = torch.randn(logits.shape)
    found = (logits, *torch.autograd.grad(logits, own, dlogits))
    for mine, its in zip(found, (expected, *torch.autograd.grad(expected, exact, dlogits.double())), strict=True):
        assert mine.shape == its.shape
        assert (mine.double() - its).abs().max() <= ROUNDING * its.abs().max().clamp(min=1.0)


@needs_compiler
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (1, 2)])
def test_only_the_gradients_that_are_wanted_are_computed(wanted):
    own, drop = leaves((5, 3, 2, 4), 4, 0), Drop(0.3, 7)
    whole = torch.autograd.grad(dropout_dense(*own, drop).square().sum(), own)
    for index, leaf in enumerate(own):
        leaf.requires_grad_(index in wanted)
    some = torch.autograd.grad(dropout_dense(*own, drop).square().sum(), [own[index] for index in wanted])
    assert all(map(torch.equal, some, [whole[index] for index in wanted]))


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.75])
def test_masks_drop_as_often_as_they_should_and_differ(probability):
    masks = torch.stack(
        [kept(torch.Size([128, 500]), probability, torch.tensor(key)) for key in (0, 1, 2**31, 2**32 - 1)]
    )
    count = masks[0].numel()
    spread = 5 * (probability * (1 - probability) / count) ** 0.5
    assert (masks.double().mean((1, 2)) - (1 - probability)).abs().max() < spread
    # Neighbors in an image, the same feature of neighboring images, and masks of different batches are independent.
    pairs = [(masks[:, :, 1:], masks[:, :, :-1]), (masks[:, 1:], masks[:, :-1]), (masks[2:], masks[:2])]
    for first, second in pairs:
        assert abs((first & second).double().mean() - (1 - probability) ** 2) < spread


@needs_compiler
@pytest.mark.parametrize("kind", [DenseClassifier, ConvClassifier])
def test_a_classifier_is_the_same_with_and_without(kind):
    classifier = kind((6, 3, 2), 5, 0.4)
    x = torch.randn(7, 6, 3, 2).contiguous(memory_format=torch.channels_last)
    for training in (True, False):
        classifier.train(training)
        results = []
        for compiled in (False, True):
            classifier.compiled = compiled
            classifier.dropout.reseed(3, CPU)
            results.append(torch.stack([classifier(x), classifier(x)]))
        assert torch.allclose(*results, atol=1e-6)
        # Each batch has its own mask.
        assert torch.equal(results[1][0], results[1][1]) == (not training)


def test_a_seed_gives_the_masks_again():
    dropout, x = Dropout(0.5), torch.ones(3, 40)
    dropout.reseed(5, CPU)
    first = [dropout(x), dropout(x)]
    dropout.reseed(5, CPU)
    assert all(map(torch.equal, first, [dropout(x), dropout(x)]))
    assert set(first[0].unique().tolist()) == {0.0, 2.0}


def test_what_the_c_does_not_support_is_left_to_torch():
    x, weight, _ = (each.detach() for each in leaves((2, 3, 4, 4), 2, 0))
    assert can_compute(x, weight)
    assert not can_compute(x.double(), weight)
    assert not can_compute(x[:, :, :3], weight)
    assert not can_compute(x.flatten(1), weight.flatten(1))
    assert not can_compute(x.to("meta"), weight)
    with autocast(torch.bfloat16, CPU):
        assert not can_compute(x, weight)
