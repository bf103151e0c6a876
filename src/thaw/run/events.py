"""The events of a run, in order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thaw.data.prepare import PreparedData
from thaw.graph.cost import Cost
from thaw.run.cross_validation import EpochDone, FoldDone
from thaw.run.quantization import QatEpochDone, QuantizationResult
from thaw.run.trials import Trial, TrialPlan


@dataclass(frozen=True)
class Begun:
    """The run folder exists. From now on the run can be resumed, although nothing is trained yet."""

    path: Path


@dataclass(frozen=True)
class Started:
    """The data are ready, and training starts or resumes.

    Attributes:
        path: the run folder.
        data: the data of the run.
        cost: the cost of the network.
        epochs_done: epochs that an earlier process finished.
        stages: stage -> planned epochs.
        folds: folds of the cross-validation; 0 for none.
        epoch_seconds: stage -> estimated seconds per epoch on this machine.
    """

    path: Path
    data: PreparedData
    cost: Cost
    epochs_done: int
    stages: dict[str, int]
    folds: int
    epoch_seconds: dict[str, float]


@dataclass(frozen=True)
class Int8Done:
    """The int8 graph is selected and saved."""

    quantization: QuantizationResult


@dataclass(frozen=True)
class Finished:
    """The run is finished; `path` is its folder, `metrics` the content of metrics.json."""

    path: Path
    metrics: dict[str, Any]


Event = TrialPlan | Trial | Begun | Started | EpochDone | FoldDone | QatEpochDone | Int8Done | Finished
