"""`thaw info`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from thaw.cli.options import Json, Limits, Overrides, given_options
from thaw.errors import UsageError


def info(
    context: typer.Context,
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="A run folder, a model file, or zoo:NAME.", show_default=False),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Name or file of a recipe, instead of a run.", show_default=False)
    ] = None,
    input_shape: Annotated[str, typer.Option("--input", help="Input size for --recipe.")] = "28x28x1",
    classes: Annotated[int, typer.Option(min=2, max=100_000, help="Number of classes for --recipe.")] = 10,
    overrides: Overrides = None,
    budget: Limits = None,
    as_json: Json = False,
) -> None:
    """Show a model, or the network of a recipe: layers, parameters, multiply-accumulates, memory."""
    if (run is None) == (recipe is None):
        raise UsageError("expected either a run folder, or --recipe with the name of a recipe")
    if run is None:
        _show_recipe(recipe or "", input_shape, classes, overrides or (), budget or "", as_json=as_json)
    elif given_options(context, besides=("run", "as_json")):
        raise UsageError("--input, --classes, --set and --budget apply to --recipe only, not to a run")
    else:
        _show_model(run, as_json=as_json)


def _show_model(run: Path, *, as_json: bool) -> None:
    import thaw
    from thaw.cli.output import print_cost, print_json, print_text
    from thaw.quoting import printable

    model = thaw.Model.load(run)
    if as_json:
        facts = {key: model.header.get(key) for key in ("dataset", "recipe", "seed", "fingerprint")}
        described = {"input": model.input_spec.as_dict(), "classes": list(model.classes), **facts}
        print_json(described | model.cost.as_dict())
        return
    recipe = model.header.get("recipe")
    name = recipe.get("name", "?") if isinstance(recipe, dict) else "?"
    origin = f"trained on {model.header.get('dataset')} with recipe {name}, seed {model.header.get('seed')}"
    print_text(printable(origin))
    taken = f"input {model.input_spec} ({model.input_spec.fit}{model.input_spec.range_in_words})"
    print_text(printable(f"{taken}; classes: {', '.join(model.classes)}"))
    print_cost(model.cost)


def _show_recipe(
    recipe: str, input_shape: str, classes: int, overrides: Sequence[str], budget: str, *, as_json: bool
) -> None:
    import thaw
    from thaw.cli.output import print_cost, print_json, print_text
    from thaw.quoting import printable

    found = thaw.estimate(recipe, input=input_shape, classes=classes, overrides=overrides, budget=budget)
    if as_json:
        model, chosen = found.recipe.as_dict()["model"], [note.as_dict() for note in found.notes]
        described = {"recipe": recipe, "input": str(found.input_spec), "classes": classes, "model": model}
        print_json({**described, "chosen": chosen, **found.cost.as_dict()})
        return
    print_text(f"recipe {printable(recipe)}, input {found.input_spec}, {classes} classes")
    for note in found.notes:
        print_text(f"  {note.severity}: {note}")
    print_cost(found.cost)
