"""Progress of training: one live line per stage on a terminal, elsewhere one line per epoch."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from rich.live import Live
from rich.text import Text

from thaw.cli.progress import Progress
from thaw.quoting import printable
from thaw.run.cross_validation import EpochDone, FoldDone
from thaw.run.events import Begun, Int8Done, Started
from thaw.run.quantization import QatEpochDone
from thaw.run.trials import Trial, TrialPlan
from thaw.training.engine import EpochRecord

# The time left is estimated from this many epochs.
_PACE_EPOCHS = 3


class TrainingProgress(Progress):
    """Shows the events of a run.

    Attributes:
        run_folder: the run folder, once the run has started.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self.run_folder: Path | None = None
        self._stages: dict[str, int] = {}
        self._folds = 0
        self._live: Live | None = None
        self._key: tuple[object, ...] = ()
        self._seconds: list[float] = []

    def show(self, event: object) -> None:
        """Show an event."""
        if isinstance(event, TrialPlan):
            what = f"{len(event.candidates)} networks, {event.epochs} epochs of {len(event.data.train):,} images each"
            self.say(f"comparing {what} (sizing.trials)")
        elif isinstance(event, Trial):
            found = f"{event.candidate}: {event.score:.2%} in {_duration(event.seconds)}"
            self.say(f"trial {event.number} of {event.count}  {found}")
        elif isinstance(event, Begun):
            self.run_folder = event.path
        elif isinstance(event, Started):
            self._started(event)
        elif isinstance(event, EpochDone):
            self._epoch(event)
        elif isinstance(event, FoldDone):
            figures = f"accuracy {event.accuracy:.2%}, balanced {event.balanced_accuracy:.2%}"
            self.say(f"fold {event.fold} of {event.folds}: {figures} on the held-out images")
        elif isinstance(event, QatEpochDone):
            self._line((event.record.stage,), _describe(event.record))
        elif isinstance(event, Int8Done):
            int8 = event.quantization
            accuracies = f"{int8.chosen.scores.accuracy:.2%}, in float32 {int8.float_scores.accuracy:.2%}"
            self.say(f"int8   {int8.chosen.method}: validation {accuracies}")
        else:
            super().show(event)

    def _started(self, event: Started) -> None:
        data = event.data
        self.run_folder, self._stages, self._folds = event.path, event.stages, event.folds
        counts = f"{len(data.train):,} train, {len(data.validation):,} validation, {len(data.test):,} test"
        self._print(f"{data.name}: {counts}; {len(data.train.classes)} classes; input {data.input_spec}")
        for problem in data.problems:
            self._print(f"  {problem.severity}: {problem}")
        network = f"{event.cost.parameters:,} parameters, {event.cost.macs:,} multiply-accumulates"
        self._print(f"network: {network}; run folder: {event.path}")
        if event.epochs_done:
            self._print(f"resuming after epoch {event.epochs_done}")
        self._print(_estimate(event))

    def _epoch(self, event: EpochDone) -> None:
        record = event.record
        self._seconds = [*self._seconds[1 - _PACE_EPOCHS :], record.seconds]
        left = _duration(self._seconds_left(record, event.fold))
        which = f"fold {event.fold} " if event.fold else ""
        self._line((record.stage, event.fold), f"{which}{_describe(record)}  {left} left")

    def _line(self, key: tuple[object, ...], line: str) -> None:
        """Show `line`, on a terminal in place of the last line with the same `key`."""
        if key != self._key:
            self.close()
            self._key = key
        if not self._console.is_terminal:
            self._print(line)
            return
        if self._live is None:
            # Other output during this time passes through the guarded streams, not through rich.
            self._live = Live(console=self._console, refresh_per_second=4, redirect_stdout=False, redirect_stderr=False)
            self._live.start()
        self._live.update(Text(printable(line), no_wrap=True, overflow="ellipsis"), refresh=True)

    def _seconds_left(self, record: EpochRecord, fold: int) -> float:
        names = list(self._stages)
        later = names[names.index(record.stage) + 1 :] if record.stage in names else []
        epochs = record.epochs - record.epoch + sum(self._stages[name] for name in later)
        epochs += (self._folds - fold) * sum(self._stages.values())
        return epochs * sum(self._seconds) / len(self._seconds)

    def close(self) -> None:
        """End the live line, if there is one."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        super().close()


def _describe(record: EpochRecord) -> str:
    losses = " ".join(f"{name} {loss:.4f}" for name, loss in record.losses.items())
    val = f"{record.validation_accuracy:.2%}"
    if record.best_by != "accuracy":
        val += f" balanced {record.validation_balanced_accuracy:.2%}"
    return (
        f"{record.stage:<6} epoch {record.epoch:>2}/{record.epochs}  loss {losses}"
        f"  val {val}{'*' if record.best else ' '}  {record.images_per_second:,.0f} img/s"
    )


def _estimate(event: Started) -> str:
    """The estimated training time, from a few timed steps."""
    stages = [name for name, epochs in event.stages.items() for _ in range(epochs)]
    own, fold = (sum(event.epoch_seconds[name] for name in left) for left in (stages[event.epochs_done :], stages))
    epoch = fold / len(stages)
    each = _duration(epoch) if epoch >= 1 else f"{epoch:.1f} s"
    folds = f", {event.folds} folds included" if event.folds else ""
    return f"training: about {each} per epoch, {_duration(own + event.folds * fold)} in total on this machine{folds}"


def _duration(seconds: float) -> str:
    """'8 s', '3 min 20 s', '1 h 12 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
