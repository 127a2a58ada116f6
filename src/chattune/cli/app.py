"""The command line's application, and the options and functions that its commands share."""

import shlex
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from chattune.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from chattune.recipe import Recipe

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine-tune a pre-trained language model into a chatbot, prove it, and talk to it.",
)


class Command(TyperCommand):
    """A command that refuses an option given twice, of which the last would silently count."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; raise UserError for an option that takes one value and has two."""
        *_, parameters = self.make_parser(ctx).parse_args(list(args))
        options = Counter(p for p in parameters if isinstance(p, TyperOption))
        for option, times in options.items():
            if times > 1 and not option.multiple and not option.is_flag:
                raise UserError(f"{option.opts[0]}: given {times} times; give it once")
        return super().parse_args(ctx, args)


command = partial(app.command, cls=Command)


def expand(path: Path | str | None) -> Path | str | None:
    """Replace a leading `~`, which a shell leaves as it is in `--output=~/run`."""
    from chattune.recipe import expand_home

    return path and type(path)(expand_home(str(path)))


RecipeName = Annotated[
    str, typer.Argument(help="Shipped recipe, or path of a YAML file.", callback=expand)
]
RunOrModel = Annotated[
    str,
    typer.Argument(
        help="Run folder, model folder, GGUF file, Hub id, `smollm2` or `starter`.",
        callback=expand,
    ),
]
RunBase = Annotated[
    str | None,
    typer.Option(
        "--base",
        help="Where the run's base is now: folder or Hub id with the same weights.",
        callback=expand,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Hub id, file, folder, or a folder written by `prepare --output`; "
        "wins over the recipe."
    ),
]
BaseName = Annotated[
    str | None,
    typer.Option(
        "--base", help="Hub id, folder, GGUF file, `smollm2` or `starter`; wins over the recipe."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Set a recipe field; may be repeated."),
]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Skip and count rows that cannot be read.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be done, but write nothing.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Host = Annotated[
    str, typer.Option(help="Address to listen on; by default only this machine can connect.")
]
EngineName = Annotated[
    str,
    typer.Option("--engine", metavar="auto|fast|reference", help="Engine that generates replies."),
]
Quantize = Annotated[
    str,
    typer.Option(
        metavar="auto|none|int8",
        help="Quantization of the weights; int8 is smaller, and faster on a CPU.",
    ),
]
Port = Annotated[int | None, typer.Option(help="Port; by default the first free one from 7860.")]


def read_recipe(
    name: str,
    data: str | None = None,
    base: str | None = None,
    settings: list[str] | None = None,
    skip_bad_rows: bool = False,
) -> "Recipe":
    """Load a recipe, with the command line's options in place of its fields."""
    from chattune.recipe import load_recipe, parse_overrides

    overrides: dict[str, Any] = {}
    if data is not None:
        overrides["data.source"] = data
    if base is not None:
        overrides["base"] = base
    if skip_bad_rows:
        overrides["data.skip_bad_rows"] = True
    return load_recipe(name, overrides | parse_overrides(settings or []))


def console(*, stderr: bool = False) -> "Console":
    """Return the terminal's console, for standard output or standard error."""
    from rich.console import Console

    return Console(stderr=stderr)


def note(text: str) -> None:
    """Print a note on standard error."""
    typer.echo(text, err=True)


def how_to_chat(folder: Path) -> str:
    """Return the command that chats with a run."""
    return f"talk to it: {shlex.join(['chattune', 'chat', str(folder)])}"
