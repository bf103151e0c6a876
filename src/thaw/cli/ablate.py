"""`thaw ablate`."""

from __future__ import annotations

import sys
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
    from thaw.cli.interrupt import RESUMABLE, told_when_stopped, watched
    from thaw.cli.output import print_study
    from thaw.cli.training_progress import TrainingProgress
    from thaw.events import decoding_to
    from thaw.quoting import shell_command
    from thaw.studies.ablation import Compared
    from thaw.studies.ablation import ablate as run_ablation
    from thaw.studies.reproduce import parse_seeds
    from thaw.studies.runs import RunStarted

    kind = "ablate" if study == "parts" else study
    with TrainingProgress() as progress, told_when_stopped(RESUMABLE):
        events = run_ablation(
            source,
            recipe,
            overrides or [],
            parse_seeds(seeds),
            study=study,
            out=Path("runs") / f"{kind}-{Path(source).resolve().name}" if out is None else out,
            device=device,
            data_root=data_root,
            command=shell_command(["thaw", *sys.argv[1:]]),
            progress=decoding_to(progress),
        )
        for event in watched(events):
            if isinstance(event, RunStarted):
                progress.say(f"\n{event.title}: {event.path}")
            elif isinstance(event, Compared):
                progress.close()
                print_study(event.result, event.page, as_json=as_json)
            else:
                progress(event)
