"""Model files: content, predictions, and rejected files."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import TINY_OVERRIDES, error_of, metrics
from error_matching import raises
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

import thaw
from thaw.data.images import InputSpec
from thaw.errors import DataError, ModelFileError
from thaw.training.checkpoint import HEADER, read_tensors, write_tensors


@pytest.fixture(scope="module")
def model(finished):
    return thaw.Model.load(finished.path)


@pytest.fixture(scope="module")
def digit_files(tmp_path_factory):
    """The first thirty digits as PNG files of 28x28 pixels, and their pixels."""
    folder = tmp_path_factory.mktemp("digit files")
    bunch = load_digits()
    small = ((bunch.images[:30].astype(int) * 255 + 8) // 16).astype(np.uint8)
    pixels = np.zeros((30, 28, 28, 1), dtype=np.uint8)
    pixels[:, 2:26, 2:26, 0] = np.kron(small, np.ones((1, 3, 3), dtype=np.uint8))
    for index, image in enumerate(pixels):
        Image.fromarray(image[..., 0]).save(folder / f"digit-{index}.png")
    return folder, pixels


def test_header_is_complete(finished):
    with safe_open(finished.path / "model.safetensors", "pt") as file:
        header = json.loads(file.metadata()[HEADER])
    run = metrics(finished.path)
    assert header["version"] == 1
    assert header["classes"] == list("0123456789")
    assert header["input"] == run["input"]
    assert header["fingerprint"] == run["data"]["fingerprint"]
    assert header["dataset"] == "digits"
    assert header["seed"] == 3
    assert header["recipe"]["name"] == "digits"
    assert header["recipe"]["settings"]["dual"]["epochs"] == 3
    assert header["architecture"]["family"] == "paper"
    assert header["architecture"]["model"]["filters"] == [10, 20]


def test_run_folder_and_its_file_are_the_same_model(finished, model):
    other = thaw.Model.load(finished.path / "model.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), dtype=np.uint8)
    assert np.array_equal(model.probabilities(pixels), other.probabilities(pixels))
    assert not any(module.training for module in model.module.modules())
    assert sum(parameter.numel() for parameter in model.module.parameters()) == 14862


def test_round_trip(model, tmp_path):
    model.save(tmp_path / "copy.safetensors")
    copy = thaw.Model.load(tmp_path / "copy.safetensors")
    assert copy.input_spec == model.input_spec
    assert copy.classes == model.classes
    assert copy.spec == model.spec
    assert copy.unify == model.unify
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, copy.module.state_dict()[name])


def test_predictions_agree_with_the_end_of_training(finished, model):
    data = thaw.load("digits", recipe="digits", seed=3)
    run = metrics(finished.path)
    test = data.test.open()
    probabilities = model.probabilities(test.images)
    assert (probabilities.argmax(1) == test.labels).mean() == pytest.approx(run["test"]["accuracy"], abs=1e-12)
    for mistake in run["test"]["mistakes"]:
        row = probabilities[mistake["index"]]
        assert mistake["predicted"] == model.classes[row.argmax()]
        assert row.max() == pytest.approx(mistake["confidence"], abs=1e-6)
    of_true = probabilities[np.arange(len(test)), test.labels]
    assert -np.log(of_true).mean() == pytest.approx(run["test"]["cross_entropy"], rel=1e-6)


def test_files_and_pixels_give_the_same(model, digit_files):
    folder, pixels = digit_files
    predictions = model.predict(folder)
    assert [prediction.name for prediction in predictions] == [str(folder / f"digit-{i}.png") for i in range(30)]
    rows = model.probabilities(pixels)
    assert rows.dtype == np.float64
    assert rows.shape == (30, 10)
    assert np.allclose(rows.sum(1), 1)
    for prediction, row in zip(predictions, rows, strict=True):
        assert np.array_equal(prediction.probabilities, row)
        assert prediction.label == model.classes[row.argmax()]
        assert prediction.probability == row.max()
        assert prediction.as_dict()["probabilities"][prediction.label] == row.max()
    single = model.predict(str(folder / "digit-4.png"))
    assert len(single) == 1
    assert np.allclose(single[0].probabilities, rows[4], atol=1e-6)
    assert [entry.name for entry in model.predict([folder / "digit-1.png", folder / "digit-0.png"])] == [
        str(folder / "digit-1.png"),
        str(folder / "digit-0.png"),
    ]


def test_batch_does_not_change_probabilities(model):
    pixels = np.random.default_rng(1).integers(0, 256, (1030, 28, 28, 1), dtype=np.uint8)
    whole = model.probabilities(pixels)
    for index in (0, 511, 512, 1029):
        assert np.allclose(model.probabilities(pixels[index : index + 1])[0], whole[index], atol=1e-6)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 28, 28, 1)),
        np.zeros((2, 28, 28), np.uint8),
        np.zeros((28, 28, 1), np.uint8),
        np.zeros((2, 1, 28, 28), np.uint8),
        np.zeros((2, 28, 28, 3), np.uint8),
        np.zeros((), np.uint8),
        [[1, 2], [3, 4]],
    ],
    ids=["floats", "no channel", "one image", "channels first", "three channels", "scalar", "list"],
)
def test_rejects_pixels_of_another_kind(model, pixels):
    with raises("usage-images", "uint8 [N, 28, 28, 1]"):
        model.probabilities(pixels)


def test_no_images_give_no_rows(model):
    assert model.probabilities(np.zeros((0, 28, 28, 1), np.uint8)).shape == (0, 10)


def test_broken_images(model, digit_files, tmp_path):
    folder, _ = digit_files
    broken = tmp_path / "broken.png"
    broken.write_bytes((folder / "digit-0.png").read_bytes()[:60])
    with raises(DataError, "broken.png"):
        model.predict([folder / "digit-1.png", broken])
    left = model.predict([broken, folder / "digit-1.png"], skip_broken=True)
    assert [entry.name for entry in left] == [str(folder / "digit-1.png")]
    with raises(DataError, "nowhere"):
        model.predict(tmp_path / "nowhere.png")


def test_missing_model_is_reported(tmp_path, call):
    with raises("model-file-missing", "nowhere"):
        thaw.Model.load(tmp_path / "nowhere")
    with raises("model-file-missing", tmp_path):
        thaw.Model.load(tmp_path)
    error_of(["does not exist"], call("predict", tmp_path / "nowhere", "x.png"), 1)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.999])
def test_truncated_model_is_reported(finished, tmp_path, call, share):
    content = (finished.path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: int(len(content) * share)])
    error_of(["model.safetensors is truncated"], call("predict", tmp_path, "x.png"), 1)


def change_input(**values):
    return lambda header, tensors: header["input"].update(values)


def change_model(**values):
    return lambda header, tensors: header["architecture"]["model"].update(values)


def change_header(**values):
    return lambda header, tensors: header.update(values)


def change_tensors(change):
    def apply(header, tensors):
        for name in list(tensors):
            tensors[name] = change(tensors[name])

    return apply


HOSTILE = {
    "another version": change_header(version=99),
    "no version": lambda header, tensors: header.pop("version"),
    "no architecture": lambda header, tensors: header.pop("architecture"),
    "architecture is text": change_header(architecture="paper"),
    "architecture is a list": change_header(architecture=[1, 2]),
    "model is a list": lambda header, tensors: header["architecture"].update(model=[1]),
    "model is null": lambda header, tensors: header["architecture"].update(model=None),
    "family unknown": lambda header, tensors: header["architecture"].update(family="os.system"),
    "family is a list": lambda header, tensors: header["architecture"].update(family=["paper"]),
    "setting unknown": change_model(evil=1),
    "filters of text": change_model(filters=["a", "b"]),
    "filters of floats": change_model(filters=[10.5, 20]),
    "filters negative": change_model(filters=[-10, 20]),
    "filters huge": change_model(filters=[10**30, 20]),
    "filters large": change_model(filters=[4096, 4096]),
    "dropout is text": change_model(dropout="x"),
    "hidden huge": lambda header, tensors: header["architecture"]["unify"].update(hidden=10**12),
    "hidden is text": lambda header, tensors: header["architecture"]["unify"].update(hidden="x"),
    "input is gone": lambda header, tensors: header.pop("input"),
    "input is a number": change_header(input=28),
    "input huge": change_input(height=10**12),
    "input infinite": change_input(height=float("inf")),
    "input too small": change_input(height=5),
    "input of another size": change_input(height=29, width=40),
    "input is text": change_input(height="28"),
    "input of five channels": change_input(channels=5),
    "mean is not a number": change_input(mean=[float("nan")]),
    "mean is text": change_input(mean=["a"]),
    "deviation is zero": change_input(std=[0.0]),
    "deviation is infinite": change_input(std=[float("inf")]),
    "fit unknown": change_input(fit="squeeze"),
    "classes gone": lambda header, tensors: header.pop("classes"),
    "classes a number": change_header(classes=5),
    "classes too few": change_header(classes=list("012")),
    "classes repeat": change_header(classes=["0"] * 10),
    "no classes": change_header(classes=[]),
    "classes huge": change_header(classes=[str(i) for i in range(100_000)]),
    "a tensor is gone": lambda header, tensors: tensors.pop(next(iter(tensors))),
    "a tensor too many": lambda header, tensors: tensors.update(evil=torch.zeros(3)),
    "no tensors": lambda header, tensors: tensors.clear(),
    "not a number": change_tensors(lambda tensor: tensor * float("nan")),
    "infinite": change_tensors(lambda tensor: tensor + float("inf")),
    "double": change_tensors(lambda tensor: tensor.double()),
    "half": change_tensors(lambda tensor: tensor.half()),
    "integers": change_tensors(lambda tensor: tensor.int()),
    "transposed": change_tensors(lambda tensor: tensor.permute(*reversed(range(tensor.ndim))).contiguous()),
}


@pytest.mark.parametrize("how", list(HOSTILE))
def test_rejects_inconsistent_files(finished, tmp_path, how):
    path = tmp_path / "model.safetensors"
    with safe_open(finished.path / "model.safetensors", "pt") as file:
        header = json.loads(file.metadata()[HEADER])
    tensors = load_file(finished.path / "model.safetensors")
    HOSTILE[how](header, tensors)
    # Invalid values are rejected with the same message, with or without a matching digest.
    save_file(tensors, path, {HEADER: json.dumps(header)})
    told = refusal_of(path)
    with contextlib.suppress(ValueError):
        write_tensors(path, tensors, {key: value for key, value in header.items() if key != "sha256"})
        assert refusal_of(path) == told


def refusal_of(path) -> str:
    with pytest.raises(ModelFileError) as caught:
        thaw.Model.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


NUMBERS = {
    "input.mean[0] = True": change_input(mean=[True]),
    "input.std[0] = 1e-320": change_input(std=[1e-320]),
    "input.std[0] = 1e-30": change_input(std=[1e-30]),
    "input.std[0] = -1.0": change_input(std=[-1.0]),
    "input.std[0] = 1e+300": change_input(std=[1e300]),
    "input.mean[0] = 9223372036854775808": change_input(mean=[2**63]),
    "input.mean[0] = None": change_input(mean=[None]),
    "input.mean = [0.5, 0.5]": change_input(mean=[0.5, 0.5]),
    "input.height = 9223372036854775808": change_input(height=2**63),
    "input.height = True": change_input(height=True),
    "input.channels = 1.0": change_input(channels=1.0),
    "input.fit = 3": change_input(fit=3),
    "input.more": change_input(more=3),
    "architecture.model.dropout = True": change_model(dropout=True),
    "architecture.model.dropout = 1e-320": change_model(dropout=1e-320),
    "model.dropout = 9.2": change_model(dropout=2.0**63),
    "architecture.model.filters[1] = 9223372036854775808": change_model(filters=[10, 2**63]),
    "architecture.model.filters[0] = True": change_model(filters=[True, 20]),
    "architecture.unify.hidden = True": lambda header, _: header["architecture"]["unify"].update(hidden=True),
    "architecture.unify.hidden = 9223372036854775808": lambda header, _: header["architecture"]["unify"].update(
        hidden=2**63
    ),
    "architecture.family = ['paper']": lambda header, _: header["architecture"].update(family=["paper"]),
    "classes = [0, 1]": change_header(classes=[0, 1]),
    "seed = True": change_header(seed=True),
    "seed = 1.5": change_header(seed=1.5),
    "seed = 9223372036854775808": change_header(seed=2**63),
    "dataset = 3": change_header(dataset=3),
    "fingerprint = None": change_header(fingerprint=None),
    "recipe.settings.dual.learning_rate = 1e-320": lambda header, _: header["recipe"]["settings"]["dual"].update(
        learning_rate=1e-320
    ),
    "recipe.settings.dual.epochs = 9223372036854775808": lambda header, _: header["recipe"]["settings"]["dual"].update(
        epochs=2**63
    ),
    "more[1].most = 1e+300": change_header(more=[0, {"most": 1e300}]),
}


@pytest.mark.parametrize("words", list(NUMBERS))
def test_invalid_number_is_reported_by_name(finished, tmp_path, words):
    path = tmp_path / "model.safetensors"
    tensors, header = read_tensors(finished.path / "model.safetensors", version=1)
    NUMBERS[words](header, tensors)
    write_tensors(path, tensors, header)
    assert words in refusal_of(path)


def test_flipped_bit_never_changes_a_prediction(finished, tmp_path, model):
    path = tmp_path / "model.safetensors"
    content = (finished.path / "model.safetensors").read_bytes()
    pixels = np.random.default_rng(3).integers(0, 256, (4, 28, 28, 1), dtype=np.uint8)
    expected = model.probabilities(pixels).tobytes()
    chance = np.random.default_rng(4)
    for place in chance.integers(0, len(content), 300).tolist():
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        try:
            found = thaw.Model.load(path)
        except ModelFileError:
            continue
        assert found.probabilities(pixels).tobytes() == expected


@pytest.fixture
def overflowing(finished, tmp_path) -> Path:
    """The run with finite weights that give NaN for every image."""
    run = Path(shutil.copytree(finished.path, tmp_path / "overflowing"))
    tensors, header = read_tensors(run / "model.safetensors", version=1)
    large = {name: torch.full_like(tensor, 3e38) for name, tensor in tensors.items()}
    write_tensors(run / "model.safetensors", large, header)
    return run


def test_nan_is_an_error_and_not_the_first_class(overflowing, digit_files, call):
    for words in (
        ["predict", overflowing, digit_files[0]],
        ["predict", overflowing, digit_files[0], "--json"],
        ["evaluate", overflowing, "digits"],
        ["export", overflowing, "--to", "onnx"],
        ["export", overflowing, "--to", "litert", "--float"],
        ["verify", overflowing, "--images", "2"],
        ["bench", overflowing],
    ):
        code, out, err = call(*words)
        told = err[err.index("error: ") :] if "error: " in err else err
        error_of(["computes NaN or infinity", "train again"], (code, out, told), 1)
    with raises("not-finite", "2 of 2"):
        thaw.Model.load(overflowing).probabilities(digit_files[1][:2])


def test_names_from_a_file_are_escaped_on_the_terminal(finished, tmp_path, call, digit_files):
    model = thaw.Model.load(finished.path)
    evil = ("\x1b[2J\x1b]0;owned\x07", "[red]a[/red]\n", "[/x]", ":smile:", *"456789")
    object.__setattr__(model, "classes", evil)
    model.save(tmp_path / "evil.safetensors")
    for command in (("info", "evil.safetensors"), ("predict", "evil.safetensors", digit_files[0])):
        code, out, err = call(*command)
        assert code == 0, err
        assert "\x1b" not in out + err
        assert "\x07" not in out + err
    assert "[/x]" in call("info", "evil.safetensors")[1]


def test_models_with_three_channels_and_other_sizes(tmp_path):
    chance = np.random.default_rng(0)
    labels = np.arange(120) % 3
    images = (chance.integers(0, 120, (120, 20, 26, 3)) + labels[:, None, None, None] * 60).astype(np.uint8)
    overrides = [*TINY_OVERRIDES, "model.filters=[4, 6]", "data.normalize=unit"]
    run = thaw.train((images, labels), recipe="paper", overrides=overrides, out=tmp_path / "run")
    model = run.model
    assert model.input_spec == InputSpec(height=20, width=26, channels=3)
    assert model.spec.filters == (4, 6)
    assert model.classes == ("0", "1", "2")
    Image.fromarray(images[0]).save(tmp_path / "one.png")
    assert np.allclose(model.predict(tmp_path / "one.png")[0].probabilities, model.probabilities(images[:1])[0])
    quality = model.evaluate((images, labels))
    assert quality.count == 120
    assert quality.accuracy == (model.probabilities(images).argmax(1) == labels).mean()


def test_images_in_memory_agree_with_their_files(model, digit_files):
    folder, pixels = digit_files
    files = model.predict(folder)
    for images in (pixels, pixels[..., 0], list(pixels), [Image.fromarray(each[..., 0]) for each in pixels]):
        predictions = model.predict(images)
        assert [prediction.name for prediction in predictions] == [f"[{index}]" for index in range(30)]
        for prediction, of_file in zip(predictions, files, strict=True):
            assert np.array_equal(prediction.probabilities, of_file.probabilities)
    assert model.predict(Image.open(folder / "digit-4.png"))[0].label == files[4].label
    assert model.predict(pixels[:0]) == []
    with raises(DataError, "NoneType"):
        model.predict(None)
