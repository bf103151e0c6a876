"""Drawing of the Pareto plot as SVG, with colors for light and dark pages.

The vertical axis is logarithmic in the error, so that 99 % and 99.5 % are as far apart as 90 % and 95 %. The horizontal
axis is logarithmic in the size. All lengths are SVG units.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from thaw.quoting import xml_text

WIDTH, PANEL_HEIGHT, HEAD, FOOT = 1080.0, 380.0, 92.0, 30.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 66.0, 18.0, 40.0, 54.0
_TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
_AXES = ("parameters", "multiply-accumulates")
_KINDS = {
    "zoo": "the zoo: mean of the seeds, with its 95 % interval",
    "reproduced": "the paper, reproduced here",
    "paper": "the paper, as published",
    "public": "others, as their source states",
    "unchecked": "others, not read at their source",
}
_RADIUS = 5.0
_PERCENT = (50, 60, 70, 80, 85, 90, 92, 94, 95, 96, 97, 98, 98.5, 99, 99.2, 99.4, 99.5, 99.6, 99.7, 99.8, 99.9)
_Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom."""
_LEAST_GAP = 26.0  # between two marks on an axis
_LETTER, _LINE = 6.8, 12.0  # width and height of a letter of a label

_STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfa; --ink: #1a2230; --soft: #566173; --line: #dfe3e8;
  --zoo: #1f5fa8; --reproduced: #0b7f73; --paper-mark: #b86410; --public: #7b8797; }
@media (prefers-color-scheme: dark) { :root { --paper: #10151c; --ink: #e4e9f0; --soft: #9aa7b8; --line: #2b3542;
  --zoo: #79b4f2; --reproduced: #46c5b4; --paper-mark: #f0a24a; --public: #8a97a8; } }
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; fill: var(--soft); }
.back { fill: var(--paper); } .title { font-size: 15px; font-weight: 600; fill: var(--ink); }
.head { font-size: 19px; font-weight: 600; fill: var(--ink); } .grid { stroke: var(--line); stroke-width: 1; }
.axis { stroke: var(--soft); stroke-width: 1; } .front { fill: none; stroke: var(--soft); stroke-dasharray: 5 4; }
.mark { stroke-width: 1.8; } .bar { stroke-width: 1.8; } .label { font-size: 11px; }
.zoo { stroke: var(--zoo); fill: var(--zoo); } .reproduced { stroke: var(--reproduced); fill: var(--reproduced); }
.paper { stroke: var(--paper-mark); fill: var(--paper-mark); } .public { stroke: var(--public); fill: var(--public); }
.unchecked { stroke: var(--public); fill: var(--paper); } .strong { font-weight: 600; fill: var(--ink); }
""".strip()


Kind: TypeAlias = Literal["zoo", "reproduced", "paper", "public", "unchecked"]
"""The origin of a point; "unchecked" is a public result that was not read at its source."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A measured network.

    Attributes:
        dataset: "mnist", "fashion_mnist" or "cifar10".
        name: name of the network.
        kind: origin of the result.
        accuracy: test accuracy, 0 to 1; the mean if there are several seeds.
        parameters: number of parameters, as counted by the source.
        macs: multiply-accumulates for one image; None if unknown.
        interval: 95 % interval of the accuracy; None if unknown.
        source: source of the figures.
        note: a remark that qualifies the figures, or "".
    """

    dataset: str
    name: str
    kind: Kind
    accuracy: float
    parameters: int
    macs: int | None
    interval: tuple[float, float] | None = None
    source: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """The box of a panel and the ranges of its axes, in decimal logarithms of size and error."""

    left: float
    top: float
    right: float
    bottom: float
    sizes: tuple[float, float]
    errors: tuple[float, float]

    def x(self, size: float) -> float:
        low, high = self.sizes
        return round(self.left + (math.log10(size) - low) / (high - low) * (self.right - self.left), 1)

    def y(self, accuracy: float) -> float:
        worst, best = self.errors
        share = (_error(accuracy) - worst) / (best - worst)
        return round(self.bottom - min(max(share, 0.0), 1.0) * (self.bottom - self.top), 1)


def draw(numbers: Mapping[Point, int]) -> str:
    """Return the plot as SVG: one row per data set, one column per size axis.

    Args:
        numbers: the points, and their numbers on the page next to the plot.
    """
    datasets = [name for name in _TITLES if any(point.dataset == name for point in numbers)]
    height = HEAD + PANEL_HEIGHT * len(datasets) + FOOT
    size = f'viewBox="0 0 {WIDTH:g} {height:g}" width="{WIDTH:g}" height="{height:g}"'
    name = "Accuracy over parameters and over multiply-accumulates"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{name}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="back" width="{WIDTH:g}" height="{height:g}"/>',
        f'<text class="head" x="{_LEFT:g}" y="28">Accuracy and size</text>',
        *_legend(numbers),
    ]
    for row, dataset in enumerate(datasets):
        top = HEAD + PANEL_HEIGHT * row
        chosen = {point: number for point, number in numbers.items() if point.dataset == dataset}
        for column, axis in enumerate(_AXES):
            parts += _panel(f"{_TITLES[dataset]}: accuracy over {axis}", chosen, axis, column * WIDTH / 2, top)
    foot = "Numbers are those of the page beside this plot. Dashed: what no other filled mark beats in both."
    parts.append(f'<text x="{_LEFT:g}" y="{height - 12:g}">{foot}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the Pareto-optimal (size, accuracy) pairs, sorted by size."""
    kept: list[tuple[float, float]] = []
    for size, accuracy in sorted(points, key=lambda pair: (pair[0], -pair[1])):
        if not kept or accuracy > kept[-1][1]:
            kept.append((size, accuracy))
    return kept


def _legend(numbers: Mapping[Point, int]) -> list[str]:
    kinds = [kind for kind in _KINDS if any(point.kind == kind for point in numbers)]
    parts = []
    for place, kind in enumerate(kinds):
        x, y = _LEFT + 6 + place % 3 * WIDTH / 3.2, 50.0 + place // 3 * 20
        parts += [_mark(kind, x, y), f'<text x="{x + 12:g}" y="{y + 4:g}">{_KINDS[kind]}</text>']
    return parts


def _panel(title: str, numbers: Mapping[Point, int], axis: str, left: float, top: float) -> list[str]:
    sized = {point: size for point in numbers if (size := _size(point, axis)) is not None}
    if not sized:
        return []
    frame = _Frame(
        left=left + _LEFT,
        top=top + _TOP,
        right=left + WIDTH / 2 - _RIGHT,
        bottom=top + PANEL_HEIGHT - _BOTTOM,
        sizes=_padded([math.log10(size) for size in sized.values()], 0.12),
        errors=_padded([_error(each) for point in numbers for each in (point.accuracy, *(point.interval or ()))], 0.06),
    )
    filled = [(size, point.accuracy) for point, size in sized.items() if point.kind != "unchecked"]
    parts = [f'<text class="title" x="{frame.left:g}" y="{frame.top - 12:g}">{xml_text(title)}</text>']
    parts += _axes(frame, axis)
    corners = _staircase(frame, front(filled))
    parts.append(_front_line(corners))
    parts += [_bar(frame, point, size) for point, size in sized.items() if point.interval is not None]
    places = {point: (frame.x(size), frame.y(point.accuracy)) for point, size in sized.items()}
    parts += [_titled(point, sized[point], *places[point]) for point in sized]
    return parts + _labels(frame, places, numbers, corners)


def _size(point: Point, axis: str) -> int | None:
    return point.parameters if axis == _AXES[0] else point.macs


def _error(accuracy: float) -> float:
    """Return the height of an accuracy: minus the decimal logarithm of the error, which is at least 0.01 %."""
    return -math.log10(max(1.0 - accuracy, 1e-4))


def _padded(values: Sequence[float], share: float) -> tuple[float, float]:
    room = max((max(values) - min(values)) * share, 0.05)
    return min(values) - room, max(values) + room


def _axes(frame: _Frame, axis: str) -> list[str]:
    parts = []
    for size in _size_ticks(frame):
        x = frame.x(size)
        parts.append(f'<line class="grid" x1="{x:g}" x2="{x:g}" y1="{frame.top:g}" y2="{frame.bottom:g}"/>')
        parts.append(f'<text x="{x:g}" y="{frame.bottom + 17:g}" text-anchor="middle">{_short(size)}</text>')
    for accuracy in _accuracy_ticks(frame):
        y = frame.y(accuracy)
        parts.append(f'<line class="grid" x1="{frame.left:g}" x2="{frame.right:g}" y1="{y:g}" y2="{y:g}"/>')
        parts.append(f'<text x="{frame.left - 8:g}" y="{y + 4:g}" text-anchor="end">{100 * accuracy:g} %</text>')
    corner = f"M{frame.left:g} {frame.top:g}V{frame.bottom:g}H{frame.right:g}"
    parts.append(f'<path class="axis" fill="none" d="{corner}"/>')
    middle = (frame.left + frame.right) / 2
    return [*parts, f'<text x="{middle:g}" y="{frame.bottom + 36:g}" text-anchor="middle">{axis}</text>']


def _size_ticks(frame: _Frame) -> list[float]:
    low, high = frame.sizes
    shown: list[float] = []
    for factors in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        steps = [factor * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for factor in factors]
        shown = [step for step in steps if low <= math.log10(step) <= high]
        if len(shown) >= 3:
            break
    return _spaced(shown, frame.x, 2 * _LEAST_GAP)


def _accuracy_ticks(frame: _Frame) -> list[float]:
    worst, best = frame.errors
    shown = [percent / 100 for percent in _PERCENT if worst <= _error(percent / 100) <= best]
    return _spaced(shown, lambda each: -frame.y(each), _LEAST_GAP)


def _spaced(values: Sequence[float], place: Callable[[float], float], gap: float) -> list[float]:
    """Return those of the ascending values whose positions are at least `gap` apart."""
    kept: list[float] = []
    for value in values:
        if not kept or place(value) - place(kept[-1]) >= gap:
            kept.append(value)
    return kept


def _short(size: float) -> str:
    """500, '10 k', '2 M'."""
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if size >= unit:
            return f"{size / unit:g}{name}"
    return f"{size:g}"


def _staircase(frame: _Frame, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the corners of the front, a step function of the size."""
    corners: list[tuple[float, float]] = []
    for size, accuracy in points:
        x, y = frame.x(size), frame.y(accuracy)
        corners += [(x, corners[-1][1]), (x, y)] if corners else [(x, y)]
    return [*corners, (frame.right, corners[-1][1])] if corners else []


def _front_line(corners: Sequence[tuple[float, float]]) -> str:
    path = "".join(f"{'L' if place else 'M'}{x:g} {y:g}" for place, (x, y) in enumerate(corners))
    return f'<path class="front" d="{path}"/>' if corners else ""


def _bar(frame: _Frame, point: Point, size: float) -> str:
    low, high = point.interval or (point.accuracy, point.accuracy)
    x, y1, y2 = frame.x(size), frame.y(low), frame.y(high)
    path = f"M{x - 4:g} {y1:g}h8m-4 0V{y2:g}m-4 0h8"
    return f'<path class="bar {point.kind}" d="{path}"/>'


def _titled(point: Point, size: float, x: float, y: float) -> str:
    told = xml_text(f"{point.name}: {point.accuracy:.2%}, {size:,}")
    return f"<g><title>{told}</title>{_mark(point.kind, x, y)}</g>"


def _mark(kind: str, x: float, y: float) -> str:
    """Return a mark with its own shape, so that color is not the only distinction."""
    r = _RADIUS
    if kind == "zoo":
        return f'<circle class="mark {kind}" cx="{x:g}" cy="{y:g}" r="{r + 0.6:g}"/>'
    if kind == "reproduced":
        path = f"M{x - r:g} {y - r:g}h{2 * r:g}v{2 * r:g}h{-2 * r:g}z"
    elif kind == "paper":
        path = f"M{x:g} {y - r - 1:g}l{r + 1:g} {2 * r:g}h{-2 * r - 2:g}z"
    else:
        path = f"M{x:g} {y - r:g}l{r:g} {r:g}l{-r:g} {r:g}l{-r:g} {-r:g}z"
    return f'<path class="mark {kind}" d="{path}"/>'


def _labels(
    frame: _Frame,
    places: Mapping[Point, tuple[float, float]],
    numbers: Mapping[Point, int],
    corners: Sequence[tuple[float, float]],
) -> list[str]:
    """Return labels that cover nothing: names of zoo models, then numbers of the others."""
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in places.values()]
    lines = [_around(*pair) for pair in itertools.pairwise(corners)]
    lines += [
        _around((places[point][0], frame.y(point.interval[0])), (places[point][0], frame.y(point.interval[1])))
        for point in places
        if point.interval is not None
    ]
    parts = []
    for point in sorted(places, key=lambda each: (each.kind != "zoo", numbers[each])):
        is_zoo = point.kind == "zoo"
        text = point.name if is_zoo else str(numbers[point])
        # Where nothing is free of lines, across a line is better than not at all.
        box = _free_box(frame, places[point], len(text) * _LETTER, [*taken, *lines])
        box = box or _free_box(frame, places[point], len(text) * _LETTER, taken)
        if box is not None:
            taken.append(box)
            style = "label strong" if is_zoo else "label"
            parts.append(f'<text class="{style}" x="{box[0]:.1f}" y="{box[1] + 10:.1f}">{xml_text(text)}</text>')
    return parts


def _free_box(frame: _Frame, place: tuple[float, float], width: float, taken: Sequence[_Box]) -> _Box | None:
    """Return a free box for a label near a mark and within the frame; None if there is none."""
    x, y = place
    middle, before = x - width / 2, x - 8 - width
    corners = [(x + 10, y - 6), (x + 8, y - 19), (x + 8, y + 7), (before - 2, y - 6), (before, y - 19), (before, y + 7)]
    for left, top in (*corners, (middle, y - 21), (middle, y + 9)):
        box = (left, top, left + width, top + _LINE)
        is_inside = frame.left + 2 <= left and box[2] <= frame.right and frame.top - 4 <= top and box[3] <= frame.bottom
        if is_inside and not any(_overlap(box, other) for other in taken):
            return box
    return None


def _around(one: tuple[float, float], other: tuple[float, float]) -> _Box:
    """Return the bounding box of a line along an axis."""
    (x1, y1), (x2, y2) = one, other
    return min(x1, x2) - 1, min(y1, y2) - 1, max(x1, x2) + 1, max(y1, y2) + 1


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
