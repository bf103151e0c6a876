"""The policy of random operations: compared with Pillow and NumPy loops, and the distribution of its draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from augment_samples import FILLS, generator, np_sample, only, pictures
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from thaw.data import policy
from thaw.data.augment import augment
from thaw.data.policy import TRIVIAL, apply_policy, trivial_table


def as_pillow(image: torch.Tensor) -> Image.Image:
    pixels = image.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


PILLOW = {
    "brightness": lambda image, strength: ImageEnhance.Brightness(image).enhance(1 + strength),
    "contrast": lambda image, strength: ImageEnhance.Contrast(image).enhance(1 + strength),
    "saturation": lambda image, strength: ImageEnhance.Color(image).enhance(1 + strength),
    "sharpness": lambda image, strength: ImageEnhance.Sharpness(image).enhance(1 + strength),
    "posterize": lambda image, strength: ImageOps.posterize(image, round(strength)),
    "solarize": lambda image, strength: ImageOps.solarize(image, math.ceil(strength * 255)),
    "autocontrast": lambda image, strength: ImageOps.autocontrast(image),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", list(PILLOW))
def test_color_operations_agree_with_pillow(name, channels):
    (operation,) = (line for line in TRIVIAL if line.name == name)
    # Bytes, as in images, with margins at both ends.
    x = pictures(9, channels, 10, 13).mul(170).add(40).round().div(255)
    strengths = torch.linspace(operation.low, operation.high, 9)
    made = operation.change(x, strengths.view(-1, 1, 1, 1)).clamp(0, 1)
    # Pillow rounds intermediate values, so results differ by up to two; its sharpness skips border pixels.
    inner = slice(1, -1) if name == "sharpness" else slice(None)
    for image, strength, result in zip(x, strengths.tolist(), made, strict=True):
        expected = np.asarray(PILLOW[name](as_pillow(image), strength), dtype=np.float64).reshape(10, 13, channels)
        found = result.permute(1, 2, 0).double().numpy() * 255
        np.testing.assert_allclose(found[inner, inner], expected[inner, inner], atol=2.0)


def test_sharpness_of_a_single_pixel():
    x = torch.full((1, 1, 1, 1), 0.3)
    torch.testing.assert_close(policy.sharpness(x, torch.full((1, 1, 1, 1), -0.9)), x)


def test_autocontrast_leaves_a_constant_image():
    x = torch.full((2, 3, 4, 4), 0.3)
    assert torch.equal(policy.autocontrast(x, torch.zeros(2, 1, 1, 1)), x)


def test_posterize_keeps_bits_exactly():
    x = (torch.arange(256).float() / 255).view(1, 1, 16, 16)
    for bits in range(4, 9):
        made = policy.posterize(x, torch.full((1, 1, 1, 1), float(bits)))
        expected = [value >> (8 - bits) << (8 - bits) for value in range(256)]
        assert made.mul(255).round().long().flatten().tolist() == expected


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 50)])
def test_geometric_maps_in_pixels(height, width):
    moves = torch.diag(torch.tensor([30.0, 0.25, -0.2, 0.1, -0.3]))
    theta = policy.matrices(moves, width / height).double().numpy()
    half = np.array([width / 2, height / 2])
    linear, shift = theta[:, :, :2] * half[:, None] / half[None, :], theta[:, :, 2] * half
    half_root = math.sqrt(3) / 2
    still = [[1, 0], [0, 1]]
    expected = [[[half_root, -0.5], [0.5, half_root]], [[1, 0.25], [0, 1]], [[1, 0], [-0.2, 1]], still, still]
    np.testing.assert_allclose(linear, expected, atol=1e-6)
    np.testing.assert_allclose(shift, [[0, 0]] * 3 + [[0.1 * width, 0], [0, -0.3 * height]], atol=1e-5)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 9, 9), (3, 7, 12)])
def test_each_image_gets_its_drawn_operation(channels, height, width, fill):
    x = pictures(120, channels, height, width)
    made = apply_policy(x, fill, generator(6))
    table = trivial_table(channels)
    choices, strengths = policy.draw(table, 120, generator(6))
    geometric = ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"]
    assert len(set(choices.tolist())) == len(table)
    for image, choice, strength, result in zip(x, choices.tolist(), strengths, made, strict=True):
        operation = table[choice]
        if operation.name == "identity":
            assert torch.equal(result, image)
        elif operation.name in geometric:
            move = torch.zeros(1, 5)
            move[0, geometric.index(operation.name)] = strength
            matrix = policy.matrices(move, width / height)[0].double().numpy()
            expected = np_sample(image.double().numpy(), matrix, fill)
            np.testing.assert_allclose(result.numpy(), expected, atol=2e-5)
        else:
            alone = operation.change(image[None], strength.view(1, 1, 1, 1)).clamp(0, 1)[0]
            torch.testing.assert_close(result, alone)


@pytest.mark.parametrize("channels", [1, 3])
def test_operations_and_strengths_are_uniform(channels):
    table = trivial_table(channels)
    names = [operation.name for operation in table]
    assert len(set(names)) == len(names) == {1: 12, 3: 13}[channels]
    assert ("saturation" in names) == (channels == 3)
    choices, strengths = policy.draw(table, 20_000, generator(7))
    assert stats.chisquare(np.bincount(choices.numpy(), minlength=len(table))).pvalue > 1e-3
    for line, operation in enumerate(table):
        drawn = strengths[choices == line].numpy()
        low, high = sorted((operation.low, operation.high))
        if low == high:
            assert (drawn == low).all()
        else:
            assert stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_policy_leaves_the_expected_number_of_images():
    x = pictures(6000, 3, 8, 8).mul(255).round().div(255)
    settings = only(policy="trivial", fill="reflection")
    still = int((augment(x, settings, generator(8)) == x).flatten(1).all(1).sum())
    # The identity, and the eighth of posterize (8 to 4 bits) that keeps all 8 bits.
    assert stats.binomtest(still, 6000, (1 + 1 / 8) / 13).pvalue > 1e-3
