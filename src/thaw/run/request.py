"""The request of a run: built from a caller's arguments, and stored in run.json."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thaw.data.problems import Problem
from thaw.data.sources import NAMES
from thaw.errors import RecipeError, RunError, UsageError
from thaw.plain import LARGEST_WHOLE, from_plain
from thaw.quoting import shell_command, shown
from thaw.recipe.budget import Budget
from thaw.recipe.recipe import Recipe, default_recipe, grouped, load_recipe, recipe_from_dict
from thaw.run.folder import RUN_VERSION

_STORED_TYPES: dict[str, type | types.UnionType] = {
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
    "kernels": str | None,
}


# More threads than any machine has cores; a run is resumed with as many as it started with.
_MOST_THREADS = 4096

_REMEDY = "restore it, or start a new run"

Overrides = Mapping[str, Any] | Sequence[str]
"""Settings of a recipe to replace: {"dual": {"epochs": 5}}, {"dual.epochs": 5} or ["dual.epochs=5"]."""


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """The arguments of a run. All of them except a `source` in memory are stored in run.json.

    Attributes:
        source: a name, a path, a Hub id, or data in memory (see `thaw.load`).
        recipe_name: name of the recipe, for the record.
        recipe: the recipe.
        seed: random seed.
        device: "auto", "cpu" or "cuda".
        folds: folds of the cross-validation, 0 for none.
        data_root: folder that holds the named data sets.
        skip_broken: leave out images that cannot be read, and list them.
        budget: upper limits on the network's cost.
        chosen: notes on the choices, if the recipe left the size open.
        overrides: settings replaced in the recipe, such as "dual.epochs=5", for the record.
        command: the command line of the same run, for the record; "" if there is none.
        typed: the source as given, if `source` is the absolute path made from it.
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
        """The source as given, for the record."""
        return self.typed or (str(self.source) if isinstance(self.source, str | Path) else "arrays")

    def __post_init__(self) -> None:
        for name in ("seed", "folds"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST_WHOLE:
                raise UsageError(f"{name} {shown(value)}: expected an integer from 0 to {LARGEST_WHOLE:,}")
        if self.folds == 1:
            raise UsageError("folds 1: expected 0 for none, or at least 2")

    def as_dict(self) -> dict[str, Any]:
        """The content of run.json. A source in memory is stored as None, and must be given again to resume."""
        source = str(self.source) if isinstance(self.source, str | Path) else None
        # Paths are stored as absolute paths, so that a run can be resumed from another folder.
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
            RunError: when run.json is incomplete or invalid, or a source in memory was not given again.
        """
        for name, kind in _STORED_TYPES.items():
            if name not in data:
                raise RunError(f"run.json has no {name}\n{_REMEDY}", code="run-json")
            value = data[name]
            # In Python, bool is a subclass of int.
            is_kind = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
            if not is_kind or not _is_in_range(name, value):
                raise RunError(
                    f"run.json: invalid {name} {shown(value)} (expected {_kind_name(kind)})\n{_REMEDY}", code="run-json"
                )
        stored, root, budget = data["source"], data["data_root"], data.get("budget")
        if stored is None and source is None:
            raise RunError(
                "this run was trained on arrays in memory\n"
                "open it from Python with them: thaw.Run.open(path, source=(images, labels))",
                code="run-memory",
            )
        try:
            return cls(
                source=source if source is not None else stored,
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
            raise RunError(f"run.json: invalid recipe\n{error}", code="run-json") from error
        except (AttributeError, LookupError, TypeError, ValueError, UsageError) as error:
            raise RunError(f"run.json: {error}\n{_REMEDY}", code="run-json") from error


def _is_in_range(name: str, value: object) -> bool:
    if isinstance(value, str):
        return "\0" not in value
    if name == "threads":
        return isinstance(value, int) and 1 <= value <= _MOST_THREADS
    return not isinstance(value, int) or abs(value) <= LARGEST_WHOLE


def _kind_name(kind: type | types.UnionType) -> str:
    """The JSON name of a type in `_STORED_TYPES`."""
    words = {str: "a string", int: "an integer", bool: "true or false", list: "a list", dict: "an object"}
    kinds = [kind] if isinstance(kind, type) else list(kind.__args__)
    return " or ".join(words.get(each, "null") for each in kinds)


def _notes(stored: list[Any] | None) -> tuple[Problem, ...]:
    return tuple(from_plain(Problem, note, f"chosen[{index}]") for index, note in enumerate(stored or ()))


def build_request(  # noqa: PLR0913 - independent options, by keyword only
    source: Any,
    *,
    recipe: str | Recipe = "",
    overrides: Overrides = (),
    seed: int = 0,
    device: str = "auto",
    folds: int = 0,
    data_root: str | Path | None = None,
    skip_broken: bool = False,
    budget: str = "",
    group_by: str = "",
) -> TrainRequest:
    """Build the request from the arguments of `thaw.train`.

    Raises:
        UsageError: for an argument with an invalid value, or overrides of a `Recipe`.
        RecipeError: for an unknown recipe or invalid settings.
    """
    texts = override_texts(overrides)
    if isinstance(recipe, Recipe):
        if texts:
            raise UsageError(
                "overrides apply to a recipe's name or file; change a Recipe by dataclasses.replace",
                code="usage-overrides",
            )
        name, settings, command = "custom", recipe, ""
    else:
        asked = recipe or default_recipe(source, has_budget=bool(budget))
        name, settings = load_recipe(asked, texts)
        options = {"--recipe": asked, "--seed": seed, "--folds": folds, "--budget": budget, "--group-by": group_by}
        command = _command(source, options, texts, device=device, skip_broken=skip_broken)
    return TrainRequest(
        source=source,
        recipe_name=name,
        recipe=grouped(settings, group_by),
        seed=seed,
        device=device,
        folds=folds,
        data_root=None if data_root is None else Path(data_root).expanduser(),
        skip_broken=skip_broken,
        budget=Budget.parse(budget) if budget else None,
        overrides=texts,
        command=command,
    )


def override_texts(overrides: Overrides) -> tuple[str, ...]:
    """Overrides in the form of the command line, such as "dual.epochs=5".

    Raises:
        UsageError: for anything except a mapping or a sequence of strings.
    """
    if isinstance(overrides, Mapping):
        return tuple(f"{key}={_as_toml(value)}" for key, value in _leaves(overrides))
    is_sequence = isinstance(overrides, Sequence) and not isinstance(overrides, str)
    if not is_sequence or not all(isinstance(each, str) for each in overrides):
        raise UsageError(
            f"overrides {shown(overrides)}: expected a dict, or a list such as ['dual.epochs=5']",
            code="usage-overrides",
        )
    return tuple(overrides)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """{"dual": {"epochs": 5}} -> [("dual.epochs", 5)]."""
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found += _leaves(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return found


def _as_toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_as_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_as_toml, value)) + "]"
    # Strings, numbers and booleans are the same in JSON and TOML.
    return json.dumps(value) if isinstance(value, str | bool | int | float) else str(value)


def _command(
    source: Any, options: Mapping[str, object], overrides: Sequence[str], *, device: str, skip_broken: bool
) -> str:
    """The command line of the same run; "" for a source in memory."""
    if not isinstance(source, str | Path):
        return ""
    words = ["thaw", "train", str(source)]
    for option, value in options.items():
        words += [option, str(value)] if value or option == "--seed" else []
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--device", device] if device != "auto" else []
    words += ["--skip-broken"] if skip_broken else []
    return shell_command(words)
