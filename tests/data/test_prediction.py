"""Input of a prediction: every accepted form gives the pixels of the image's file; others are errors."""

from __future__ import annotations

import io
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from error_matching import raises
from PIL import Image

from thaw.data.decode import decode_image
from thaw.data.images import InputSpec
from thaw.data.prediction_images import read_images
from thaw.data.resize import resize

GRAY = InputSpec(height=8, width=8, channels=1)
COLOR = InputSpec(height=8, width=10, channels=3, fit="crop")
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 12, 9, 3), dtype=np.uint8)


def expected(pixels, input_spec=COLOR):
    return resize(np.ascontiguousarray(pixels), input_spec)


@pytest.fixture
def folder(tmp_path):
    for index, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("input_spec", [GRAY, COLOR], ids=["gray", "color"])
@pytest.mark.parametrize(
    ("images", "same_as", "names"),
    [
        (PIXELS, PIXELS, [f"[{index}]" for index in range(5)]),
        (PIXELS[..., :1], PIXELS[..., :1], [f"[{index}]" for index in range(5)]),
        (PIXELS[..., 0], PIXELS[..., :1], [f"[{index}]" for index in range(5)]),
        (PIXELS[0], PIXELS[:1], ["[0]"]),
        (PIXELS[0, ..., :1], PIXELS[:1, ..., :1], ["[0]"]),
        (PIXELS[0, ..., 0], PIXELS[:1, ..., :1], ["[0]"]),
        ([PIXELS[0], PIXELS[1]], PIXELS[:2], ["[0]", "[1]"]),
        ((PIXELS[0, ..., 0], PIXELS[1:3, ..., 0]), PIXELS[:3, ..., :1], ["[0]", "[1][0]", "[1][1]"]),
        (PIXELS[::-2, ::-1], PIXELS[::-2, ::-1], ["[0]", "[1]", "[2]"]),
        (np.asfortranarray(PIXELS), PIXELS, [f"[{index}]" for index in range(5)]),
        (PIXELS.transpose(0, 2, 1, 3), PIXELS.transpose(0, 2, 1, 3), [f"[{index}]" for index in range(5)]),
    ],
    ids=[
        "[N, H, W, 3]",
        "[N, H, W, 1]",
        "[N, H, W]",
        "[H, W, 3]",
        "[H, W, 1]",
        "[H, W]",
        "list",
        "tuple of one and several",
        "negative strides",
        "Fortran order",
        "transposed",
    ],
)
def test_arrays(input_spec, images, same_as, names):
    pixels, found, problems = read_images(images, input_spec)
    assert np.array_equal(pixels, expected(same_as, input_spec))
    assert (found, problems) == (names, ())


def test_iterators_are_read_once():
    for images in (iter(PIXELS), (image for image in PIXELS), map(Image.fromarray, PIXELS)):
        assert np.array_equal(read_images(images, COLOR)[0], expected(PIXELS))


def test_read_only_memory_mapped_and_masked_arrays(tmp_path):
    np.save(tmp_path / "images.npy", PIXELS)
    frozen = PIXELS.copy()
    frozen.flags.writeable = False
    for images in (np.load(tmp_path / "images.npy", mmap_mode="r"), frozen, np.ma.masked_array(PIXELS)):
        assert np.array_equal(read_images(images, COLOR)[0], expected(PIXELS))


def test_tensors():
    torch = pytest.importorskip("torch")
    assert np.array_equal(read_images(torch.from_numpy(PIXELS), COLOR)[0], expected(PIXELS))
    assert np.array_equal(
        read_images([torch.from_numpy(PIXELS[0, ..., 0])], GRAY)[0], expected(PIXELS[:1, ..., :1], GRAY)
    )
    for wrong, reason in (
        (torch.from_numpy(PIXELS).permute(0, 3, 1, 2), "channels last"),
        (torch.from_numpy(PIXELS[0]).permute(2, 0, 1), "channels first"),
        (torch.rand(2, 8, 8, 3), "scale floats"),
        (torch.rand(2, 8, 8, 3, requires_grad=True), "Tensor"),
    ):
        with raises("data-arrays", reason):
            read_images(wrong, COLOR)


def modes():
    color = Image.fromarray(PIXELS[0])
    gray = Image.fromarray(PIXELS[0, ..., 0])
    see_through = Image.merge("RGBA", [*color.split(), gray])
    keyed = color.quantize(16)
    keyed.info["transparency"] = 3
    return {
        "1": (gray.convert("1"), "png"),
        "L": (gray, "png"),
        "LA": (Image.merge("LA", [gray, gray]), "png"),
        "P": (color.quantize(16), "png"),
        "P with transparency": (keyed, "png"),
        "RGB": (color, "png"),
        "RGBA": (see_through, "png"),
        "CMYK": (color.convert("CMYK"), "tiff"),
        "YCbCr": (color.convert("YCbCr"), "tiff"),
        "LAB": (Image.frombytes("LAB", color.size, PIXELS[0].tobytes()), "tiff"),
        "I;16": (Image.fromarray(PIXELS[0, ..., 0].astype(np.uint16) * 257), "png"),
        "I": (Image.fromarray(PIXELS[0, ..., 0].astype(np.int32) * 257), "tiff"),
        "F": (Image.fromarray(PIXELS[0, ..., 0].astype(np.float32) / 255), "tiff"),
    }


@pytest.mark.parametrize("mode", modes())
def test_pillow_image_of_any_mode_equals_its_file(mode):
    image, kind = modes()[mode]
    file = io.BytesIO()
    image.save(file, format=kind)
    for input_spec in (GRAY, COLOR):
        of_file = resize(decode_image(file.getvalue()).pixels, input_spec)
        for given in (image, Image.open(file)):
            pixels, names, _ = read_images(given, input_spec)
            assert np.array_equal(pixels, of_file[None])
            assert names == ["[0]"]


@pytest.mark.parametrize("kind", ["jpeg", "tiff", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pillow_image_exif_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(file, format=kind, exif=exif)
    image = Image.open(file)
    of_file = resize(decode_image(file.getvalue()).pixels, COLOR)
    for _ in range(2):  # also for an image that is already loaded
        assert np.array_equal(read_images([image], COLOR)[0], of_file[None])


def test_pillow_image_uses_the_current_frame():
    file = io.BytesIO()
    frames = [Image.fromarray(pixels[..., 0]) for pixels in PIXELS[:3]]
    frames[0].save(file, format="gif", save_all=True, append_images=frames[1:])
    image = Image.open(file)
    image.seek(1)
    assert np.array_equal(read_images(image, GRAY)[0], resize(decode_pixels(image), GRAY)[None])
    assert image.tell() == 1


def decode_pixels(image):
    return np.asarray(image.convert("RGB"))[..., :1]


def test_mixed_list(folder):
    mixed = [
        str(folder / "1.png"),
        folder / "0.png",
        Image.fromarray(PIXELS[2]),
        PIXELS[3:5],
        folder,
        PIXELS[0, ..., 0],
    ]
    pixels, names, problems = read_images(mixed, COLOR)
    gray = expected(PIXELS[:1, ..., :1])
    order = [1, 0, 2, 3, 4, 0, 1, 2, 3, 4]
    assert np.array_equal(pixels, np.concatenate([expected(PIXELS[order]), gray]))
    every = [str(folder / f"{index}.png") for index in range(5)]
    assert names == [every[1], every[0], "[2]", "[3][0]", "[3][1]", *every, "[5]"]
    assert problems == ()


def test_arrays_of_paths(folder):
    paths = [str(folder / f"{index}.png") for index in range(5)]
    columns = [np.array(paths), np.array(paths, object), tuple(map(Path, paths))]
    if find_spec("pandas"):
        import pandas as pd

        columns += [pd.Series(paths), pd.Index(paths), pd.Series(map(Path, paths))]
    for given in columns:
        pixels, names, _ = read_images(given, COLOR)
        assert np.array_equal(pixels, expected(PIXELS))
        assert names == paths


def test_array_without_images_gives_no_rows():
    for shape in ((0, 12, 9, 3), (0, 12, 9), (0, 12, 9, 1)):
        pixels, names, _ = read_images(np.zeros(shape, np.uint8), COLOR)
        assert (pixels.shape, pixels.dtype, names) == ((0, 8, 10, 3), np.uint8, [])
    pixels, names, _ = read_images([PIXELS[0], PIXELS[:0], PIXELS[1]], COLOR)
    assert np.array_equal(pixels, expected(PIXELS[:2]))
    assert names == ["[0]", "[2]"]


class Refusing:
    """An array of another library that raises when it is read."""

    def __array__(self, *_args, **_options):
        raise RuntimeError("memory on another device")


@pytest.mark.parametrize(
    ("images", "code", "fact"),
    [
        (None, "data-arrays", "NoneType"),
        (5, "data-arrays", "int"),
        (1.5, "data-arrays", "float"),
        (b"\x89PNG", "data-arrays", "bytes"),
        ({"a": PIXELS[0]}, "data-arrays", "dict"),
        ([], "data-empty", ""),
        ((), "data-empty", ""),
        (iter(()), "data-empty", ""),
        ([None], "data-arrays", "image [0] is NoneType"),
        ([PIXELS[0], 5], "data-arrays", "image [1] is int"),
        ([[1, 2], [3, 4]], "data-arrays", "image [0] is list"),
        ([b"\x89PNG"], "data-arrays", "image [0] is bytes"),
        (np.uint8(5), "data-arrays", "uint8 []"),
        (np.zeros(9, np.uint8), "data-arrays", "uint8 [9]"),
        (np.zeros((1, 1, 8, 8, 3), np.uint8), "data-arrays", "[1, 1, 8, 8, 3]"),
        (np.zeros((2, 8, 8, 4), np.uint8), "data-arrays", "[2, 8, 8, 4]"),
        (np.zeros((2, 3, 8, 8), np.uint8), "data-arrays", "channels last"),
        (np.zeros((2, 8, 8, 3)), "data-arrays", "float64"),
        (np.zeros((2, 8, 8, 3), np.float16), "data-arrays", "scale floats"),
        (np.zeros((8, 8), np.int64), "data-arrays", "astype"),
        (np.zeros((8, 8), bool), "data-arrays", "multiply by 255"),
        (np.zeros((8, 8), np.complex64), "data-arrays", "complex64"),
        (np.array([[None, 1], [2, 3]], object), "data-arrays", "object"),
        (np.array([PIXELS[0], 5, None], object), "data-arrays", "image [1] is int"),
        (np.zeros((2, 8, 8), [("a", "u1")]), "data-arrays", "uint8"),
        (np.array(["2020-01-01"], "datetime64[D]"), "data-arrays", "uint8"),
        (np.zeros((2, 0, 8, 3), np.uint8), "data-arrays", "at least one row"),
        (np.zeros((8, 0), np.uint8), "data-arrays", "at least one row"),
        (np.zeros((0, 0), np.uint8), "data-arrays", "at least one row"),
        ([PIXELS[0], np.zeros((0, 8, 3), np.uint8)], "data-arrays", "image [1]"),
        (Refusing(), "data-arrays", "Refusing (memory on another device)"),
        ("", "data-empty", ""),
        ("nowhere.png", "data-source", "nowhere.png"),
        ("~nobody-of-that-name/a.png", "data-source", "~nobody-of-that-name/a.png"),
        ("a" * 5000, "data-source", ""),
        ("a\0b.png", "data-source", ""),
        ([PIXELS[0], "nowhere.png"], "data-source", "nowhere.png"),
        (Image.new("L", (0, 5)), "data-arrays", ""),
    ],
)
def test_rejects_objects_that_are_not_images(images, code, fact, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with raises(code, fact):
        read_images(images, COLOR)


def test_sixteen_bits_are_scaled_by_the_range_of_the_model_and_other_depths_are_reported():
    values = RNG.integers(29_600, 30_400, (4, 12, 9), dtype=np.uint16)
    thermal = replace(GRAY, range=(29_500, 30_300))
    of_file = np.stack([resize(each[..., None], thermal) for each in values])
    pictures = [Image.fromarray(each) for each in values]
    for images in (values, values.astype(">u2"), list(values), values[..., None], pictures):
        pixels, _, problems = read_images(images, thermal)
        assert np.array_equal(pixels, of_file)
        assert [problem.kind for problem in problems] == ["range"]
        # A model of 8-bit images gives a problem.
        assert "depth" in {problem.kind for problem in read_images(images, GRAY)[2]}
    assert {problem.kind for problem in read_images(PIXELS, thermal)[2]} == {"depth"}
    assert read_images(PIXELS, GRAY)[2] == ()


def test_closed_pillow_image_is_reported_and_can_be_skipped(folder):
    closed = Image.open(folder / "0.png")
    closed.close()
    with raises("data-unreadable", "[1]"):
        read_images([PIXELS[0], closed], COLOR)
    pixels, names, problems = read_images([PIXELS[0], closed, folder / "1.png"], COLOR, skip_broken=True)
    assert np.array_equal(pixels, expected(PIXELS[:2]))
    assert names == ["[0]", str(folder / "1.png")]
    assert [problem.severity for problem in problems] == ["warning"]
    for images in (closed, [closed]):
        with raises("data-empty"):
            read_images(images, COLOR, skip_broken=True)


def test_broken_files_with_good_arrays_can_be_skipped(folder):
    broken = folder / "broken.png"
    broken.write_bytes(b"\x89PNG nothing")
    pixels, names, problems = read_images([broken, PIXELS[0]], COLOR, skip_broken=True)
    assert np.array_equal(pixels, expected(PIXELS[:1]))
    assert names == ["[1]"]
    assert "broken.png" in str(problems[0])
    with raises("data-unreadable", "broken.png"):
        read_images([broken, PIXELS[0]], COLOR)
