"""Mixed images and their loss, compared with calculations by hand and in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from thaw.data.augment import AugmentSettings
from thaw.data.mix import Mix, cross_entropy, mix_images, rectangles


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def images(count: int, channels: int = 3, height: int = 6, width: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randn((count, channels, height, width), generator=torch.Generator().manual_seed(seed))


class Centers:
    """A generator that puts all rectangles at one place."""

    def __init__(self, row: int, column: int) -> None:
        self.places = [row, column]

    def integers(self, side: int, size: int) -> np.ndarray:
        return np.full(size, self.places.pop(0))


@pytest.mark.parametrize(
    ("row", "column", "down", "across"),
    [
        (5, 4, (3, 8), (2, 6)),  # 5 of 10 rows and 4 of 8 columns are a quarter of the area
        (0, 0, (0, 3), (0, 2)),
        (9, 7, (7, 10), (5, 8)),
        (1, 7, (0, 4), (5, 8)),
    ],
)
def test_rectangles_by_hand(row, column, down, across):
    rows, columns = rectangles(np.array([0.75]), 10, 8, Centers(row, column))
    assert tuple(rows[0]) == down
    assert tuple(columns[0]) == across


def test_rectangles_at_the_ends():
    rows, columns = rectangles(np.array([1.0, 0.0]), 10, 8, Centers(5, 4))
    assert rows.tolist() == [[5, 5], [0, 10]]
    assert columns.tolist() == [[4, 4], [0, 8]]


@pytest.mark.parametrize("channels", [1, 3])
def test_cutmix_pastes_one_rectangle_and_counts_its_pixels(channels):
    count, height, width = 200, 12, 7
    # All pixels of image i are i, so that each pixel identifies its image.
    x = torch.arange(count).float().view(-1, 1, 1, 1).repeat(1, channels, height, width)
    made, mix = mix_images(x, AugmentSettings(cutmix=1.0), chance(1))
    assert sorted(mix.partners.tolist()) == list(range(count))
    for own, (result, partner, share) in enumerate(zip(made, mix.partners.tolist(), mix.shares.tolist(), strict=True)):
        theirs = (result == partner).all(dim=0)
        assert ((result == own).all(dim=0) | theirs).all()
        if partner == own:
            continue
        assert share == pytest.approx(1 - int(theirs.sum()) / (height * width), abs=1e-6)
        inside = theirs.nonzero()
        if len(inside):
            top, left = inside.min(dim=0).values.tolist()
            bottom, right = inside.max(dim=0).values.tolist()
            assert len(inside) == (bottom - top + 1) * (right - left + 1)
            assert theirs[top : bottom + 1, left : right + 1].all()


def test_cutmix_uses_the_same_place_of_the_partner():
    x = images(50)
    made, mix = mix_images(x, AugmentSettings(cutmix=1.0), chance(2))
    assert ((made == x) | (made == x[mix.partners])).all()


def test_mixup_is_the_weighted_sum():
    x = images(50)
    made, mix = mix_images(x, AugmentSettings(mixup=0.4), chance(3))
    share = mix.shares.double().numpy()[:, None, None, None]
    own, partner = x.double().numpy(), x.double().numpy()[mix.partners.numpy()]
    np.testing.assert_allclose(made.numpy(), share * own + (1 - share) * partner, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 10.0])
def test_mixup_shares_have_the_beta_distribution(alpha):
    _, mix = mix_images(torch.zeros(3000, 1, 1, 1), AugmentSettings(mixup=alpha), chance(4))
    assert stats.kstest(mix.shares.double().numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_unclipped_rectangles_have_the_area_of_the_beta_distribution():
    # At alpha 10 hardly any rectangle exceeds 0.8 of a side, so rectangles at the center are not clipped.
    shares = chance(5).beta(10.0, 10.0, 500)
    rows, columns = rectangles(shares, 400, 600, Centers(200, 300))
    area = np.diff(rows)[:, 0] * np.diff(columns)[:, 0] / (400 * 600)
    np.testing.assert_allclose(1 - area, shares, atol=0.004)


@pytest.mark.parametrize("alpha", [1e-37, 1e-6, 10.0])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_shares_are_valid_at_the_ends_of_alpha(kind, alpha):
    made, mix = mix_images(images(300), AugmentSettings(**{kind: alpha}), chance(6))
    assert torch.isfinite(made).all()
    assert mix.partners.dtype == torch.int64
    assert mix.shares.dtype == torch.float32
    assert mix.shares.min() >= 0.0
    assert mix.shares.max() <= 1.0


def test_batch_uses_one_of_two_kinds():
    settings = AugmentSettings(mixup=1.0, cutmix=1.0)
    generator, x, pasted = chance(7), images(6, channels=1), 0
    for _ in range(400):
        made, mix = mix_images(x, settings, generator)
        pasted += bool(((made == x) | (made == x[mix.partners])).all())
    # The identity permutation of six (1 in 720) cannot be distinguished.
    assert stats.binomtest(pasted, 400).pvalue > 1e-3


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_fraction_of_mixed_batches(probability):
    settings = AugmentSettings(cutmix=1.0, mix_probability=probability)
    generator, x = chance(8), images(2, height=2, width=2)
    mixed = 0
    for _ in range(500):
        made, mix = mix_images(x, settings, generator)
        assert mix is not None or made is x
        mixed += mix is not None
    assert stats.binomtest(mixed, 500, probability).pvalue > 1e-3


def test_disabled_mixing_draws_nothing():
    generator = chance(9)
    x = images(4)
    assert mix_images(x, AugmentSettings(), generator) == (x, None)
    assert generator.bit_generator.state == chance(9).bit_generator.state


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize(("count", "channels"), [(1, 3), (2, 1), (33, 3)])
def test_same_seed_gives_the_same_bits_and_keeps_the_input(kind, count, channels):
    x = images(count, channels)
    kept = x.clone()
    settings = AugmentSettings(**{kind: 1.0})
    (one, first), (two, second) = (mix_images(x, settings, chance(10)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(first.partners, second.partners)
    assert torch.equal(first.shares, second.shares)
    assert torch.equal(x, kept)
    last, _ = mix_images(x.contiguous(memory_format=torch.channels_last), settings, chance(10))
    assert torch.equal(last, one)


def np_soft_cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(-(targets * log_probabilities).sum(axis=1).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_loss_is_that_of_soft_targets(smoothing):
    count, classes = 40, 7
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((count, classes), generator=generator, requires_grad=True)
    labels = torch.randint(classes, (count,), generator=generator)
    mix = Mix(torch.randperm(count, generator=generator), torch.rand(count, generator=generator))
    hard = np.eye(classes)[labels.numpy()]
    share = mix.shares.double().numpy()[:, None]
    targets = share * hard + (1 - share) * hard[mix.partners.numpy()]
    targets = (1 - smoothing) * targets + smoothing / classes
    loss = cross_entropy(logits, labels, mix, smoothing)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(np_soft_cross_entropy(logits.detach().double().numpy(), targets), abs=1e-5)
    # The gradient of a softmax: (probabilities - targets) / batch size.
    loss.backward()
    expected = (torch.softmax(logits.detach(), dim=1).double().numpy() - targets) / count
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-6)


def test_loss_by_hand():
    # Probabilities 3/4 and 1/4 for the first image, 1/2 and 1/2 for the second.
    logits = torch.tensor([[np.log(3.0), 0.0], [0.0, 0.0]])
    mix = Mix(torch.tensor([1, 0]), torch.tensor([0.8, 0.5]))
    loss = cross_entropy(logits, torch.tensor([0, 1]), mix)
    assert float(loss) == pytest.approx((-0.8 * np.log(3 / 4) - 0.2 * np.log(1 / 4) + np.log(2)) / 2, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_without_mix_is_bit_identical_to_cross_entropy(smoothing):
    logits = torch.randn((64, 10), generator=torch.Generator().manual_seed(1))
    labels = torch.arange(64) % 10
    assert torch.equal(
        cross_entropy(logits, labels, None, smoothing), F.cross_entropy(logits, labels, label_smoothing=smoothing)
    )
    assert torch.equal(cross_entropy(logits, labels, None), F.cross_entropy(logits, labels))
