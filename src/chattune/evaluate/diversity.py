"""Diversity: measures of how much the replies of an evaluation differ from each other."""

from collections.abc import Sequence
from random import Random

from chattune.evaluate.failures.text import word_texts

_MOST_COMPARED = 32  # replies that self_bleu compares; its time grows with their square


def distinct(texts: Sequence[str], n: int) -> float:
    """Return the share of different word n-grams among all n-grams of the texts, from 0 to 1.

    It is distinct-1 for n = 1 and distinct-2 for n = 2 (Li et al. 2016,
    https://arxiv.org/abs/1510.03055), with the n-grams of each text apart. It falls with the number
    of texts, so that it compares only sets of one size. It is 0 if there is no n-gram.
    """
    different: set[tuple[str, ...]] = set()
    count = 0
    for text in texts:
        found = word_texts(text)
        grams = list(zip(*(found[i:] for i in range(n)), strict=False))
        different.update(grams)
        count += len(grams)
    return len(different) / count if count else 0.0


def self_bleu(texts: Sequence[str]) -> float:
    """Return the mean BLEU of each text with the others as its references, from 0 to 1.

    The higher it is, the more the texts are alike (Zhu et al. 2018,
    https://arxiv.org/abs/1802.01886). It is BLEU-4 of sacrebleu with exponential smoothing and
    effective order, for sentences. Of more than 50 texts, 50 are drawn, the same ones each time.
    Texts without a word are left out, and of fewer than two texts it is 0.
    """
    from sacrebleu.metrics.bleu import BLEU

    compared = [" ".join(found) for text in texts if (found := word_texts(text))]
    if len(compared) > _MOST_COMPARED:
        compared = Random(0).sample(compared, _MOST_COMPARED)
    if len(compared) < 2:
        return 0.0
    bleu = BLEU(effective_order=True, tokenize="none")
    scores = [
        bleu.sentence_score(text, compared[:i] + compared[i + 1 :]).score
        for i, text in enumerate(compared)
    ]
    return sum(scores) / len(scores) / 100
