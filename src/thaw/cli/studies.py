"""What `thaw reproduce` and `thaw ablate` do; `app` holds their options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from thaw.cli.commands import print_json, print_text
from thaw.cli.interrupt import told_when_stopped, watched
from thaw.cli.progress import Progress
from thaw.quoting import printable, shell_command
from thaw.recipe.recipe import load_recipe
from thaw.studies.ablation import ArmEpoch, Compared
from thaw.studies.ablation import ablate as run_ablation
from thaw.studies.reproduce import PUBLISHED, SeedStarted, Written, parse_seeds
from thaw.studies.reproduce import reproduce as run_reproduction
from thaw.training.arms import StudyName
from thaw.training.compute import keep_freed_memory

GOES_ON = "stopped; what is finished is kept: give the same command again to go on"


def reproduce(
    datasets: Sequence[str] | None,
    seeds: str,
    *,
    out: Path,
    device: str,
    data_root: Path | None,
    as_json: bool,
) -> None:
    """`thaw reproduce`."""
    keep_freed_memory()
    with Progress() as progress, told_when_stopped(GOES_ON):
        events = run_reproduction(
            list(datasets or PUBLISHED),
            parse_seeds(seeds),
            out=out,
            device=device,
            data_root=data_root,
            command=shell_command(["thaw", *sys.argv[1:]]),
            progress=progress.decoding,
        )
        for event in watched(events):
            if isinstance(event, SeedStarted):
                progress.say(f"\n{event.title}, seed {event.seed}: {event.path}")
            elif isinstance(event, Written):
                progress.close()
                _print(event.result, event.page, as_json=as_json)
            else:
                progress.show(event)


def ablate(  # noqa: PLR0913 - the options of the command
    source: str,
    recipe: str,
    overrides: Sequence[str],
    seeds: str,
    *,
    study: StudyName,
    out: Path | None,
    device: str,
    data_root: Path | None,
    as_json: bool,
) -> None:
    """`thaw ablate SOURCE`."""
    name, settings = load_recipe(recipe, overrides)
    kind = "ablate" if study == "parts" else study
    folder = out if out is not None else Path("runs") / f"{kind}-{Path(source).resolve().name}"
    keep_freed_memory()
    with Progress() as progress, told_when_stopped(GOES_ON):
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
            progress=progress.decoding,
        )
        for event in watched(events):
            if isinstance(event, ArmEpoch):
                progress.arm(event.arm, event.seed, event.record)
            elif isinstance(event, Compared):
                progress.close()
                _print(event.result, event.page, as_json=as_json)


def _print(result: dict[str, object], page: Path, *, as_json: bool) -> None:
    if as_json:
        print_json(result)
    else:
        print_text(f"{page.read_text('utf-8')}\nwritten to {printable(str(page))}")
