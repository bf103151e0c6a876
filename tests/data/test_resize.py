"""Resizing and gray conversion, compared with a specification in loops, and approximately with Pillow."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from thaw.data.images import InputSpec
from thaw.data.resize import MAX_SOURCE_SIDE, axis_taps, resize, to_gray, window
from thaw.errors import DataError


def exact_weights(source, target):
    """Weights of every source position for every target position, as fractions that sum to 1."""
    table = [[Fraction(0)] * source for _ in range(target)]
    for i in range(target):
        if target <= source:
            left, right = Fraction(i * source, target), Fraction((i + 1) * source, target)
            for j in range(source):
                shared = min(right, Fraction(j + 1)) - max(left, Fraction(j))
                table[i][j] = max(shared, Fraction(0)) / (right - left)
        else:
            center = Fraction(2 * i + 1, 2) * Fraction(source, target) - Fraction(1, 2)
            below = center.numerator // center.denominator
            part = center - below
            for j, weight in ((below, 1 - part), (below + 1, part)):
                table[i][min(max(j, 0), source - 1)] += weight
    return table


def round_half_up(value):
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


def oracle(image, height, width, channels, fit):
    """The specification in loops over pixels and exact fractions."""
    pixels = image.tolist()
    rows, columns = len(pixels), len(pixels[0])
    if fit == "crop":
        if columns * height > rows * width:
            used = max(1, rows * width // height)
            start = (columns - used) // 2
            pixels = [row[start : start + used] for row in pixels]
        elif columns * height < rows * width:
            used = max(1, columns * height // width)
            start = (rows - used) // 2
            pixels = pixels[start : start + used]
    rows, columns = len(pixels), len(pixels[0])
    if channels == 1 and len(pixels[0][0]) == 3:
        pixels = [[[(77 * r + 150 * g + 29 * b + 128) // 256] for r, g, b in row] for row in pixels]
    depth = len(pixels[0][0])
    across, down = exact_weights(columns, width), exact_weights(rows, height)
    result = np.zeros((height, width, channels), dtype=np.uint8)
    for c in range(channels):
        k = c if depth == 3 else 0
        wide = [
            [round_half_up(256 * sum(w * row[j][k] for j, w in enumerate(across[x]) if w)) for x in range(width)]
            for row in pixels
        ]
        for y in range(height):
            for x in range(width):
                value = sum(w * wide[j][x] for j, w in enumerate(down[y]) if w)
                result[y, x, c] = round_half_up(Fraction(value) / 256)
    return result


sides = st.integers(1, 23)


@settings(max_examples=120, deadline=None)
@given(
    sides,
    sides,
    st.sampled_from([1, 3]),
    sides,
    sides,
    st.sampled_from([1, 3]),
    st.sampled_from(["stretch", "crop"]),
    st.integers(0, 2**32 - 1),
)
def test_equals_the_specification(rows, columns, depth, height, width, channels, fit, seed):
    image = np.random.default_rng(seed).integers(0, 256, (rows, columns, depth), dtype=np.uint8)
    input_spec = InputSpec(height=height, width=width, channels=channels, fit=fit)
    assert np.array_equal(resize(image, input_spec), oracle(image, height, width, channels, fit))


@pytest.mark.parametrize(
    ("rows", "columns", "height", "width"), [(1, 1, 1, 1), (1, 1, 7, 3), (100, 37, 1, 1), (97, 3, 5, 31)]
)
def test_extreme_shapes_equal_the_specification(rows, columns, height, width):
    image = np.random.default_rng(1).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    input_spec = InputSpec(height=height, width=width, channels=3)
    assert np.array_equal(resize(image, input_spec), oracle(image, height, width, 3, "stretch"))


def test_by_hand():
    row = np.array([[0, 10, 20, 30]], dtype=np.uint8)[..., None]
    # Halving averages pairs; a third of four pixels covers 4/3 each: (0*3 + 10*1)/4, (10*2 + 20*2)/4, (20*1 + 30*3)/4.
    assert resize(row, InputSpec(height=1, width=2, channels=1)).ravel().tolist() == [5, 25]
    assert resize(row, InputSpec(height=1, width=3, channels=1)).ravel().tolist() == [3, 15, 28]
    # Doubling puts centers at -1/4, 1/4, 3/4, 5/4 of the source axis.
    two = np.array([[0, 100]], dtype=np.uint8)[..., None]
    assert resize(two, InputSpec(height=1, width=4, channels=1)).ravel().tolist() == [0, 25, 75, 100]


def test_gray_keeps_gray_pixels_and_weights_colors():
    values = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_gray(np.stack([values] * 3, axis=-1))[..., 0], values)
    primaries = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8)
    assert to_gray(primaries).ravel().tolist() == [77, 149, 29]


def test_equal_size_returns_the_same_array():
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    assert resize(images, InputSpec(height=6, width=7, channels=3)) is images


@pytest.mark.parametrize("channels", [1, 3])
def test_batch_equals_its_images(channels):
    images = np.random.default_rng(0).integers(0, 256, (700, 37, 41, 3), dtype=np.uint8)
    input_spec = InputSpec(height=20, width=28, channels=channels, fit="crop")
    together = resize(images, input_spec)
    assert all(np.array_equal(resize(image, input_spec), one) for image, one in zip(images, together, strict=True))
    assert resize(images[:0], input_spec).shape == (0, 20, 28, channels)


def test_constant_images_stay_constant_at_every_size():
    for value in (0, 1, 127, 254, 255):
        for source, target in ((1, 9), (7, 13), (13, 7), (64, 28), (1000, 31)):
            image = np.full((source, source, 1), value, dtype=np.uint8)
            assert (resize(image, InputSpec(height=target, width=target, channels=1)) == value).all()


@pytest.mark.parametrize(
    ("source", "target"), [(MAX_SOURCE_SIDE, 1), (MAX_SOURCE_SIDE, 1024), (32_767, 1023), (8191, 8192), (1, 8192)]
)
def test_intermediate_values_fit_31_bits(source, target):
    taps = axis_taps(source, target)
    assert (taps.weight.sum(axis=1) == taps.total).all()
    assert taps.index.min() >= 0
    assert taps.index.max() < source
    assert 255 * 256 * taps.total + 128 * taps.total < 2**31


def test_longest_side_does_not_overflow():
    image = np.full((2, MAX_SOURCE_SIDE, 1), 255, dtype=np.uint8)
    assert (resize(image, InputSpec(height=1, width=1, channels=1)) == 255).all()
    tall = np.full((MAX_SOURCE_SIDE, 2, 1), 255, dtype=np.uint8)
    assert (resize(tall, InputSpec(height=1, width=1, channels=1)) == 255).all()


@pytest.mark.parametrize(("source", "target", "filter_"), [(128, 32, "BOX"), (100, 28, "BOX"), (8, 28, "BILINEAR")])
def test_agrees_with_pillow(source, target, filter_):
    noise = np.random.default_rng(3).integers(0, 256, (source, source, 3), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(noise).resize((target, target), Image.Resampling[filter_])).astype(int)
    ours = resize(noise, InputSpec(height=target, width=target, channels=3)).astype(int)
    # Pillow's box filter uses whole pixels, ours weights partial ones; hence the second bound is wide.
    assert np.abs(ours - theirs).mean() < (0.6 if source % target == 0 or source < target else 6)


def test_window_is_centered_and_inside():
    assert window(100, 200, 32, 32, "stretch") == (0, 0, 100, 200)
    assert window(100, 200, 32, 32, "crop") == (0, 50, 100, 100)
    assert window(201, 100, 32, 32, "crop") == (50, 0, 100, 100)
    assert window(1, 1000, 1000, 1, "crop") == (0, 499, 1, 1)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 1), np.uint8)],
)
def test_rejects_other_arrays(image):
    with pytest.raises(DataError):
        resize(image, InputSpec(height=2, width=2, channels=1))
