"""An estimate of the time per epoch on this machine, from a few steps before training begins."""

from __future__ import annotations

import statistics
import time

from thaw.models.blocks import dropouts
from thaw.seeds import derive
from thaw.training.engine import StageRun
from thaw.training.trainer import MultiStageTrainer, TrainerSettings, TrainingContext

_MOST_STEPS = 6
_MOST_SECONDS = 2.0


def seconds_per_epoch(settings: TrainerSettings, context: TrainingContext) -> dict[str, float]:
    """Return the estimated seconds per epoch of each stage, validation included, by the stage's name.

    Each stage takes a few steps on a temporary network with its own random streams, so that the run's results do not
    change.
    """
    return {run.stage.name: _seconds(run) for run in MultiStageTrainer(settings, context).stage_runs()}


def _seconds(run: StageRun) -> float:
    stage = run.stage
    stage.set_training()
    for name, dropout in dropouts(stage.module):
        dropout.reseed(derive(run.seed, "pace", name), run.train.device)
    steps: list[float] = []
    begun = before = time.perf_counter()
    for batch in run.train.shuffled(derive(run.seed, "pace")):
        run.optimizer.zero_grad()
        losses = stage.backward(batch, run.parallel, run.dtype)
        run.optimizer.step()
        # Reading a number waits for the step on a GPU.
        _ = [float(loss) for loss in losses.values()]
        now = time.perf_counter()
        steps.append(now - before)
        before = now
        if len(steps) >= _MOST_STEPS or (len(steps) > 1 and now - begun > _MOST_SECONDS):
            break
    # The first step allocates memory and may compile.
    step = statistics.median(steps[1:] or steps)
    return step * len(run.train) + _validation_seconds(run)


def _validation_seconds(run: StageRun) -> float:
    batch = next(iter(run.validation.ordered()))
    started = time.perf_counter()
    for logits in run.stage.logits(batch.views["original"], run.parallel).values():
        _ = float(logits.sum())
    return (time.perf_counter() - started) * len(run.validation.images) / len(batch)
