"""thaw: lightweight CNN image classifiers for constrained devices.

    import thaw

    run = thaw.train("digits")                      # the same words as `thaw train digits`
    print(run.metrics["test"]["accuracy"], run.report)
    model = thaw.Model.load(run.path)
    print(model.predict("photo.png")[0].label)

Names are imported when they are first used, so that `import thaw` is quick.
"""

from __future__ import annotations

import typing as _typing

from thaw._version import __version__

if _typing.TYPE_CHECKING:
    from thaw.api import Run, evaluate, load, train
    from thaw.data.images import ImageSet, InputSpec
    from thaw.data.prepare import PreparedData
    from thaw.deploy_api import bench_run, export_run, verify_run
    from thaw.errors import (
        BudgetError,
        DataError,
        ModelFileError,
        NotFiniteError,
        RecipeError,
        RunError,
        ThawError,
        TrainingError,
        UsageError,
    )
    from thaw.model.model import Model, Prediction
    from thaw.recipe.recipe import Recipe, load_recipe

__all__ = [
    "BudgetError",
    "DataError",
    "ImageSet",
    "InputSpec",
    "Model",
    "ModelFileError",
    "NotFiniteError",
    "Prediction",
    "PreparedData",
    "Recipe",
    "RecipeError",
    "Run",
    "RunError",
    "ThawError",
    "TrainingError",
    "UsageError",
    "__version__",
    "bench_run",
    "evaluate",
    "export_run",
    "load",
    "load_recipe",
    "train",
    "verify_run",
]

# Where each name lives: the same table as the imports above, which only type checkers run.
_HOMES = {
    "thaw.data.images": ("ImageSet", "InputSpec"),
    "thaw.data.prepare": ("PreparedData",),
    "thaw.errors": (
        "BudgetError",
        "DataError",
        "ModelFileError",
        "NotFiniteError",
        "RecipeError",
        "RunError",
        "ThawError",
        "TrainingError",
        "UsageError",
    ),
    "thaw.model.model": ("Model", "Prediction"),
    "thaw.api": ("Run", "evaluate", "load", "train"),
    "thaw.deploy_api": ("bench_run", "export_run", "verify_run"),
    "thaw.recipe.recipe": ("Recipe", "load_recipe"),
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
