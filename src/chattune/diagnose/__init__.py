"""The diagnosis: from the failures of a run to their causes, each with evidence and a remedy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chattune.diagnose import data_causes, decoding_causes, training_causes
from chattune.diagnose.case import Case, Finding
from chattune.errors import RunError
from chattune.evaluate import Evaluation, evaluate, read_evaluation
from chattune.evaluate.replying import Progress
from chattune.evaluate.subject import Subject
from chattune.folders import write_json
from chattune.run import DIAGNOSIS

__all__ = ["CAUSES", "Diagnosis", "Finding", "diagnose"]

# Each function looks for one cause, and returns None where it finds no evidence of it.
CAUSES: dict[str, Callable[[Case], Finding | None]] = {
    "end_token_not_learnt": data_causes.end_token_not_learnt,
    "prompts_in_the_loss": data_causes.prompts_in_the_loss,
    "markers_in_the_data": data_causes.markers_in_the_data,
    "same_openings": data_causes.same_openings,
    "cut_replies_in_the_data": data_causes.cut_replies,
    "few_prompts": data_causes.few_prompts,
    "over_fitting": training_causes.over_fitting,
    "nothing_learnt": training_causes.nothing_learnt,
    "limit_too_low": decoding_causes.limit_too_low,
    "too_cold": decoding_causes.too_cold,
    "too_hot": decoding_causes.too_hot,
}


@dataclass(frozen=True)
class Diagnosis:
    """The causes that were found in a run, and the evaluation whose failures they explain.

    `not_examined` says why the training data could not be looked at, or is None if it was.
    """

    evaluation: Evaluation
    findings: list[Finding]
    not_examined: str | None

    def to_json(self) -> dict[str, Any]:
        """Return findings and gaps as a dictionary that can be written as JSON."""
        return {
            "findings": [finding.to_json() for finding in self.findings],
            "not_examined": self.not_examined,
        }


def diagnose(
    run: str | Path,
    *,
    base: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Diagnosis:
    """Find the causes of a run's failures, and write them to its diagnosis.json.

    The failures are those of the evaluation in the run's folder, which is made if there is none.
    Causes in the decoding are tried out: the prompts are answered once more at another temperature.
    Raises RunError for a model, which has no training to look at.
    """
    subject = Subject.find(run, None, base)
    if subject.run is None:
        raise RunError(f"diagnose {run}: a model, and only a run has a training to look at")
    evaluation = read_evaluation(subject.folder)
    if evaluation is None or evaluation.scores["model"]["adapter"] != subject.facts()["adapter"]:
        evaluation = evaluate(run, base=base, progress=progress)
    used = evaluation.scores

    def try_decoding(changes: Mapping[str, Any]) -> Evaluation:
        return evaluate(
            str(run),
            list(used["prompts"]),
            output=subject.folder / "trial",
            seeds=used["seeds"],
            decoding={**used["decoding"], **changes},
            base=base,
            progress=progress,
        )

    prepared, conversations = subject.prepared, subject.conversations
    problem = next((p for p in (prepared, conversations) if isinstance(p, str)), None)
    case = Case(
        subject.run,
        evaluation,
        subject.template,
        [] if isinstance(prepared, str) else prepared.train["labels"],
        [] if isinstance(conversations, str) else conversations.trained,
        try_decoding,
    )
    looked_for = {
        name: cause
        for name, cause in CAUSES.items()
        if problem is None or cause.__module__ != data_causes.__name__
    }
    found = [finding for cause in looked_for.values() if (finding := cause(case))]
    diagnosis = Diagnosis(evaluation, found, problem)
    write_json(subject.folder / DIAGNOSIS, diagnosis.to_json())
    return diagnosis
