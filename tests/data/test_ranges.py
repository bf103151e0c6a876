"""The range of 16-bit images: found on training images only, the same for every kind of source, and reported."""

import dataclasses
import io
import json
import warnings

import numpy as np
import pytest
import torch
from data_samples import SETTINGS, problem, write_parquet
from error_matching import raises
from PIL import Image
from torch import nn

from thaw.data.chunks import Target, convert_chunk, decode_chunk
from thaw.data.decode import decode_image
from thaw.data.image_files import load_images
from thaw.data.images import InputSpec
from thaw.data.prepare import open_image_set, prepare
from thaw.data.resize import resize
from thaw.data.scaling import scale
from thaw.data.settings import DataSettings
from thaw.data.summary import look
from thaw.data.workers import decode_chunks
from thaw.model.model import Model
from thaw.models.families import PaperSpec
from thaw.recipe.recipe import load_recipe, recipe_from_dict

LOW, HIGH = 29_500, 30_300
CONTRACT = InputSpec(height=16, width=16, channels=1, range=(LOW, HIGH))
EIGHT_BIT = InputSpec(height=16, width=16, channels=1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("THAW_DATA", raising=False)


def thermal(seed, low=LOW, high=HIGH, side=16):
    """An image of a camera that uses all of low to high, uint16 [16, 16]."""
    values = np.random.default_rng(seed).integers(low, high + 1, (side, side))
    # The extreme values are in more than one pixel, so that they are not dead pixels.
    values[0, :2], values[-1, :2] = low, high
    return values.astype(np.uint16)


def encoded(values, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


def write_images(root, images):
    """Images by name, a few in each of the class folders "a" and "b"."""
    for name, values in images.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    return root


def class_folder(root, count=12, make=thermal):
    return write_images(
        root, {f"{name}/{i}.png": make(100 * k + i) for k, name in enumerate("ab") for i in range(count)}
    )


def split_folders(root, ranges):
    """Split folders of two classes with images of the given ranges, for "train", "val" and "test"."""
    images = {}
    for number, (split, (low, high)) in enumerate(ranges.items()):
        for k, name in enumerate("ab"):
            for i in range(4):
                images[f"{split}/{name}/{i}.png"] = thermal(1000 * number + 100 * k + i, low, high)
    return write_images(root, images)


def kinds(problems):
    return {(each.kind, each.severity) for each in problems}


# Finding the range


def test_range_is_found_on_training_images_only(tmp_path):
    root = split_folders(tmp_path / "set", {"train": (LOW, HIGH), "val": (0, 40_000), "test": (LOW, 65_535)})
    data = prepare(root, SETTINGS, seed=0)
    assert data.input_spec.range == (LOW, HIGH)
    for images in (data.train, data.validation, data.test.open()):
        for row in range(len(images)):
            values = np.asarray(Image.open(root / images.name(row)))
            assert np.array_equal(images.images[row, ..., 0], scale(values, (LOW, HIGH)))


def test_range_is_found_after_the_splits_are_cut(tmp_path):
    images = {f"{name}/{i}.png": thermal(100 * k + i) for k, name in enumerate("ab") for i in range(10)}
    images["a/0.png"] = thermal(0, 1000, HIGH)
    root = write_images(tmp_path / "set", images)
    seen = set()
    for seed in range(6):
        data = prepare(root, SETTINGS, seed=seed)
        is_training = "a/0.png" in data.train.names
        assert data.input_spec.range == ((1000 if is_training else LOW), HIGH)
        again = prepare(root, SETTINGS, seed=seed)
        assert again.fingerprint == data.fingerprint
        assert np.array_equal(again.train.images, data.train.images)
        seen.add((is_training, data.fingerprint))
    # The bytes depend on the range, and so does the fingerprint.
    assert len(seen) == 2


def test_dead_and_hot_pixels_do_not_widen_the_range(tmp_path):
    def make(seed):
        values = thermal(seed)
        values[5, 7], values[9, 3] = 0, 65_535
        return values

    data = prepare(class_folder(tmp_path / "set", make=make), SETTINGS, seed=0)
    assert data.input_spec.range == (LOW, HIGH)


def test_transparent_part_does_not_widen_the_range_and_becomes_white(tmp_path):
    from web_samples import GRAY_ALPHA, png_file

    for k, name in enumerate("ab"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(8):
            alpha = np.full((16, 16), 65_535)
            alpha[:, :4] = 0
            content = png_file(np.dstack([thermal(100 * k + i, 500, 700), alpha]), 16, GRAY_ALPHA)
            (tmp_path / "set" / name / f"{i}.png").write_bytes(content)
    data = prepare(tmp_path / "set", SETTINGS, seed=0)
    assert data.input_spec.range[0] >= 500
    assert data.input_spec.range[1] <= 700
    assert (data.train.images[:, :, :4] == 255).all()
    assert len(np.unique(data.train.images[:, :, 4:])) > 150


@pytest.mark.parametrize("value", [0, 500, 65_535])
def test_constant_set_has_a_range_and_a_warning(value):
    images = np.full((20, 8, 8), value, np.uint16)
    images[np.arange(20), 3, 3] ^= np.arange(20, dtype=np.uint16)  # no duplicates
    data = prepare((images, [0, 1] * 10), SETTINGS, seed=0)
    low, high = data.input_spec.range
    assert low < high
    assert ("levels", "warning") in kinds(data.problems)


def test_explicit_range_is_used(tmp_path):
    root = class_folder(tmp_path / "set")
    for chosen in ((LOW, 30_000), f"{LOW},30000"):
        data = prepare(root, dataclasses.replace(SETTINGS, range=chosen), seed=0)
        assert data.input_spec.range == (LOW, 30_000)
        values = np.asarray(Image.open(root / data.train.name(0)))
        assert np.array_equal(data.train.images[0, ..., 0], scale(values, (LOW, 30_000)))
        assert "data.range" in problem(data, "range").message


def test_eight_bit_sets_have_no_range_and_are_unchanged(tmp_path):
    def make(seed):
        return np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8)

    root = class_folder(tmp_path / "set", make=make)
    data = prepare(root, SETTINGS, seed=0)
    assert data.input_spec.range is None
    assert not {"range", "levels", "depth"} & {each.kind for each in data.problems}
    assert np.array_equal(data.train.images[0, ..., 0], np.asarray(Image.open(root / data.train.name(0))))
    named = prepare(root, dataclasses.replace(SETTINGS, range=(0, 1023)), seed=0)
    assert named.input_spec.range == (0, 1023)
    assert np.array_equal(named.train.images, data.train.images)
    assert problem(named, "range").severity == "warning"


# Every kind of source


def test_all_sources_give_the_same_bytes(tmp_path):
    images = np.stack([thermal(seed) for seed in range(24)])
    labels = [0, 1] * 12
    folder = write_images(tmp_path / "set", {f"{'ab'[labels[i]]}/{i:02}.png": images[i] for i in range(24)})
    table = tmp_path / "table" / "train.parquet"
    write_parquet(table, labels, images=[{"bytes": encoded(image), "path": None} for image in images])
    sets = [prepare(source, SETTINGS, seed=0) for source in ((images, labels), table, folder)]
    sets.append(prepare((images[..., None].astype(">u2"), labels), SETTINGS, seed=0))
    for data in sets:
        assert data.input_spec.range == sets[0].input_spec.range
        assert data.train.shape == (16, 16, 1)
    by_bytes = [{image.tobytes() for image in (*data.train.images, *data.validation.images)} for data in sets]
    # Arrays and tables have the same order, and so the same splits.
    assert by_bytes[0] == by_bytes[1] == by_bytes[3]
    everything = {scale(image, sets[2].input_spec.range).tobytes() for image in images}
    assert by_bytes[2] < everything


def test_color_arrays_are_scaled_before_gray_conversion():
    images = np.random.default_rng(5).integers(LOW, HIGH + 1, (20, 9, 11, 3)).astype(np.uint16)
    data = prepare((images, [0, 1] * 10), DataSettings(input="9x11x1", range=(LOW, HIGH)), seed=0)
    input_spec = InputSpec(height=9, width=11, channels=1)
    for row in range(len(data.train)):
        number = int(data.train.name(row).removeprefix("train[").removesuffix("]"))
        assert np.array_equal(data.train.images[row], resize(scale(images[number], (LOW, HIGH)), input_spec))


@pytest.mark.parametrize("channels", [1, 3])
def test_torch_data_sets_keep_sixteen_bits_in_images_of_several_sizes(channels):
    images = [np.stack([thermal(10 * i + c, side=16 + i % 3) for c in range(channels)], axis=-1) for i in range(24)]

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return images[index], index % 2

    data = prepare(Images(), DataSettings(input=f"16x16x{channels}"), seed=0)
    low, high = data.input_spec.range
    assert (low, high) == (LOW, HIGH)
    expected = {resize(image, data.input_spec).tobytes() for image in images}
    assert {image.tobytes() for image in data.train.images} < expected


def test_helpers_and_arrays_give_the_same_facts(tmp_path):
    root = class_folder(tmp_path / "set", count=4)
    paths = [str(path) for path in sorted(root.rglob("*.png"))]
    target = Target(height=9, width=7, channels=0, fit="crop", range=(LOW, 30_000))
    alone = decode_chunk(paths, target)
    (helped,) = decode_chunks(iter([paths]), target, 2, paths)
    arrays = convert_chunk(np.stack([decode_image(path).pixels for path in paths]), target)
    for other in (helped, arrays):
        assert np.array_equal(alone.pixels, other.pixels)
        for name in vars(alone.facts):
            assert np.array_equal(getattr(alone.facts, name), getattr(other.facts, name)), name
    assert alone.facts.wide.all()
    assert (alone.facts.outside > 0.2).all()


# Reports


def test_look_reports_the_range(tmp_path):
    root = class_folder(tmp_path / "set")
    summary = look(root, SETTINGS)
    assert summary.input.range == (LOW, HIGH)
    assert "note: 16-bit images: values 29,500 to 30,300 scaled to 0..255" in summary.describe()
    assert summary.as_dict()["range"] == [LOW, HIGH]
    assert len(np.unique(summary.preview.images)) > 200
    summary.contact_sheet(tmp_path / "sheet.png")
    assert kinds(summary.problems) == {("input", "note"), ("range", "note")}


def test_few_levels_warn_and_name_the_extreme_images(tmp_path):
    images = {f"{name}/{i}.png": thermal(100 * k + i) for k, name in enumerate("ab") for i in range(10)}
    # A closed shutter, and a lost frame.
    images["a/shutter.png"] = np.full((16, 16), 65_535, np.uint16)
    images["b/lost.png"] = np.zeros((16, 16), np.uint16)
    found = next(
        each for each in look(write_images(tmp_path / "set", images), SETTINGS).problems if each.kind == "levels"
    )
    assert found.severity == "warning"
    # 29,500 / 257 to 30,300 / 257 are 115 to 118.
    assert "keep 4 gray levels" in found.message
    assert "data.range" in found.message
    assert found.names == ("b/lost.png has the minimum, 0", "a/shutter.png has the maximum, 65,535")
    chosen = dataclasses.replace(SETTINGS, range=(LOW, HIGH))
    problems = look(tmp_path / "set", chosen).problems
    assert "levels" not in {each.kind for each in problems}
    clipped = next(each for each in problems if each.kind == "clipped")
    assert set(clipped.names) == {"a/shutter.png (100%)", "b/lost.png (100%)"}


def test_mixed_depths_warn_and_bytes_are_unchanged(tmp_path):
    images = {f"{name}/{i}.png": thermal(100 * k + i) for k, name in enumerate("ab") for i in range(10)}
    eight = np.random.default_rng(1).integers(0, 256, (16, 16), dtype=np.uint8)
    images["a/eight.png"] = eight
    root = write_images(tmp_path / "set", images)
    data = prepare(root, SETTINGS, seed=0)
    found = problem(data, "depth")
    assert (found.severity, found.names) == ("warning", ("a/eight.png",))
    assert data.input_spec.range == (LOW, HIGH)
    every = [*data.train.images, *data.validation.images, *data.test.open().images]
    assert any(np.array_equal(image[..., 0], eight) for image in every)


def test_sixteen_bits_only_in_the_test_split_set_no_range(tmp_path):
    rng = np.random.default_rng(2)
    images = {}
    for name in "ab":
        for i in range(6):
            images[f"train/{name}/{i}.png"] = rng.integers(0, 256, (16, 16), dtype=np.uint8)
        images[f"test/{name}/wide.png"] = thermal(ord(name), 0, 65_535)
    data = prepare(write_images(tmp_path / "set", images), SETTINGS, seed=0)
    assert data.input_spec.range is None
    assert ("depth", "warning") in kinds(data.problems)
    assert "0 to 65,535" in problem(data, "range").message


def test_floats_of_two_scales_warn(tmp_path):
    for k, name in enumerate("ab"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(6):
            values = np.random.default_rng(10 * k + i).random((16, 16), np.float32) * (200 if i else 1)
            Image.fromarray(values).save(tmp_path / "set" / name / f"{i}.tif")
    problems = {each.kind: each for each in look(tmp_path / "set", SETTINGS).problems}
    assert problems["float-scale"].severity == "warning"
    assert set(problems["float-scale"].names) == {"a/0.tif", "b/0.tif"}
    assert problems["unit-float"].severity == problems["byte-float"].severity == "note"


# Images that differ from the training images


def model_of(input_spec):
    torch.manual_seed(0)
    spec = PaperSpec()
    module = nn.Sequential(nn.Flatten(), nn.Linear(256, 2)).eval()
    return Model(module=module, spec=spec, unify=None, input_spec=input_spec, classes=("a", "b"))


def test_prediction_uses_the_range_of_the_model_and_warns_of_differences(tmp_path):
    write_images(
        tmp_path,
        {
            "wide.png": thermal(1),
            "outside.png": thermal(2, 40_000, 50_000),
            "eight.png": thermal(3, 0, 255).astype("u1"),
        },
    )
    names = [tmp_path / name for name in ("wide.png", "outside.png", "eight.png")]
    pixels, _, problems = load_images(names, CONTRACT)
    assert np.array_equal(pixels[0, ..., 0], scale(thermal(1), (LOW, HIGH)))
    assert (pixels[1] == 255).all()
    assert np.array_equal(pixels[2, ..., 0], thermal(3, 0, 255))
    told = {each.kind: each for each in problems}
    assert told["range"].severity == "note"
    assert told["depth"].names == (str(names[2]),)
    assert told["clipped"].names == (f"{names[1]} (100%)",)
    assert told["depth"].severity == told["clipped"].severity == "warning"
    plain, _, problems = load_images(names, EIGHT_BIT)
    assert np.array_equal(plain[0, ..., 0], np.floor(thermal(1) / 257 + 0.5))
    (found,) = [each for each in problems if each.severity == "warning"]
    assert found.kind == "depth"
    assert found.names == (str(names[0]), str(names[1]))
    assert "29,500 to 50,000" in found.message


def test_evaluation_uses_the_range_of_the_model(tmp_path):
    root = class_folder(tmp_path / "set", count=3)
    images, problems = open_image_set(root, CONTRACT, ("a", "b"))
    values = np.asarray(Image.open(root / images.name(0)))
    assert np.array_equal(images.images[0, ..., 0], scale(values, (LOW, HIGH)))
    assert kinds(problems) == {("range", "note")}
    assert ("depth", "warning") in kinds(open_image_set(root, EIGHT_BIT, ("a", "b"))[1])
    narrow = dataclasses.replace(CONTRACT, range=(0, 1023))
    assert ("clipped", "warning") in kinds(open_image_set(root, narrow, ("a", "b"))[1])


def test_library_predicts_sixteen_bit_arrays_and_warns():
    model = model_of(CONTRACT)
    images = np.stack([thermal(seed, side=24) for seed in range(3)])[..., None]
    expected = model.probabilities(resize(scale(images, (LOW, HIGH)), EIGHT_BIT))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model.predict(images)
        one = model.predict(images[0, ..., 0])
    assert [list(each.probabilities) for each in found] == expected.tolist()
    assert one[0].probabilities == pytest.approx(found[0].probabilities, abs=1e-6)
    with pytest.warns(UserWarning, match="8-bit"):
        model.predict(images.astype(np.uint8))
    with pytest.warns(UserWarning, match="outside the range"):
        model.predict(images // 2)
    with pytest.warns(UserWarning, match="trained on 8-bit images"):
        model_of(EIGHT_BIT).predict(images)


# Settings


@pytest.mark.parametrize("override", ["data.range=29500,30300", "data.range=[29500, 30300]"])
def test_recipe_sets_the_range(override):
    _, recipe = load_recipe("balanced", [override])
    assert recipe.data.range == (29_500, 30_300)
    assert recipe_from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe
    assert load_recipe("balanced")[1].data.range == "auto"
    assert load_recipe("balanced", ["data.range=auto"])[1].data.range == "auto"


@pytest.mark.parametrize(
    "text", ["5", "wide", "[1, 2, 3]", "[0.5, 7]", "[0, true]", "[9, 3]", "0,70000", "", "{a = 1}"]
)
def test_rejects_invalid_range_setting(text):
    with raises("recipe"):
        load_recipe("balanced", [f"data.range={text}"])


def test_rejects_invalid_range_in_python():
    for value in ((5, 5), (0, 65_536), [1], 7, None):
        with raises("usage"):
            DataSettings(range=value)
