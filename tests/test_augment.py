"""The augmented view against a bilinear sampler in NumPy loops, and against the statistics that its ranges promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from thaw.data import augment as module
from thaw.data.augment import AugmentSettings, affine_matrices, augment
from thaw.errors import UsageError

OFF = {"rotation_degrees": 0.0, "zoom": 0.0, "translation": 0.0, "brightness": 0.0}
FILLS = ("zeros", "border", "reflection")


def only(**ranges) -> AugmentSettings:
    return AugmentSettings(**{**OFF, **ranges})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand((count, channels, height, width), generator=generator(seed))


def reflected(position: float, side: int) -> float:
    """Mirror at the outer edges of the first and the last pixel until it is inside; then the nearest centre."""
    while not -0.5 <= position <= side - 0.5:
        position = -1.0 - position if position < -0.5 else 2.0 * side - 1.0 - position
    return min(max(position, 0.0), side - 1.0)


def np_sample(image: np.ndarray, matrix: np.ndarray, fill: str) -> np.ndarray:
    """One image [C, H, W] seen through `matrix` [2, 3], pixel by pixel."""
    channels, height, width = image.shape
    out = np.zeros((channels, height, width))
    for row in range(height):
        for column in range(width):
            # Pixel centres: -1 is the left edge of the first pixel and 1 the right edge of the last.
            x, y = (2 * column + 1) / width - 1, (2 * row + 1) / height - 1
            x_in, y_in = matrix @ np.array([x, y, 1.0])
            across, down = ((x_in + 1) * width - 1) / 2, ((y_in + 1) * height - 1) / 2
            if fill == "border":
                across, down = min(max(across, 0.0), width - 1.0), min(max(down, 0.0), height - 1.0)
            elif fill == "reflection":
                across, down = reflected(across, width), reflected(down, height)
            left, top = math.floor(across), math.floor(down)
            for at_row, at_column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                if 0 <= at_row < height and 0 <= at_column < width:
                    weight = (1 - abs(across - at_column)) * (1 - abs(down - at_row))
                    out[:, row, column] += weight * image[:, at_row, at_column]
    return out


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 7, 12), (1, 13, 5)])
def test_sampling_agrees_with_loops(channels, height, width, fill):
    settings = only(rotation_degrees=180.0, zoom=0.4, translation=0.3, fill=fill)
    x = pictures(6, channels, height, width)
    made = augment(x, settings, generator(7))
    matrices = affine_matrices(settings, 6, width / height, generator(7))
    for image, matrix, result in zip(x.double().numpy(), matrices.double().numpy(), made.numpy(), strict=True):
        np.testing.assert_allclose(result, np_sample(image, matrix, fill), atol=2e-5)


def pixel_maps(settings: AugmentSettings, count: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The random maps in pixels about the centre: linear parts [count, 2, 2] and shifts [count, 2] as (x, y)."""
    theta = affine_matrices(settings, count, width / height, generator(11)).double().numpy()
    half = np.array([width / 2, height / 2])
    return theta[:, :, :2] * half[:, None] / half[None, :], theta[:, :, 2] * half


@pytest.mark.parametrize(("height", "width"), [(28, 28), (20, 60), (64, 16)])
def test_maps_are_rigid_in_pixels_and_fill_their_ranges(height, width):
    settings = AugmentSettings(rotation_degrees=40.0, zoom=0.2, translation=0.15)
    linear, shift = pixel_maps(settings, 4000, height, width)
    scale = np.sqrt(np.linalg.det(linear))
    rotation = linear / scale[:, None, None]
    # A rotation and a scale: the transpose is the inverse, and no mirror image.
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(2), (4000, 1, 1)), atol=1e-5)
    drawn = {
        "angle": (np.degrees(np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0])), -40.0, 40.0),
        "zoom": (1 / scale, 0.8, 1.2),
        "x": (shift[:, 0] / width, -0.15, 0.15),
        "y": (shift[:, 1] / height, -0.15, 0.15),
    }
    for name, (values, low, high) in drawn.items():
        assert low - 1e-4 <= values.min(), name
        assert values.max() <= high + 1e-4, name
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3, name
    # Each is drawn on its own.
    correlations = np.corrcoef([values for values, _, _ in drawn.values()])
    assert np.abs(correlations - np.eye(4)).max() < 0.06


def blob(height: int, width: int, down: float, across: float, sigma: float = 1.5) -> torch.Tensor:
    """A soft white spot at (down, across) pixels from the centre of a black image."""
    rows = torch.arange(height).float().sub((height - 1) / 2 + down)
    columns = torch.arange(width).float().sub((width - 1) / 2 + across)
    return torch.exp(-(rows[:, None] ** 2 + columns[None, :] ** 2) / (2 * sigma**2))[None, None]


def centres(x: torch.Tensor) -> torch.Tensor:
    """Centre of mass of every image from the image's centre, in pixels, as (down, across)."""
    _, _, height, width = x.shape
    mass = x.sum(dim=(1, 2, 3))
    rows = torch.arange(height).float() - (height - 1) / 2
    columns = torch.arange(width).float() - (width - 1) / 2
    return torch.stack([(x.sum(dim=(1, 3)) * rows).sum(1) / mass, (x.sum(dim=(1, 2)) * columns).sum(1) / mass], dim=1)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (32, 60), (60, 32)])
def test_rotation_keeps_distances_in_pixels(height, width):
    x = blob(height, width, down=6.0, across=5.0).repeat(200, 1, 1, 1)
    made = centres(augment(x, only(rotation_degrees=180.0), generator(1)))
    distance = made.norm(dim=1)
    assert (distance - math.hypot(6.0, 5.0)).abs().max() < 0.05
    angles = torch.atan2(made[:, 0], made[:, 1])
    assert angles.min() < -2.8
    assert angles.max() > 2.8


def test_rotation_stays_in_its_range():
    x = blob(40, 60, down=0.0, across=10.0).repeat(500, 1, 1, 1)
    made = centres(augment(x, only(rotation_degrees=25.0), generator(2)))
    angles = torch.rad2deg(torch.atan2(made[:, 0], made[:, 1]))
    assert -25.5 < angles.min() < -23
    assert 23 < angles.max() < 25.5


def test_zoom_multiplies_lengths_by_its_factor():
    x = blob(48, 40, down=6.0, across=8.0).repeat(400, 1, 1, 1)
    made = augment(x, only(zoom=0.3), generator(3))
    factor = centres(made).norm(dim=1) / 10.0
    assert 0.695 < factor.min() < 0.72
    assert 1.28 < factor.max() < 1.305
    # An area grows with the square of the factor.
    torch.testing.assert_close(made.sum(dim=(1, 2, 3)) / x[0].sum(), factor**2, rtol=0.05, atol=0.0)


def test_translation_is_a_share_of_each_side():
    x = blob(40, 80, down=0.0, across=0.0).repeat(500, 1, 1, 1)
    down, across = centres(augment(x, only(translation=0.25), generator(4))).abs().unbind(1)
    assert 9.7 < down.max() < 10.1
    assert 19.5 < across.max() < 20.1


@pytest.mark.parametrize(("down", "across"), [(0, 3), (2, 0), (-4, -1), (5, -7)])
def test_whole_pixels_are_a_plain_shift(monkeypatch, down, across):
    height, width = 12, 20
    x = pictures(3, 3, height, width)
    theta = torch.tensor([[1.0, 0.0, -2.0 * across / width], [0.0, 1.0, -2.0 * down / height]]).repeat(3, 1, 1)
    monkeypatch.setattr(module, "affine_matrices", lambda *_: theta)
    expected = np.zeros(x.shape)
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - across < width:
                expected[:, :, row, column] = x.numpy()[:, :, row - down, column - across]
    made = augment(x, only(translation=0.5), generator())
    np.testing.assert_allclose(made.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("fill", FILLS)
def test_all_ranges_at_zero_leave_every_bit(fill):
    x = pictures(5, 3, 9, 14)
    assert torch.equal(augment(x, only(fill=fill), generator()), x)


@pytest.mark.parametrize("fill", FILLS)
def test_the_range_stays_from_0_to_1(fill):
    settings = AugmentSettings(rotation_degrees=180.0, zoom=0.9, translation=1.0, brightness=0.0, fill=fill)
    bright = AugmentSettings(rotation_degrees=180.0, zoom=0.9, translation=1.0, brightness=1.0, fill=fill)
    for x in (torch.ones(256, 1, 9, 13), pictures(256, 3, 9, 13), torch.zeros(256, 1, 9, 13)):
        for chosen in (settings, bright):
            made = augment(x, chosen, generator(5))
            assert made.shape == x.shape
            assert made.dtype == torch.float32
            assert made.min() >= 0.0
            assert made.max() <= 1.0


def test_fills():
    x = torch.ones(200, 1, 10, 10)
    made = {fill: augment(x, only(translation=0.5, fill=fill), generator(6)) for fill in FILLS}
    assert (made["zeros"] == 0).any()
    for fill in ("border", "reflection"):
        torch.testing.assert_close(made[fill], x)


def test_brightness_is_one_offset_an_image_in_its_range():
    x = pictures(3000, 3, 4, 5) * 0.2 + 0.4
    offsets = augment(x, only(brightness=0.3), generator(8)) - x
    each = offsets[:, 0, 0, 0]
    torch.testing.assert_close(offsets, each.view(-1, 1, 1, 1).expand_as(x), rtol=0.0, atol=1e-6)
    assert stats.kstest(each.numpy(), stats.uniform(-0.3, 0.6).cdf).pvalue > 1e-3


def test_brightness_is_clamped_at_both_ends():
    x = torch.tensor([0.02, 0.98]).view(1, 1, 1, 2).repeat(100, 1, 1, 1)
    made = augment(x, only(brightness=0.5), generator(9))
    assert made.min() == 0.0
    assert made.max() == 1.0
    assert made[made > 0].min() > 0.02  # what is not clamped has moved


@pytest.mark.parametrize(
    "ranges", [{"rotation_degrees": 20.0}, {"zoom": 0.2}, {"translation": 0.2}, {"brightness": 0.2}]
)
def test_every_image_draws_its_own_values(ranges):
    x = pictures(1, 1, 11, 11).mul(0.5).add(0.25).repeat(32, 1, 1, 1)
    made = augment(x, only(**ranges), generator(10)).flatten(1)
    assert len({image.numpy().tobytes() for image in made}) == 32


def test_same_seed_same_bits_and_nothing_else_is_drawn_from():
    x = pictures(16, 3, 10, 12)
    kept = x.clone()
    before = torch.get_rng_state()
    made = [augment(x, AugmentSettings(), generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), before)


LIMITS = {"rotation_degrees": 180.0, "zoom": 0.99, "translation": 1.0, "brightness": 1.0}


@pytest.mark.parametrize("name", list(LIMITS))
def test_settings_take_their_limits(name):
    for value in (0.0, LIMITS[name]):
        made = augment(torch.rand(4, 1, 6, 6), only(**{name: value}), generator())
        assert torch.isfinite(made).all()


@pytest.mark.parametrize("name", list(LIMITS))
@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf, -math.inf])
def test_settings_refuse_what_is_out_of_range(name, value):
    with pytest.raises(UsageError, match=f"augment.{name} .*from 0 to"):
        AugmentSettings(**{name: value * LIMITS[name]})


@pytest.mark.parametrize("fill", ["wrap", "", None])
def test_settings_refuse_another_fill(fill):
    with pytest.raises(UsageError, match=r"augment\.fill.*zeros, border, reflection"):
        AugmentSettings(fill=fill)
