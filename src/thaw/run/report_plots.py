"""Layout of the plots of the report; the template draws them as SVG in the colors of the page.

Each plot is laid out for a width in SVG units, once for wide screens and once for phones, so that text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STYLES = {"original": "s1", "augmented": "s2", "unified": "s3"}
OTHER_STYLES = ("s4", "s5", "s6")
NARROW = 600.0  # plots below this width are for phones: lower, with fewer ticks
LABEL_GAP = 15.0  # minimum distance between two slanted stage labels, for text of 11 units
# Mean width of a character in a tick label of 12 units, and the distance of the label from its axis.
LABEL_CHARACTER, LABEL_OFFSET = 7.1, 5.3
LABEL_ROOM = 64.0  # height above the plot for the stage labels
LONGEST_LABEL = 12  # maximum number of characters of a stage label
CUT_LOSSES, CUT_ACCURACIES = 0.05, 0.10  # share of values, from the first epochs, that may lie outside the axis


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A position on an axis in SVG units, and its label."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A marked value: its position, tooltip, and the style of its curve."""

    x: float
    y: float
    title: str
    style: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Values by epoch of the whole run, from 0; None for epochs without a value."""

    name: str
    style: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Line:
    """The layout of a curve: SVG path data, and isolated values without a neighbor to connect to."""

    name: str
    style: str
    path: str
    lone: tuple[Dot, ...]


@dataclass(frozen=True, kw_only=True)
class StageMark:
    """The start of a stage: a vertical line at `x`, its label at `label_x`."""

    name: str
    label: str
    x: float
    label_x: float


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The box of a plot in SVG units, and the ranges of its axes."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    epochs: int
    low: float
    high: float

    def x(self, index: float) -> float:
        """The x coordinate of an epoch, from 0; there is half an epoch of margin on either side."""
        return round(self.left + (index + 0.5) / self.epochs * (self.right - self.left), 2)

    def y(self, value: float) -> float:
        """The y coordinate of a value."""
        return round(self.bottom - (value - self.low) / (self.high - self.low) * (self.bottom - self.top), 2)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A plot: axes, lines, stages, best epochs, a reference value; `cut` if values lie outside the axis."""

    title: str
    frame: Frame
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    stages: tuple[StageMark, ...]
    best: tuple[Dot, ...]
    reference: Tick | None
    cut: bool


def loss_curves(history: Sequence[Mapping[str, Any]]) -> tuple[Curve, ...]:
    """The training loss of each output and the validation loss, by epoch of the run."""
    values = tuple(_finite(record.get("validation_loss")) for record in history)
    return _drawable([*_output_curves(history, "losses"), Curve(name="validation", style="s0", values=values)])


def accuracy_curves(history: Sequence[Mapping[str, Any]]) -> tuple[Curve, ...]:
    """The validation accuracy of each output, by epoch of the run."""
    return _drawable(_output_curves(history, "validation"))


def stage_starts(history: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, int], ...]:
    """(stage name, index of its first record), in order."""
    names = [str(record["stage"]) for record in history]
    return tuple((name, index) for index, name in enumerate(names) if index == 0 or names[index - 1] != name)


def curves_panel(
    title: str,
    curves: Sequence[Curve],
    history: Sequence[Mapping[str, Any]],
    best_epochs: Mapping[str, int],
    *,
    width: float,
    percent: bool,
    reference: float | None = None,
) -> Panel:
    """Lay out one plot of values over the epochs of the whole run.

    Args:
        title: the title of the plot.
        curves: at least one, each with at least one value.
        history: the records of the curves, for the starts of stages.
        best_epochs: stage name -> its best epoch, from 1; marked on every curve.
        width: width of the plot in SVG units; it determines the height.
        percent: whether values are shares, shown in percent on an axis that ends at 100 %.
        reference: a value marked by a horizontal line, if any.
    """
    starts = stage_starts(history)
    values = sorted(value for curve in curves for value in curve.values if value is not None)
    shown = [] if reference is None else [reference]
    best = _best_values(curves, starts, best_epochs)
    shown += [value for _, _, value, _ in best]
    low, high, step = _value_axis(values, shown, percent=percent)
    height = LABEL_ROOM + (250.0 if width < NARROW else 310.0)
    frame = Frame(
        width=width,
        height=height,
        left=_label_room(high, step, percent=percent),
        right=width - 14.0,
        top=LABEL_ROOM,
        bottom=height - 42.0,
        epochs=len(history),
        low=low,
        high=high,
    )
    return Panel(
        title=title,
        frame=frame,
        x_ticks=_epoch_ticks(frame),
        y_ticks=_value_ticks(frame, step, percent=percent),
        lines=tuple(_line(curve, frame, percent=percent) for curve in curves),
        stages=_stage_marks(starts, frame),
        best=tuple(
            Dot(
                x=frame.x(index),
                y=frame.y(value),
                title=f"best epoch of {stage} ({best_epochs[stage]}), {curve.name}: {_text(value, percent=percent)}",
                style=curve.style,
            )
            for stage, index, value, curve in best
        ),
        reference=None if reference is None else Tick(at=frame.y(reference), label=_text(reference, percent=percent)),
        cut=values[0] < low or values[-1] > high,
    )


def heat_paths(confusion: Sequence[Sequence[int]], *, right: bool, levels: int = 8) -> tuple[tuple[float, str], ...]:
    """The cells of a confusion matrix as few SVG paths on a grid of unit squares: (opacity, path data) by level.

    Args:
        confusion: [K, K] counts, true classes in rows.
        right: whether to draw the diagonal or all other cells.
        levels: number of shades.
    """
    cells: dict[int, list[str]] = {}
    for row, counts in enumerate(confusion):
        for column, count in enumerate(counts):
            if count and (row == column) == right:
                level = math.ceil(heat(count, sum(counts)) * levels)
                cells.setdefault(level, []).append(f"M{column} {row}h1v1h-1z")
    return tuple((level / levels, "".join(paths)) for level, paths in sorted(cells.items()))


def heat(count: int, row_total: int) -> float:
    """The shade of a cell, 0 to 1: the square root of its share of its row, so that rare mistakes are visible."""
    return math.sqrt(count / row_total) if row_total else 0.0


def _output_curves(history: Sequence[Mapping[str, Any]], key: str) -> list[Curve]:
    """One curve per output, in order of appearance."""
    names = list(dict.fromkeys(str(name) for record in history for name in record.get(key) or {}))
    others = [name for name in names if name not in STYLES]
    styles = STYLES | {name: OTHER_STYLES[place % len(OTHER_STYLES)] for place, name in enumerate(others)}
    return [
        Curve(
            name=name,
            style=styles[name],
            values=tuple(_finite((record.get(key) or {}).get(name)) for record in history),
        )
        for name in names
    ]


def _drawable(curves: Sequence[Curve]) -> tuple[Curve, ...]:
    return tuple(curve for curve in curves if any(value is not None for value in curve.values))


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _text(value: float, *, percent: bool) -> str:
    return f"{100 * value:.2f} %" if percent else f"{value:.4f}"


def _nice_step(rough: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _value_axis(values: Sequence[float], shown: Sequence[float], *, percent: bool) -> tuple[float, float, float]:
    """(low, high, step): losses start at 0, accuracies end at 1.

    The other end is chosen so that late epochs can be distinguished: it includes all of `shown`, and all of `values`
    (sorted) except a few of the first epochs.
    """
    if percent:
        least = min(values[int(len(values) * CUT_ACCURACIES)], *shown, 1.0)
        step = _nice_step(max(1.0 - least, 0.005) / 5)
        return max(0.0, 1.0 - step * math.ceil((1.0 - least) / step + 0.2)), 1.0, step
    most = max(values[-1 - int(len(values) * CUT_LOSSES)], *shown, 1e-6)
    step = _nice_step(most / 5)
    return 0.0, step * math.ceil(most / step + 0.1), step


def _epoch_ticks(frame: Frame) -> tuple[Tick, ...]:
    step = max(1, round(_nice_step(frame.epochs / (6 if frame.width < NARROW else 12))))
    marks = [1, *range(step, frame.epochs + 1, step)]
    near = step >= 2 and frame.x(step - 1) - frame.x(0) < 16
    return tuple(Tick(at=frame.x(mark - 1), label=str(mark)) for mark in sorted(set(marks[1:] if near else marks)))


def _value_ticks(frame: Frame, step: float, *, percent: bool) -> tuple[Tick, ...]:
    count = math.floor((frame.high - frame.low) / step + 1e-6)
    marks = [frame.high - step * number for number in range(count + 1)]
    return tuple(Tick(at=frame.y(mark), label=_value_label(mark, step, percent=percent)) for mark in marks)


def _value_label(mark: float, step: float, *, percent: bool) -> str:
    """A mark of the vertical axis, with as many decimals as `step` needs."""
    decimals = max(0, -math.floor(math.log10(step * (100 if percent else 1)) + 1e-9))
    return f"{100 * mark:.{decimals}f} %" if percent else f"{abs(mark):.{decimals}f}"


def _label_room(high: float, step: float, *, percent: bool) -> float:
    """The width left of the vertical axis: its longest label, that of `high`, in the widest of the usual fonts."""
    return max(46.0, LABEL_OFFSET + LABEL_CHARACTER * len(_value_label(high, step, percent=percent)))


def _line(curve: Curve, frame: Frame, *, percent: bool) -> Line:
    path: list[str] = []
    lone: list[Dot] = []
    values = (None, *curve.values, None)
    for place in range(1, len(values) - 1):
        before, value, after = values[place - 1 : place + 2]
        if value is None:
            continue
        x, y = frame.x(place - 1), frame.y(value)
        if before is None and after is None:
            lone.append(Dot(x=x, y=y, title=f"{curve.name}: {_text(value, percent=percent)}", style=curve.style))
        else:
            path.append(f"{'M' if before is None else 'L'}{x} {y}")
    return Line(name=curve.name, style=curve.style, path="".join(path), lone=tuple(lone))


def _best_values(
    curves: Sequence[Curve], starts: Sequence[tuple[str, int]], best_epochs: Mapping[str, int]
) -> list[tuple[str, int, float, Curve]]:
    """(stage, index of its best epoch in the run, value, curve) for each curve with a value in that epoch."""
    found = []
    for stage, start in starts:
        index = start + best_epochs.get(stage, 0) - 1
        for curve in curves:
            value = curve.values[index] if stage in best_epochs and 0 <= index < len(curve.values) else None
            if value is not None:
                found.append((stage, index, value, curve))
    return found


def _stage_marks(starts: Sequence[tuple[str, int]], frame: Frame) -> tuple[StageMark, ...]:
    """Stage labels above their lines, moved apart if stages are short: first to the right, then back inside."""
    lines = [frame.x(index - 0.5) for _, index in starts]
    # A slanted label extends this far to the right.
    last = frame.width - 48.0
    gap = min(LABEL_GAP, (last - frame.left) / max(1, len(lines)))
    places: list[float] = []
    for line in lines:
        places.append(max(line, places[-1] + gap) if places else line)
    for place in reversed(range(len(places))):
        places[place] = min(places[place], last - gap * (len(places) - 1 - place))
    return tuple(
        StageMark(name=name, label=_short(name), x=line, label_x=round(label, 2))
        for (name, _), line, label in zip(starts, lines, places, strict=True)
    )


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"
