"""The evaluation stage: evaluate() measures how the replies of a run or a model fail."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from chattune import __version__
from chattune.data.store import tokenizer_hash
from chattune.device import find_device
from chattune.errors import ChatError
from chattune.evaluate import likelihood
from chattune.evaluate.failures import FAILURES, find_failures, unmeasured
from chattune.evaluate.failures.copying import TrainingReplies
from chattune.evaluate.prompts import hash_of
from chattune.evaluate.replies_file import read_replies
from chattune.evaluate.replying import Job, Progress, Speaker, write_replies
from chattune.evaluate.sample import Sample
from chattune.evaluate.scores import Judged, Scores, score
from chattune.evaluate.subject import Subject
from chattune.folders import check_output_folder, write_bytes, write_json
from chattune.generate import Decoding
from chattune.generate.load import load_engine
from chattune.models import Loaded, load
from chattune.run import JUDGED_SAMPLES, SCORES, size_and_hash

__all__ = [
    "Evaluation",
    "Judged",
    "Sample",
    "evaluate",
    "evaluate_replies",
    "read_evaluation",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation: its folder, its figures and its judged samples."""

    folder: Path
    scores: Scores
    judged: list[Judged]

    @property
    def label(self) -> str:
        """The name of what was evaluated, for people."""
        return str(self.scores["label"])


def evaluate(
    run_or_model: str | Path,
    prompts: Sequence[str] | None = None,
    *,
    output: str | Path | None = None,
    label: str | None = None,
    seeds: int = 1,
    decoding: Mapping[str, Any] | None = None,
    engine: str = "auto",
    quantize: str = "auto",
    base: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Evaluation:
    """Measure how a run or a model replies, and write scores.json and samples.jsonl.

    They are written to the run's folder, to `output`, or for a model to `evaluations/NAME`.
    `prompts` are names of shipped sets, paths of files (see `load_prompts`), or "heldout" for the
    run's own held-out conversations; by default "general" and, if there are any, "heldout". Each
    prompt is answered under so many `seeds`. `decoding` changes the parameters that the run or the
    model recommends, and `label` is its name in reports. An evaluation that was stopped goes on
    where it was, and one that was finished with the same settings is read again.

    Raises UserError for what cannot be evaluated, before anything is written.
    """
    subject = Subject.find(run_or_model, output, base)
    sets = subject.prompt_sets(prompts)
    loaded_from = subject.run.folder if subject.run else subject.base.folder
    chosen = Decoding.of(loaded_from).but(**(decoding or {}))
    settings = {
        "chattune": __version__,
        "label": label or str(run_or_model),
        "model": subject.facts() | {"engine": engine, "quantize": quantize},
        "template": tokenizer_hash(subject.template),
        "prompts": {k: {"prompts": len(v), "sha256": hash_of(v)} for k, v in sets.items()},
        "decoding": chosen.model_dump(mode="json"),
        "seeds": seeds,
    }
    if finished := _finished(subject.folder, settings):
        return finished
    model = load_engine(run_or_model, engine=engine, quantize=quantize, base=base)
    subject.folder.mkdir(parents=True, exist_ok=True)
    partial = subject.folder / f".{JUDGED_SAMPLES}-{_hash(settings)[:12]}"
    every = [prompt for prompts_of_set in sets.values() for prompt in prompts_of_set]
    speaker = Speaker(model.engine, model.template, model.positions)
    (answers,) = write_replies(speaker, [Job(every, chosen, range(seeds), partial)], progress)
    if not answers.samples:
        raise ChatError(f"no prompt fits the model: {next(iter(answers.left_out.values()))}")
    kind = model.kind
    del model, speaker  # the modules that compute likelihoods need its memory
    training = subject.training_replies()
    judged = with_failures(answers.samples, training)
    judged = with_likelihoods(judged, load(run_or_model, find_device(), base=base))
    facts = settings | {"engine": kind, "left_out": answers.left_out}
    evaluation = _write(subject.folder, facts, judged, training)
    for leftover in subject.folder.glob(f".{JUDGED_SAMPLES}-*"):  # also of other settings
        leftover.unlink()
    return evaluation


def evaluate_replies(path: str | Path, *, output: str | Path | None = None) -> Evaluation:
    """Measure replies that were written elsewhere (see `read_replies`), without their model.

    scores.json and samples.jsonl are written to `output`, or to `evaluations/NAME`. Likelihoods are
    not measured. Raises DataError for a file that cannot be read.
    """
    path = Path(path)
    samples = read_replies(path)
    folder = Path("evaluations") / path.stem if output is None else Path(output)
    if read_evaluation(folder) is None:
        check_output_folder(folder, "output")
    facts = {
        "chattune": __version__,
        "label": path.name,
        "model": {"name": str(path), "kind": "replies", "sha256": size_and_hash(path)["sha256"]},
        **{"template": None, "decoding": {}, "prompts": {}, "seeds": None, "engine": None},
        "left_out": {},
    }
    folder.mkdir(parents=True, exist_ok=True)
    unknown = "the replies were written elsewhere, so their training data is not known"
    return _write(folder, facts, with_failures(samples, unknown), unknown)


def with_failures(samples: Sequence[Sample], training: TrainingReplies | str) -> list[Judged]:
    """Return the samples with the failures that are found in their replies.

    `training` are the replies that the model was trained on, or says why they are not known.
    """
    known = None if isinstance(training, str) else training
    found = find_failures(samples, known)
    return [Judged(sample, failures) for sample, failures in zip(samples, found, strict=True)]


def with_likelihoods(judged: Sequence[Judged], loaded: Loaded) -> list[Judged]:
    """Return the judged samples with the likelihoods that the model gives to them."""
    samples = [j.sample for j in judged]
    with_reference = [i for i, sample in enumerate(samples) if sample.reference]
    references = likelihood.likelihoods(loaded, [samples[i] for i in with_reference])
    of_reference = dict(zip(with_reference, references, strict=True))
    own_prompt = likelihood.own_prompt(loaded, samples)
    own_reply = likelihood.own_reply(loaded, samples)
    return [
        replace(
            j,
            likelihood=asdict(of_reference[i]) if i in of_reference else None,
            own_prompt=asdict(own_prompt[i]) if i in own_prompt else None,
            own_reply=asdict(own_reply[i]) if i in own_reply else None,
        )
        for i, j in enumerate(judged)
    ]


def read_evaluation(folder: Path) -> Evaluation | None:
    """Read the evaluation in a folder, or return None if there is none."""
    try:
        scores = json.loads((folder / SCORES).read_text("utf-8"))
        lines = (folder / JUDGED_SAMPLES).read_text("utf-8").split("\n")
    except FileNotFoundError:
        return None
    return Evaluation(
        folder, scores, [Judged.from_json(json.loads(line)) for line in lines if line]
    )


def _finished(folder: Path, settings: Mapping[str, Any]) -> Evaluation | None:
    """Return the evaluation in a folder if it was made with these settings."""
    evaluation = read_evaluation(folder)
    if evaluation is None:
        return None
    if all(evaluation.scores.get(name) == value for name, value in settings.items()):
        log.info("%s: evaluated before with the same settings", folder)
        return evaluation
    log.info("%s: its evaluation with other settings will be replaced", folder)
    return None


def _write(
    folder: Path,
    facts: Mapping[str, Any],
    judged: list[Judged],
    training: TrainingReplies | str,
) -> Evaluation:
    samples = [j.sample for j in judged]
    reasons = unmeasured(samples, None if isinstance(training, str) else training)
    if isinstance(training, str) and "copying" in reasons:
        reasons["copying"] = training
    measured = [name for name in FAILURES if name not in reasons]
    scores = {**facts, "not_measured": reasons, **score(judged, measured)}
    rows = (json.dumps(j.to_json(), ensure_ascii=False) for j in judged)
    write_bytes(folder / JUDGED_SAMPLES, "".join(f"{row}\n" for row in rows).encode())
    write_json(folder / SCORES, scores)
    return Evaluation(folder, scores, judged)


def _hash(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
