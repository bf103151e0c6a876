"""`thaw reproduce`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from thaw.cli.options import DataRoot, Device, Json, Seeds


def reproduce(
    datasets: Annotated[
        list[str] | None,
        typer.Option("--dataset", help="mnist, fashion_mnist or cifar10; repeatable. [default: all]"),
    ] = None,
    seeds: Seeds = "0,1,2",
    out: Annotated[Path, typer.Option(help="Folder for the runs and the table.")] = Path("runs/reproduce"),
    device: Device = "auto",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Train the paper's networks and compare their accuracy with the published figures.

    Running the command again resumes an interrupted study.
    """
    from thaw.cli.interrupt import RESUMABLE, told_when_stopped, watched
    from thaw.cli.output import print_study
    from thaw.cli.training_progress import TrainingProgress
    from thaw.events import decoding_to
    from thaw.quoting import shell_command
    from thaw.studies.reproduce import PUBLISHED, Written, parse_seeds
    from thaw.studies.reproduce import reproduce as run_reproduction
    from thaw.studies.runs import RunStarted

    with TrainingProgress() as progress, told_when_stopped(RESUMABLE):
        events = run_reproduction(
            list(datasets or PUBLISHED),
            parse_seeds(seeds),
            out=out,
            device=device,
            data_root=data_root,
            command=shell_command(["thaw", *sys.argv[1:]]),
            progress=decoding_to(progress),
        )
        for event in watched(events):
            if isinstance(event, RunStarted):
                progress.say(f"\n{event.title}: {event.path}")
            elif isinstance(event, Written):
                progress.close()
                print_study(event.result, event.page, as_json=as_json)
            else:
                progress(event)
