"""Images of a thermal camera, from files to C on a device: nothing is lost, and all outputs state the range."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import thaw
from thaw.data.images import InputSpec
from thaw.data.resize import resize
from thaw.data.scaling import scale
from thaw.graph.graph_file import read_graph
from thaw.graph.interpret import run as run_graph

LOW, SPAN = 29_500, 800

# One small network and few epochs: if the stripes are visible, the first epoch learns them.
QUICK = ["sizing.network=fixed", "sizing.input=as is", "model.widths=[8,8,8]", "plain.epochs=6", "augment.flip=false"]


def stripes(seed: int, *, across: bool) -> np.ndarray:
    """Waves down or across an image of 32 x 32, in a 1 % part of 16 bits, with a dead and a hot pixel: uint16."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:32, 0:32]
    wave = (np.sin((x if across else y) * 0.5 + rng.random() * 6) + 1) / 2
    values = (LOW + wave * SPAN + rng.integers(0, 20, (32, 32))).astype(np.uint16)
    values[tuple(rng.integers(1, 15, 2))] = 0
    values[tuple(rng.integers(17, 31, 2))] = 65_535
    return values


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> thaw.Run:
    folder = tmp_path_factory.mktemp("sixteen")
    for number, name in enumerate(("down", "across")):
        (folder / "camera" / name).mkdir(parents=True)
        for index in range(40):
            values = stripes(100 * number + index, across=name == "across")
            Image.fromarray(values).save(folder / "camera" / name / f"{index}.png")
    return thaw.train(folder / "camera", recipe="balanced", overrides=QUICK, out=folder / "run")


def test_network_learns_from_the_low_bytes(trained: thaw.Run) -> None:
    # 29,500 // 256 to 30,320 // 256 are four levels.
    assert len(np.unique(stripes(1, across=True)[1:15, 16:] >> 8)) <= 5
    assert trained.metrics["test"]["accuracy"] >= 0.9
    low, high = trained.metrics["input"]["range"]
    assert LOW <= low < LOW + 20
    assert LOW + SPAN < high < LOW + SPAN + 20
    told = [problem for problem in trained.metrics["data"]["problems"] if problem["kind"] == "range"]
    assert [problem["severity"] for problem in told] == ["note"]
    words = f"{low:,} to {high:,}"
    assert words in told[0]["message"]
    assert f"16-bit values {words} become 0 to 255" in trained.report.read_text("utf-8")


def test_model_predicts_files_as_in_training(trained: thaw.Run) -> None:
    model = trained.model
    assert list(model.input_spec.range) == trained.metrics["input"]["range"]
    file = sorted((trained.path.parent / "camera" / "down").iterdir())[3]
    pixels = scale(np.asarray(Image.open(file)), model.input_spec.range)[None, ..., None]
    (found,) = model.predict(file)
    assert np.array_equal(found.probabilities, model.probabilities(pixels)[0])
    assert read_graph(trained.path / "model-int8.safetensors")[1].input_spec == model.input_spec


def test_every_artifact_contains_the_range(trained: thaw.Run, tmp_path: Path) -> None:
    wanted = trained.metrics["input"]["range"]
    exported = thaw.Run.open(trained.path).export(out=tmp_path, formats=["onnx", "litert", "c"])
    if "onnx" not in exported.missing:
        onnx = pytest.importorskip("onnx")
        model = onnx.load(tmp_path / "onnx" / "model-int8.onnx")
        facts = {each.key: json.loads(each.value) for each in model.metadata_props}
        assert facts["input"]["range"] == wanted
    if "litert" not in exported.missing:
        with zipfile.ZipFile(tmp_path / "litert" / "model-int8.tflite") as archive:
            assert json.loads(archive.read("card.json"))["input"]["range"] == wanted
    header = next((tmp_path / "c").glob("*.h")).read_text("utf-8")
    assert [int(end) for end in re.findall(r"#define \w*RANGE_(?:LOW|HIGH) (\d+)", header)] == wanted


@pytest.mark.skipif(not (shutil.which("cc") and shutil.which("make")), reason="no C compiler or no make")
@pytest.mark.parametrize(("shape", "largest"), [((32, 32), 65_535), ((47, 60), 65_535), ((47, 60, 3), 40_000)])
def test_c_program_classifies_16_bit_pictures(
    trained: thaw.Run, tmp_path: Path, shape: tuple[int, ...], largest: int
) -> None:
    thaw.Run.open(trained.path).export(out=tmp_path, formats=["c"])
    subprocess.run(["make", "example", "CFLAGS=-O1"], cwd=tmp_path / "c", check=True, capture_output=True, timeout=120)
    graph, header = read_graph(trained.path / "model-int8.safetensors")
    rng = np.random.default_rng(4)
    for _ in range(3):
        values = rng.integers(LOW - 100, LOW + SPAN + 100, shape)
        kind = "P6" if len(shape) == 3 else "P5"
        content = f"{kind}\n{shape[1]} {shape[0]}\n{largest}\n".encode() + values.astype(">u2").tobytes()
        (tmp_path / "picture").write_bytes(content)
        done = subprocess.run(
            ["./example", str(tmp_path / "picture")], cwd=tmp_path / "c", check=True, capture_output=True, timeout=60
        )
        # The maximum in the file's header is white: 65,535.
        white = (2 * values * 65_535 + largest) // (2 * largest)
        pixels = resize(white.astype(np.uint16).reshape(*shape[:2], -1), header.input_spec)
        scores = run_graph(graph, pixels[None])[graph.outputs[-1]][0]
        best = int(scores.argmax())
        assert done.stdout.decode().split() == [header.classes[best], f"{(int(scores[best]) + 128) / 256:.3f}"]


def test_uint16_arrays_train_like_their_files(trained: thaw.Run) -> None:
    images = np.stack([stripes(100 * k + i, across=bool(k)) for k in range(2) for i in range(40)])
    labels = ["down"] * 40 + ["across"] * 40
    data = thaw.load((images, labels), recipe="balanced", overrides=QUICK)
    low, high = data.input_spec.range
    assert LOW <= low < LOW + 20
    assert LOW + SPAN < high < LOW + SPAN + 20
    assert data.input_spec.shape == (32, 32, 1)
    assert isinstance(data.input_spec, InputSpec)
    fixed = thaw.load((images, labels), recipe="balanced", overrides=[*QUICK, "data.range=29500,30320"])
    number = int(fixed.train.name(0).removeprefix("train[").removesuffix("]"))
    assert np.array_equal(fixed.train.images[0, ..., 0], scale(images[number], (29_500, 30_320)))
    quality = trained.model.evaluate((images, labels))
    assert quality.accuracy >= 0.9
