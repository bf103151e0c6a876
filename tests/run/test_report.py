"""The report: content, escaping, and rendering in a real browser."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import REPOSITORY
from error_matching import raises
from report_samples import EVIL, HOSTILE, PLAN, history_of, run_of
from web_samples import chromium

from thaw.run.report import ReportPictures, render_report, write_report
from thaw.run.report_plots import accuracy_curves, curves_panel, heat_paths, loss_curves, stage_starts


def test_page_agrees_with_the_metrics(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('name = "paper"\n[dual]\nepochs = 15\n', encoding="utf-8")
    metrics, history, pictures = run_of()
    path = write_report(tmp_path, json.loads(json.dumps(metrics)), history, pictures)
    assert path == tmp_path / "report.html"
    page = html.unescape(path.read_text(encoding="utf-8")).replace("\N{NO-BREAK SPACE}", " ")
    low, high = metrics["test"]["accuracy_ci95"]
    for text in (
        f"{100 * metrics['test']['accuracy']:.2f}",
        f"{100 * low:.2f} % to {100 * high:.2f} %",
        "14,862",
        "1,234,567",
        "15,102",
        "14.7 KiB",
        "312 µs",
        "1.50 ms",
        "original.conv1",
        "28 × 28 × 16",
        "2 images are in training and in test",
        "broken/0001.jpg: truncated after 312 bytes",
        "random, 20.0 %, stratified by class, seed 1",
        '<span class="word">--folds</span> <span class="word">5</span>',
        "[dual]\nepochs = 15",
        "Mean accuracy of 5 folds",
        metrics["environment"]["torch"],
    ):
        assert text in page, text
    for stage in ("dual", "head", "dense", "conv2", "conv1"):
        assert page.count(f"<title>{stage}</title>") == 4  # two plots, each for two widths
    assert page.count("data:image/png;base64,") == len(metrics["test"]["mistakes"]) + 16


def test_report_is_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, history, pictures = run_of()
    (tmp_path / "report.html").write_text("before", encoding="utf-8")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with raises("run-write", "No space left"):
        write_report(tmp_path, metrics, history, pictures)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "before"
    monkeypatch.undo()
    write_report(tmp_path, metrics, history, pictures)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_missing_folder_is_an_error_of_one_line(tmp_path: Path) -> None:
    with raises("run-write"):
        write_report(tmp_path / "missing", *run_of())


def test_rejects_incomplete_metrics_by_name() -> None:
    metrics, history, pictures = run_of()
    del metrics["cost"]["weight_bytes_int8"]
    with raises("run-metrics", "weight_bytes_int8"):
        render_report(metrics, history, pictures)


def test_names_are_escaped() -> None:
    metrics, history, pictures = run_of(HOSTILE)
    for key in ("dataset", "recipe", "command", "device"):
        metrics[key] = EVIL
    metrics["data"]["source"] = metrics["data"]["fingerprint"] = EVIL
    metrics["stages"][0]["name"] = EVIL
    history = [{**record, "stage": EVIL} if record["stage"] == "dual" else record for record in history]
    page = render_report(metrics, history, pictures, recipe_text=EVIL)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert page.count("</style>") == 1
    assert "{{ 7 * 7 }}" in page
    assert "49 мышь" not in page


def test_findings_come_first() -> None:
    metrics, history, pictures = run_of()
    assert '<aside class="findings"' not in render_report(metrics, history, pictures)
    finding = {"code": "class-without-hit", "severity": "warning", "message": f"no image of {EVIL}"}
    metrics["findings"] = [{**finding, "try": ["--recipe balanced", EVIL]}]
    page = render_report(metrics, history, pictures)
    first, told = (
        page.index('<aside class="findings"'),
        page.index(html.escape(f"no image of {EVIL}", quote=False)[:20]),
    )
    assert first < told < page.index('id="summary"') < page.index("Balanced accuracy")
    assert "Try: --recipe balanced; " in page
    assert "<script" not in page


def test_pictures_are_checked() -> None:
    metrics, history, pictures = run_of()
    with raises("usage-pictures"):
        render_report(metrics, history, ReportPictures(mistakes=[*pictures.mistakes, pictures.mistakes[0]]))
    with raises("usage-pictures"):
        ReportPictures(mistakes=[np.zeros((8, 8), np.uint8)])
    with raises("usage-pictures"):
        ReportPictures(samples=[(np.zeros((8, 8, 1)), np.zeros((8, 8, 1), np.uint8), "a")])


@pytest.mark.parametrize(
    "plan",
    [
        [],
        [("dual", "dual", 1)],
        [("plain", "unfreeze", 3)],
        [(f"layer {number}", "unfreeze", 1) for number in range(24)],
        [("dual", "dual", 400), ("head", "unfreeze", 1), ("dense", "unfreeze", 1), ("conv1", "unfreeze", 1)],
    ],
)
def test_labels_and_dots_are_inside_the_plot(plan: list[tuple[str, str, int]]) -> None:
    metrics, history, pictures = run_of(plan=plan)
    page = render_report(metrics, history, pictures)
    if not plan:
        assert "No epochs were recorded" in page
        return
    best = {stage["name"]: stage["best_epoch"] for stage in metrics["stages"]}
    for width in (360.0, 960.0):
        panel = curves_panel("x", accuracy_curves(history), history, best, width=width, percent=True, reference=0.5)
        labels = [stage.label_x for stage in panel.stages]
        assert labels == sorted(labels)
        assert min(labels) >= 0
        assert max(labels) <= width - 40
        assert all(later - earlier >= 11 for earlier, later in pairwise(labels))
        frame = panel.frame
        for dot in panel.best:
            assert frame.left <= dot.x <= frame.right
            assert frame.top <= dot.y <= frame.bottom
        assert frame.top <= panel.reference.at <= frame.bottom
        places = [tick.at for tick in panel.x_ticks]
        assert all(later - earlier >= 12 for earlier, later in pairwise(places))


def test_curves_follow_the_history() -> None:
    history = history_of([("dual", "dual", 3), ("head", "unfreeze", 2)])
    history[1]["losses"]["original"] = float("nan")
    curves = {curve.name: curve for curve in loss_curves(history)}
    assert set(curves) == {"original", "augmented", "unified", "validation"}
    assert [value is None for value in curves["original"].values] == [False, True, False, True, True]
    assert curves["unified"].values[:3] == (None,) * 3
    assert curves["validation"].values[4] == history[4]["validation_loss"]
    assert stage_starts(history) == (("dual", 0), ("head", 3))
    panel = curves_panel("Loss", tuple(curves.values()), history, {"dual": 3}, width=360, percent=False)
    assert [len(line.lone) for line in panel.lines if line.name == "original"] == [2]
    assert panel.frame.low == 0.0
    between = (panel.frame.x(2) + panel.frame.x(3)) / 2
    assert panel.stages[1].x == pytest.approx(between, abs=0.02)


def keys_of(tree: Any) -> set[str]:
    if isinstance(tree, dict):
        return set(tree).union(*(keys_of(value) for value in tree.values()))
    return set().union(*(keys_of(value) for value in tree)) if isinstance(tree, list) else set()


def test_every_name_is_documented_and_the_example_is_json() -> None:
    text = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    metrics, history, _ = run_of()
    assert [key for key in sorted(keys_of(metrics) | keys_of(history)) if f"`{key}`" not in text] == []
    example, line = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL))
    assert keys_of(example) == keys_of(metrics) | {"model", "model_int8", "training_images", "history", "report"}
    assert keys_of(line) == keys_of(history) - {"unified"}


def test_heat_paths_contain_every_count_once() -> None:
    confusion = [[90, 10, 0], [1, 98, 1], [0, 0, 0]]
    hits, errors = ("".join(path for _, path in heat_paths(confusion, right=right)) for right in (True, False))
    assert re.findall(r"M(\d) (\d)", hits) == [("0", "0"), ("1", "1")]
    assert sorted(re.findall(r"M(\d) (\d)", errors)) == [("0", "1"), ("1", "0"), ("2", "1")]
    assert all(0 < opacity <= 1 for opacity, _ in heat_paths(confusion, right=False))


def accurate() -> tuple[dict[str, Any], list[dict[str, Any]], ReportPictures]:
    """A run whose accuracy axis has decimals, and so the longest labels."""
    metrics, history, pictures = run_of()
    metrics["test"]["accuracy"] = 0.99
    for number, record in enumerate(history):
        record["validation"] = dict.fromkeys(record["validation"], 0.985 + 0.015 * (number % 3) / 2)
    return metrics, history, pictures


CASES = {
    "digits": run_of,
    "hostile": lambda: run_of(HOSTILE, count=90, side=300, channels=3),
    "two": lambda: run_of(("cat", "dog"), count=40, plan=[("dual", "dual", 1)], side=32, channels=3),
    "hundred": lambda: run_of(
        tuple(f"class {number:03d}" for number in range(100)), count=3000, plan=[*PLAN, *PLAN[1:]]
    ),
    "accurate": accurate,
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.mark.parametrize(
    ("case", "width", "scheme"),
    [
        ("digits", 390, "light"),
        ("digits", 1280, "dark"),
        *((case, *screen) for case in CASES for screen in ((390, "dark"), (1280, "light"))),
    ],
)
def test_real_browser_renders_the_page(browser: Any, tmp_path: Path, case: str, width: int, scheme: str) -> None:
    (tmp_path / "recipe.toml").write_text('name = "paper"\n' + "long = " + "9" * 300 + "\n", encoding="utf-8")
    path = write_report(tmp_path, *CASES[case]())
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(path.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(part => part.open = true)")

    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    broken = "return [...document.images].filter(i => !i.complete || i.naturalWidth === 0).map(i => i.alt)"
    assert browser.execute_script(broken) == []
    assert browser.execute_script("return document.images.length") > 0
    assert browser.execute_script("return window.innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    outside = (
        "return [...document.querySelectorAll('main > section > *, header > *')].filter(e => e.offsetParent"
        " && e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert browser.execute_script(outside) == []
    cut = (
        "return [...document.querySelectorAll('.plot svg text')].filter(text => text.getClientRects().length"
        " && text.getBBox().x < -0.5).map(text => text.textContent)"
    )
    assert browser.execute_script(cut) == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert {url.split(":", 1)[0] for url in asked} <= {"file", "data"}
    assert [url for url in asked if url.startswith("file:")] == [path.as_uri()]
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = max(int(value) for value in re.findall(r"\d+", background)[:3])
    assert brightness > 200 if scheme == "light" else brightness < 60
