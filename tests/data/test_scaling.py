"""16-bit values to bytes, and the range of an image, compared with fractions and a loop over pixels."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from error_matching import raises
from hypothesis import given, settings
from hypothesis import strategies as st

from thaw.data import scaling
from thaw.data.images import InputSpec
from thaw.data.resize import resize
from thaw.data.scaling import (
    FULL_RANGE,
    check_range,
    parse_range,
    range_use,
    scale,
    value_span,
)


def fraction_of(value, low, high):
    """(v - low) * 255 / (high - low), rounded half up and clipped at both ends."""
    share = Fraction((value - low) * 255, high - low)
    return min(255, max(0, floor(share + Fraction(1, 2))))


@pytest.mark.parametrize("value_range", [(29_500, 30_300), (0, 1023), (0, 1), (65_534, 65_535), (3, 61_000), None])
def test_every_value_is_scaled_by_the_fraction(value_range):
    low, high = value_range or (0, 65_535)
    every = np.arange(65_536, dtype=np.uint16)
    found = scale(every, value_range)
    assert found.dtype == np.uint8
    assert found.tolist() == [fraction_of(value, low, high) for value in range(65_536)]
    assert (np.diff(found.astype(int)) >= 0).all()


def test_bytes_in_sixteen_bits_round_trip_without_a_range():
    # An 8-bit value times 257 fills 16 bits.
    eight = np.arange(256, dtype=np.uint16)
    assert np.array_equal(scale(eight * 257, None), eight)
    assert np.array_equal(scale(eight, (0, 255)), eight)


def test_values_are_scaled_before_resizing():
    # A hot pixel is clipped to the range before resizing spreads it: the mean of 0, 0, 0 and 255 is 64, rounded.
    image = np.array([[100, 100], [100, 65_535]], dtype=np.uint16)[..., None]
    input_spec = InputSpec(height=1, width=1, channels=1, range=(100, 200))
    assert resize(image, input_spec).ravel().tolist() == [64]
    several = resize(np.stack([image, image // 2]), input_spec)
    assert several[0].ravel().tolist() == [64]


def test_bytes_are_not_scaled_by_any_range():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(resize(image, InputSpec(height=2, width=2, channels=3, range=(0, 5))), image)


def span_by_loops(pixels, alpha):
    """`value_span` in a loop over pixels."""
    height, width, channels = pixels.shape
    lows, highs = [], []
    for y in range(height):
        for x in range(width):
            if not alpha[y, x]:
                continue
            for channel in range(channels):
                near = [
                    int(pixels[v, u, channel])
                    for v in range(max(0, y - 1), min(height, y + 2))
                    for u in range(max(0, x - 1), min(width, x + 2))
                    if (v, u) != (y, x) and alpha[v, u]
                ]
                value = int(pixels[y, x, channel])
                if height == 1 or width == 1:
                    near = [value]
                # A pixel without neighbors always counts.
                lows.append(max(value, min(near, default=65_535)))
                highs.append(min(value, max(near, default=0)))
    out = len(lows) // 1000
    return tuple(sorted((sorted(lows)[out], sorted(highs)[-1 - out]))) if lows else (65_535, 0)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 3]),
    st.sampled_from([2, 50, 65_536]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_span_follows_the_rule(height, width, channels, levels, has_alpha, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, levels, (height, width, channels)).astype(np.uint16)
    alpha = rng.integers(0, 2 if has_alpha else 1, (height, width, 1)).astype(np.uint16)
    alpha = alpha if has_alpha else np.full_like(alpha, 65_535)
    assert value_span(pixels, alpha if has_alpha else None) == span_by_loops(pixels, alpha)


def test_dead_and_hot_pixels_do_not_count():
    rng = np.random.default_rng(6)
    for _ in range(20):
        clean = rng.integers(29_500, 30_300, (48, 64, 1)).astype(np.uint16)
        broken = clean.copy()
        # Places that are not neighbors.
        places = [(int(y), int(x)) for y, x in zip(rng.permutation(range(1, 48, 3)), range(1, 64, 3), strict=False)]
        for place, value in zip(places, [0, 65_535] * 8, strict=False):
            broken[place] = value
        low, high = value_span(broken)
        assert 29_500 <= low < 29_600
        assert 30_200 < high < 30_300


def test_small_object_and_thin_line_count():
    image = np.full((32, 32, 1), 1000, np.uint16)
    image[5:7, 9:11] = 4000
    assert value_span(image) == (1000, 4000)
    line = np.full((32, 32, 1), 1000, np.uint16)
    line[10, 4:12] = 5000
    assert value_span(line) == (1000, 5000)


def test_extreme_thousandth_of_a_large_image_is_ignored():
    image = np.full((100, 100, 1), 500, np.uint16)
    image[:2, :5] = 60_000
    assert value_span(image) == (500, 500)
    image[2, :5] = 60_000
    assert value_span(image) == (500, 60_000)


def test_levels_are_counted_where_most_values_are():
    image = np.repeat(np.arange(29_500, 29_600, dtype=np.uint16), 100).reshape(100, 100, 1)
    image[0, :50, 0] = np.arange(50) * 1000
    assert range_use(image, (29_500, 29_599)) == (99, 99, pytest.approx(0.005))
    # 29,500 / 257 is 114.8, 29,599 / 257 is 115.2.
    assert range_use(image, FULL_RANGE) == (1, 99, 0)


@pytest.mark.parametrize("text", ["29500,30300", " 29500 , 30300 ", "[29500, 30300]", "(29500,30300)"])
def test_range_is_parsed_from_text(text):
    assert parse_range(text) == (29_500, 30_300)


@pytest.mark.parametrize("text", ["", "5", "1,2,3", "a,b", "-1,5", "0,65536", "5,5", "9,3", "0.5,1", "²,3", "1" * 5000])
def test_rejects_text_that_is_not_a_range(text):
    with raises("usage"):
        parse_range(text)


@pytest.mark.parametrize(
    "value", [(0, 0), (5, 3), (-1, 3), (0, 65_536), (0, 1.5), (True, 5), ("0", "5"), (1,), (1, 2, 3), 7, {}]
)
def test_input_spec_rejects_invalid_ranges(value):
    with raises("usage"):
        check_range(value)
    with raises("usage"):
        InputSpec(height=8, width=8, channels=1, range=value)
    with raises("usage"):
        InputSpec.from_dict({**InputSpec(height=8, width=8, channels=1).as_dict(), "range": value})


def test_input_spec_keeps_its_range():
    input_spec = InputSpec(height=8, width=8, channels=1, range=(0, 1023))
    assert input_spec.as_dict()["range"] == [0, 1023]
    assert InputSpec.from_dict(input_spec.as_dict()) == input_spec
    assert "range" not in InputSpec(height=8, width=8, channels=1).as_dict()


def test_large_images_are_processed_in_parts(monkeypatch):
    image = np.random.default_rng(8).integers(0, 65_536, (50, 61, 3)).astype(np.uint16)
    scaled, use = scale(image, (700, 50_000)), range_use(image, (700, 50_000))
    monkeypatch.setattr(scaling, "_BLOCK_VALUES", 1000)
    assert np.array_equal(scale(image, (700, 50_000)), scaled)
    assert range_use(image, (700, 50_000)) == use
