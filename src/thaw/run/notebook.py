"""The view of a finished run in a notebook: main results and training curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.quoting import xml_text

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 360, 150, 44, 22, 16  # CSS pixels of a plot and of its margins
_COLORS = ("#0b7f73", "#b86410", "#1f5fa8", "#8a3fa0", "#5d7a12", "#b0305c")


def summary_html(metrics: Mapping[str, Any], history: Mapping[str, npt.NDArray[Any]]) -> str:
    """HTML for the content of metrics.json and the columns of the history."""
    low, high = metrics["test"]["accuracy_ci95"]
    rows = {
        "data": f"{metrics['dataset']}, recipe {metrics['recipe']}, seed {metrics['seed']}",
        "test accuracy": f"{metrics['test']['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%})",
        "int8": f"{metrics['int8']['test']['accuracy']:.2%}",
        "parameters": f"{metrics['parameters']:,}",
        "multiply-accumulates": f"{metrics['macs']:,}",
    }
    findings = [(finding["severity"], finding["message"]) for finding in metrics["findings"]]
    cells = "".join(
        f"<tr><th>{xml_text(key)}</th><td>{xml_text(value)}</td></tr>" for key, value in (*findings, *rows.items())
    )
    losses = {key.removeprefix("losses."): history[key] for key in history if key.startswith("losses.")}
    accuracies = {key.removeprefix("validation."): history[key] for key in history if key.startswith("validation.")}
    return f"<table>{cells}</table>{_plot('training loss', losses)}{_plot('validation accuracy', accuracies)}"


def _plot(title: str, curves: Mapping[str, npt.NDArray[Any]]) -> str:
    """Curves over epochs as SVG, with gaps at values that are not finite."""
    finite = [values[np.isfinite(values)] for values in curves.values()]
    if not any(map(len, finite)):
        return ""
    low, high = (
        float(min(each.min() for each in finite if len(each))),
        float(max(each.max() for each in finite if len(each))),
    )
    epochs = max(map(len, curves.values()))
    step = (_WIDTH - _LEFT) / max(1, epochs - 1)
    scale = (_HEIGHT - _TOP - _BOTTOM) / ((high - low) or 1.0)
    parts, legend = [], []
    for color, (name, values) in zip(_COLORS, curves.items(), strict=False):
        points = [
            (
                f"{_LEFT + place * step:.1f},{_HEIGHT - _BOTTOM - (float(value) - low) * scale:.1f}",
                bool(np.isfinite(value)),
            )
            for place, value in enumerate(values)
        ]
        starts = ["M" if place == 0 or not points[place - 1][1] else "L" for place in range(len(points))]
        path = "".join(start + point for start, (point, is_drawn) in zip(starts, points, strict=True) if is_drawn)
        parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        legend.append(f'<tspan fill="{color}">{xml_text(name)} </tspan>')
    return (
        f'<svg width="{_WIDTH + 8}" height="{_HEIGHT}" font-family="sans-serif" font-size="11" fill="currentColor">'
        f'<text x="0" y="12">{title}: {"".join(legend)}</text>'
        f'<text x="0" y="{_TOP + 8}">{high:.3g}</text><text x="0" y="{_HEIGHT - _BOTTOM}">{low:.3g}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 2}">epoch 1 to {epochs}</text>{"".join(parts)}</svg>'
    )
