"""thaw: lightweight CNN image classifiers for constrained devices.

    import thaw

    run = thaw.train("digits")
    print(run.metrics["test"]["accuracy"], run.report)
    print(run.predict("photo.png")[0].label)
    run.export(["c"])

    model = thaw.Model.load("zoo:mnist-15k")

Names are imported on first use, so that `import thaw` is fast.
"""

from __future__ import annotations

import typing as _typing

from thaw._version import __version__

if _typing.TYPE_CHECKING:
    from thaw.api import Estimate, ablate, estimate, load, load_recipe, reproduce, summarize, train
    from thaw.data.images import ImageSet, InputSpec
    from thaw.data.prepare import PreparedData
    from thaw.errors import (
        BudgetError,
        DataError,
        MissingDependencyError,
        ModelFileError,
        NotFiniteError,
        RecipeError,
        RunError,
        ThawError,
        TrainingError,
        UsageError,
    )
    from thaw.model.model import Model
    from thaw.model.probabilities import Prediction
    from thaw.model.zoo_card import ZooCard, zoo_card, zoo_cards
    from thaw.recipe.recipe import Recipe
    from thaw.run.run import Run
    from thaw.studies.runs import Study

__all__ = [
    "BudgetError",
    "DataError",
    "Estimate",
    "ImageSet",
    "InputSpec",
    "MissingDependencyError",
    "Model",
    "ModelFileError",
    "NotFiniteError",
    "Prediction",
    "PreparedData",
    "Recipe",
    "RecipeError",
    "Run",
    "RunError",
    "Study",
    "ThawError",
    "TrainingError",
    "UsageError",
    "ZooCard",
    "__version__",
    "ablate",
    "estimate",
    "load",
    "load_recipe",
    "reproduce",
    "summarize",
    "train",
    "zoo_card",
    "zoo_cards",
]

# Name -> module: the same table as the imports above, which only type checkers run.
_HOMES = {
    "thaw.api": ("Estimate", "ablate", "estimate", "load", "load_recipe", "reproduce", "summarize", "train"),
    "thaw.data.images": ("ImageSet", "InputSpec"),
    "thaw.data.prepare": ("PreparedData",),
    "thaw.errors": (
        "BudgetError",
        "DataError",
        "MissingDependencyError",
        "ModelFileError",
        "NotFiniteError",
        "RecipeError",
        "RunError",
        "ThawError",
        "TrainingError",
        "UsageError",
    ),
    "thaw.model.model": ("Model",),
    "thaw.model.probabilities": ("Prediction",),
    "thaw.model.zoo_card": ("ZooCard", "zoo_card", "zoo_cards"),
    "thaw.recipe.recipe": ("Recipe",),
    "thaw.run.run": ("Run",),
    "thaw.studies.runs": ("Study",),
}


def __getattr__(name: str) -> object:
    import importlib

    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'thaw' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
