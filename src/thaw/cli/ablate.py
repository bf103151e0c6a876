"""`thaw ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from thaw.cli.options import DataRoot, Device, Json, Overrides, Seeds, Source


def ablate(  # noqa: PLR0913, PLR0917 - the options are the parameters
    source: Source,
    recipe: Annotated[str, typer.Option(help="Name or file of a two-stage recipe.")] = "paper",
    overrides: Overrides = None,
    seeds: Seeds = "0,1,2",
    study: Annotated[
        Literal["parts", "unify"],
        typer.Option(help="parts: leave out one idea of the method at a time. unify: ways to unify two submodels."),
    ] = "parts",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the runs and their comparison. [default: runs/ablate-<source> or runs/unify-<source>]",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Compare variants of the two-stage method, with equal parameters and equally many image passes.

    Each variant and seed is a run of its own. Running the command again resumes an interrupted study.
    """
    import thaw
    from thaw.cli.interrupt import RESUMABLE, told_when_stopped
    from thaw.cli.study_progress import StudyProgress, parse_seeds, print_study

    with StudyProgress() as progress, told_when_stopped(RESUMABLE):
        comparison = thaw.ablate(
            source,
            recipe=recipe,
            overrides=overrides or (),
            seeds=parse_seeds(seeds),
            study=study,
            out=out,
            device=device,
            data_root=data_root,
            on_event=progress,
        )
    print_study(comparison, as_json=as_json)
