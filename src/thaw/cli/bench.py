"""`thaw bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from thaw.cli.options import ArtifactFolder, DataRoot, Json, RunPath

if TYPE_CHECKING:
    from thaw.deploy.bench import Bench


def bench(run: RunPath, out: ArtifactFolder = None, data_root: DataRoot = None, as_json: Json = False) -> None:
    """Time inference of one image in torch, onnxruntime, LiteRT and C: alternating, on one thread."""
    from thaw.cli.interrupt import STOPPED, told_when_stopped
    from thaw.cli.opening import open_run
    from thaw.cli.output import print_json
    from thaw.cli.progress import Progress

    with Progress() as progress, told_when_stopped(STOPPED):
        result = open_run(run, data_root).bench(out=out, on_event=progress)
        progress.say_missing({f"{name} {precision}": why for (name, precision), why in result.problems.items()})
    if as_json:
        print_json(result.as_dict())
    else:
        _print_bench(result)
    if not result.is_complete:
        raise typer.Exit(1)


def _print_bench(result: Bench) -> None:
    from thaw.cli.output import columns, print_text

    rows = [("runtime", "precision", "median", "99th percentile", "times the C")]
    for (name, precision), timing in result.timings.items():
        ratio = "" if timing.ratio is None else f"{timing.ratio:.2f}"
        rows.append((name, precision, f"{timing.median_us:,.1f} us", f"{timing.p99_us:,.1f} us", ratio))
    print_text(columns(rows, right=(2, 3, 4)))
    timing = next(iter(result.timings.values()))
    print_text(f"one image, one thread; {timing.repeats:,} inferences each, in {timing.rounds} rounds")
