"""Data sets whose folders, classes and images have hostile names, and foreign models with such names."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
import zipfile
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from command_line import TINY_OVERRIDES
from export_samples import card_of
from graph_samples import random_int8_graph
from hostile_text import ISSUE, PIECES, Seen, is_unsafe
from markdown_it import MarkdownIt
from pareto_plot import Point, draw
from PIL import Image
from report_samples import run_of

from thaw.export import to_web
from thaw.export.to_c import export_c
from thaw.export.to_litert import export_litert
from thaw.export.to_onnx import export_onnx
from thaw.quoting import printable
from thaw.run.report import ReportPictures, render_report

CC = shutil.which("cc")
needs_compiler = pytest.mark.skipif(CC is None, reason="needs a C compiler: apt-get install gcc libc6-dev")
WHOLE = "".join(PIECES)
NAMES = [ISSUE, WHOLE, "*/ int injected(void) { return 1; } /*", "\\", "x" * 5000, "é" * 9 + "/"]


def hostile_card(graph, name):
    """A card with a hostile name, classes and facts, as in a foreign model file."""
    card = card_of(graph, name)
    classes = tuple(f"{index}{(*PIECES, WHOLE)[index % len(PIECES)]}" for index in range(len(card.classes)))
    return replace(card, classes=(WHOLE, *classes[1:]), facts={"dataset": WHOLE, "seed": [WHOLE]})


def symbols(folder: Path) -> set[str]:
    """The names that an exported model defines, with the strictest compiler flags."""
    flags = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-trigraphs", "-O0", "-DTHAW_PORTABLE"]
    done = subprocess.run([CC, *flags, "-c", "model.c"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:2000]
    listed = subprocess.run(["nm", "model.o"], cwd=folder, capture_output=True, text=True, check=True)
    return {line.split()[-1] for line in listed.stdout.splitlines()}


def written(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@needs_compiler
def test_hostile_name_is_escaped_in_exported_c(tmp_path):
    graph = random_int8_graph(np.random.default_rng(3))
    expected = symbols(written(export_c({"int8": graph}, card_of(graph)), tmp_path / "benign"))
    for number, name in enumerate(NAMES):
        card = hostile_card(graph, name)
        # The working folder of make also has a hostile name.
        folder = written(
            export_c({"int8": graph}, card), tmp_path / f"{number} $(touch made) `touch made`;'\" # \\" / "c"
        )
        assert symbols(folder) == expected, name
        done = subprocess.run(
            ["make", "example", "CFLAGS=-O0"], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[:2000]
        assert not list(tmp_path.rglob("made"))
        text = (folder / "README.md").read_text("utf-8")
        assert not any(map(is_unsafe, text.replace("\n", "")))
        tokens = MarkdownIt("commonmark").enable("table").parse(text)
        assert "".join(child.content for child in tokens[1].children) == f"{printable(name).strip()} in C99"
        assert {child.type for child in tokens[1].children} <= {"text", "text_special"}
        kept = json.loads([token.content for token in tokens if token.type == "code_block"][-1])
        assert kept == json.loads(json.dumps(card.as_dict()))


@needs_compiler
def test_exported_c_prints_each_class_on_one_line(tmp_path):
    graph = random_int8_graph(np.random.default_rng(3))
    card = hostile_card(graph, ISSUE)
    folder = written(export_c({"int8": graph}, card), tmp_path / "c")
    (folder / "say.c").write_text(
        '#include "model.h"\n#include <stdio.h>\nint main(void) { int i; for (i = 0; i < MODEL_CLASSES; i++) '
        "{ puts(model_class_names[i]); } return 0; }\n"
    )
    subprocess.run([CC, "-std=c99", "-o", "say", "say.c", "model.c"], cwd=folder, check=True)
    said = subprocess.run([folder / "say"], capture_output=True, check=True).stdout.decode().split("\n")
    assert said == [*map(printable, card.classes), ""]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_model_metadata_round_trip(monkeypatch, name):
    onnx = pytest.importorskip("onnx")
    graph = random_int8_graph(np.random.default_rng(3))
    card = hostile_card(graph, name)
    expected = json.loads(json.dumps(card.as_dict()))

    files = export_onnx({"int8": graph}, card)
    model = onnx.load_from_string(files["model-int8.onnx"])
    assert {each.key: json.loads(each.value) for each in model.metadata_props} == expected
    assert model.graph.name == printable(name)

    monkeypatch.setattr(to_web, "_runtime", dict)
    page = to_web.export_web({"int8": graph}, card)
    assert {key: json.loads(page["model.json"])[key] for key in expected} == expected

    pytest.importorskip("flatbuffers")
    content = export_litert({"int8": graph}, card)["model-int8.tflite"]
    with zipfile.ZipFile(BytesIO(content)) as archive:
        assert archive.read("labels.txt").decode() == "".join(f"{printable(each)}\n" for each in card.classes)
        assert json.loads(archive.read("card.json")) == expected


# The report


def changed(tree: Any, change) -> Any:
    """A JSON tree with all strings changed, except those that the page uses as keys."""
    if isinstance(tree, dict):
        kept = {"files", "severity", "origin", "kind", "original", "augmented"}
        return {key: item if key in kept else changed(item, change) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return [changed(item, change) for item in tree]
    return change(tree) if isinstance(tree, str) else tree


def test_report_escapes_all_text():
    metrics, history, pictures = run_of()
    plain = changed(metrics, lambda text: f"{text}a")
    hostile = changed(metrics, lambda text: f"{text}{WHOLE}")
    pages = [
        render_report(each, history, ReportPictures(mistakes=pictures.mistakes), recipe_text=each["dataset"])
        for each in (plain, hostile)
    ]
    expected, seen = map(Seen, pages)
    assert [tag for tag, _ in seen.tags if tag != "span"] == [tag for tag, _ in expected.tags if tag != "span"]
    assert [sorted(name for name, _ in given) for tag, given in seen.tags if tag != "span"] == [
        sorted(name for name, _ in given) for tag, given in expected.tags if tag != "span"
    ]
    assert not any(map(is_unsafe, re.sub("[\n\t]", "", pages[1])))
    assert seen.comments == expected.comments
    assert "injected" in seen.text


def test_plot_escapes_all_text():
    points = [
        Point(dataset="mnist", name=name, kind="zoo", accuracy=0.9, parameters=1000 + index, macs=None, source=name)
        for index, name in enumerate(NAMES)
    ]
    root = ET.fromstring(draw({point: index for index, point in enumerate(points)}))
    assert {element.tag.partition("}")[2] for element in root.iter()} <= {
        "svg",
        "style",
        "rect",
        "text",
        "line",
        "path",
        "g",
        "title",
        "circle",
    }
    titles = [element.text or "" for element in root.iter() if element.tag.endswith("title")]
    assert [title.partition(":")[0] for title in titles if title.startswith("photos")] == [ISSUE]


# A whole run


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Two classes of twelve images; every name is hostile."""
    root = tmp_path_factory.mktemp("hostile") / ISSUE
    rng = np.random.default_rng(1)
    # Names contain neither "/" nor the same invalid UTF-8 byte twice.
    for number, name in enumerate(
        ("=cat\x1b]0;owned\x07\n\u202e| `x` <b>", "*\\ int injected(void) { return 1; } \\*")
    ):
        (root / name).mkdir(parents=True)
        for index, image in enumerate(["-1\n.png", "@\x1b[31m.png", "\udcff.png", *map("{}.png".format, range(9))]):
            pixels = rng.integers(100 * number, 100 * number + 90, (12, 12), dtype=np.uint8)
            pixels[index] = 255
            Image.fromarray(pixels).save(root / name / image)
    return root


def assert_quiet(*texts: str) -> None:
    """Check that printed text contains no control characters."""
    for text in texts:
        odd = {
            letter
            for letter in text
            if letter != "\n" and unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
        }
        assert not odd, (odd, text)


@needs_compiler
def test_hostile_data_set_is_escaped_on_terminal_in_files_and_code(call, source, tmp_path):
    out_folder = "run\x1b[31m'\n$(touch made)"
    overrides = [word for each in (*TINY_OVERRIDES, "description=\x1b\u202e\udcff") for word in ("--set", each)]
    calls = {
        "data": call("data", source, "--recipe", "paper"),
        "data --json": call("data", source, "--recipe", "paper", "--json"),
        "train": call("train", source, "--recipe", "paper", *overrides, "--out", out_folder),
        "info": call("info", out_folder),
        "info --json": call("info", out_folder, "--json"),
        "predict": call("predict", out_folder, source),
        "predict --json": call("predict", out_folder, source, "--json"),
        "predict --format csv": call("predict", out_folder, source, "--format", "csv"),
        "evaluate": call("evaluate", out_folder, source),
        "export": call("export", out_folder, "--to", "c"),
        "verify": call("verify", out_folder, "--images", 2),
        "resume": call("train", "--resume", out_folder),
        "unknown": call("train", "\x1b[31mnothing\n\u202e"),
        "option": call("train", source, "--\x1b[31m\n"),
        "recipe": call("train", source, "--recipe", "\x1b[31m\n"),
        "debug": call("train", "\x1b[31mnothing\n\u202e", "--debug"),
    }
    for name, (code, out, err) in calls.items():
        assert_quiet(out, err)
        assert code == {"unknown": 1, "debug": 1, "option": 2, "recipe": 2}.get(name, 0), (name, out, err)
    for name in ("data --json", "info --json", "predict --json"):
        assert any("injected" in each for each in json.loads(calls[name][1])["classes"])
    rows = list(csv.reader(StringIO(calls["predict --format csv"][1])))
    assert len(rows) == 25
    for row in rows:
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)
    assert {float(cell) <= 1 for row in rows[1:] for cell in row[2:]} == {True}

    run = tmp_path / out_folder
    symbols_ = symbols(run / "export" / "c")
    assert "injected" not in symbols_
    assert any(name.endswith("_predict") for name in symbols_)
    page = Seen((run / "report.html").read_text("utf-8"))
    assert page.comments == [" deployment: begin ", " deployment: end "]
    assert "injected" in page.text
    for path in run.rglob("*.json"):
        json.loads(path.read_text("utf-8"))
    assert not list(tmp_path.rglob("made"))


def test_help_and_unknown_command_escape_arguments(call):
    for arguments in (
        ("--help",),
        ("train", "--help"),
        ("\x1b[31m\n",),
        ("zoo", "\x1b[31m\n"),
        ("info", "zoo:\x1b[31m\n"),
    ):
        _, out, err = call(*arguments)
        assert_quiet(out, err)


def test_shell_parses_the_command_of_a_report(call, source, tmp_path, monkeypatch):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    from thaw.quoting import shell_command

    words = ["thaw", "train", str(source), "--out", "a\x1b'b\n$(id)"]
    said = subprocess.run(
        [bash, "-c", f"thaw() {{ printf '%s\\0' \"$@\"; }}; {shell_command(words)}"], capture_output=True, check=True
    ).stdout
    assert said.split(b"\0")[:-1] == [os.fsencode(word) for word in words[1:]]
    assert sys.getfilesystemencoding() == "utf-8"
