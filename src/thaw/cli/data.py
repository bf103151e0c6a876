"""`thaw data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thaw.cli.options import DataRoot, GroupBy, Json, Limits, Overrides, SkipBroken, Source


def data(  # noqa: PLR0913, PLR0917 - the options are the parameters
    source: Source,
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe of the training; by default that of `thaw train`.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    budget: Limits = None,
    data_root: DataRoot = None,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a contact sheet of some images, a PNG file.", show_default=False),
    ] = None,
    skip_broken: SkipBroken = False,
    group_by: GroupBy = None,
    as_json: Json = False,
) -> None:
    """Show what training would see: counts, classes, sizes, balance, problems. Exits with 1 if there are errors."""
    import thaw
    from thaw.cli.output import print_json, print_text
    from thaw.cli.progress import Progress
    from thaw.quoting import printable

    with Progress() as progress:
        summary = thaw.summarize(
            source,
            recipe=recipe or "",
            overrides=overrides or (),
            data_root=data_root,
            skip_broken=skip_broken,
            budget=budget or "",
            group_by=group_by or "",
            on_event=progress,
        )
    written = None if sheet is None else str(summary.contact_sheet(sheet))
    if as_json:
        print_json(summary.as_dict() | {"contact_sheet": written})
    else:
        print_text(summary.describe())
        print_text(f"  recipe: {printable(summary.recipe)}; --recipe, --budget and --set as for thaw train")
        print_text(f"contact sheet: {printable(written or 'none; --sheet FILE.png writes one')}")
    if not summary.usable:
        raise typer.Exit(1)
