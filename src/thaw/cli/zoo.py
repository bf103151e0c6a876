"""`thaw zoo`: the models that ship with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from thaw.cli.interrupt import STOPPED, told_when_stopped
from thaw.cli.options import Json
from thaw.cli.output import columns, print_json, print_text
from thaw.quoting import printable, shown

REPRODUCTION = Path("docs/results/reproduce.json")


class _NamesAreShown(TyperGroup):
    """A word that is not a command is the name of a model: `thaw zoo NAME`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            args = ["show", *args]
        return super().resolve_command(ctx, args)


zoo_app = typer.Typer(
    cls=_NamesAreShown,
    help="List the models that ship with thaw, or show one card: `thaw zoo NAME`. Use a model as zoo:NAME.",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@zoo_app.callback(invoke_without_command=True)
def _list(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is not None:
        context.obj = as_json
        return
    from thaw.model.zoo_card import read_cards
    from thaw.studies.zoo import interval_half

    cards = read_cards()
    if as_json:
        print_json({"models": [card.as_dict() for card in cards]})
        return
    if not cards:
        print_text("no models are installed")
        return
    rows = [("model", "data set", "accuracy", "in int8", "mean of seeds", "parameters", "MACs", "flash", "RAM")]
    for card in cards:
        accuracies = (f"{card.test.accuracy:.2%}", f"{card.int8.accuracy:.2%}", interval_half(card))
        costs = (f"{card.parameters:,}", f"{card.macs:,}", f"{card.flash_bytes:,}", f"{card.device_ram_bytes:,}")
        rows.append((f"zoo:{card.name}", card.dataset, *accuracies, *costs))
    print_text(columns(rows, right=(2, 3, 4, 5, 6, 7, 8)))
    units = "flash (constants) and RAM (input image included) in bytes, of the int8 C"
    print_text(f"accuracy on the test set; {units}; thaw zoo NAME shows more")


@zoo_app.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the model, with or without zoo:.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Show the card of a model; `thaw zoo NAME` does the same."""
    from thaw.errors import UsageError
    from thaw.model.zoo import ZOO_PREFIX, zoo_folder
    from thaw.model.zoo_card import read_card
    from thaw.studies.zoo import describe

    folder = zoo_folder(ZOO_PREFIX + name.removeprefix(ZOO_PREFIX))
    if folder is None:
        raise UsageError(f"{shown(name)} is not the name of a model")
    card = read_card(folder)
    if as_json or context.obj:
        print_json(card.as_dict())
    else:
        print_text(columns(describe(card)))


@zoo_app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of the model, as in zoo:NAME.", show_default=False)],
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Finished runs that differ only in seed.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(help="The zoo's folder; by default the one in the package.", show_default=False)
    ] = None,
) -> None:
    """Add the run that is best on validation images to the zoo; for its maintainers."""
    from thaw.studies.zoo import add_model, describe

    with told_when_stopped(STOPPED):
        card = add_model(name, runs, out=out)
    print_text(columns(describe(card)))


@zoo_app.command()
def seal(
    name: Annotated[str, typer.Argument(help="Name of the model whose card.json was edited.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="The zoo's folder; by default the one in the package.", show_default=False)
    ] = None,
) -> None:
    """Check an edited card.json and update its digest; for the maintainers of the zoo."""
    from thaw.studies.zoo import describe, seal_card

    print_text(columns(describe(seal_card(name, out=out))))


@zoo_app.command()
def plot(
    out: Annotated[Path, typer.Option(help="The .svg file; a page with all sources is written beside it.")] = Path(
        "pareto.svg"
    ),
    reproduction: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"The result of thaw reproduce; {REPRODUCTION} if it exists.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Plot accuracy over parameters and over multiply-accumulates, with published results."""
    from thaw.studies.pareto import write_pareto

    if reproduction is None and REPRODUCTION.is_file():
        reproduction = REPRODUCTION
    for path in write_pareto(out, reproduction):
        print_text(printable(f"written: {path}"))
