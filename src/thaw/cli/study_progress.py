"""Output of the study commands: progress of the runs, then the result."""

from __future__ import annotations

import re

import thaw
from thaw.cli.output import print_json, print_text
from thaw.cli.training_progress import TrainingProgress
from thaw.errors import UsageError
from thaw.quoting import printable, shown
from thaw.studies.runs import RunStarted


class StudyProgress(TrainingProgress):
    """Shows the events of a study: the title of each run, and its events."""

    def show(self, event: object) -> None:
        """Show an event."""
        if isinstance(event, RunStarted):
            self.say(f"\n{event.title}: {event.path}")
        else:
            super().show(event)


def parse_seeds(text: str) -> tuple[int, ...]:
    """'0,1,2' -> (0, 1, 2).

    Raises:
        UsageError: unless the text is a list of integers, separated by commas.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,18}", part) for part in parts):
        raise UsageError(f"seeds {shown(text)}: expected distinct integers separated by commas, such as 0,1,2")
    return tuple(int(part) for part in parts)


def print_study(study: thaw.Study, *, as_json: bool) -> None:
    """Print the results of a study, as JSON or as its page."""
    if as_json:
        print_json(study.result)
    else:
        print_text(f"{study.page.read_text('utf-8')}\nwritten to {printable(str(study.page))}")
