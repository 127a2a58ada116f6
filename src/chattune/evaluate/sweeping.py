"""sweep(): many decoding settings tried on a run, and the best of them chosen honestly."""

import hashlib
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chattune import run as runs
from chattune.device import find_device
from chattune.errors import DataError
from chattune.evaluate import likelihood, with_failures
from chattune.evaluate.failures import FAILURES
from chattune.evaluate.failures.repetition import seq_rep_4
from chattune.evaluate.intervals import Figure, mean, rate
from chattune.evaluate.prompts import Prompt, hash_of
from chattune.evaluate.replying import Job, Progress, Speaker, write_replies
from chattune.evaluate.scores import Judged, groups, has
from chattune.evaluate.subject import Subject
from chattune.folders import write_json
from chattune.generate.decoding import RECOMMENDED, Decoding
from chattune.generate.load import load_engine
from chattune.models import Loaded, load
from chattune.run import GENERATION_CONFIG, Run

GRID: dict[str, Sequence[Any]] = {
    "temperature": [0.1, 0.5, 0.9],
    "top_k": [5, 15, 30],
    "top_p": [0.99, 0.97, 0.95],
}
_OF_THE_TRAINING = ("copying",)  # failures that no decoding mends
_ANY_FAILURE = "any_failure"
# Each cell is compared with rivals on few prompts and few tokens, because there are many cells.
_COMPARED, _COMPARED_TOKENS = 12, 24

log = logging.getLogger(__name__)

Figures = dict[str, Figure]


@dataclass(frozen=True)
class Cell:
    """One decoding with its figures on the prompts that choose, and on those that report."""

    decoding: dict[str, Any]
    choosing: Figures
    reporting: Figures


@dataclass(frozen=True)
class Sweep:
    """The cells of a sweep, the index of the chosen one, and those of the frontier.

    On the frontier, no other cell repeats itself less and depends more on the prompt.
    """

    settings: list[str]
    cells: list[Cell]
    chosen: int
    frontier: list[int]

    def to_json(self) -> dict[str, Any]:
        """Return the sweep as a dictionary that can be written as JSON."""
        return asdict(self)


def sweep(
    run_or_model: str | Path,
    grid: Mapping[str, Sequence[Any]] | None = None,
    prompts: Sequence[str] | None = None,
    *,
    output: str | Path | None = None,
    base: str | None = None,
    keep_decoding: bool = False,
    progress: Progress = lambda done, total: None,
) -> Sweep:
    """Answer prompts under every combination of the grid's settings, and choose one of them.

    The best of many settings looks better than it is on the prompts that chose it. So one half of
    the prompts chooses, and the figures of the other half are those to believe. The choice is the
    cell of the frontier whose replies show failures least often; of equal ones, that whose replies
    depend most on their prompts. It is written to sweep.json, and for a run also to its
    generation_config.json, so that chat and serve use it, unless `keep_decoding` is set.

    All replies are decoded together. A sweep that was stopped goes on where it was. Raises
    UserError for a setting that does not exist, before a reply is generated.
    """
    subject = Subject.find(run_or_model, output, base)
    sets = subject.prompt_sets(prompts)
    every = [prompt for prompts_of_set in sets.values() for prompt in prompts_of_set]
    recommended = Decoding.of(subject.run.folder if subject.run else subject.base.folder)
    settings: dict[str, Sequence[Any]] = dict(grid or GRID)
    combinations = [
        dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())
    ]
    decodings = [recommended.but(**combination) for combination in combinations]
    model = load_engine(run_or_model, base=base)
    subject.folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(every, decoding, [0], subject.folder / f".sweep-{_name(subject, every, decoding)}")
        for decoding in decodings
    ]
    speaker = Speaker(model.engine, model.template, model.positions)
    answers = write_replies(speaker, jobs, progress)
    del model, speaker
    if min(len(a.samples) for a in answers) < 2 * (likelihood.RIVALS + 1):
        raise DataError(
            f"prompts: {len(every)} prompts, and a sweep needs {2 * (likelihood.RIVALS + 1)}, half "
            "of them to choose with; give more --prompts"
        )
    loaded = load(run_or_model, find_device(), base=base)
    training = "the sweep compares decodings of one model"
    choosing = {prompt.name for prompt in every[::2]}  # half of each kind, as kinds lie together
    cells = []
    for combination, answer in zip(combinations, answers, strict=True):
        judged = with_failures(answer.samples, training)
        ours = [j for j in judged if j.sample.prompt in choosing]
        others = [j for j in judged if j.sample.prompt not in choosing]
        cells.append(Cell(combination, _figures(ours, loaded), _figures(others, loaded)))
    frontier = _frontier(cells)
    best = min(frontier, key=lambda i: (_any_failure(cells[i]), -_dependence(cells[i])))
    found = Sweep(list(settings), cells, best, frontier)
    write_json(subject.folder / runs.SWEEP, found.to_json())
    for job in jobs:
        job.path.unlink()
    if subject.run and not keep_decoding:
        write_decoding(subject.run, cells[found.chosen].decoding)
    return found


def write_decoding(run: Run, decoding: Mapping[str, Any]) -> None:
    """Make decoding parameters the ones that a run recommends, in its generation_config.json.

    Parameters that this file does not know are left out, and named in the log.
    """
    path = run.folder / GENERATION_CONFIG
    config = json.loads(path.read_text("utf-8"))
    known = {name: value for name, value in decoding.items() if name in RECOMMENDED}
    if left_out := sorted(decoding.keys() - known.keys()):
        log.warning("%s has no setting %s; give it when you chat", path.name, ", ".join(left_out))
    config |= known
    config["do_sample"] = not Decoding.of(run.folder).but(**known).greedy
    write_json(path, config)
    runs.seal(run.folder)


def _figures(judged: Sequence[Judged], loaded: Loaded) -> Figures:
    """Return the figures of one cell on one half of the prompts."""
    compared = likelihood.own_prompt(
        loaded, [j.sample for j in judged], compared=_COMPARED, tokens=_COMPARED_TOKENS
    )
    names = [name for name in FAILURES if name not in _OF_THE_TRAINING]
    return {
        **{name: rate(groups(judged, has(name))) for name in names},
        _ANY_FAILURE: rate(groups(judged, lambda j: any(name in j.failures for name in names))),
        "seq_rep_4": mean(groups(judged, lambda j: seq_rep_4(j.sample.reply))),
        "own_prompt_nats": mean([[comparison.nats] for comparison in compared.values()]),
        "own_prompt_first": rate([[comparison.first] for comparison in compared.values()]),
    }


def _frontier(cells: Sequence[Cell]) -> list[int]:
    """Return the indices of the cells that no other beats in both repetition and dependence."""
    points = [(c.choosing["seq_rep_4"].value, -_dependence(c)) for c in cells]
    return [
        i
        for i, (x, y) in enumerate(points)
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
    ]


def _dependence(cell: Cell) -> float:
    return cell.choosing["own_prompt_nats"].value


def _any_failure(cell: Cell) -> float:
    return cell.choosing[_ANY_FAILURE].value


def _name(subject: Subject, prompts: Sequence[Prompt], decoding: Decoding) -> str:
    """Return a hash of all that decides the replies of a cell."""
    content = [subject.facts(), hash_of(prompts), decoding.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
