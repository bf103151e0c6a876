"""Parts of the metrics of a run that never was."""

from __future__ import annotations

from typing import Any

from thaw.evidence.quality import Quality


def int8_of(quality: Quality) -> dict[str, Any]:
    """The `int8` part of metrics.json for an int8 network that answers as the float one does."""
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
