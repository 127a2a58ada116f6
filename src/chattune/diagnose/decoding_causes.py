"""Causes of failures that lie in the decoding: each is tried out before it is named."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chattune.diagnose.case import Case, Finding
from chattune.evaluate.comparing import Comparison, compare

_FAILING = 0.05  # share of replies from which on a failure is worth a trial
_COLD, _HOT = 0.5, 1.0  # temperatures below and above which a trial is made
_WARMER: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "do_sample": True}
_COOLER: dict[str, Any] = {"temperature": 0.5, "top_k": 30, "top_p": 0.95, "do_sample": True}
_SURE = 0.05  # p-value, corrected for all figures that are compared


def limit_too_low(case: Case) -> Finding | None:
    """Find out whether replies are cut off because the limit is shorter than what was learnt."""
    cut, limit = case.rate("not_stopping"), int(case.decoding["max_new_tokens"])
    if cut is None or cut.value < _FAILING or not case.replies:
        return None
    lengths = [len(case.template.encode(s.reply)) for s in case.replies[:500]]
    longer = sum(length >= limit for length in lengths)
    if longer < _FAILING * len(lengths):
        return None
    enough = int(np.quantile(lengths, 0.95)) + 1
    return Finding(
        cause="limit_too_low",
        title="The limit cuts replies that would have ended",
        evidence=[
            f"{longer} of {len(lengths)} training replies have {limit} tokens or more, which is "
            "the limit of a reply",
            *case.measured("not_stopping", "were cut at the limit"),
        ],
        place="max_new_tokens",
        remedy=f"allow {enough} tokens, which 95 % of the training replies keep to, or end at a "
        "whole sentence (finish=sentence)",
        command=f"chattune evaluate {case.run.folder} --set max_new_tokens={enough}",
    )


def too_cold(case: Case) -> Finding | None:
    """Find out whether replies repeat themselves less at a higher temperature."""
    repeated = case.rate("repetition")
    if repeated is None or repeated.value < _FAILING or _temperature(case) >= _COLD:
        return None
    improved = _improved(_trial(case, _WARMER), ("repetition", "seq_rep_4"))
    if not improved:
        return None
    return Finding(
        cause="too_cold",
        title="The temperature is so low that replies repeat themselves",
        evidence=[*case.measured("repetition", "repeat themselves"), *improved],
        place="temperature",
        remedy="decode at a higher temperature; `chattune sweep` finds one",
        command=f"chattune sweep {case.run.folder}",
    )


def too_hot(case: Case) -> Finding | None:
    """Find out whether replies keep to their prompts better at a lower temperature."""
    if _temperature(case) <= _HOT:
        return None
    improved = _improved(_trial(case, _COOLER), ("own_prompt_nats", "right", "language"))
    if not improved:
        return None
    return Finding(
        cause="too_hot",
        title="The temperature is so high that replies lose their subject",
        evidence=improved,
        place="temperature",
        remedy="decode at a lower temperature; `chattune sweep` finds one",
        command=f"chattune sweep {case.run.folder}",
    )


def _temperature(case: Case) -> float:
    """Return the temperature of the evaluation; greedy decoding has 0."""
    return float(case.decoding["temperature"]) if case.decoding["do_sample"] else 0.0


def _trial(case: Case, decoding: Mapping[str, Any]) -> Comparison:
    """Compare the evaluation with one of the same prompts under other decoding parameters."""
    return compare(case.evaluation, case.try_decoding(decoding))


def _improved(trial: Comparison, names: Sequence[str]) -> list[str]:
    """Return a line of evidence for each figure that the trial changed for the better for sure.

    More of the last three is better, and less of everything else.
    """
    rising = {"own_prompt_nats", "own_prompt_first", "right"}
    return [
        f"{d.name}: {d.a.value:.3f}, and in a trial with another temperature {d.b.value:.3f} "
        f"(difference {d.difference.low:+.3f} to {d.difference.high:+.3f})"
        for d in trial.differences
        if d.name in names and d.p < _SURE and (d.difference.value > 0) == (d.name in rising)
    ]
