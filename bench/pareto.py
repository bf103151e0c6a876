"""Plot accuracy against parameters and multiply-accumulates: the zoo, the paper, its reproduction, other networks.

    python bench/pareto.py --out docs/results/pareto.svg

A page with the source of every point is written next to the plot. This module collects the points; `pareto_plot.py`
draws them.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pareto_plot import Point, draw

from thaw.errors import RunError, ThawError, UsageError
from thaw.files import read_document, write_atomically
from thaw.graph.lower import layer_table
from thaw.model.zoo_card import ZooCard, zoo_cards
from thaw.quoting import markdown_code, markdown_text
from thaw.recipe.recipe import load_recipe
from thaw.studies.reproduce import PUBLISHED, RECIPE

PUBLIC_RESULTS = Path(__file__).with_name("public.toml")
REPRODUCTION = Path(__file__).parents[1] / "docs" / "results" / "reproduce.json"
PAPER_SOURCE = "https://arxiv.org/abs/2501.15547"
_SHAPES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
_CLASSES = 10


def main() -> None:
    """Write the plot and its page."""
    parser = argparse.ArgumentParser(prog="bench/pareto.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("pareto.svg"), help="the .svg file (default: pareto.svg)")
    parser.add_argument(
        "--reproduction", type=Path, default=REPRODUCTION, metavar="FILE", help="output of thaw reproduce"
    )
    options = parser.parse_args()
    for path in write_pareto(options.out, options.reproduction):
        print(f"written: {path}")


def collect(reproduction: Path | None = None) -> tuple[Point, ...]:
    """Return all points.

    Args:
        reproduction: reproduce.json, as `thaw reproduce` writes it; None leaves the reproduction out.

    Raises:
        RunError: if that cannot be read.
    """
    zoo = [_of_card(card) for card in zoo_cards() if card.dataset in PUBLISHED]
    mine = [] if reproduction is None else _reproduced(reproduction)
    return (*zoo, *mine, *_paper(), *public_results())


def write_pareto(out: Path, reproduction: Path | None = None) -> tuple[Path, Path]:
    """Draw the plot in `out`, an .svg file, write the page of its points next to it, and return both paths.

    Raises:
        UsageError: if the name of `out` does not end in .svg.
        RunError: if a file cannot be read or written.
    """
    out = out.expanduser()
    if out.suffix != ".svg":
        raise UsageError(f"--out {out}: expected a file whose name ends in .svg")
    points = collect(reproduction)
    numbers = {point: number for number, point in enumerate(_ordered(points), start=1)}
    page = out.with_suffix(".md")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {out.parent}: {error.strerror}\nchoose another place with --out") from error
    write_atomically(out, draw(numbers))
    write_atomically(page, _page(numbers, quote(out.name, errors="surrogateescape")))
    return out, page


def public_results() -> tuple[Point, ...]:
    """Return the results of others in public.toml."""
    return tuple(_public(entry) for entry in tomllib.loads(PUBLIC_RESULTS.read_text("utf-8"))["result"])


def _public(entry: Mapping[str, Any]) -> Point:
    return Point(
        dataset=entry["dataset"],
        name=entry["name"],
        kind="public" if entry["checked"] else "unchecked",
        accuracy=entry["accuracy"],
        parameters=entry["parameters"],
        macs=entry.get("macs"),
        source=entry["source"],
        note=entry.get("note", ""),
    )


def _of_card(card: ZooCard) -> Point:
    half = card.mean.ci95_half_width
    mean, count = card.mean.mean, len(card.seeds)
    is_one = half is None
    return Point(
        dataset=card.dataset,
        name=card.name,
        kind="zoo",
        accuracy=mean,
        parameters=card.parameters,
        macs=card.macs,
        interval=card.test.accuracy_ci95 if half is None else (max(0.0, mean - half), min(1.0, mean + half)),
        source=card.command,
        note="one seed; interval over its test images" if is_one else f"mean of {count} seeds, and its interval",
    )


def _reproduced(path: Path) -> list[Point]:
    rows = read_document(path, remedy="write it again with thaw reproduce").get("rows", ())
    try:
        return [_reproduced_point(row) for row in rows]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RunError(f"{path} has no rows of thaw reproduce: {error}\nwrite it again with thaw reproduce") from error


def _reproduced_point(row: Mapping[str, Any]) -> Point:
    mean, half = float(row["mean"]), row["ci95_half_width"]
    if row["dataset"] not in PUBLISHED or not 0.0 <= mean <= 1.0 or min(row["parameters"], row["macs"]) < 1:
        raise ValueError("invalid data set, accuracy or size")
    return Point(
        dataset=row["dataset"],
        name="paper, reproduced",
        kind="reproduced",
        accuracy=mean,
        parameters=int(row["parameters"]),
        macs=int(row["macs"]),
        interval=None if half is None else (max(0.0, mean - half), min(1.0, mean + half)),
        source="thaw reproduce",
        note=f"mean of {len(row['accuracies'])} seeds, and its interval",
    )


def _paper() -> list[Point]:
    _, recipe = load_recipe(RECIPE)
    points = []
    for dataset, published in PUBLISHED.items():
        cost = layer_table(recipe.model, recipe.unify_spec, _SHAPES[dataset], _CLASSES)
        points.append(
            Point(
                dataset=dataset,
                name="paper, published",
                kind="paper",
                accuracy=published.accuracy,
                parameters=published.parameters,
                macs=cost.macs if cost.parameters == published.parameters else None,
                source=PAPER_SOURCE,
                note="multiply-accumulates counted here",
            )
        )
    return points


def _ordered(points: Sequence[Point]) -> list[Point]:
    """Return the points by data set and size."""
    return sorted(points, key=lambda each: (list(PUBLISHED).index(each.dataset), each.parameters, each.name))


def _page(numbers: Mapping[Point, int], plot: str) -> str:
    """Return the points and their sources as Markdown."""
    lines = [
        "# Accuracy and size",
        "",
        "Made by `python bench/pareto.py`. Filled marks were measured here or read at their source; hollow marks are",
        "quoted from memory. Accuracies of others are as they state them. Many of them chose their best epoch on the",
        "test images, which the models of the zoo never did.",
        "",
        f"![Accuracy over parameters and over multiply-accumulates]({plot})",
        "",
    ]
    for dataset, published in PUBLISHED.items():
        lines += [
            f"## {published.title}",
            "",
            "| | network | accuracy | parameters | MACs | source | read there |",
            "|--:|---|--:|--:|--:|---|---|",
        ]
        lines += [_row(number, point) for point, number in numbers.items() if point.dataset == dataset]
        lines.append("")
    return "\n".join(lines)


def _row(number: int, point: Point) -> str:
    interval = "" if point.interval is None else f" ({point.interval[0]:.2%} to {point.interval[1]:.2%})"
    macs = "" if point.macs is None else f"{point.macs:,}"
    told = _source(point.source) + (f"; {markdown_text(point.note)}" if point.note else "")
    read = {"zoo": "measured here", "reproduced": "measured here", "unchecked": "no"}.get(point.kind, "yes")
    name = f"**{markdown_text(point.name)}**" if point.kind == "zoo" else markdown_text(point.name)
    return f"| {number} | {name} | {point.accuracy:.2%}{interval} | {point.parameters:,} | {macs} | {told} | {read} |"


def _source(source: str) -> str:
    """Return an address as a link, a command as code, and anything else as text."""
    if re.fullmatch(r"https://[A-Za-z0-9/._~%#?=&+:@-]+", source):
        return f"<{source}>"
    return markdown_code(source) if source.startswith("thaw ") else markdown_text(source)


if __name__ == "__main__":
    try:
        main()
    except ThawError as error:
        raise SystemExit(f"error: {error}") from None
