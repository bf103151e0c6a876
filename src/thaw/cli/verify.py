"""`thaw verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from thaw.cli.options import ArtifactFolder, DataRoot, Json, RunPath

if TYPE_CHECKING:
    from thaw.deploy.verify import Check, Verification


def verify(
    run: RunPath,
    boards: Annotated[
        list[str] | None,
        typer.Option("--board", help="Also run the C on an emulated board: cortex-m4, cortex-m7, ...; repeatable."),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Number of test images; all by default, and 1,000 on a --board.", show_default=False),
    ] = None,
    out: ArtifactFolder = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Verify on the test images that all exported files give the model's results. Exits with 1 if not."""
    from thaw.cli.interrupt import STOPPED, told_when_stopped
    from thaw.cli.opening import open_run
    from thaw.cli.output import print_json
    from thaw.cli.progress import Progress

    with Progress() as progress, told_when_stopped(STOPPED):
        result = open_run(run, data_root).verify(
            boards or (), images=images, out=out, data_root=data_root, on_event=progress
        )
    if as_json:
        print_json(result.as_dict())
    else:
        _print_verification(result)
    if not result.is_verified:
        raise typer.Exit(1)


def _print_verification(result: Verification) -> None:
    from thaw.cli.output import columns, print_text
    from thaw.quoting import printable

    rows: list[tuple[str, ...]] = [
        ("exported", "runtime", "images", "same label", "accuracy", "largest difference", "bytes differ", "result")
    ]
    rows += [_row(check) for check in result.checks]
    print_text(columns(rows, right=(2, 3, 4, 5, 6)))
    for check in result.checks:
        for line in _remarks(check):
            print_text(printable(line))
    for name in result.changed:
        print_text(printable(f"note: {name} has changed since it was exported"))
    verified = sum(check.is_verified for check in result.checks)
    print_text(f"{verified} of {len(result.checks)} verified" if result.checks else "nothing to verify")


def _row(check: Check) -> tuple[str, ...]:
    from thaw.evidence.verify import FloatComparison

    comparison = check.comparison
    must = "" if check.is_verified or not check.must_be_equal or comparison is None else ", must be equal"
    first = (f"{check.format} {check.precision}", check.runtime)
    if comparison is None:
        return (*first, "", "", "", "", "", check.result)
    middle = (f"{comparison.images:,}", f"{comparison.agreement:.2%}", f"{check.accuracy:.2%}")
    if isinstance(comparison, FloatComparison):
        return (*first, *middle, f"{comparison.largest_difference:.1e}", "", check.result)
    bytes_ = f"{comparison.differing_bytes:,} of {comparison.score_bytes:,}"
    result = "within rounding" if check.result == "close" else check.result + must
    return (*first, *middle, f"{comparison.largest_difference} units", bytes_, result)


def _remarks(check: Check) -> list[str]:
    """Details that a check's row does not show."""
    from thaw.evidence.verify import FloatComparison

    name = f"{check.format} {check.precision}{', ' if check.runtime else ''}{check.runtime}"
    # The row of a float32 file, or of an equal result, is complete.
    is_shown = isinstance(check.comparison, FloatComparison) or check.result == "equal"
    lines = [] if is_shown else [f"{name}: {check.statement}"]
    if check.emulation is not None:
        board = check.emulation
        lines.append(
            f"{check.runtime}: {board['instructions_per_inference']:,.0f} instructions per inference "
            f"({board['instructions_per_mac']:.2f} per multiply-accumulate); "
            f"flash {board['flash_bytes']:,} bytes (code {board['text_bytes']:,}, constants "
            f"{board['constant_bytes']:,}); "
            f"RAM {board['ram_bytes']:,} bytes (static {board['static_bytes']:,}, stack {board['stack_bytes']:,}, "
            f"image {board['image_bytes']:,}, scores {board['score_bytes']:,})"
        )
    return lines
