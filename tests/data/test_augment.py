"""The augmented view, compared with NumPy loops, Pillow, and the statistics of its ranges."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from augment_samples import FILLS, generator, np_sample, only, pictures, reflected
from error_matching import raises
from scipy import stats

from thaw.data import augment as module
from thaw.data.augment import AugmentSettings, affine_matrices, augment, cut_out, reframe
from thaw.data.policy import apply_policy


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
    """The random maps in pixels about the center: linear parts [count, 2, 2] and shifts [count, 2] as (x, y)."""
    theta = affine_matrices(settings, count, width / height, generator(11)).double().numpy()
    half = np.array([width / 2, height / 2])
    return theta[:, :, :2] * half[:, None] / half[None, :], theta[:, :, 2] * half


@pytest.mark.parametrize(("height", "width"), [(28, 28), (20, 60), (64, 16)])
def test_maps_are_rigid_in_pixels_and_fill_their_ranges(height, width):
    settings = AugmentSettings(rotation_degrees=40.0, zoom=0.2, translation=0.15)
    linear, shift = pixel_maps(settings, 4000, height, width)
    scale = np.sqrt(np.linalg.det(linear))
    rotation = linear / scale[:, None, None]
    # A rotation and a scale: the transpose is the inverse up to the scale, without reflection.
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
    # The values are drawn independently.
    correlations = np.corrcoef([values for values, _, _ in drawn.values()])
    assert np.abs(correlations - np.eye(4)).max() < 0.06


def blob(height: int, width: int, down: float, across: float, sigma: float = 1.5) -> torch.Tensor:
    """A soft white spot at (down, across) pixels from the center of a black image."""
    rows = torch.arange(height).float().sub((height - 1) / 2 + down)
    columns = torch.arange(width).float().sub((width - 1) / 2 + across)
    return torch.exp(-(rows[:, None] ** 2 + columns[None, :] ** 2) / (2 * sigma**2))[None, None]


def centers(x: torch.Tensor) -> torch.Tensor:
    """Center of mass of every image from the image's center, in pixels, as (down, across)."""
    _, _, height, width = x.shape
    mass = x.sum(dim=(1, 2, 3))
    rows = torch.arange(height).float() - (height - 1) / 2
    columns = torch.arange(width).float() - (width - 1) / 2
    return torch.stack([(x.sum(dim=(1, 3)) * rows).sum(1) / mass, (x.sum(dim=(1, 2)) * columns).sum(1) / mass], dim=1)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (32, 60), (60, 32)])
def test_rotation_keeps_distances_in_pixels(height, width):
    x = blob(height, width, down=6.0, across=5.0).repeat(200, 1, 1, 1)
    made = centers(augment(x, only(rotation_degrees=180.0), generator(1)))
    distance = made.norm(dim=1)
    assert (distance - math.hypot(6.0, 5.0)).abs().max() < 0.05
    angles = torch.atan2(made[:, 0], made[:, 1])
    assert angles.min() < -2.8
    assert angles.max() > 2.8


def test_rotation_stays_in_its_range():
    x = blob(40, 60, down=0.0, across=10.0).repeat(500, 1, 1, 1)
    made = centers(augment(x, only(rotation_degrees=25.0), generator(2)))
    angles = torch.rad2deg(torch.atan2(made[:, 0], made[:, 1]))
    assert -25.5 < angles.min() < -23
    assert 23 < angles.max() < 25.5


def test_zoom_multiplies_lengths_by_its_factor():
    x = blob(48, 40, down=6.0, across=8.0).repeat(400, 1, 1, 1)
    made = augment(x, only(zoom=0.3), generator(3))
    factor = centers(made).norm(dim=1) / 10.0
    assert 0.695 < factor.min() < 0.72
    assert 1.28 < factor.max() < 1.305
    # The area grows with the square of the factor.
    torch.testing.assert_close(made.sum(dim=(1, 2, 3)) / x[0].sum(), factor**2, rtol=0.05, atol=0.0)


def test_translation_is_a_fraction_of_each_side():
    x = blob(40, 80, down=0.0, across=0.0).repeat(500, 1, 1, 1)
    down, across = centers(augment(x, only(translation=0.25), generator(4))).abs().unbind(1)
    assert 9.7 < down.max() < 10.1
    assert 19.5 < across.max() < 20.1


@pytest.mark.parametrize(("down", "across"), [(0, 3), (2, 0), (-4, -1), (5, -7)])
def test_integer_translation_is_a_shift(monkeypatch, down, across):
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
def test_zero_ranges_leave_images_unchanged(fill):
    x = pictures(5, 3, 9, 14)
    assert torch.equal(augment(x, only(fill=fill), generator()), x)


@pytest.mark.parametrize("fill", FILLS)
def test_values_stay_in_0_to_1(fill):
    settings = AugmentSettings(rotation_degrees=180.0, zoom=0.9, translation=1.0, brightness=0.0, fill=fill)
    bright = AugmentSettings(rotation_degrees=180.0, zoom=0.9, translation=1.0, brightness=1.0, fill=fill)
    for x in (torch.ones(256, 1, 9, 13), pictures(256, 3, 9, 13), torch.zeros(256, 1, 9, 13)):
        for chosen in (settings, bright):
            made = augment(x, chosen, generator(5))
            assert made.shape == x.shape
            assert made.dtype == torch.float32
            assert made.min() >= 0.0
            assert made.max() <= 1.0


def test_fill_modes():
    x = torch.ones(200, 1, 10, 10)
    made = {fill: augment(x, only(translation=0.5, fill=fill), generator(6)) for fill in FILLS}
    assert (made["zeros"] == 0).any()
    for fill in ("border", "reflection"):
        torch.testing.assert_close(made[fill], x)


def test_brightness_is_one_offset_per_image_in_its_range():
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
    assert made[made > 0].min() > 0.02  # values that are not clamped have changed


@pytest.mark.parametrize(
    "ranges", [{"rotation_degrees": 20.0}, {"zoom": 0.2}, {"translation": 0.2}, {"brightness": 0.2}]
)
def test_every_image_draws_its_own_values(ranges):
    x = pictures(1, 1, 11, 11).mul(0.5).add(0.25).repeat(32, 1, 1, 1)
    made = augment(x, only(**ranges), generator(10)).flatten(1)
    assert len({image.numpy().tobytes() for image in made}) == 32


def test_same_seed_gives_the_same_bits_and_uses_no_other_generator():
    x = pictures(16, 3, 10, 12)
    kept = x.clone()
    before = torch.get_rng_state()
    made = [augment(x, AugmentSettings(), generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), before)


LIMITS = {
    "rotation_degrees": 180.0,
    "zoom": 0.99,
    "translation": 1.0,
    "brightness": 1.0,
    "crop": 0.5,
    "cutout": 0.9,
    "mixup": 10.0,
    "cutmix": 10.0,
    "mix_probability": 1.0,
}


@pytest.mark.parametrize("name", list(LIMITS))
def test_settings_accept_their_limits(name):
    for value in (0.0, LIMITS[name]):
        made = augment(torch.rand(4, 1, 6, 6), only(**{name: value}), generator())
        assert torch.isfinite(made).all()


@pytest.mark.parametrize("name", list(LIMITS))
@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf, -math.inf])
def test_settings_reject_values_out_of_range(name, value):
    with raises("usage", f"AugmentSettings.{name} = "):
        AugmentSettings(**{name: value * LIMITS[name]})


@pytest.mark.parametrize("fill", ["wrap", "", None])
def test_settings_reject_unknown_fill(fill):
    with raises("usage", "AugmentSettings.fill", "zeros, border, reflection"):
        AugmentSettings(fill=fill)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "mix_probability"])
def test_mixing_rejects_single_images(name):
    x = pictures(4, 3, 6, 6)
    assert torch.equal(augment(x, only(**{name: 1.0}), generator()), x)


@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_flip_is_a_boolean(value):
    with raises("usage", "AugmentSettings.flip ", "true or false"):
        AugmentSettings(flip=value)


@pytest.mark.parametrize("value", ["wide", "", None])
def test_settings_reject_unknown_policy(value):
    with raises("usage", "AugmentSettings.policy", "none, trivial"):
        AugmentSettings(policy=value)


def affine_and_brightness(x: torch.Tensor, settings: AugmentSettings, chance: torch.Generator) -> torch.Tensor:
    """The augmented view with only these two changes, number by number."""
    count, _, height, width = x.shape
    draws = torch.rand((4, count), generator=chance) * 2 - 1
    offset = torch.rand((count, 1, 1, 1), generator=chance) * 2 - 1
    scale = 1.0 / (1.0 + settings.zoom * draws[1])
    angle = draws[0] * math.radians(settings.rotation_degrees)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    across, down = (2.0 * settings.translation * draw for draw in draws[2:])
    aspect = width / height
    theta = torch.stack([cosine, -sine / aspect, across, sine * aspect, cosine, down], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, mode="bilinear", padding_mode=settings.fill, align_corners=False)
    return (moved + settings.brightness * offset).clamp(0.0, 1.0)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 32, 32), (3, 9, 14)])
def test_disabled_options_change_no_bit(channels, height, width, fill):
    x = pictures(40, channels, height, width)
    settings = AugmentSettings(fill=fill, mixup=0.2, cutmix=1.0)
    one, other = generator(3), generator(3)
    for _ in range(2):
        assert torch.equal(augment(x, settings, one), affine_and_brightness(x, settings, other))
    assert torch.equal(one.get_state(), other.get_state())


def np_reframe(image: np.ndarray, down: int, across: int, mirrored: bool, fill: str) -> np.ndarray:
    """One image [C, H, W], mirrored or not, then shifted by integers of pixels, down and to the right."""
    _, height, width = image.shape
    out = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            at_row, at_column = row - down, column - across
            if fill == "zeros" and not (0 <= at_row < height and 0 <= at_column < width):
                continue
            if fill == "border":
                at_row, at_column = min(max(at_row, 0), height - 1), min(max(at_column, 0), width - 1)
            elif fill == "reflection":
                at_row, at_column = int(reflected(at_row, height)), int(reflected(at_column, width))
            out[:, row, column] = image[:, at_row, width - 1 - at_column if mirrored else at_column]
    return out


def frames(image: np.ndarray, settings: AugmentSettings) -> dict[bytes, int]:
    """All results of flip and crop of an image [C, H, W], with their numbers of equally likely draws."""
    reach_down, reach_across = (round(settings.crop * side) for side in image.shape[1:])
    return Counter(
        np_reframe(image, down, across, mirrored, settings.fill).tobytes()
        for down in range(-reach_down, reach_down + 1)
        for across in range(-reach_across, reach_across + 1)
        for mirrored in {False, settings.flip}
    )


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("chosen", [{"flip": True}, {"crop": 0.3}, {"flip": True, "crop": 0.125}, {"crop": 0.5}])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 6, 11), (3, 9, 4), (1, 1, 3)])
def test_flip_and_crop_agree_with_loops(channels, height, width, chosen, fill):
    x = pictures(1, channels, height, width)
    settings = only(fill=fill, **chosen)
    made = augment(x.repeat(4000, 1, 1, 1), settings, generator(1)).contiguous().numpy()
    looks = frames(x[0].numpy(), settings)
    found = Counter(image.tobytes() for image in made)
    assert set(found) == set(looks)
    expected = np.array(list(looks.values())) / looks.total() * 4000
    assert len(looks) == 1 or stats.chisquare([found[look] for look in looks], expected).pvalue > 1e-3


def test_crop_of_zero_pixels_leaves_the_image():
    x = pictures(20, 3, 6, 6)
    assert torch.equal(augment(x, only(crop=0.05), generator()), x)


def test_memory_order_does_not_affect_the_result():
    x = pictures(30, 3, 8, 10)
    settings = AugmentSettings(flip=True, crop=0.2, policy="trivial", cutout=0.4)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(augment(last, settings, generator(4)), augment(x, settings, generator(4)))


@pytest.mark.parametrize(("share", "side"), [(0.5, 4), (0.6, 5), (0.9, 7), (0.13, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_cutout_is_one_square_of_the_mean_color(channels, share, side):
    height, width, count = 8, 11, 4000
    x = pictures(count, channels, height, width)
    made = augment(x, only(cutout=share), generator(5))
    cut = (made != x).any(dim=1)
    means = x.double().mean(dim=(2, 3))
    spread = (made.double() - means[:, :, None, None]).abs().amax(dim=1)
    assert spread[cut].max() < 1e-6
    looks = {}
    for center_row in range(height):
        for center_column in range(width):
            mask = np.zeros((height, width), dtype=bool)
            top, left = center_row - side // 2, center_column - side // 2
            mask[max(top, 0) : top + side, max(left, 0) : left + side] = True
            looks[mask.tobytes()] = center_row * width + center_column
    counts = np.bincount([looks[mask.tobytes()] for mask in cut.numpy()], minlength=height * width)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_cutout_of_zero_pixels_leaves_the_image():
    x = pictures(20, 3, 6, 6)
    assert torch.equal(augment(x, only(cutout=0.05), generator()), x)


def test_order_of_the_steps():
    x = pictures(50, 3, 12, 16)
    settings = AugmentSettings(flip=True, crop=0.125, policy="trivial", cutout=0.3)
    chance = generator(9)
    expected = apply_policy(reframe(x, settings, chance), settings.fill, chance)
    expected = cut_out(affine_and_brightness(expected, settings, chance), settings.cutout, chance)
    assert torch.equal(augment(x, settings, generator(9)), expected)


EVERYTHING = {"flip": True, "crop": 0.25, "policy": "trivial", "cutout": 0.5}


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 10, 17), (3, 1, 1)])
def test_all_options_keep_shape_range_seed_and_input(channels, height, width, fill):
    settings = AugmentSettings(**EVERYTHING, fill=fill)
    for x in (pictures(100, channels, height, width), torch.ones(100, channels, height, width)):
        kept = x.clone()
        before = torch.get_rng_state()
        made = [augment(x, settings, generator(seed)) for seed in (1, 1, 2)]
        assert torch.equal(made[0], made[1])
        assert not torch.equal(made[0], made[2])
        assert torch.equal(x, kept)
        assert torch.equal(torch.get_rng_state(), before)
        assert made[0].shape == x.shape
        assert made[0].dtype == torch.float32
        assert made[0].min() >= 0.0
        assert made[0].max() <= 1.0


@pytest.mark.parametrize("name", list(EVERYTHING))
def test_single_option_does_not_modify_its_input(name):
    x = pictures(40, 3, 9, 9)
    kept = x.clone()
    made = augment(x, only(**{name: EVERYTHING[name]}), generator(1))
    assert torch.equal(x, kept)
    assert not torch.equal(made, x)
