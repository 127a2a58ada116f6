"""The commands that make runs: prepare, tune and quickstart."""

import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chattune.cli.app import (
    AsJson,
    BaseName,
    Data,
    DryRun,
    RecipeName,
    Settings,
    SkipBadRows,
    command,
    console,
    expand,
    how_to_chat,
    note,
    read_recipe,
)
from chattune.errors import Interrupted

if TYPE_CHECKING:
    from chattune.recipe import Recipe
    from chattune.run import Run
    from chattune.tuning import Plan


@command()
def prepare(
    recipe: RecipeName = "starter",
    data: Data = None,
    base: BaseName = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the prepared data; `tune --data` reads it.", callback=expand),
    ] = None,
    settings: Settings = None,
    show_mask: Annotated[
        int,
        typer.Option(
            "--show-mask", metavar="N", help="Show N examples; the text to be learnt is green."
        ),
    ] = 0,
    skip_bad_rows: SkipBadRows = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Read, clean and tokenise conversations, and report what was kept and what was dropped.

    Recognises Guanaco, OpenOrca, Dolly, Alpaca, ShareGPT, OpenAI messages, prompt/completion,
    question/answer and OASST trees, in JSONL, JSON, CSV, TSV or Parquet files, in gzip files of
    these, and in folders of such files.
    """
    from chattune.data import prepare as prepare_data
    from chattune.data.report import as_mask, as_table
    from chattune.folders import check_output_folder

    resolved = read_recipe(recipe, data, base, settings, skip_bad_rows)
    if output is not None:
        check_output_folder(output, "output")
    with tempfile.TemporaryDirectory() as temporary:
        prepared = prepare_data(resolved, Path(temporary) / "dry-run" if dry_run else output)
        if as_json:
            typer.echo(json.dumps(prepared.report.to_json(), ensure_ascii=False))
        else:
            console().print(as_table(prepared.report))
        if show_mask:
            console(stderr=as_json).print(as_mask(prepared.rendered(show_mask), prepared.template))
    if output is not None and not dry_run:
        note(f"prepared data: {output}")


@command()
def tune(
    recipe: RecipeName,
    data: Data = None,
    base: BaseName = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Run folder; by default the recipe's name in runs/.", callback=expand),
    ] = None,
    settings: Settings = None,
    skip_bad_rows: SkipBadRows = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run that was stopped.")
    ] = False,
    extend: Annotated[
        bool,
        typer.Option(
            "--extend",
            help="With --resume: accept another number of steps although the learning rate jumps.",
        ),
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Tune a base on conversations and write everything about the run to its folder.

    Ctrl-C finishes the current step, saves the state and stops; --resume continues from there.
    """
    from chattune.tuning import plan

    resolved = read_recipe(recipe, data, base, settings, skip_bad_rows)
    folder = output or Path("runs") / Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")
    if dry_run:
        _print_plan(plan(resolved))
        return
    run = _tune(resolved, folder, resume=resume, extend=extend)
    _print_samples(run.samples)
    note(f"run: {run.folder}\n{how_to_chat(run.folder)}")


@command()
def quickstart(
    no_ui: Annotated[
        bool, typer.Option("--no-ui", help="Stop after the sample replies; open no chat page.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Run folder; by default runs/smollm2 or runs/starter.", callback=expand),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Tune SmolLM2, or without it the embedded base, and open a chat page."""
    from chattune.base import load_template
    from chattune.chat import Chatbot
    from chattune.generate import Decoding
    from chattune.models import base_of
    from chattune.run import MANIFEST, Run
    from chattune.starter import QUESTIONS
    from chattune.tuning import plan
    from chattune.tuning.samples import sample_replies

    name = _base_of_quickstart()
    recipe, output = read_recipe(name), output or Path("runs") / name
    if dry_run:
        _print_plan(plan(recipe))
        return
    if (output / MANIFEST).is_file():
        run = Run.open(output)
        note(f"{output} is already tuned")
    else:
        note(f"tuning {name} on the embedded conversations")
        run = _tune(recipe, output, resume=(output / "recipe.yaml").is_file())
    base = base_of(run)
    template = load_template(base, run.folder)
    decoding = Decoding.of(run.folder).but(max_new_tokens=64)
    questions = [[question] for question in QUESTIONS]
    _print_samples(sample_replies(base, run.folder, template, questions, decoding))
    if no_ui:
        note(how_to_chat(output))
        return
    from chattune.serve import serve_page

    serve_page(Chatbot.load(run.folder), title=f"chattune {run.folder.name}")


def _base_of_quickstart() -> str:
    """Return the name of SmolLM2, or of the embedded base if SmolLM2 cannot be had.

    Each has a recipe of its name.
    """
    from chattune.base import SMOLLM2, STARTER, find_base
    from chattune.errors import BaseError

    try:
        find_base(SMOLLM2)
    except BaseError as error:
        note(f"{error}\nUntil then the embedded base is taken, which knows far less.")
        return STARTER
    return SMOLLM2


def _tune(recipe: "Recipe", folder: Path, *, resume: bool, extend: bool = False) -> "Run":
    """Tune with a progress bar; if interrupted, name the command that continues the run."""
    from chattune.tuning import tune as tune_model
    from chattune.tuning.progress import Bar

    try:
        watcher = Bar(console(stderr=True))
        return tune_model(recipe, folder, resume=resume, extend=extend, watcher=watcher)
    except Interrupted as interruption:
        arguments = sys.argv[1:]
        if arguments[0] == "tune" and "--resume" not in arguments:
            arguments.append("--resume")
        raise Interrupted(
            f"{interruption}; go on with: chattune {shlex.join(arguments)}",
            interruption.signum,
        ) from None


def _print_samples(rows: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_lines=True, caption="stops: whether the model ended the reply itself")
    table.add_column("question", ratio=3)
    for side in ("base", "tuned"):
        table.add_column(side, ratio=5)
        table.add_column("stops")
    for row in rows:
        cells = [escape(row["prompt"])]
        for side in ("base", "tuned"):
            cells += [escape(row[side]["text"]), "yes" if row[side]["stopped"] else "no"]
        table.add_row(*cells)
    console().print(table)


def _print_plan(plan: "Plan") -> None:
    from chattune.data.report import as_table

    screen = console()
    screen.print(plan.recipe.to_yaml(), highlight=False, markup=False)
    screen.print(as_table(plan.prepared.report))
    for line in plan.explain():
        screen.print(line, highlight=False, markup=False)
