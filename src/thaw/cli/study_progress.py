"""Output of the study commands: progress of the runs, then the result."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from thaw.cli.interrupt import RESUMABLE, told_when_stopped, watched
from thaw.cli.output import print_json, print_text
from thaw.cli.training_progress import TrainingProgress
from thaw.events import decoding_to
from thaw.quoting import printable, shell_command
from thaw.studies.runs import RunStarted, StudyDone


def show_study(study: Callable[..., Iterator[object]], /, *arguments: Any, as_json: bool, **options: Any) -> None:
    """Run a study to its end and print its results, as JSON or as a page.

    Args:
        study: a generator of the events of its runs and a final `StudyDone`.
        arguments: positional arguments of the study.
        as_json: print JSON.
        options: keyword arguments of the study, except `command` and `progress`.
    """
    command = shell_command(["thaw", *sys.argv[1:]])
    with TrainingProgress() as progress, told_when_stopped(RESUMABLE):
        events = study(*arguments, **options, command=command, progress=decoding_to(progress))
        for event in watched(events):
            if isinstance(event, RunStarted):
                progress.say(f"\n{event.title}: {event.path}")
            elif isinstance(event, StudyDone):
                progress.close()
                if as_json:
                    print_json(event.result)
                else:
                    print_text(f"{event.page.read_text('utf-8')}\nwritten to {printable(str(event.page))}")
            else:
                progress(event)
