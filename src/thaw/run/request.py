"""What a run is asked for, and how run.json keeps it."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thaw.data.problems import Problem
from thaw.data.sources import NAMES
from thaw.errors import RecipeError, RunError, UsageError
from thaw.plain import LARGEST_WHOLE, from_plain
from thaw.quoting import shown
from thaw.recipe.budget import Budget
from thaw.recipe.recipe import Recipe, recipe_from_dict
from thaw.run.folder import RUN_VERSION

_KEPT_TYPES: dict[str, type | types.UnionType] = {
    "source": str | None,
    "recipe_name": str,
    "recipe": dict,
    "seed": int,
    "device": str,
    "folds": int,
    "data_root": str | None,
    "skip_broken": bool,
    "overrides": list,
    "budget": dict | None,
    "chosen": list | None,
    "command": str,
    "fingerprint": str,
    "threads": int,
    "normalization": str | None,
}


# More threads than any machine has cores; a run is resumed with as many as it began with.
_MOST_THREADS = 4096


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What a run is asked for; all but `source` in memory is what run.json keeps.

    Attributes:
        source: a name, a path, a Hub id, or arrays (see `thaw.data.prepare.prepare`).
        recipe_name: for the record.
        recipe: what to train and how.
        seed: of everything random in the run.
        device: "auto", "cpu" or "cuda".
        folds: folds of the cross-validation, 0 for none.
        data_root: folder that holds the named data sets.
        skip_broken: leave out images that cannot be read, and list them.
        budget: what the network may cost at most.
        chosen: notes on what was chosen where the recipe left the size open.
        overrides: what was set beside the recipe, such as "dual.epochs=5", for the record.
        command: the command line that asked, for the record.
        typed: the source as it was given, where `source` is that made absolute.
    """

    source: Any
    recipe_name: str
    recipe: Recipe
    seed: int = 0
    device: str = "auto"
    folds: int = 0
    data_root: Path | None = None
    skip_broken: bool = False
    budget: Budget | None = None
    chosen: tuple[Problem, ...] = ()
    overrides: tuple[str, ...] = ()
    command: str = ""
    typed: str = ""

    @property
    def given(self) -> str:
        """The source in the words in which it was given, for the record."""
        return self.typed or (str(self.source) if isinstance(self.source, str | Path) else "arrays")

    def __post_init__(self) -> None:
        for name in ("seed", "folds"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST_WHOLE:
                raise UsageError(f"{name} {shown(value)}: expected a whole number from 0 to {LARGEST_WHOLE:,}")
        if self.folds == 1:
            raise UsageError("folds 1: expected 0 for none, or at least 2")

    def as_dict(self) -> dict[str, Any]:
        """What run.json keeps; a source in memory is told by None, and must be given again to resume."""
        source = str(self.source) if isinstance(self.source, str | Path) else None
        # A path is kept absolute, so that a run can be resumed from another folder.
        if source is not None and source not in NAMES and Path(source).expanduser().exists():
            source = str(Path(source).expanduser().resolve())
        return {
            "version": RUN_VERSION,
            "source": source,
            "recipe_name": self.recipe_name,
            "recipe": self.recipe.as_dict(),
            "seed": self.seed,
            "device": self.device,
            "folds": self.folds,
            "data_root": None if self.data_root is None else str(self.data_root.expanduser().resolve()),
            "skip_broken": self.skip_broken,
            "budget": None if self.budget is None else self.budget.as_dict(),
            "chosen": [note.as_dict() for note in self.chosen],
            "overrides": list(self.overrides),
            "command": self.command,
            "typed": self.given,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: Any = None) -> TrainRequest:
        """The inverse of `as_dict`.

        Raises:
            RunError: when run.json is not whole, or a source in memory was not given again.
        """
        for name, kind in _KEPT_TYPES.items():
            if name not in data:
                raise RunError(f"run.json has no {name}\nrestore it, or start a new run")
            value = data[name]
            # To Python, true and false are whole numbers too.
            is_kind = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
            if not is_kind or not _is_in_range(name, value):
                raise RunError(
                    f"run.json has {name} = {shown(data.get(name))}, which cannot be\nrestore it, or start a new run"
                )
        kept, root, budget = data["source"], data["data_root"], data.get("budget")
        if kept is None and source is None:
            raise RunError(
                "this run was trained from arrays in memory\n"
                "resume it from Python: thaw.train((images, labels), resume=...)"
            )
        try:
            return cls(
                source=source if source is not None else kept,
                recipe_name=data["recipe_name"],
                recipe=recipe_from_dict(data["recipe"]),
                seed=data["seed"],
                device=data["device"],
                folds=data["folds"],
                data_root=None if root is None else Path(root),
                skip_broken=data["skip_broken"],
                budget=None if budget is None else Budget.from_dict(budget),
                chosen=_notes(data.get("chosen")),
                overrides=tuple(map(str, data["overrides"])),
                command=data["command"],
                typed=str(data.get("typed", "")),
            )
        except RecipeError as error:
            raise RunError(f"run.json holds a recipe that cannot be\n{error}") from error
        except (AttributeError, LookupError, TypeError, ValueError, UsageError) as error:
            raise RunError(f"run.json cannot be: {error}\nrestore it, or start a new run") from error


def _is_in_range(name: str, value: object) -> bool:
    if isinstance(value, str):
        return "\0" not in value
    if name == "threads":
        return isinstance(value, int) and 1 <= value <= _MOST_THREADS
    return not isinstance(value, int) or abs(value) <= LARGEST_WHOLE


def _notes(kept: list[Any] | None) -> tuple[Problem, ...]:
    return tuple(from_plain(Problem, note, f"chosen[{index}]") for index, note in enumerate(kept or ()))
