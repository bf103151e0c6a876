"""Parts of the metrics of a fictitious run."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from thaw.evidence import environment, evaluate, wilson_interval
from thaw.evidence.quality import Quality
from thaw.run.report import ReportPictures


def int8_of(quality: Quality) -> dict[str, Any]:
    """The `int8` part of metrics.json for an int8 network with the predictions of the float network."""
    return {
        "method": "mse",
        "candidates": [
            {
                "method": method,
                "validation_accuracy": 0.9861,
                "validation_balanced_accuracy": 0.9853,
                "squared_error": 3.1e-6,
            }
            for method in ("minmax", "mse")
        ],
        "selected_by": "accuracy",
        "calibration_images": 1_000,
        "qat": None,
        "weight_bytes": 15_102,
        "validation": {
            "float_accuracy": 0.9861,
            "accuracy": 0.9861,
            "float_balanced_accuracy": 0.9853,
            "balanced_accuracy": 0.9853,
            "count": 288,
        },
        "test": {
            "float_accuracy": quality.accuracy,
            "accuracy": quality.accuracy,
            "accuracy_ci95": list(quality.accuracy_ci95),
            "float_balanced_accuracy": quality.balanced_accuracy,
            "balanced_accuracy": quality.balanced_accuracy,
            "count": quality.count,
            "agreement": 1.0,
            "per_class": [
                {"name": each.name, "float_recall": each.recall, "recall": each.recall, "support": each.support}
                for each in quality.per_class
            ],
        },
    }


EVIL = '<script>alert("x")</script>&\'" {{ 7 * 7 }} мышь 鼠'
LONG = "a very long class name " * 9
DIGITS = tuple("0123456789")
HOSTILE = (EVIL, LONG, "x" * 200, "ネズミ", "]]></style><img src=x onerror=alert(1)>")


def history_of(plan: list[tuple[str, str, int]], seed: int = 0) -> list[dict[str, Any]]:
    """One line per epoch for stages (name, kind, epochs), with decreasing losses."""
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
    """Metrics, history and pictures of a fictitious run."""
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
        "kernels": "torch",
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
