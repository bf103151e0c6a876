"""`thaw ablate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from thaw.cli.options import DataRoot, Device, Json, Overrides, Seeds, Source


def ablate(  # noqa: PLR0913, PLR0917 - the options are the parameters
    source: Source,
    recipe: Annotated[str, typer.Option(help="A recipe's name or file.")] = "paper",
    overrides: Overrides = None,
    seeds: Seeds = "0,1,2",
    study: Annotated[
        Literal["parts", "unify"],
        typer.Option(help="parts: does each part of the method pay; unify: the best way to unify two submodels."),
    ] = "parts",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; default runs/ablate-<source>, or runs/unify-<source>.")
    ] = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Measure whether each part of the method pays, with equal parameters and equal passes over the images."""
    from thaw.cli.interrupt import RESUMABLE, told_when_stopped, watched
    from thaw.cli.output import print_study
    from thaw.cli.training_progress import TrainingProgress
    from thaw.events import decoding_to
    from thaw.quoting import shell_command
    from thaw.recipe.recipe import load_recipe
    from thaw.studies.ablation import ArmEpoch, Compared
    from thaw.studies.ablation import ablate as run_ablation
    from thaw.studies.reproduce import parse_seeds
    from thaw.training.compute import keep_freed_memory

    name, settings = load_recipe(recipe, overrides or ())
    kind = "ablate" if study == "parts" else study
    folder = out if out is not None else Path("runs") / f"{kind}-{Path(source).resolve().name}"
    keep_freed_memory()
    with TrainingProgress() as progress, told_when_stopped(RESUMABLE):
        events = run_ablation(
            source,
            name,
            settings,
            parse_seeds(seeds),
            study=study,
            out=folder,
            device=device,
            data_root=data_root,
            command=shell_command(["thaw", *sys.argv[1:]]),
            progress=decoding_to(progress),
        )
        for event in watched(events):
            if isinstance(event, ArmEpoch):
                progress.arm(event.arm, event.seed, event.record)
            elif isinstance(event, Compared):
                progress.close()
                print_study(event.result, event.page, as_json=as_json)
