"""Views of images in compiled C: those of the torch operations, except for rounding, from the same random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compilers import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st

from thaw.data.augment import AugmentSettings, augment, draw_changes
from thaw.data.batches import BatchSource, normalize, to_unit
from thaw.data.images import ImageSet, InputSpec
from thaw.kernels.augmentation import FILLS, Changes, views

OFF = {"rotation_degrees": 0.0, "zoom": 0.0, "translation": 0.0, "brightness": 0.0}
MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))
amounts = st.integers(0, 90).map(lambda percent: percent / 100)
changes = st.builds(
    AugmentSettings,
    rotation_degrees=st.sampled_from([0.0, 10.0, 180.0]),
    zoom=amounts,
    translation=amounts,
    brightness=amounts,
    fill=st.sampled_from(FILLS),
    flip=st.booleans(),
    crop=st.integers(0, 50).map(lambda percent: percent / 100),
    cutout=amounts,
)


def pixels_of(shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def spec_of(shape):
    _, height, width, channels = shape
    return InputSpec(height=height, width=width, channels=channels, mean=MEAN[:channels], std=STD[:channels])


def both(pixels, made):
    """The C's views and those of torch."""
    spec = spec_of(pixels.shape)
    draws = [torch.Generator().manual_seed(3) for _ in range(2)]
    expected = normalize(augment(to_unit(pixels), made, draws[0]), spec)
    drawn = draw_changes(made, len(pixels), tuple(pixels.shape[1:3]), draws[1])
    assert torch.equal(draws[0].get_state(), draws[1].get_state())
    return views(pixels, drawn, spec.mean, spec.std), expected


@needs_compiler
@settings(max_examples=150, deadline=None)
@given(shapes, changes)
def test_any_changes_are_those_of_torch(shape, made):
    found, expected = both(pixels_of(shape), made)
    assert found.shape == expected.shape
    assert found.permute(0, 2, 3, 1).is_contiguous()
    # Coordinates up to 40 with 24 bits, times the difference of two pixels over the smallest deviation.
    assert (found - expected).abs().max() < 1e-3


@needs_compiler
@pytest.mark.parametrize("fill", FILLS)
def test_changes_by_whole_pixels_are_exact(fill):
    found, expected = both(pixels_of((64, 12, 9, 3)), AugmentSettings(**OFF, flip=True, crop=0.5, fill=fill))
    assert torch.equal(found, expected)


@needs_compiler
def test_the_original_view_is_exact():
    pixels = pixels_of((5, 7, 6, 3))
    assert torch.equal(views(pixels, Changes(), MEAN, STD), normalize(to_unit(pixels), spec_of(pixels.shape)))


def test_a_policy_is_left_to_torch():
    draw = torch.Generator().manual_seed(3)
    before = draw.get_state()
    assert draw_changes(AugmentSettings(policy="trivial"), 4, (8, 8), draw) is None
    assert torch.equal(draw.get_state(), before)


@needs_compiler
@pytest.mark.parametrize("policy", ["none", "trivial"])
def test_batches(policy, monkeypatch):
    calls = []
    monkeypatch.setattr("thaw.data.batches.compiled_views", lambda *args: calls.append(args) or views(*args))
    pixels = pixels_of((40, 16, 16, 1))
    images = ImageSet(images=pixels.numpy(), labels=np.arange(40) % 4, classes=("a", "b", "c", "d"))
    found, expected = (
        list(
            BatchSource(
                images=images,
                input_spec=spec_of(pixels.shape),
                batch_size=16,
                device=torch.device("cpu"),
                augment=AugmentSettings(policy=policy),
                views=("original", "augmented"),
                compiled=compiled,
            ).shuffled(5)
        )
        for compiled in (True, False)
    )
    assert len(calls) == (2 if policy == "none" else 1)
    for mine, its in zip(found, expected, strict=True):
        assert torch.equal(mine.labels, its.labels)
        assert torch.equal(mine.views["original"], its.views["original"])
        assert (mine.views["augmented"] - its.views["augmented"]).abs().max() < 1e-4
        assert mine.views["augmented"].stride() == its.views["augmented"].stride()
