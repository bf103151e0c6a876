"""Streams of batches: content, order and memory layout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from thaw.data.augment import AugmentSettings, augment
from thaw.data.batches import CHUNK_IMAGES, Batch, BatchSource, channels_last, normalize, sample_views, to_unit
from thaw.data.images import ImageSet, InputSpec
from thaw.seeds import derive, numpy_generator

CPU = torch.device("cpu")
STILL = AugmentSettings(rotation_degrees=0.0, zoom=0.0, translation=0.0, brightness=0.0)
# More than two chunks; not a multiple of the chunk or batch size.
MANY = 2 * CHUNK_IMAGES + 333


def numbered(count: int, channels: int = 1, height: int = 3, width: int = 4) -> ImageSet:
    """Image i is uniformly gray except for its first two pixels, which are i in base 256; its label is i mod 7."""
    index = np.arange(count)
    images = np.empty((count, height, width, channels), np.uint8)
    images[:] = (index % 200)[:, None, None, None]
    images[:, 0, 0, :] = (index // 256)[:, None]
    images[:, 0, 1, :] = (index % 256)[:, None]
    return ImageSet(images=images, labels=(index % 7).astype(np.int64), classes=tuple("abcdefg"))


def source(images: ImageSet, batch_size: int = 64, **changes) -> BatchSource:
    height, width, channels = images.shape
    made = BatchSource(
        images=images,
        input_spec=InputSpec(height=height, width=width, channels=channels),
        batch_size=batch_size,
        device=CPU,
        augment=STILL,
    )
    return replace(made, **changes)


def numbers_of(x: torch.Tensor) -> list[int]:
    high, low = (x[:, 0, 0, column].mul(255).round().long() for column in (0, 1))
    return (high * 256 + low).tolist()


def order_of(stream, view="original") -> list[int]:
    return [number for batch in stream for number in numbers_of(batch.views[view])]


@pytest.mark.parametrize("batch_size", [1, 64, 100, 3000])
def test_epoch_contains_every_image_once_with_its_label(batch_size):
    count = 300 if batch_size == 1 else MANY
    made = source(numbered(count), batch_size)
    for stream in (made.shuffled(5), made.ordered()):
        parts = list(stream)
        seen = [number for batch in parts for number in numbers_of(batch.views["original"])]
        assert sorted(seen) == list(range(count))
        assert torch.cat([batch.labels for batch in parts]).tolist() == [number % 7 for number in seen]
        assert all(batch.labels.dtype == torch.int64 for batch in parts)
        full, rest = divmod(count, batch_size)
        assert [len(batch) for batch in parts] == [batch_size] * full + [rest] * bool(rest)
        assert len(parts) == len(made)


def test_ordered_keeps_the_order_of_the_set():
    assert order_of(source(numbered(MANY)).ordered()) == list(range(MANY))


def test_order_depends_only_on_the_seed():
    made = source(numbered(MANY))
    first = order_of(made.shuffled(1))
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - the global state is what must not matter
    assert order_of(made.shuffled(1)) == first
    assert order_of(replace(made, batch_size=100).shuffled(1)) == first
    pair = replace(made, views=("augmented", "original"), augment=AugmentSettings())
    assert order_of(pair.shuffled(1)) == first
    other = order_of(made.shuffled(2))
    assert other != first
    assert sum(a == b for a, b in zip(first, other, strict=True)) < 20
    assert first != sorted(first)


@pytest.mark.parametrize("views", [("original", "augmented"), ("augmented", "original")])
def test_pair_contains_the_same_images(views):
    for batch in source(numbered(MANY), views=views).shuffled(3):
        assert list(batch.views) == list(views)
        assert torch.equal(batch.views["original"], batch.views["augmented"])


def test_original_view_is_unchanged():
    moving = AugmentSettings(rotation_degrees=30.0, translation=0.3, brightness=0.3)
    pair = source(numbered(500), views=("augmented", "original"), augment=moving)
    alone = source(numbered(500))
    changed = 0
    for batch, plain in zip(pair.shuffled(4), alone.shuffled(4), strict=True):
        assert torch.equal(batch.views["original"], plain.views["original"])
        changed += int((batch.views["augmented"] != batch.views["original"]).flatten(1).any(1).sum())
    assert changed > 480


def test_augmented_view_belongs_to_its_image():
    images = numbered(700)
    images.images[:] = images.images[:, 2:3, 3:4]  # uniformly gray: a repeated border changes nothing
    moving = AugmentSettings(rotation_degrees=90.0, translation=0.5, brightness=0.0, fill="border")
    for batch in source(images, views=("original", "augmented"), augment=moving).shuffled(6):
        torch.testing.assert_close(batch.views["augmented"], batch.views["original"])


def test_augmentation_depends_only_on_the_seed():
    made = source(numbered(CHUNK_IMAGES + 50), views=("augmented",), augment=AugmentSettings())

    def bits(seed: int) -> torch.Tensor:
        return torch.cat([batch.views["augmented"] for batch in made.shuffled(seed)])

    first = bits(1)
    torch.manual_seed(7)
    assert torch.equal(bits(1), first)
    assert not torch.equal(bits(2), first)


def test_repeated_view_is_computed_once():
    made = source(numbered(50), views=("augmented", "augmented"), augment=AugmentSettings())
    assert all(list(batch.views) == ["augmented"] for batch in made.shuffled(1))


@pytest.mark.parametrize("view", ["original", "augmented"])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_last_in_memory(channels, view):
    height, width = 5, 6
    made = source(numbered(130, channels, height, width), views=(view,), augment=AugmentSettings())
    for stream in (made.shuffled(1), made.ordered()):
        for batch in stream:
            x = batch.views[view]
            assert x.dtype == torch.float32
            assert x.shape[1:] == (channels, height, width)
            assert x.stride() == (height * width * channels, 1, width * channels, channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_keeps_the_values(channels):
    x = torch.randn(4, channels, 5, 3)
    assert torch.equal(channels_last(x), x)


@pytest.mark.parametrize(("mean", "std"), [((0.25,), (0.5,)), ((0.1, 0.5, 0.9), (0.2, 1.0, 0.03))])
def test_normalization_agrees_with_numpy(mean, std):
    channels = len(mean)
    pixels = np.arange(256, dtype=np.uint8).repeat(channels).reshape(4, 8, 8, channels)
    pixels = np.random.default_rng(0).permutation(pixels.reshape(-1)).reshape(pixels.shape)
    input_spec = InputSpec(height=8, width=8, channels=channels, mean=mean, std=std)
    images = ImageSet(images=pixels, labels=np.zeros(4, np.int64), classes=("a", "b"))
    (batch,) = source(images, input_spec=input_spec).ordered()
    expected = (pixels.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(batch.views["original"].numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-5)
    unit = to_unit(torch.from_numpy(pixels))
    assert np.array_equal(unit.numpy(), (pixels.astype(np.float32) / np.float32(255)).transpose(0, 3, 1, 2))
    assert torch.equal(normalize(unit, input_spec), batch.views["original"])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 32, 32), (3, 5, 9)])
def test_normalization_by_rows_equals_normalization_by_channels(channels, height, width, last):
    x = torch.rand((50, channels, height, width), generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    input_spec = InputSpec(
        height=height,
        width=width,
        channels=channels,
        mean=(0.4914, 0.4822, 0.4465)[:channels],
        std=(0.3, 0.7, 0.11)[:channels],
    )
    mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in (input_spec.mean, input_spec.std))
    made = normalize(x, input_spec)
    assert torch.equal(made, (x - mean) / std)
    assert made.stride() == channels_last(x).stride()


def colored(count: int, channels: int = 3, height: int = 9, width: int = 12) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    return ImageSet(images=pixels, labels=np.arange(count, dtype=np.int64) % 5, classes=tuple("abcde"))


MODERN = AugmentSettings(flip=True, crop=0.125, policy="trivial", cutout=0.3)


@pytest.mark.parametrize("settings", [AugmentSettings(), MODERN])
@pytest.mark.parametrize("channels", [1, 3])
def test_chunks_are_augmented_from_the_stream_of_the_epoch(channels, settings):
    images = colored(CHUNK_IMAGES + 70, channels)
    made = source(images, views=("augmented",), augment=settings)
    order = numpy_generator(11, "order").permutation(len(images))
    chance = torch.Generator().manual_seed(derive(11, "augment"))
    expected = [
        augment(torch.from_numpy(images.images[part]).permute(0, 3, 1, 2) / 255.0, settings, chance)
        for part in (order[:CHUNK_IMAGES], order[CHUNK_IMAGES:])
    ]
    found = torch.cat([batch.views["augmented"] for batch in made.shuffled(11)])
    torch.testing.assert_close(found, torch.cat(expected))


MIXED = replace(MODERN, mixup=0.4, cutmix=1.0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_batch_contains_the_images_of_the_plain_batch(channels, kind):
    images = colored(CHUNK_IMAGES + 70, channels)
    plain = source(images, views=("original", "augmented"), augment=MODERN)
    mixed = replace(plain, augment=replace(MODERN, **{kind: 1.0}))
    seen = set()
    for before, after in zip(plain.shuffled(2), mixed.shuffled(2), strict=True):
        assert not before.mixes
        assert list(after.mixes) == ["augmented"]
        assert torch.equal(after.labels, before.labels)
        assert torch.equal(after.views["original"], before.views["original"])
        mix, x = after.mixes["augmented"], before.views["augmented"]
        assert sorted(mix.partners.tolist()) == list(range(len(after)))
        assert mix.shares.shape == (len(after),)
        made, other = after.views["augmented"], x[mix.partners]
        assert made.stride() == x.stride()
        if kind == "mixup":
            share = mix.shares.view(-1, 1, 1, 1)
            torch.testing.assert_close(made, share * x + (1 - share) * other)
        else:
            assert ((made == x) | (made == other)).all()
        seen.add(tuple(mix.shares.tolist()))
    assert len(seen) == len(plain)  # every batch draws new values


def test_mixing_depends_only_on_the_seed():
    made = source(colored(500), views=("augmented",), augment=MIXED)

    def bits(seed: int) -> list[torch.Tensor]:
        return [
            tensor
            for batch in made.shuffled(seed)
            for tensor in (batch.views["augmented"], batch.mixes["augmented"].partners, batch.mixes["augmented"].shares)
        ]

    first = bits(1)
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002 - the global state is what must not matter
    assert all(torch.equal(one, two) for one, two in zip(first, bits(1), strict=True))
    assert not torch.equal(first[0], bits(2)[0])


def test_fraction_of_batches_is_mixed():
    made = source(colored(800), 8, views=("augmented",), augment=replace(MIXED, mix_probability=0.5))
    mixed = sum(bool(batch.mixes) for batch in made.shuffled(1))
    assert 30 <= mixed <= 70


def test_batches_that_are_not_mixed():
    images = colored(200)
    originals = source(images, augment=MIXED)
    assert not any(batch.mixes for batch in originals.shuffled(1))
    views = source(images, views=("augmented",), augment=MIXED)
    assert not any(batch.mixes for batch in views.ordered())
    assert Batch({}, torch.zeros(1)).mixes == {}


@pytest.mark.parametrize("channels", [1, 3])
def test_sample_views_apply_everything_except_mixing(channels):
    images = colored(60, channels)
    shown = sample_views(images, MIXED, count=10, seed=3)
    assert [name for _, _, name in shown] == list("abcde") * 2
    for original, augmented, _ in shown:
        assert original.shape == augmented.shape == (9, 12, channels)
        assert augmented.dtype == np.uint8
    assert sum(not np.array_equal(original, augmented) for original, augmented, _ in shown) >= 9
    again = sample_views(images, MODERN, count=10, seed=3)
    assert all(np.array_equal(one[1], two[1]) for one, two in zip(shown, again, strict=True))


def test_accepts_read_only_memory_map(tmp_path):
    images = numbered(90)
    np.save(tmp_path / "images.npy", images.images)
    mapped = replace(images, images=np.load(tmp_path / "images.npy", mmap_mode="r"))
    made = source(mapped, views=("original", "augmented"), augment=AugmentSettings())
    assert sorted(order_of(made.shuffled(1))) == list(range(90))
    assert np.array_equal(mapped.images, images.images)
