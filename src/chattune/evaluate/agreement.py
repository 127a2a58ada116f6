"""Agreement of replies with references, and with the words that they must and must not have."""

import re
from collections import Counter
from collections.abc import Sequence

from chattune.evaluate.sample import Sample

_WORD = re.compile(r"\w+")


def chrf(reply: str, reference: str) -> float:
    """Return chrF (Popović 2015), from 0 to 1: the F-score of character n-grams, by sacrebleu."""
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF().sentence_score(reply, [reference]).score) / 100


def word_f1(reply: str, reference: str) -> float:
    """Return the F1 score of words, from 0 to 1, as SQuAD has it (Rajpurkar et al. 2016).

    Words are compared in lower case and without their order; unlike SQuAD's, articles count.
    """
    ours, theirs = (Counter(_WORD.findall(text.lower())) for text in (reply, reference))
    shared = sum((ours & theirs).values())
    if not shared:
        return float(ours == theirs)
    precision, recall = shared / sum(ours.values()), shared / sum(theirs.values())
    return 2 * precision * recall / (precision + recall)


def is_right(sample: Sample) -> bool | None:
    """Return whether the reply has a text of each required group and none of the forbidden ones.

    None is returned for a sample that requires and forbids nothing.
    """
    if not sample.required and not sample.forbidden:
        return None
    return all(_has_any(sample.reply, group) for group in sample.required) and not _has_any(
        sample.reply, sample.forbidden
    )


def contains(text: str, words: str) -> bool:
    """Return whether the text contains the words as whole words, in upper or lower case."""
    return re.search(rf"(?i)(?<![\w-]){re.escape(words)}(?![\w-])", text) is not None


def _has_any(reply: str, texts: Sequence[str]) -> bool:
    return any(contains(reply, text) for text in texts)
