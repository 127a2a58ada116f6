"""The commands that use a run: chat, serve and export; and doctor, which looks at the machine."""

import json
from pathlib import Path
from typing import Annotated

import typer

from chattune.cli.app import (
    AsJson,
    DryRun,
    EngineName,
    Host,
    Port,
    Quantize,
    RunBase,
    RunOrModel,
    command,
    console,
    expand,
    note,
)


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
        talk(bot, console())
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
    run: Annotated[Path, typer.Argument(help="Run folder.", callback=expand)],
    merged: Annotated[
        Path | None,
        typer.Option(help="Folder for a model that transformers loads.", callback=expand),
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option(
            help="File for llama.cpp, Ollama and LM Studio; for models of Llama's family.",
            callback=expand,
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
            note(
                f"would merge {run} into its base ({plan.base.name}) and write {path} ({form}, "
                f"about {size / 1e6:,.1f} MB)"
            )
        return
    for path in export_run(run, merged, gguf=gguf, quantize=quantize, base=base):
        note(f"stand-alone model: {path}")


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
    console().print(table)
