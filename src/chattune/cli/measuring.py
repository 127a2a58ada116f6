"""The commands that measure: evaluate, compare, sweep, study and diagnose."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chattune.cli.app import (
    AsJson,
    DryRun,
    EngineName,
    Quantize,
    RunBase,
    RunOrModel,
    Settings,
    command,
    console,
    expand,
    note,
)
from chattune.errors import ChecksFailed, UserError

if TYPE_CHECKING:
    from chattune.evaluate import Evaluation
    from chattune.evaluate.judge import Judge

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
JudgeUrl = Annotated[
    str | None,
    typer.Option(
        "--judge", metavar="URL", help="OpenAI-compatible endpoint of a judge, up to /v1."
    ),
]
JudgeModel = Annotated[
    str | None, typer.Option("--judge-model", help="Name of the judge's model at the endpoint.")
]
JudgeBudget = Annotated[
    int, typer.Option("--judge-budget", min=1, help="Number of requests that the judge may get.")
]
Seeds = Annotated[int, typer.Option(min=1, help="Number of replies to each prompt.")]


@command()
def evaluate(
    run_or_model: Annotated[
        str | None,
        typer.Argument(
            help="Run folder, model folder, GGUF file, Hub id, `smollm2` or `starter`.",
            callback=expand,
        ),
    ] = None,
    replies: Annotated[
        Path | None,
        typer.Option(
            help="Instead of a model: JSONL file with `prompt` and `reply` in each line.",
            callback=expand,
        ),
    ] = None,
    prompts: Prompts = None,
    output: Output = None,
    seeds: Seeds = 1,
    settings: DecodingSettings = None,
    checks: Annotated[
        Path | None,
        typer.Option(help="YAML file of checks; the exit code is 1 if one fails.", callback=expand),
    ] = None,
    judge: JudgeUrl = None,
    judge_model: JudgeModel = None,
    judge_budget: JudgeBudget = 1000,
    html: Html = None,
    base: RunBase = None,
    engine: EngineName = "auto",
    quantize: Quantize = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure how the replies of a run or a model fail; write scores.json and samples.jsonl.

    Ctrl-C keeps the replies that are written; the same command goes on from there.
    """
    from chattune.evaluate.checks import apply_checks, read_checks

    asked = _judge(judge, judge_model, judge_budget)
    wanted = [] if checks is None else read_checks(checks, asked)
    if (run_or_model is None) == (replies is None):
        raise UserError("evaluate: give a run or a model, or --replies with a file of replies")
    if replies is not None:
        from chattune.evaluate import evaluate_replies

        if prompts or settings or base or (seeds, engine, quantize) != (1, "auto", "auto"):
            raise UserError(
                "--replies: are judged as they are, without a model; leave --prompts, --seeds, "
                "--set, --base, --engine and --quantize out"
            )
        evaluation = evaluate_replies(replies, output=output)
    else:
        evaluation = _evaluate(
            str(run_or_model),
            prompts,
            output=output,
            seeds=seeds,
            decoding=_decoding(settings),
            base=base,
            engine=engine,
            quantize=quantize,
        )
    if html is not None:
        _write_report(html, [evaluation], title=f"Evaluation of {evaluation.label}")
    if as_json:
        typer.echo(json.dumps(evaluation.scores, ensure_ascii=False))
    else:
        from chattune.report.terminal import as_table

        console().print(as_table(evaluation))
        note(f"scores and samples: {evaluation.folder}")
    outcomes = apply_checks(wanted, evaluation.judged, asked)
    for outcome in outcomes:
        note(str(outcome))
    if failed := sum(not outcome.passed for outcome in outcomes):
        raise ChecksFailed(f"{failed} of {len(outcomes)} checks failed")


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
    judge: JudgeUrl = None,
    judge_model: JudgeModel = None,
    judge_budget: JudgeBudget = 1000,
    votes: Annotated[
        Path | None,
        typer.Option(
            help="JSONL file of your own votes, which the judge's are compared with: `prompt` and "
            "`better` (a, b or tie) in each line.",
            callback=expand,
        ),
    ] = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs or models on the same prompts: paired differences with intervals.

    What has not been evaluated on these prompts is evaluated first. With a judge, it also says
    which replies the judge prefers.
    """
    from dataclasses import asdict, replace

    from chattune.evaluate.comparing import compare as compare_evaluations
    from chattune.evaluate.verdicts import judge_pairs, read_votes
    from chattune.report.terminal import as_comparison

    if len(runs_or_models) < 2:
        raise UserError("compare: give two or more runs, models or folders of evaluations")
    asked = _judge(judge, judge_model, judge_budget)
    own_votes = None if votes is None else read_votes(votes)
    if asked is None and votes is not None:
        raise UserError(f"--votes {votes}: is compared with a judge's verdicts; add --judge")
    evaluations = [_read_or_evaluate(name, prompts, seeds, settings) for name in runs_or_models]
    first, *others = evaluations
    comparisons = [compare_evaluations(first, other) for other in others]
    if asked is not None:
        comparisons = [
            replace(c, verdicts=judge_pairs(asked, first.judged, other.judged, own_votes))
            for c, other in zip(comparisons, others, strict=True)
        ]
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


@command()
def study(
    study: Annotated[
        str,
        typer.Argument(help="Shipped study, or path of a YAML file.", callback=expand),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="NAME=SOURCE",
            help="Take a data set of the study from another place; may be repeated.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the study; by default its name in studies/.", callback=expand),
    ] = None,
    settings: Settings = None,
    dry_run: DryRun = False,
) -> None:
    """Tune and evaluate models x data sets x decodings, and write study.html and study.md.

    Ctrl-C stops it; the same command goes on with the cells that are missing.
    """
    from chattune.evaluate.progress import shown
    from chattune.recipe import parse_overrides
    from chattune.report.markdown import write_markdown
    from chattune.study import comparisons, load_study
    from chattune.study import study as run_study
    from chattune.tuning.progress import Bar

    sources = {name: str(source) for name, source in parse_overrides(data or []).items()}
    plan = load_study(study, data=sources, settings=parse_overrides(settings or []))
    folder = output or Path("studies") / Path(study).name.removesuffix(".yaml")
    if dry_run:
        for cell in plan.cells():
            typer.echo(", ".join(cell))
        return
    screen = console(stderr=True)
    with shown(screen) as progress:
        cells = run_study(plan, folder, watcher=Bar(screen), progress=progress)
    evaluations = [cell.evaluation for cell in cells]
    found = list(comparisons(cells))
    _write_report(folder / "study.html", evaluations, title=plan.title, comparisons=found)
    write_markdown(folder / "study.md", evaluations, title=plan.title, comparisons=found)
    note(f"the same as Markdown: {folder / 'study.md'}")


@command()
def diagnose(
    run: Annotated[Path, typer.Argument(help="Run folder.", callback=expand)],
    html: Html = None,
    base: RunBase = None,
    as_json: AsJson = False,
) -> None:
    """Find the causes of a run's failures: evidence, place and remedy of each.

    The run is evaluated first, unless it has been.
    """
    from chattune.diagnose import diagnose as diagnose_run
    from chattune.evaluate.progress import shown
    from chattune.report.terminal import as_findings

    with shown(console(stderr=True)) as progress:
        found = diagnose_run(run, base=base, progress=progress)
    if html is not None:
        title = f"Diagnosis of {run}"
        _write_report(html, [found.evaluation], title=title, findings=found.findings)
    if as_json:
        typer.echo(json.dumps(found.to_json(), ensure_ascii=False))
        return
    console().print(as_findings(found.findings))
    if found.not_examined:
        note(f"the training data was not examined: {found.not_examined}")


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


def _judge(url: str | None, model: str | None, budget: int) -> "Judge | None":
    from chattune.evaluate.judge import Judge

    if (url is None) != (model is None):
        raise UserError("--judge and --judge-model: give both, or none")
    return None if url is None or model is None else Judge(url, model, budget)


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
