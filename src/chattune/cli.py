"""The command line: one short function for each command, which parses, calls and prints.

Each command imports what it needs in its body, so that `chattune --help` does not load torch.
"""

import errno
import json
import logging
import os
import shlex
import sys
import tempfile
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from chattune.errors import ChattuneError, Interrupted, UserError

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


def _expand(path: Path | str | None) -> Path | str | None:
    """Replace a leading `~`, which a shell leaves as it is in `--output=~/run`."""
    from chattune.recipe import expand_home

    return path and type(path)(expand_home(str(path)))


RecipeName = Annotated[
    str, typer.Argument(help="Shipped recipe, or path of a YAML file.", callback=_expand)
]
RunOrModel = Annotated[
    str,
    typer.Argument(
        help="Run folder, model folder, GGUF file, Hub id, `smollm2` or `starter`.",
        callback=_expand,
    ),
]
RunBase = Annotated[
    str | None,
    typer.Option(
        "--base",
        help="Where the run's base is now: folder or Hub id with the same weights.",
        callback=_expand,
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


@command()
def prepare(
    recipe: RecipeName = "starter",
    data: Data = None,
    base: BaseName = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the prepared data; `tune --data` reads it.", callback=_expand
        ),
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

    resolved = _recipe(recipe, data, base, settings, skip_bad_rows)
    if output is not None:
        check_output_folder(output, "output")
    with tempfile.TemporaryDirectory() as temporary:
        prepared = prepare_data(resolved, Path(temporary) / "dry-run" if dry_run else output)
        if as_json:
            typer.echo(json.dumps(prepared.report.to_json(), ensure_ascii=False))
        else:
            _console().print(as_table(prepared.report))
        if show_mask:
            _console(stderr=as_json).print(as_mask(prepared.rendered(show_mask), prepared.template))
    if output is not None and not dry_run:
        _note(f"prepared data: {output}")


@command()
def tune(
    recipe: RecipeName,
    data: Data = None,
    base: BaseName = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Run folder; by default the recipe's name in runs/.", callback=_expand),
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

    resolved = _recipe(recipe, data, base, settings, skip_bad_rows)
    folder = output or Path("runs") / Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")
    if dry_run:
        _print_plan(plan(resolved))
        return
    run = _tune(resolved, folder, resume=resume, extend=extend)
    _print_samples(run.samples)
    _note(f"run: {run.folder}\n{_how_to_chat(run.folder)}")


@command()
def chat(
    run_or_model: RunOrModel,
    prompt: Annotated[
        str | None, typer.Option(help="Print only the reply to this message, and exit.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same reply.")] = None,
    base: RunBase = None,
    engine: EngineName = "auto",
    quantize: Quantize = "auto",
) -> None:
    """Chat with a run or a model in the terminal; /help lists the commands of the chat."""
    from chattune.chat import Chatbot
    from chattune.chat.terminal import talk

    bot = Chatbot.load(run_or_model, system=system, engine=engine, quantize=quantize, base=base)
    bot.decoding = bot.decoding.but(seed=seed)
    if prompt is None:
        talk(bot, _console())
    else:
        typer.echo(bot.reply(prompt).text)


@command()
def serve(
    run_or_model: RunOrModel,
    base: RunBase = None,
    host: Host = "127.0.0.1",
    port: Port = None,
    engine: EngineName = "auto",
    quantize: Quantize = "auto",
) -> None:
    """Serve a chat page for a run or a model on this machine."""
    from chattune.chat import Chatbot

    # The model is loaded first, because importing Gradio takes longer than finding a wrong path.
    bot = Chatbot.load(run_or_model, engine=engine, quantize=quantize, base=base)
    from chattune.serve import serve_page

    serve_page(bot, title=Path(run_or_model).absolute().name, host=host, port=port)


@command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder.", callback=_expand)],
    merged: Annotated[
        Path | None,
        typer.Option(help="Folder for a model that transformers loads.", callback=_expand),
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option(
            help="File for llama.cpp, Ollama and LM Studio; for models of Llama's family.",
            callback=_expand,
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="q8_0|f16",
            help="Quantization of the GGUF file; q8_0 (the default) is half as large as f16.",
        ),
    ] = None,
    base: RunBase = None,
    dry_run: DryRun = False,
) -> None:
    """Write a run as a model that needs no chattune: a folder, a GGUF file, or both."""
    from chattune.models.export import export as export_run
    from chattune.models.export import plan_export

    if dry_run:
        plan = plan_export(run, merged, gguf=gguf, quantize=quantize, base=base)
        for path, size in plan.sizes().items():
            form = plan.quantization if path == plan.gguf else "fp32"
            _note(
                f"would merge {run} into its base ({plan.base.name}) and write {path} ({form}, "
                f"about {size / 1e6:,.1f} MB)"
            )
        return
    for path in export_run(run, merged, gguf=gguf, quantize=quantize, base=base):
        _note(f"stand-alone model: {path}")


@command()
def doctor(as_json: AsJson = False) -> None:
    """Report what this machine is, how fast it is, and how chattune uses it."""
    from chattune.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps(findings))
        return
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in findings.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        table.add_row(f"[bold]{name.replace('_', ' ')}", str(value))
    _console().print(table)


@command()
def quickstart(
    no_ui: Annotated[
        bool, typer.Option("--no-ui", help="Stop after the sample replies; open no chat page.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Run folder; by default runs/smollm2 or runs/starter.", callback=_expand),
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
    recipe, output = _recipe(name), output or Path("runs") / name
    if dry_run:
        _print_plan(plan(recipe))
        return
    if (output / MANIFEST).is_file():
        run = Run.open(output)
        _note(f"{output} is already tuned")
    else:
        _note(f"tuning {name} on the embedded conversations")
        run = _tune(recipe, output, resume=(output / "recipe.yaml").is_file())
    base = base_of(run)
    template = load_template(base, run.folder)
    decoding = Decoding.of(run.folder).but(max_new_tokens=64)
    questions = [[question] for question in QUESTIONS]
    _print_samples(sample_replies(base, run.folder, template, questions, decoding))
    if no_ui:
        _note(_how_to_chat(output))
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
        _note(f"{error}\nUntil then the embedded base is taken, which knows far less.")
        return STARTER
    return SMOLLM2


def main() -> None:
    """Run the command line; chattune's own errors print their message and set the exit code."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    if "OMP_WAIT_POLICY" not in os.environ:
        # OpenMP reads it when PyTorch is loaded. By default, threads that wait for each other keep
        # their core busy for about a millisecond. If another program uses that core, the thread
        # that they wait for does not run, and a reply takes 30 times as long (docs/performance.md).
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logger = logging.getLogger("chattune")
    logger.handlers = [logging.StreamHandler(sys.stderr)]
    logger.setLevel(logging.INFO)
    try:
        app()
    except ChattuneError as error:
        for line in str(error).splitlines():
            typer.echo(f"chattune: {line}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        typer.echo(
            f"chattune: {error.filename}: too long to be a path or a name; shorten it", err=True
        )
        sys.exit(2)


def _recipe(
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


def _tune(recipe: "Recipe", folder: Path, *, resume: bool, extend: bool = False) -> "Run":
    """Tune with a progress bar; if interrupted, name the command that continues the run."""
    from chattune.tuning import tune as tune_model
    from chattune.tuning.progress import Bar

    try:
        watcher = Bar(_console(stderr=True))
        return tune_model(recipe, folder, resume=resume, extend=extend, watcher=watcher)
    except Interrupted as interruption:
        arguments = sys.argv[1:]
        if arguments[0] == "tune" and "--resume" not in arguments:
            arguments.append("--resume")
        raise Interrupted(
            f"{interruption}; go on with: chattune {shlex.join(arguments)}",
            interruption.signum,
        ) from None


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr)


def _note(text: str) -> None:
    """Print a note on standard error."""
    typer.echo(text, err=True)


def _how_to_chat(folder: Path) -> str:
    return f"talk to it: {shlex.join(['chattune', 'chat', str(folder)])}"


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
    _console().print(table)


def _print_plan(plan: "Plan") -> None:
    from chattune.data.report import as_table

    console = _console()
    console.print(plan.recipe.to_yaml(), highlight=False, markup=False)
    console.print(as_table(plan.prepared.report))
    for line in plan.explain():
        console.print(line, highlight=False, markup=False)


if __name__ == "__main__":
    main()
