"""The commands that measure: evaluate, compare, sweep, study and diagnose."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chattune.cli.app import (
    AsJson,
    EngineName,
    Quantize,
    RunBase,
    RunOrModel,
    command,
    console,
    expand,
    note,
)
from chattune.errors import UserError

if TYPE_CHECKING:
    from chattune.evaluate import Evaluation

Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompts",
        metavar="SET|FILE",
        help="Prompt set (general, study, starter or heldout) or file; may be repeated.",
    ),
]
DecodingSettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Set a decoding field; may be repeated."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the results; by default the run's own, or evaluations/NAME.",
        callback=expand,
    ),
]
Html = Annotated[
    Path | None, typer.Option(help="Write a report to this HTML file too.", callback=expand)
]
Seeds = Annotated[int, typer.Option(min=1, help="Number of replies to each prompt.")]


@command()
def evaluate(
    run_or_model: RunOrModel,
    prompts: Prompts = None,
    output: Output = None,
    seeds: Seeds = 1,
    settings: DecodingSettings = None,
    html: Html = None,
    base: RunBase = None,
    engine: EngineName = "auto",
    quantize: Quantize = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure how the replies of a run or a model fail; write scores.json and samples.jsonl.

    Ctrl-C keeps the replies that are written; the same command goes on from there.
    """
    evaluation = _evaluate(
        run_or_model,
        prompts,
        output=output,
        seeds=seeds,
        decoding=_decoding(settings),
        base=base,
        engine=engine,
        quantize=quantize,
    )
    if html is not None:
        _write_report(html, [evaluation], title=f"Evaluation of {run_or_model}")
    if as_json:
        typer.echo(json.dumps(evaluation.scores, ensure_ascii=False))
        return
    from chattune.report.terminal import as_table

    console().print(as_table(evaluation))
    note(f"scores and samples: {evaluation.folder}")


@command()
def compare(
    runs_or_models: Annotated[
        list[str],
        typer.Argument(
            help="Two or more runs, models, or folders of evaluations; the first one is compared "
            "with each other one."
        ),
    ],
    prompts: Prompts = None,
    seeds: Seeds = 1,
    settings: DecodingSettings = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs or models on the same prompts: paired differences with intervals.

    What has not been evaluated on these prompts is evaluated first.
    """
    from dataclasses import asdict

    from chattune.evaluate.comparing import compare as compare_evaluations
    from chattune.report.terminal import as_comparison

    if len(runs_or_models) < 2:
        raise UserError("compare: give two or more runs, models or folders of evaluations")
    evaluations = [_read_or_evaluate(name, prompts, seeds, settings) for name in runs_or_models]
    first, *others = evaluations
    comparisons = [compare_evaluations(first, other) for other in others]
    if html is not None:
        title = f"Comparison of {', '.join(runs_or_models)}"
        _write_report(html, evaluations, title=title, comparisons=comparisons)
    if as_json:
        typer.echo(json.dumps([asdict(c) for c in comparisons], ensure_ascii=False))
        return
    for comparison in comparisons:
        console().print(as_comparison(comparison))


@command()
def sweep(
    run_or_model: RunOrModel,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            metavar="FIELD=VALUE,VALUE",
            help="Values of a decoding field; may be repeated. By default the study's 27 settings.",
        ),
    ] = None,
    prompts: Prompts = None,
    output: Output = None,
    keep_decoding: Annotated[
        bool,
        typer.Option(
            "--keep-decoding", help="Write the choice to sweep.json only, not to the run."
        ),
    ] = False,
    html: Html = None,
    base: RunBase = None,
    as_json: AsJson = False,
) -> None:
    """Try every combination of decoding settings on a run, and choose one for chat and serve.

    One half of the prompts chooses, and the other half reports.
    """
    from chattune.evaluate.progress import shown
    from chattune.evaluate.sweeping import sweep as sweep_run
    from chattune.report.terminal import as_sweep

    with shown(console(stderr=True)) as progress:
        found = sweep_run(
            run_or_model,
            _grid(grid),
            prompts,
            output=output,
            base=base,
            keep_decoding=keep_decoding,
            progress=progress,
        )
    if html is not None:
        _write_report(html, [], title=f"Decoding settings of {run_or_model}", sweep=found)
    if as_json:
        typer.echo(json.dumps(found.to_json(), ensure_ascii=False))
        return
    console().print(as_sweep(found))


def _evaluate(run_or_model: str, prompts: list[str] | None, **options: Any) -> "Evaluation":
    """Evaluate with a progress bar."""
    from chattune.evaluate import evaluate as evaluate_model
    from chattune.evaluate.progress import shown

    with shown(console(stderr=True)) as progress:
        return evaluate_model(run_or_model, prompts, progress=progress, **options)


def _read_or_evaluate(
    name: str, prompts: list[str] | None, seeds: int, settings: list[str] | None
) -> "Evaluation":
    """Read the evaluation in a folder that is neither run nor model, or make one."""
    from chattune.evaluate import read_evaluation
    from chattune.run import is_run

    folder = Path(name)
    if folder.is_dir() and not is_run(folder) and (found := read_evaluation(folder)):
        return found
    return _evaluate(name, prompts, seeds=seeds, decoding=_decoding(settings))


def _decoding(settings: Sequence[str] | None) -> dict[str, Any]:
    """Read `field=value` settings of the decoding."""
    from chattune.recipe import parse_overrides

    return parse_overrides(settings or [])


def _grid(settings: Sequence[str] | None) -> dict[str, list[Any]] | None:
    """Read `field=value,value` settings, several of them perhaps in one argument."""
    from chattune.recipe import parse_overrides

    if not settings:
        return None
    pairs = [part for setting in settings for part in setting.split()]
    grid = parse_overrides([f"{f}{e}[{v}]" for f, e, v in (p.partition("=") for p in pairs)])
    for name, values in grid.items():
        if not values:
            raise UserError(f"--grid {name}=: no value; write it as temperature=0.1,0.5")
    return grid


def _write_report(path: Path, evaluations: Sequence["Evaluation"], **content: Any) -> None:
    from chattune.report.page import write_page

    write_page(path, evaluations, **content)
    note(f"report: {path}")
