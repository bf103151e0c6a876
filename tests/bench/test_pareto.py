"""The Pareto plot: its points, their positions, and their sources."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from command_line import REPOSITORY
from error_matching import raises
from pareto import PUBLIC_RESULTS, collect, main, public_results, write_pareto
from pareto_plot import HEAD, PANEL_HEIGHT, WIDTH, Point, draw, front

from thaw.model import zoo as zoo_file
from thaw.studies.reproduce import PUBLISHED

REPRODUCTION = REPOSITORY / "docs" / "results" / "reproduce.json"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def no_zoo(monkeypatch, tmp_path):
    """The package without its models."""
    monkeypatch.setattr(zoo_file, "zoo_root", lambda: tmp_path / "none")


def point(**changes) -> Point:
    usual = {"dataset": "mnist", "name": "a", "kind": "public", "accuracy": 0.99, "parameters": 1000, "macs": 10_000}
    return Point(**{**usual, "source": "https://example.org", **changes})


def drawn(points) -> ET.Element:
    return ET.fromstring(draw({each: number for number, each in enumerate(points, start=1)}))


def marks(svg: ET.Element) -> list[ET.Element]:
    return [group for group in svg.iter(f"{SVG}g") if group.find(f"{SVG}title") is not None]


def beaten(one, other) -> bool:
    """Whether `other` is at least as good in both, and better in one."""
    return other != one and other[0] <= one[0] and other[1] >= one[1]


@pytest.mark.parametrize("seed", range(20))
def test_front_contains_the_undominated_points(seed):
    rng = np.random.default_rng(seed)
    points = [(int(size), int(accuracy) / 8) for size, accuracy in rng.integers(1, 8, (12, 2))]
    expected = sorted({each for each in points if not any(beaten(each, other) for other in points)})
    assert front(points) == expected


def test_front_of_no_points_is_empty():
    assert front([]) == []


def test_public_results_are_complete_and_have_sources():
    found = tomllib.loads(PUBLIC_RESULTS.read_text("utf-8"))["result"]
    assert len(found) == len(public_results()) > 10
    for entry in found:
        assert set(entry) <= {"dataset", "name", "accuracy", "parameters", "macs", "source", "checked", "note"}, entry
        assert entry["dataset"] in PUBLISHED
        assert 0.5 < entry["accuracy"] < 1.0
        assert isinstance(entry["parameters"], int)
        assert entry["parameters"] > 0
        assert entry["source"]
        assert isinstance(entry["checked"], bool)
        if entry["checked"]:
            assert entry["source"].startswith("https://"), entry
    names = [(entry["dataset"], entry["name"]) for entry in found]
    assert len(set(names)) == len(names)


def test_multiply_accumulates_by_hand():
    macs = {each.name: each.macs for each in public_results() if each.macs is not None}
    # (positions, filters, products per filter), from the layer tables of the sources.
    layers = {
        "MNIST minimal model": [(26**2, 8, 9), (11**2, 16, 72), (9, 16, 144), (9, 4, 16), (1, 24, 36), (1, 10, 24)],
        "MLPerf Tiny, ResNet-8": [
            (32**2, 16, 27), (32**2, 16, 144), (32**2, 16, 144),
            (16**2, 32, 144), (16**2, 32, 288), (16**2, 32, 16),
            (8**2, 64, 288), (8**2, 64, 576), (8**2, 64, 32), (1, 10, 64),
        ],
    }  # fmt: skip
    assert macs == {name: sum(a * b * c for a, b, c in rows) for name, rows in layers.items()}


@pytest.mark.usefixtures("no_zoo")
def test_collects_all_kinds_of_results():
    points = collect(REPRODUCTION)
    kinds = [each.kind for each in points]
    assert set(kinds) == {"reproduced", "paper", "public", "unchecked"}
    rows = json.loads(REPRODUCTION.read_text())["rows"]
    mine = {each.dataset: each for each in points if each.kind == "reproduced"}
    assert {name: each.accuracy for name, each in mine.items()} == {row["dataset"]: row["mean"] for row in rows}
    paper = {each.dataset: each for each in points if each.kind == "paper"}
    # The same network has the same counts.
    assert {name: (each.parameters, each.macs) for name, each in paper.items()} == {
        name: (each.parameters, each.macs) for name, each in mine.items()
    }
    assert "reproduced" not in {each.kind for each in collect()}


@pytest.mark.usefixtures("no_zoo")
def test_points_are_inside_their_panel():
    points = collect(REPRODUCTION)
    svg = drawn(points)
    assert len(marks(svg)) == len(points) + sum(each.macs is not None for each in points)
    width, height = map(float, svg.get("viewBox").split()[2:])
    assert (width, height) == (WIDTH, HEAD + 3 * PANEL_HEIGHT + 30)
    for mark in marks(svg):
        x, y = map(float, re.match(r"M([\d.]+) ([\d.]+)", mark.find(f"{SVG}path").get("d")).groups())
        assert 0 < x < width
        assert HEAD < y < height
    for text in svg.iter(f"{SVG}text"):
        assert 0 <= float(text.get("x")) <= width
        assert 0 < float(text.get("y")) < height


def test_smaller_is_left_and_more_accurate_is_up():
    points = [point(name=str(n), parameters=10**n, accuracy=1 - 0.3**n, kind="zoo") for n in (2, 3, 4)]
    places = [
        (float(c.get("cx")), float(c.get("cy"))) for c in (m.find(f"{SVG}circle") for m in marks(drawn(points))[:3])
    ]
    (x1, y1), (x2, y2), (x3, y3) = places
    assert x1 < x2 < x3
    assert y1 > y2 > y3
    # Both axes are logarithmic: equal factors are equal distances.
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)


def test_svg_markup_in_names_is_escaped():
    svg = drawn([point(name='<script>&"', kind="zoo")])
    assert not list(svg.iter(f"{SVG}script"))
    assert any(text.text == '<script>&"' for text in svg.iter(f"{SVG}text"))


def test_labels_do_not_overlap():
    rng = np.random.default_rng(1)
    points = [
        point(name=f"network-{n}", kind="zoo", parameters=int(size), accuracy=float(accuracy), macs=None)
        for n, (size, accuracy) in enumerate(zip(rng.integers(1000, 9000, 14), rng.uniform(0.9, 0.99, 14), strict=True))
    ]
    svg = drawn(points)
    boxes = []
    for text in svg.iter(f"{SVG}text"):
        if "label" in (text.get("class") or ""):
            x, y = float(text.get("x")), float(text.get("y"))
            boxes.append((x, y - 10, x + 6.8 * len(text.text), y + 2))
    assert len(boxes) >= 8
    circles = [m.find(f"{SVG}circle") for m in marks(svg)]
    boxes += [
        (float(c.get("cx")) - 5, float(c.get("cy")) - 5, float(c.get("cx")) + 5, float(c.get("cy")) + 5)
        for c in circles
    ]
    labels = len(boxes) - len(circles)
    for one, other in itertools.combinations(range(len(boxes)), 2):
        if one < labels:
            a, b = boxes[one], boxes[other]
            assert a[2] <= b[0] + 0.2 or b[2] <= a[0] + 0.2 or a[3] <= b[1] + 0.2 or b[3] <= a[1] + 0.2


def test_colors_follow_the_dark_mode():
    text = draw({point(): 1})
    assert "prefers-color-scheme: dark" in text
    body = text.split("</style>")[1]
    assert not re.search(r"#[0-9a-f]{3,6}|rgb", body), "a color that does not follow the dark mode"


def test_unchecked_points_are_hollow_and_not_on_the_front():
    solid, better = point(name="a"), point(name="b", kind="unchecked", accuracy=0.995, parameters=500)
    svg = drawn([solid, better])
    assert 'class="mark unchecked"' in draw({solid: 1, better: 2})
    lines = [path.get("d") for path in svg.iter(f"{SVG}path") if path.get("class") == "front"]
    assert len(lines) == 2
    assert [line.count("L") for line in lines] == [1, 1]


@pytest.mark.usefixtures("no_zoo")
def test_script_writes_plot_and_page_of_sources(monkeypatch, capsys, tmp_path):
    out = tmp_path / "new" / "p.svg"
    monkeypatch.setattr("sys.argv", ["pareto.py", "--out", str(out)])
    main()
    page = out.with_suffix(".md").read_text("utf-8")
    assert "![Accuracy over parameters and over multiply-accumulates](p.svg)" in page
    for each in collect(REPRODUCTION):
        assert each.source in page
        assert each.name in page
    assert capsys.readouterr().out.count("written: ") == 2
    ET.fromstring(out.read_text("utf-8"))
    write_pareto(tmp_path / "q.svg", REPRODUCTION)
    assert (tmp_path / "q.svg").read_bytes() == out.read_bytes()
    with raises("run"):
        write_pareto(tmp_path / "q.svg", tmp_path / "none.json")


def test_rejects_other_suffix(tmp_path):
    with raises("usage", ".svg"):
        write_pareto(tmp_path / "plot.html")
