"""The command line's root, and how every command speaks: JSON on stdout with ``--json``, people on stderr."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
import typer.core

from forwardinf import __version__
from forwardinf.use.registry import USES


class Commands(typer.core.TyperGroup):
    """The commands; ``plan USE …`` is ``USE … --plan``: it takes the flags of the use."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that these words name."""
        if args[:1] == ["plan"] and args[1:2] and args[1] in USES:
            args = [args[1], *args[2:], "--plan"]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands, name="forwardinf", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help is plain text: as markup, module:factory: has a picture of a factory in it
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Which training examples made the model behave like this? Positive scores are proponents.",
)  # fmt: skip


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    from forwardinf.data.import_gate import code_from

    context.with_resource(code_from("here"))  # what is named on the command line may lie in the current folder
    if version:
        sys.stdout.write(f"forwardinf {__version__}\n")
        raise typer.Exit


def people() -> Any:
    """Return the console for people, on stderr."""
    from rich.console import Console

    return Console(stderr=True)


def print_json(content: Any) -> None:
    """Print a result on stdout."""
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def records(table: Any) -> list[dict[str, Any]]:
    """Return the rows of a data frame as JSON has them."""
    return [{name: finite(value) for name, value in row.items()} for row in table.to_dict("records")]


def finite(value: Any) -> Any:
    """Return a plain value; None where JSON has no word for it."""
    plain = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and plain - plain != 0 else plain
