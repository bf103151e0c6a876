"""`thaw zoo`: the models that ship with the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from thaw.cli.options import Json
from thaw.cli.output import columns

if TYPE_CHECKING:
    import thaw
    from thaw.model.zoo_card import Measured, SeedResult


class _NamesAreShown(TyperGroup):
    """Treats a word that is not a command as the name of a model: `thaw zoo NAME`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            args = ["show", *args]
        return super().resolve_command(ctx, args)


zoo_app = typer.Typer(
    cls=_NamesAreShown,
    help="List the models that ship with thaw, or show one: `thaw zoo NAME`. Use a model as zoo:NAME.",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@zoo_app.callback(invoke_without_command=True)
def _list(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is not None:
        context.obj = as_json
        return
    import thaw
    from thaw.cli.output import print_json, print_text

    cards = thaw.zoo_cards()
    if as_json:
        print_json({"models": [card.as_dict() for card in cards]})
        return
    if not cards:
        print_text("no models are installed")
        return
    rows = [("model", "data set", "accuracy", "int8", "mean over seeds", "parameters", "MACs", "flash", "RAM")]
    for card in cards:
        accuracies = (f"{card.test.accuracy:.2%}", f"{card.int8.accuracy:.2%}", str(card.mean))
        costs = (f"{card.parameters:,}", f"{card.macs:,}", f"{card.flash_bytes:,}", f"{card.device_ram_bytes:,}")
        rows.append((f"zoo:{card.name}", card.dataset, *accuracies, *costs))
    print_text(columns(rows, right=(2, 3, 4, 5, 6, 7, 8)))
    print_text(
        "Accuracy is on the test set. Flash (constants only) and RAM (input image included) are bytes of the C in"
    )
    print_text("int8. For details: thaw zoo NAME")


@zoo_app.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of a model, with or without zoo:.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Show the card of a model; the same as `thaw zoo NAME`."""
    import thaw
    from thaw.cli.output import print_json, print_text

    card = thaw.zoo_card(name)
    if as_json or context.obj:
        print_json(card.as_dict())
    else:
        print_text(columns(describe(card)))


def describe(card: thaw.ZooCard) -> list[tuple[str, str]]:
    """Return a card as (label, value) lines."""
    height, width, channels = (card.input[key] for key in ("height", "width", "channels"))
    machine = card.environment
    litert = "" if card.litert_bytes is None else f"; LiteRT file {card.litert_bytes:,} bytes"
    trained = f"{machine['cpu']}, {card.device}, {card.precision}, {card.kernels} kernels"
    return [
        ("model", f"zoo:{card.name}"),
        ("data set", f"{card.dataset}, {len(card.classes)} classes, input {height}x{width}x{channels}"),
        ("test accuracy", _measured(card.test)),
        ("int8 accuracy", _measured(card.int8)),
        ("mean over seeds", f"{card.mean}; int8 {card.int8_mean}"),
        *((f"seed {each.seed}", _seed(each, chosen=each.seed == card.seed)) for each in card.seeds),
        ("parameters", f"{card.parameters:,}"),
        ("multiply-accumulates", f"{card.macs:,}"),
        ("int8 constants", f"{card.flash_bytes:,} bytes in C{litert}"),
        ("int8 RAM", f"{card.device_ram_bytes:,} bytes: arena and stack {card.ram_bytes:,}, plus image and scores"),
        ("command", card.command),
        ("trained on", f"{trained}, in {card.seconds:,.0f} s"),
        ("versions", f"thaw {machine['thaw']}, Python {machine['python']}, torch {machine['torch']}; {machine['os']}"),
        ("data fingerprint", card.fingerprint),
    ]


def _measured(found: Measured) -> str:
    low, high = found.accuracy_ci95
    return f"{found.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}, {found.count:,} images)"


def _seed(each: SeedResult, *, chosen: bool) -> str:
    found = f"{each.accuracy:.2%}; int8 {each.int8_accuracy:.2%}; validation {each.validation_accuracy:.2%}"
    return found + (" (this model)" if chosen else "")
