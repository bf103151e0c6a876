"""What `thaw export`, `thaw verify` and `thaw bench` do; `app` holds their options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from thaw.cli.columns import columns
from thaw.cli.commands import print_json, print_text
from thaw.cli.interrupt import told_when_stopped
from thaw.cli.progress import Progress
from thaw.deploy.bench import Bench
from thaw.deploy.bench import bench as time_runtimes
from thaw.deploy.export import Export, TrainedRun
from thaw.deploy.export import export as write_artifacts
from thaw.deploy.verify import Check, Verification
from thaw.deploy.verify import verify as verify_artifacts
from thaw.evidence.verify import FloatComparison
from thaw.export.c_names import prefix_of_files
from thaw.export.card import Precision
from thaw.quoting import printable

STOPPED = "stopped; give the same command again"


def export(
    run: Path,
    to: str | None,
    precision: Precision | None,
    *,
    prefix: str | None,
    out: Path | None,
    data_root: Path | None,
    as_json: bool,
) -> None:
    """`thaw export RUN`."""
    targets = None if to is None else [name.strip() for name in to.split(",") if name.strip()]
    with Progress() as progress, told_when_stopped(STOPPED):
        opened = TrainedRun.open(run, data_root=data_root, progress=progress.decoding)
        result = write_artifacts(opened, targets=targets, precision=precision, out=out, prefix=prefix)
        _tell_missing(progress, result.missing)
    if as_json:
        print_json({**result.as_dict(), "complete": result.is_complete})
    else:
        _print_export(result)
    _end(complete=result.is_complete)


def _print_export(result: Export) -> None:
    rows = [("file", "bytes")]
    for exported in result.targets:
        rows += [(str(result.out / exported.target / name), f"{len(data):,}") for name, data in exported.files.items()]
    print_text(columns(rows, right=(1,)))
    for exported in result.targets:
        if exported.target == "c":
            prefix = prefix_of_files(exported.files)
            print_text(f"names in the C begin with {prefix}_ or {prefix.upper()}_; --prefix NAME chooses another")
    if result.memory:
        memory = result.memory
        print_text(
            f"int8 on a microcontroller: {memory['constant_bytes']:,} bytes of weights in flash, "
            f"{memory['arena_bytes']:,} bytes of arena in RAM; code and stack: thaw verify --target"
        )


def verify(
    run: Path,
    boards: Sequence[str],
    images: int | None,
    *,
    out: Path | None,
    data_root: Path | None,
    as_json: bool,
) -> None:
    """`thaw verify RUN`."""
    with Progress() as progress, told_when_stopped(STOPPED):
        opened = TrainedRun.open(run, data_root=data_root, progress=progress.decoding)
        result = verify_artifacts(opened, boards=boards, images=images, out=out, tell=progress.say)
    if as_json:
        print_json(result.as_dict())
    else:
        _print_verification(result)
    _end(complete=result.is_verified)


def _print_verification(result: Verification) -> None:
    rows: list[tuple[str, ...]] = [
        ("artifact", "runtime", "images", "same label", "accuracy", "largest difference", "bytes differ", "result")
    ]
    rows += [_row(check) for check in result.checks]
    print_text(columns(rows, right=(2, 3, 4, 5, 6)))
    for check in result.checks:
        for line in _remarks(check):
            print_text(line)
    for name in result.changed:
        print_text(printable(f"note: {name} is not as it was exported"))
    verified = sum(check.is_verified for check in result.checks)
    print_text(f"{verified} of {len(result.checks)} verified" if result.checks else "nothing to verify")


def _row(check: Check) -> tuple[str, ...]:
    comparison = check.comparison
    must = "" if check.is_verified or not check.must_be_equal or comparison is None else ", must be equal"
    first = (f"{check.target} {check.precision}", check.runtime)
    if comparison is None:
        return (*first, "", "", "", "", "", check.result)
    middle = (f"{comparison.images:,}", f"{comparison.agreement:.2%}", f"{check.accuracy:.2%}")
    if isinstance(comparison, FloatComparison):
        return (*first, *middle, f"{comparison.largest_difference:.1e}", "", check.result)
    bytes_ = f"{comparison.differing_bytes:,} of {comparison.score_bytes:,}"
    result = "within rounding" if check.result == "close" else check.result + must
    return (*first, *middle, f"{comparison.largest_difference} units", bytes_, result)


def _remarks(check: Check) -> list[str]:
    """What there is to say of a check beside its row."""
    name = f"{check.target} {check.precision}{', ' if check.runtime else ''}{check.runtime}"
    # What is equal, or close in float32, is told whole by its row.
    is_told = isinstance(check.comparison, FloatComparison) or check.result == "equal"
    lines = [] if is_told else [f"{name}: {check.statement}"]
    if check.emulation is not None:
        told = check.emulation
        lines.append(
            f"{check.runtime}: {told['instructions_per_inference']:,.0f} instructions per inference "
            f"({told['instructions_per_mac']:.2f} a multiply-accumulate); "
            f"flash {told['flash_bytes']:,} bytes (code {told['text_bytes']:,}, constants {told['constant_bytes']:,}); "
            f"RAM {told['ram_bytes']:,} bytes (static {told['static_bytes']:,}, stack {told['stack_bytes']:,}, "
            f"image {told['image_bytes']:,}, scores {told['score_bytes']:,})"
        )
    return [printable(line) for line in lines]


def bench(run: Path, *, out: Path | None, data_root: Path | None, as_json: bool) -> None:
    """`thaw bench RUN`."""
    with Progress() as progress, told_when_stopped(STOPPED):
        opened = TrainedRun.open(run, data_root=data_root, progress=progress.decoding)
        result = time_runtimes(opened, out=out, tell=progress.say)
        _tell_missing(progress, {f"{name} {precision}": why for (name, precision), why in result.problems.items()})
    if as_json:
        print_json(result.as_dict())
    else:
        _print_bench(result)
    _end(complete=result.is_complete)


def _print_bench(result: Bench) -> None:
    rows = [("runtime", "precision", "median", "99th percentile", "times the C")]
    for (name, precision), timing in result.timings.items():
        ratio = "" if timing.ratio is None else f"{timing.ratio:.2f}"
        rows.append((name, precision, f"{timing.median_us:,.1f} us", f"{timing.p99_us:,.1f} us", ratio))
    print_text(columns(rows, right=(2, 3, 4)))
    timing = next(iter(result.timings.values()))
    print_text(f"one image, one thread; {timing.repeats:,} inferences each, in {timing.rounds} turns")


def _tell_missing(progress: Progress, missing: Mapping[str, str]) -> None:
    for name, reason in missing.items():
        progress.say(printable(f"{name}: {'; '.join(reason.splitlines())}"))


def _end(*, complete: bool) -> None:
    if not complete:
        raise typer.Exit(1)
