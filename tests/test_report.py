"""The report: what it says, what it escapes, and how a real browser shows it."""

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
from report_samples import int8_of
from sklearn.datasets import load_digits
from web_samples import chromium

from thaw.errors import RunError, UsageError
from thaw.evidence import environment, evaluate, wilson_interval
from thaw.workflow.report import ReportPictures, render_report, write_report
from thaw.workflow.report_plots import accuracy_curves, curves_panel, heat_paths, loss_curves, stage_starts

EVIL = '<script>alert("x")</script>&\'" {{ 7 * 7 }} мышь 鼠'
LONG = "a very long class name " * 9
DIGITS = tuple("0123456789")
HOSTILE = (EVIL, LONG, "x" * 200, "ネズミ", "]]></style><img src=x onerror=alert(1)>")


def history_of(plan: list[tuple[str, str, int]], seed: int = 0) -> list[dict[str, Any]]:
    """A line an epoch for stages (name, kind, epochs), with losses that fall."""
    rng = np.random.default_rng(seed)
    records: list[dict[str, Any]] = []
    for name, kind, epochs in plan:
        for epoch in range(1, epochs + 1):
            done = len(records) + 1
            loss = 1.9 * done**-0.75 + 0.03 + 0.02 * rng.random()
            accuracy = float(np.clip(1 - 0.28 * done**-0.95 - 0.012 * rng.random(), 0, 1))
            outputs = ("original", "augmented") if kind == "dual" else ("unified",)
            losses = {view: loss * (1.25 if view == "augmented" else 1.0) for view in outputs}
            accuracies = {view: accuracy - (0.012 if view == "augmented" else 0.0) for view in outputs}
            records.append(
                {
                    "stage": name,
                    "kind": kind,
                    "epoch": epoch,
                    "epochs": epochs + 2,
                    "train_loss": sum(losses.values()),
                    "losses": losses,
                    "validation_accuracy": float(np.mean(list(accuracies.values()))),
                    "validation_balanced_accuracy": float(np.mean(list(accuracies.values()))),
                    "validation_loss": loss * 0.8,
                    "validation": accuracies,
                    "learning_rate": 0.001,
                    "images_per_second": 21_345.6,
                    "seconds": 1.25,
                    "best": epoch == epochs - 1 or epochs == 1,
                    "best_by": "accuracy",
                }
            )
    return records


PLAN = [
    ("dual", "dual", 15),
    ("head", "unfreeze", 5),
    ("dense", "unfreeze", 5),
    ("conv2", "unfreeze", 5),
    ("conv1", "unfreeze", 10),
]


def run_of(
    classes: tuple[str, ...] = DIGITS,
    count: int = 360,
    plan: list[tuple[str, str, int]] = PLAN,
    side: int = 28,
    channels: int = 1,
) -> tuple[dict[str, Any], list[dict[str, Any]], ReportPictures]:
    """Metrics, history and pictures of a run that never was."""
    rng = np.random.default_rng(7)
    scores = rng.normal(0, 1.5, (count, len(classes)))
    scores[np.arange(count), rng.integers(0, len(classes), count)] += rng.normal(11, 4, count)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(len(classes), p=row) for row in probabilities])
    quality = evaluate(probabilities, labels, classes, [f"test[{index}]" for index in range(count)])
    history = history_of(plan)
    stages = [
        {
            "name": name,
            "kind": kind,
            "epochs": epochs,
            "epochs_planned": epochs + 2,
            "best_epoch": max(1, epochs - 1),
            "seconds": 1.25 * epochs,
            "images_per_second": 21_345.6,
            "trains": ["conv1", "conv2", "dense"] if kind == "dual" else ["head", name],
            "selected_by": "accuracy",
            "validation_accuracy": 0.9812,
            "validation_balanced_accuracy": 0.9744,
            **({"validation": {"original": 0.986, "augmented": 0.974}} if kind == "dual" else {}),
            "stopped_early": kind == "dual",
        }
        for name, kind, epochs in plan
    ]
    layers = [
        ("original.conv1", "conv3x3+relu", [28, 28, 16], 160, 112_896, 50_176),
        ("original.pool1", "maxpool2x2", [14, 14, 16], 0, 0, 12_544),
        ("augmented.conv1", "conv3x3+relu", [28, 28, 16], 160, 112_896, 50_176),
        ("head", "dense+softmax", [1, 1, 10], 210, 200, 40),
    ]
    keys = ("name", "kind", "output", "parameters", "macs", "activation_bytes")
    metrics: dict[str, Any] = {
        "schema": 1,
        "dataset": "digits",
        "data": {
            "source": "digits",
            "classes": list(classes),
            "train": 1_149,
            "validation": 288,
            "test": count,
            "fingerprint": "9f86d081884c7d659a2feaa0c55ad015",
            "splits": {
                "train": {"origin": "source", "fraction": None, "seed": None},
                "validation": {"origin": "cut", "fraction": 0.2, "seed": 1},
                "test": {"origin": "cut", "fraction": 0.2, "seed": 0},
            },
            "groups": None,
            "problems": [
                {
                    "kind": "duplicates",
                    "severity": "warning",
                    "message": "2 images are in training and in test",
                    "names": ["train[17]", f"{EVIL}.png"],
                }
            ],
            "skipped": ["broken/0001.jpg: truncated after 312 bytes"],
        },
        "recipe": "paper",
        "overrides": [],
        "seed": 1,
        "input": {
            "height": side,
            "width": side,
            "channels": channels,
            "fit": "stretch",
            "mean": [0.1307] * channels,
            "std": [0.3081] * channels,
        },
        "parameters": 14_862,
        "macs": 1_234_567,
        "cost": {
            "layers": [dict(zip(keys, layer, strict=True)) for layer in layers],
            "parameters": 14_862,
            "macs": 1_234_567,
            "peak_activation_bytes_float32": 62_720,
            "peak_activation_bytes_int8": 15_680,
            "weight_bytes_float32": 59_448,
            "weight_bytes_int8": 15_102,
            "arena_bytes": 2_420,
            "ram_bytes": 3_726,
            "flash_bytes": 22_554,
            "image_bytes": 784,
            "score_bytes": 10,
        },
        "budget": {"params": 15_000, "ram": 2_048, "flash": None, "macs": None},
        "stages": stages,
        "validation": {
            "accuracy": 0.9861,
            "accuracy_ci95": list(wilson_interval(284, 288)),
            "balanced_accuracy": 0.9853,
            "count": 288,
        },
        "findings": [
            {"code": "class-without-hit", "severity": "warning", "message": f"no {text}", "try": [f"more {text}"]}
            for text in (HOSTILE if classes == HOSTILE else ())
        ],
        "test": quality.as_dict(),
        "int8": int8_of(quality),
        "latency": {
            "median_us": 312.4,
            "p99_us": 1_498.2,
            "repeats": 1_604,
            "warmup": 20,
            "batch_size": 256,
            "batch_repeats": 31,
            "images_per_second": 40_211.7,
        },
        "folds": {
            "count": 5,
            "accuracies": [0.98, 0.97, 0.99, 0.985, 0.975],
            "balanced_accuracies": [0.979, 0.971, 0.988, 0.984, 0.973],
            "balanced_mean": 0.979,
            "mean": 0.98,
            "std": 0.0079,
            "ci95": [0.9702, 0.9898],
        },
        "command": "thaw train digits --recipe paper --seed 1 --folds 5",
        "device": "cpu",
        "precision": "float32",
        "normalisation": "torch",
        "seconds": 61.5,
        "environment": environment("cpu"),
        "files": {"recipe": "recipe.toml"},
    }
    digits = load_digits().images
    places = np.arange(side) * 8 // side

    def picture(number: int) -> np.ndarray:
        tint = np.array([15.9, 10.0, 5.0])[:channels]
        return (digits[number][np.ix_(places, places)][:, :, None] * tint).astype(np.uint8)

    pictures = ReportPictures(
        mistakes=[picture(number) for number in range(len(quality.mistakes))],
        samples=[(picture(n), np.roll(picture(n), (2, -3), axis=(0, 1)), classes[n % len(classes)]) for n in range(8)],
    )
    return metrics, history, pictures


def test_the_page_says_what_the_metrics_say(tmp_path: Path) -> None:
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
        "cut off at random, 20.0 %, stratified by class, seed 1",
        '<span class="word">--folds</span> <span class="word">5</span>',
        "[dual]\nepochs = 15",
        "5 folds gave a mean accuracy of",
        metrics["environment"]["torch"],
    ):
        assert text in page, text
    for stage in ("dual", "head", "dense", "conv2", "conv1"):
        assert page.count(f"<title>{stage}</title>") == 4  # two plots, each for two widths
    assert page.count("data:image/png;base64,") == len(metrics["test"]["mistakes"]) + 16


def test_a_report_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, history, pictures = run_of()
    (tmp_path / "report.html").write_text("before", encoding="utf-8")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        write_report(tmp_path, metrics, history, pictures)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "before"
    monkeypatch.undo()
    write_report(tmp_path, metrics, history, pictures)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_missing_folder_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot write"):
        write_report(tmp_path / "missing", *run_of())


def test_metrics_that_lack_a_part_are_refused_by_name() -> None:
    metrics, history, pictures = run_of()
    del metrics["cost"]["weight_bytes_int8"]
    with pytest.raises(RunError, match="weight_bytes_int8"):
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


def test_what_has_to_be_known_stands_first() -> None:
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
    with pytest.raises(UsageError, match="pictures for"):
        render_report(metrics, history, ReportPictures(mistakes=[*pictures.mistakes, pictures.mistakes[0]]))
    with pytest.raises(UsageError, match="expected uint8"):
        ReportPictures(mistakes=[np.zeros((8, 8), np.uint8)])
    with pytest.raises(UsageError, match="expected uint8"):
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
def test_every_label_and_dot_of_a_plot_lies_inside_it(plan: list[tuple[str, str, int]]) -> None:
    metrics, history, pictures = run_of(plan=plan)
    page = render_report(metrics, history, pictures)
    if not plan:
        assert "No epoch was recorded" in page
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
    text = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    metrics, history, _ = run_of()
    assert [key for key in sorted(keys_of(metrics) | keys_of(history)) if f"`{key}`" not in text] == []
    example, line = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL))
    assert keys_of(example) == keys_of(metrics) | {"model", "model_int8", "training_images", "history", "report"}
    assert keys_of(line) == keys_of(history) - {"unified"}


def test_heat_paths_hold_every_count_once() -> None:
    confusion = [[90, 10, 0], [1, 98, 1], [0, 0, 0]]
    hits, errors = ("".join(path for _, path in heat_paths(confusion, right=right)) for right in (True, False))
    assert re.findall(r"M(\d) (\d)", hits) == [("0", "0"), ("1", "1")]
    assert sorted(re.findall(r"M(\d) (\d)", errors)) == [("0", "1"), ("1", "0"), ("2", "1")]
    assert all(0 < opacity <= 1 for opacity, _ in heat_paths(confusion, right=False))


CASES = {
    "digits": run_of,
    "hostile": lambda: run_of(HOSTILE, count=90, side=300, channels=3),
    "two": lambda: run_of(("cat", "dog"), count=40, plan=[("dual", "dual", 1)], side=32, channels=3),
    "hundred": lambda: run_of(
        tuple(f"class {number:03d}" for number in range(100)), count=3000, plan=[*PLAN, *PLAN[1:]]
    ),
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
def test_a_real_browser_shows_it(browser: Any, tmp_path: Path, case: str, width: int, scheme: str) -> None:
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
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert {url.split(":", 1)[0] for url in asked} <= {"file", "data"}
    assert [url for url in asked if url.startswith("file:")] == [path.as_uri()]
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = max(int(value) for value in re.findall(r"\d+", background)[:3])
    assert brightness > 200 if scheme == "light" else brightness < 60
