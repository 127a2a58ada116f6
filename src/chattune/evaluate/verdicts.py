"""Pairwise verdicts: which of two replies a judge prefers, asked in both orders."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chattune.errors import DataError
from chattune.evaluate.intervals import Figure, mean
from chattune.evaluate.judge import Judge
from chattune.evaluate.sample import Sample
from chattune.evaluate.scores import Judged

_QUESTION = """\
Two chatbots, 1 and 2, have answered the last message of a user. Judge which answer helps the user \
more: it is correct, answers what was asked, and is clear. The length and the order of the answers \
do not count.

[The conversation]
{conversation}

[Answer 1]
{first}

[Answer 2]
{second}

Reply with one word: 1, 2 or tie."""
_VERDICT = re.compile(r"(?i)\b(1|2|tie)\b")
_SIDES = {"a": 0.0, "b": 1.0, "tie": 0.5}


@dataclass(frozen=True)
class Verdicts:
    """What a judge prefers, over the prompts that two evaluations share.

    `by_prompt` has 1 where the second one's reply is better, 0 where the first one's is, and 0.5
    for a tie. `flipped` counts the prompts whose verdict changed with the order of the replies, and
    `unclear` those with an answer that is no verdict; both are ties. `win_rate` is the mean, and
    `length_controlled` the same for replies of equal length. `agreement` is the share of a person's
    votes that the judge shares, if there are votes.
    """

    by_prompt: dict[str, float]
    flipped: int
    unclear: int
    win_rate: Figure
    length_controlled: float
    agreement: Figure | None = None


def judge_pairs(
    judge: Judge, a: Sequence[Judged], b: Sequence[Judged], votes: Mapping[str, float] | None = None
) -> Verdicts:
    """Ask a judge about the last replies to every prompt that both sides have, in both orders.

    A pair whose verdict changes with the order is a tie (Zheng et al. 2023). Raises UserError as
    `Judge.ask` does.
    """
    ours, theirs = _last_replies(a), _last_replies(b)
    verdicts: dict[str, float] = {}
    flipped = unclear = 0
    for prompt in (p for p in ours if p in theirs):
        if ours[prompt].reply == theirs[prompt].reply:
            verdicts[prompt] = 0.5
            continue
        first = _verdict(judge, ours[prompt], theirs[prompt])
        second = _verdict(judge, theirs[prompt], ours[prompt])
        agree = first is not None and second is not None and first == 1 - second
        verdicts[prompt] = first if agree and first is not None else 0.5
        unclear += first is None or second is None
        flipped += not agree and first is not None and second is not None
    more_words = [_words(theirs[p]) - _words(ours[p]) for p in verdicts]
    shared = [float(votes[p] == verdicts[p]) for p in verdicts if votes and p in votes]
    return Verdicts(
        verdicts,
        flipped,
        unclear,
        mean([[value] for value in verdicts.values()]),
        length_controlled(list(verdicts.values()), more_words),
        mean([[value] for value in shared]) if shared else None,
    )


def length_controlled(verdicts: Sequence[float], more_words: Sequence[int]) -> float:
    """Return the win rate that a logistic regression gives to replies of equal length.

    The probability of a win is sigmoid(a + b * tanh(difference in words / its standard deviation)),
    and the result is sigmoid(a), as in length-controlled AlpacaEval (Dubois et al. 2024). A small
    ridge penalty keeps the fit finite where one side always wins.
    """
    from scipy.optimize import minimize

    wins = np.array(verdicts, np.float64)
    longer = np.array(more_words, np.float64)
    longer = np.tanh(longer / (longer.std() or 1.0))

    def loss(weights: np.ndarray) -> float:
        scores = weights[0] + weights[1] * longer
        nats = np.logaddexp(0, -scores) * wins + np.logaddexp(0, scores) * (1 - wins)
        return float(nats.sum() + 0.01 * (weights**2).sum())

    intercept = float(minimize(loss, np.zeros(2)).x[0])
    return 1 / (1 + math.exp(-intercept))


def read_votes(path: Path) -> dict[str, float]:
    """Read a person's votes: a JSONL file with `prompt` and `better` (a, b or tie) in each line.

    Raises DataError that names the line.
    """
    votes = {}
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"votes {path}: cannot be read ({error})") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            votes[str(row["prompt"])] = _SIDES[row["better"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{path}:{number}: not a vote; write it as {{"prompt": "general/advice-1", '
                '"better": "a"}, with a, b or tie'
            ) from error
    return votes


def _verdict(judge: Judge, first: Sample, second: Sample) -> float | None:
    """Return 1 if the second reply is better, 0 if the first is, and 0.5 for a tie.

    None is returned for an answer that is no verdict.
    """
    conversation = "\n".join(f"{m.role}: {m.content}" for m in first.messages)
    answer = judge.ask(
        _QUESTION.format(conversation=conversation, first=first.reply, second=second.reply)
    )
    found = _VERDICT.search(answer)
    return {"1": 0.0, "2": 1.0}.get(found.group(1), 0.5) if found else None


def _last_replies(judged: Sequence[Judged]) -> dict[str, Sample]:
    """Return the reply to the last turn of each prompt, under its first seed."""
    last: dict[str, Sample] = {}
    for sample in (j.sample for j in judged):
        before = last.get(sample.prompt)
        if before is None or (sample.seed == before.seed and sample.turn > before.turn):
            last[sample.prompt] = sample
    return last


def _words(sample: Sample) -> int:
    return len(sample.reply.split())
