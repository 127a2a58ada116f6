"""The command line: one short function a verb. Parse, call, print.

A verb imports its stage inside, so that `chattune --help` answers without torch.
"""

import errno
import json
import logging
import os
import shlex
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chattune.errors import ChattuneError, Interrupted

if TYPE_CHECKING:
    from rich.console import Console

    from chattune.recipe import Recipe
    from chattune.run import Run
    from chattune.tuning import Plan

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine-tune a pre-trained language model into a chatbot, prove it, and talk to it.",
)

RecipeName = Annotated[str, typer.Argument(help="Shipped recipe, or path of a YAML file.")]
RunOrModel = Annotated[
    str, typer.Argument(help="Run folder, model folder, Hub id, or `starter`: the embedded base.")
]
Data = Annotated[str | None, typer.Option(help="Hub id, file or folder; wins over the recipe.")]
BaseName = Annotated[str | None, typer.Option("--base", help="Hub id, folder, or `starter`.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Set a recipe field.")
]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Count unreadable rows and go on.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Host = Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")]
EngineName = Annotated[
    str, typer.Option("--engine", metavar="auto|fast|reference", help="What writes the replies.")
]
Quantize = Annotated[
    str,
    typer.Option(metavar="auto|none|int8", help="Round the weights: smaller, and faster on a CPU."),
]
Port = Annotated[int | None, typer.Option(help="Port; by default the first free from 7860.")]


@app.command()
def prepare(
    recipe: Annotated[
        str | None, typer.Argument(help="Recipe; without one: the starter's.")
    ] = None,
    data: Data = None,
    base: BaseName = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the prepared data.")] = None,
    settings: Settings = None,
    show_mask: Annotated[
        int,
        typer.Option("--show-mask", metavar="N", help="Show N examples, what is learnt in green."),
    ] = 0,
    skip_bad_rows: SkipBadRows = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Read conversations, clean and tokenise them, and report what was kept and why not.

    Recognises Guanaco, OpenOrca, Dolly, Alpaca, ShareGPT, OpenAI messages, prompt/completion,
    question/answer and OASST trees in JSONL, JSON, CSV, TSV, Parquet, gzip of these, or a folder.
    """
    from chattune.data import prepare as prepare_data
    from chattune.data.report import as_mask, as_table
    from chattune.folders import refuse_in_use

    chosen = _recipe(recipe or "starter", data, base, settings, skip_bad_rows)
    if output is not None:
        refuse_in_use(output, "output")
    with tempfile.TemporaryDirectory() as aside:
        prepared = prepare_data(chosen, Path(aside) / "dry-run" if dry_run else output)
        if as_json:
            typer.echo(json.dumps(prepared.report.to_json(), ensure_ascii=False))
        else:
            _console().print(as_table(prepared.report))
        if show_mask:
            _console(stderr=as_json).print(as_mask(prepared.rendered(show_mask), prepared.template))
    if output is not None and not dry_run:
        _note(f"prepared data: {output}")


@app.command()
def tune(
    recipe: RecipeName,
    data: Data = None,
    base: BaseName = None,
    output: Annotated[
        Path | None, typer.Option(help="Run folder; by default runs/ and the recipe's name.")
    ] = None,
    settings: Settings = None,
    skip_bad_rows: SkipBadRows = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Tune a base on conversations; everything about the run lands in its folder.

    Ctrl-C finishes the step, saves and stops; --resume goes on from there.
    """
    from chattune.tuning import plan

    chosen = _recipe(recipe, data, base, settings, skip_bad_rows)
    folder = output or Path("runs") / Path(recipe).stem
    if dry_run:
        _print_plan(plan(chosen))
        return
    run = _tune(chosen, folder, resume=resume)
    _print_samples(run.samples)
    _note(f"run: {run.folder}\ntalk to it: chattune chat {run.folder}")


@app.command()
def chat(
    run_or_model: RunOrModel,
    prompt: Annotated[
        str | None, typer.Option(help="Answer this once: the reply alone on standard output.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same reply.")] = None,
    engine: EngineName = "auto",
    quantize: Quantize = "auto",
) -> None:
    """Talk to a run or a model in the terminal; /help lists the commands there."""
    from chattune.chat import Chatbot
    from chattune.chat.terminal import talk

    bot = Chatbot.load(run_or_model, system=system, engine=engine, quantize=quantize)
    bot.decoding = bot.decoding.but(seed=seed)
    if prompt is None:
        talk(bot, _console())
    else:
        typer.echo(bot.reply(prompt).text)


@app.command()
def serve(
    run_or_model: RunOrModel,
    host: Host = "127.0.0.1",
    port: Port = None,
    engine: EngineName = "auto",
    quantize: Quantize = "auto",
) -> None:
    """Open a chat page for a run or a model on this machine."""
    from chattune.chat import Chatbot

    # First, for importing Gradio takes longer than noticing a wrong path.
    bot = Chatbot.load(run_or_model, engine=engine, quantize=quantize)
    from chattune.serve import serve_page

    serve_page(bot, title=Path(run_or_model).name, host=host, port=port)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    merged: Annotated[Path, typer.Option(help="Folder for the stand-alone model.")],
    dry_run: DryRun = False,
) -> None:
    """Write a run as a stand-alone model that transformers loads without chattune."""
    from chattune.folders import refuse_in_use
    from chattune.models.export import export as export_run
    from chattune.run import Run

    if dry_run:
        refuse_in_use(merged, "--merged")
        _note(f"would merge {Run.open(run).folder} into its base and write {merged}")
        return
    _note(f"stand-alone model: {export_run(run, merged)}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine is, what chattune makes of it, and what is missing."""
    from chattune.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps(findings))
        return
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in findings.items():
        shown = (
            ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        )
        table.add_row(f"[bold]{name.replace('_', ' ')}", str(shown))
    _console().print(table)


@app.command()
def quickstart(
    no_ui: Annotated[bool, typer.Option("--no-ui", help="End with the table.")] = False,
    output: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/starter"),
    dry_run: DryRun = False,
) -> None:
    """Make a chatbot of the embedded base in a few minutes, with no network, and open its page."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read by the Hub's client when it is imported, below
    from chattune.chat import Chatbot
    from chattune.device import find_device
    from chattune.generate import Decoding
    from chattune.models import load
    from chattune.run import MANIFEST, Run
    from chattune.starter import QUESTIONS
    from chattune.tuning import plan
    from chattune.tuning.samples import sample_replies

    chosen = _recipe("starter", None, None, None, False)
    if dry_run:
        _print_plan(plan(chosen))
        return
    if (output / MANIFEST).is_file():
        run = Run.open(output)
        _note(f"{output} is tuned already")
    else:
        _note("tuning the embedded base on the embedded conversations")
        run = _tune(chosen, output, resume=(output / "recipe.yaml").is_file())
    loaded = load(run.folder, find_device())
    questions = [[q] for q in QUESTIONS]
    decoding = Decoding.of(run.folder).but(max_new_tokens=64)
    _print_samples(
        sample_replies(loaded.model, loaded.template, questions, decoding, loaded.positions)
    )
    if no_ui:
        _note(f"talk to it: chattune chat {output}")
        return
    from chattune.serve import serve_page

    serve_page(Chatbot.load(run.folder), title="chattune starter")


def main() -> None:
    """Entry point: chattune's own errors end in their text and exit code, without a traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    notes = logging.getLogger("chattune")
    notes.handlers = [logging.StreamHandler(sys.stderr)]
    notes.setLevel(logging.INFO)
    try:
        app()
    except ChattuneError as error:
        for line in str(error).splitlines():
            typer.echo(f"chattune: {line}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        typer.echo(f"chattune: {error.filename}: too long to be a path, and not a name", err=True)
        sys.exit(2)


def _recipe(
    name: str, data: str | None, base: str | None, settings: list[str] | None, skip_bad_rows: bool
) -> "Recipe":
    from chattune.recipe import load_recipe, parse_overrides

    overrides: dict[str, Any] = {}
    if data is not None:
        overrides["data.source"] = data
    if base is not None:
        overrides["base"] = base
    if skip_bad_rows:
        overrides["data.skip_bad_rows"] = True
    return load_recipe(name, overrides | parse_overrides(settings or []))


def _tune(recipe: "Recipe", folder: Path, *, resume: bool) -> "Run":
    from chattune.tuning import tune as tune_model
    from chattune.tuning.progress import Bar

    try:
        return tune_model(recipe, folder, resume=resume, watcher=Bar(_console(stderr=True)))
    except Interrupted as interruption:
        again = sys.argv[1:]
        if again[0] == "tune" and "--resume" not in again:
            again.append("--resume")
        raise Interrupted(
            f"{interruption}; go on with: chattune {shlex.join(again)}",
            interruption.exit_code - 128,
        ) from None


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr)


def _note(text: str) -> None:
    typer.echo(text, err=True)


def _print_samples(rows: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_lines=True, caption="stops: whether the reply ended by itself")
    table.add_column("question", ratio=3)
    for side in ("base", "tuned"):
        table.add_column(side, ratio=5)
        table.add_column("stops")
    for row in rows:
        cells = [escape(row["prompt"])]
        for side in ("base", "tuned"):
            cells += [escape(row[side]["text"]), "yes" if row[side]["stopped"] else "no"]
        table.add_row(*cells)
    _console().print(table)


def _print_plan(plan: "Plan") -> None:
    from chattune.data.report import as_table

    out = _console()
    out.print(plan.recipe.to_yaml(), highlight=False, markup=False)
    out.print(as_table(plan.prepared.report))
    for line in plan.explain():
        out.print(line, highlight=False, markup=False)


if __name__ == "__main__":
    main()
