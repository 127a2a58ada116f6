"""Causes of failures that lie in the training data, or in how it was rendered."""

from collections import Counter
from collections.abc import Sequence

from chattune.data.clean import opening_of
from chattune.diagnose.case import Case, Finding, supervised
from chattune.evaluate.failures import FAILURES
from chattune.evaluate.sample import Sample

_FEW_PROMPTS = 100  # distinct first questions
# Shares of the training data from which on a cause is named.
_WITHOUT_END = 0.01
_WITH_MARKERS = 0.01
_CUT = 0.1
_SAME_OPENING = 0.05


def end_token_not_learnt(case: Case) -> Finding | None:
    """Find out whether the loss covers the end token of the training conversations.

    A model that is not trained on it cannot learn to stop.
    """
    without = sum(_last_supervised(row) not in case.template.end_ids for row in case.rows)
    if without <= _WITHOUT_END * len(case.rows):
        return None
    return Finding(
        cause="end_token_not_learnt",
        title="The model was not trained to stop",
        evidence=[
            f"{without:,} of {len(case.rows):,} training conversations teach no end token",
            *case.measured("not_stopping", "do not end by themselves"),
        ],
        place="template",
        remedy="train with a template that ends each reply and supervises its end token",
        command=_again(case, "template=auto"),
    )


def prompts_in_the_loss(case: Case) -> Finding | None:
    """Find out whether the loss covers the user's messages.

    A model that is trained to write questions writes them, and then answers itself.
    """
    # The first token of a conversation is never supervised, because nothing predicts it.
    covered = sum(supervised(row[1]) for row in case.rows if len(row) > 1)
    if covered <= len(case.rows) / 2:
        return None
    return Finding(
        cause="prompts_in_the_loss",
        title="The model was trained to write the user's messages too",
        evidence=[
            f"the loss covers the user's words in {covered:,} of {len(case.rows):,} conversations",
            *case.measured("self_talk", "go on with a turn of the user"),
        ],
        place="template",
        remedy="train with a template that supervises the assistant's words alone",
        command=_again(case, "template=auto"),
    )


def markers_in_the_data(case: Case) -> Finding | None:
    """Find replies of the training data that themselves contain turns, such as `### Human:`."""
    found = FAILURES["self_talk"].find(case.replies)
    marked = [(s, spans[0]) for s, spans in zip(case.replies, found, strict=True) if spans]
    if len(marked) <= _WITH_MARKERS * len(case.replies):
        return None
    sample, (start, end) = marked[0]
    return Finding(
        cause="markers_in_the_data",
        title="The training replies contain turns of their own",
        evidence=[
            f"{len(marked):,} of {len(case.replies):,} training replies contain another turn, such "
            f"as {sample.reply[start:end][:80]!r} (conversation {_number(sample)})",
            *case.measured("self_talk", "contain another turn"),
        ],
        place="data.source",
        remedy="split these replies into turns, or remove them, and tune again",
    )


def same_openings(case: Case) -> Finding | None:
    """Find openings that many training replies share; template answers come from there."""
    openings = Counter(opening_of(s.reply) for s in case.replies)
    frequent = [
        (opening, count)
        for opening, count in openings.most_common(5)
        if count >= 10 and count > _SAME_OPENING * len(case.replies)
    ]
    if not frequent:
        return None
    begin = Counter(opening_of(j.sample.reply) for j in case.evaluation.judged)
    return Finding(
        cause="same_openings",
        title="Many training replies begin alike",
        evidence=[
            f"{count:,} of {len(case.replies):,} training replies begin with {opening!r}, and so "
            f"do {begin[opening]} of the {len(case.evaluation.judged)} replies of the model"
            for opening, count in frequent
        ]
        + case.measured("template", "share sentences with replies to other prompts"),
        place="data.max_per_opening",
        remedy="keep fewer replies of each opening, or mix in other data (data.mix)",
        command=_again(case, f"data.max_per_opening={max(5, len(case.replies) // 200)}"),
    )


def cut_replies(case: Case) -> Finding | None:
    """Find out whether training replies break off in the middle of a sentence."""
    found = FAILURES["unfinished"].find(case.replies)
    cut = [s for s, spans in zip(case.replies, found, strict=True) if spans]
    if len(cut) <= _CUT * len(case.replies):
        return None
    return Finding(
        cause="cut_replies_in_the_data",
        title="The training replies break off",
        evidence=[
            f"{len(cut):,} of {len(case.replies):,} training replies end within a sentence, such "
            f"as {cut[0].reply[-60:]!r} (conversation {_number(cut[0])})",
            *case.measured("unfinished", "end within a sentence"),
        ],
        place="data.source",
        remedy="take the whole replies; the data seems to have been cut to a length before",
    )


def few_prompts(case: Case) -> Finding | None:
    """Find out whether the training data asks only a few different questions."""
    distinct = {" ".join(c.opening.lower().split()) for c in case.conversations}
    if len(distinct) >= _FEW_PROMPTS:
        return None
    return Finding(
        cause="few_prompts",
        title="The training data asks few different questions",
        evidence=[
            f"the {len(case.conversations):,} training conversations begin with {len(distinct)} "
            "different questions",
            *case.measured("copying", "are copied from the training data"),
        ],
        place="data.source",
        remedy="add conversations on other subjects, or mix in another data set (data.mix)",
    )


def _last_supervised(row: Sequence[int]) -> int | None:
    """Return the last label that the loss covers; templates may write a line break after it."""
    return next((label for label in reversed(row) if supervised(label)), None)


def _number(sample: Sample) -> str:
    """Return the number of a training conversation, counted from 1."""
    return str(int(sample.prompt.rpartition("/")[2]) + 1)


def _again(case: Case, setting: str) -> str:
    """Return the command that tunes the run's recipe again with one field changed."""
    folder = case.run.folder
    return f"chattune tune {folder}/recipe.yaml --set {setting} --output {folder}-mended"
