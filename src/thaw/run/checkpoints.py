"""The checkpoint of a run, written after every epoch. It is valid only for the plan that it was trained with."""

from __future__ import annotations

import hashlib
import json

from thaw.data.cache import cache_root
from thaw.data.prepare import PreparedData
from thaw.errors import ModelFileError, RunError
from thaw.run.folder import RunFolder
from thaw.run.request import TrainRequest
from thaw.training.checkpoint import read_tensors, write_tensors
from thaw.training.trainer import MultiStageTrainer

CHECKPOINT_VERSION = 1


def plan_digest(request: TrainRequest, data: PreparedData) -> str:
    """A digest of everything that determines the weights. A run resumes only checkpoints with its own digest."""
    recipe = request.recipe.as_dict()
    # Quantization comes after training, and sizes are determined before it.
    del recipe["quantize"], recipe["sizing"]
    facts = [recipe, request.seed, data.fingerprint, data.input_spec.as_dict()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def restore(folder: RunFolder, trainer: MultiStageTrainer, plan: str) -> float:
    """Load the checkpoint, if any, and return the training time up to it, in seconds.

    Raises:
        RunError: when it is damaged or belongs to another plan.
    """
    if not folder.checkpoint.exists():
        return 0.0
    remedy = f"remove {folder.checkpoint} to train this run again from the start"
    try:
        tensors, header = read_tensors(folder.checkpoint, version=CHECKPOINT_VERSION)
        found, seconds = header["plan"], float(header["seconds"])
        if found == plan:
            trainer.restore(tensors, header["method"])
    except (ModelFileError, LookupError, TypeError, ValueError) as error:
        what = str(error) if isinstance(error, ModelFileError) else f"{folder.checkpoint} is incomplete: {error}"
        raise RunError(f"{what}\n{remedy}", code="run-checkpoint") from error
    if found != plan:
        raise RunError(
            f"the checkpoint belongs to a run with another recipe, seed or data\n{remedy}", code="run-checkpoint"
        )
    return max(0.0, seconds)


def save(folder: RunFolder, trainer: MultiStageTrainer, plan: str, seconds: float) -> None:
    """Write the checkpoint, then the history, which a resume rewrites from the checkpoint."""
    tensors, numbers = trainer.state()
    header = {"version": CHECKPOINT_VERSION, "plan": plan, "method": numbers, "seconds": seconds}
    write_tensors(folder.checkpoint, tensors, header)
    folder.write_history(numbers["records"])


def check_data(folder: RunFolder, data: PreparedData) -> None:
    """Check that cached images were not damaged during training; otherwise the checkpoint is removed too.

    Raises:
        RunError: when they were damaged.
    """
    if not data.is_whole():
        folder.checkpoint.unlink(missing_ok=True)
        raise RunError(
            f"the prepared images in {cache_root()} were damaged during training\n"
            "the checkpoint was removed: a resume prepares them again and trains from the start",
            code="run-checkpoint",
        )
