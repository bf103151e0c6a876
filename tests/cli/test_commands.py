"""The commands that use a model or inspect data, and the equivalent Python calls."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import command, error_of, metrics
from data_samples import write_folder
from error_matching import raises
from PIL import Image

import thaw as library
from thaw.cli.output import columns


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two digits, one broken file, and one file that is not an image."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("pictures")
    for index in range(2):
        pixels = np.kron(load_digits().images[index], np.ones((3, 3))).astype(np.uint8) * 15
        Image.fromarray(pixels).save(folder / f"digit {index}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG nothing")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_info_of_a_recipe(call):
    for shape, parameters in (("28x28x1", 14862), ("32x32x3", 19622)):
        arguments = ("info", "--recipe", "paper", "--input", shape, "--classes", "10")
        code, out, err = call(*arguments, "--json")
        assert (code, err) == (0, "")
        table = json.loads(out)
        assert table["parameters"] == parameters == sum(layer["parameters"] for layer in table["layers"])
        assert table["macs"] == sum(layer["macs"] for layer in table["layers"])
        assert {"name", "kind", "output", "parameters", "macs", "activation_bytes"} == set(table["layers"][0])
        code, out, err = call(*arguments)
        assert (code, err) == (0, "")
        assert f"{parameters:,}" in out
        assert "…" not in out
    smaller = call("info", "--recipe", "paper", "--set", "model.filters=[5, 6]", "--json")[1]
    assert json.loads(smaller)["parameters"] < 9999


def test_info_of_a_run(finished, call):
    described = json.loads(call("info", finished.path, "--json")[1])
    run = metrics(finished.path)
    assert described["parameters"] == 14862
    assert described["layers"] == run["cost"]["layers"]
    assert described["input"] == run["input"]
    assert described["classes"] == run["data"]["classes"]
    assert described["fingerprint"] == run["data"]["fingerprint"]
    out = call("info", finished.path)[1]
    assert "trained on digits with recipe digits, seed 3" in out
    assert "14,862" in out


def test_predict_in_every_format(finished, pictures, call):
    files = [pictures / "digit 1.png", pictures / "digit 0.png"]
    code, out, err = call("predict", finished.path, *files)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split() == ["image", "class", "probability"]
    assert [line[: len(str(file))] for line, file in zip(lines[1:], files, strict=True)] == list(map(str, files))
    assert all(re.search(r"  \d  +\d+\.\d\d%$", line) for line in lines[1:])

    result = json.loads(call("predict", finished.path, *files, "--json")[1])
    assert result == json.loads(call("predict", finished.path, *files, "--format", "json")[1])
    assert [entry["image"] for entry in result["predictions"]] == list(map(str, files))
    assert list(result["predictions"][0]["probabilities"]) == result["classes"] == list("0123456789")

    rows = list(csv.DictReader(io.StringIO(call("predict", finished.path, *files, "--format", "csv")[1])))
    for row, entry in zip(rows, result["predictions"], strict=True):
        assert row["image"] == entry["image"]
        assert row["class"] == entry["class"]
        assert float(row["probability"]) == pytest.approx(entry["probability"], abs=1e-6)
        for name, probability in entry["probabilities"].items():
            assert float(row[name]) == pytest.approx(probability, abs=1e-6)

    expected = library.Model.load(finished.path).predict(files)
    assert [entry["class"] for entry in result["predictions"]] == [entry.label for entry in expected]


def test_predict_folder_with_a_broken_image(finished, pictures, call):
    error_of(["broken.png", "--skip-broken"], call("predict", finished.path, pictures), 1)
    code, out, err = call("predict", finished.path, pictures, "--skip-broken")
    assert code == 0
    named = [line.split("  ")[0] for line in out.splitlines()[1:]]
    assert named == [str(pictures / f"digit {index}.png") for index in range(2)]
    assert "broken.png" in err
    assert "notes.txt" in err
    code, out, err = call("predict", finished.path, pictures, "--skip-broken", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)["problems"]
    assert any("broken.png" in name for problem in told for name in problem["names"])
    error_of(["nowhere.png"], call("predict", finished.path, "nowhere.png"), 1)
    error_of(["no image"], call("predict", finished.path, pictures / "broken.png", "--skip-broken"), 1)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_predict_file_names_that_are_not_utf_8(finished, pictures, tmp_path, call):
    odd = os.fsencode(tmp_path) + b"/odd\xff\n\x1b[31m.png"
    Path(os.fsdecode(odd)).write_bytes((pictures / "digit 0.png").read_bytes())
    code, table, err = call("predict", finished.path, tmp_path)
    assert code == 0, err
    assert r"odd\xff\n\x1b[31m.png" in table
    assert len(table.splitlines()) == 2
    done = subprocess.run(command("predict", finished.path, tmp_path, "--json"), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    (prediction,) = json.loads(done.stdout.decode())["predictions"]
    assert prediction["image"] == f"{tmp_path}/odd\\xff\n\x1b[31m.png"


def test_evaluate_agrees_with_the_run(finished, call, tmp_path):
    """The run's test images, written to files of the input size, give the results of the run."""
    run = metrics(finished.path)
    test = library.load("digits", recipe="digits", seed=3).test.open()
    for index, (image, label) in enumerate(zip(test.images, test.labels, strict=True)):
        folder = tmp_path / "test images" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / f"{index}.png")
    code, out, err = call("evaluate", finished.path, "test images", "--json")
    assert (code, err) == (0, "")
    measured = json.loads(out)["test"]
    assert measured["count"] == run["test"]["count"]
    assert measured["accuracy"] == run["test"]["accuracy"]
    assert measured["confusion"] == run["test"]["confusion"]
    assert measured["cross_entropy"] == pytest.approx(run["test"]["cross_entropy"], rel=1e-6)
    out = call("evaluate", finished.path, "test images")[1]
    assert f"accuracy {measured['accuracy']:.2%}" in out


def test_evaluate_uses_all_images_without_a_test_split(finished, call):
    measured = json.loads(call("evaluate", finished.path, "digits", "--json")[1])["test"]
    assert measured["count"] == 1797
    quality = library.Model.load(finished.path).evaluate("digits")
    assert quality.accuracy == measured["accuracy"]


def test_evaluate_unknown_classes(finished, call, pictures, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        (tmp_path / "pets" / name / "1.png").write_bytes((pictures / "digit 0.png").read_bytes())
    error_of(["unknown to the model", "cat"], call("evaluate", finished.path, "pets"), 1)


def test_data_summary(call, tmp_path):
    code, out, err = call("data", "digits", "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert summary["count"] == 1797
    assert summary["classes"] == list("0123456789")
    assert summary["contact_sheet"] is None
    assert list(tmp_path.iterdir()) == [], "writes only requested files"
    code, out, err = call("data", "digits", "--sheet", "sheets/one.png")
    assert code == 0, err
    assert "digits: 1,797 images of 10 classes" in out
    assert out.splitlines()[-1] == "contact sheet: sheets/one.png"
    with Image.open(tmp_path / "sheets" / "one.png") as sheet:
        assert sheet.format == "PNG"
    assert not (tmp_path / "runs").exists()
    (tmp_path / "file").write_text("")
    error_of(["contact sheet", "file/one.png"], call("data", "digits", "--sheet", "file/one.png", "--json"), 1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of photographs that are larger than usual inputs."""
    return write_folder(tmp_path_factory.mktemp("photos") / "photos", count=12, shape=(90, 70, 3))


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"recipe": "paper"},
        {"recipe": "balanced"},
        {"budget": "ram=24KB"},
        {"budget": "params=2000,ram=12KB"},
        {"recipe": "balanced", "budget": "macs=400k", "overrides": ["sizing.sides=[32,48]"]},
        {"overrides": ["data.input=40x24x3", "data.fit=crop"]},
    ],
    ids=str,
)
def test_data_describes_the_input_of_training(call, photos, words):
    prepared = library.load(photos, **words).input_spec
    options = [word for key in ("recipe", "budget") if key in words for word in (f"--{key}", words[key])]
    options += [word for each in words.get("overrides", ()) for word in ("--set", each)]
    code, out, err = call("data", photos, *options, "--json")
    assert code == 0, err
    told = json.loads(out)
    # If a short training may choose another input, the message names it.
    notes = [
        each["message"] for each in told["problems"] if each["kind"] == "input" and " may choose " in each["message"]
    ]
    expected = [told["input"], *(f"{size}x3" for note in notes for size in re.findall(r"\d+x\d+(?!x)", note))]
    assert str(prepared) in expected
    assert told["fit"] == prepared.fit
    assert notes == [] or "budget" in words or words.get("recipe", "balanced") == "balanced"
    if "recipe" in words:
        assert told["recipe"] == words["recipe"]
    assert f"input {told['input']}" in call("data", photos, *options)[1]


def test_data_rejects_what_train_rejects(call, photos):
    for words in (("--recipe", "nothing"), ("--set", "dual.epoch=1"), ("--budget", "ram=1x")):
        code, out, err = call("data", photos, *words)
        assert (code, out) == (2, ""), err
        assert err == call("train", photos, *words)[2]


def test_data_fails_on_errors(call, photos, tmp_path):
    broken = Path(shutil.copytree(photos, tmp_path / "broken"))
    (broken / "cat" / "bad.png").write_bytes(b"no image")
    code, out, _ = call("data", broken)
    assert code == 1
    assert "error: " in out
    code, out, _ = call("data", broken, "--json")
    assert (code, json.loads(out)["usable"]) == (1, False)
    code, out, _ = call("data", broken, "--skip-broken", "--json")
    assert (code, json.loads(out)["usable"]) == (0, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


# Python, with the same messages


def test_python_gives_the_same_results(finished, tmp_path):
    data = library.load("digits", recipe="digits", seed=3)
    run = metrics(finished.path)
    assert data.fingerprint == run["data"]["fingerprint"]
    assert (len(data.train), len(data.validation), len(data.test)) == tuple(
        run["data"][split] for split in ("train", "validation", "test")
    )
    with raises("usage-overrides"):
        library.train("digits", recipe=library.load_recipe("digits"), overrides=["dual.epochs=1"])
    with raises("recipe", "epochs"):
        library.train("digits", overrides=["dual.epoch=1"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Columns of text


def test_columns_have_the_width_of_their_cells():
    text = columns([("name", "count"), ("a" * 200, "1"), ("大きい", "10,000")], right=(1,))
    lines = text.splitlines()
    assert lines[0] == "name" + " " * 196 + "   count"
    assert lines[1] == "a" * 200 + "  " + " " * 5 + "1"
    assert lines[2] == "大きい" + " " * 194 + "  10,000"
