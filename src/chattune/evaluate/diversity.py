"""How much the replies of a model differ from each other."""

import re
from collections.abc import Sequence

_WORD = re.compile(r"\w+")
_COMPARED = 50  # replies of Self-BLEU, each of which is compared with all others


def distinct(texts: Sequence[str], n: int) -> float:
    """Return the share of different n-grams of words among all of the texts (Li et al. 2016).

    It falls with the length and the number of the texts, so it may be compared only for the same
    prompts. Texts without an n-gram give 0.
    """
    grams = [
        tuple(words[i : i + n])
        for words in (_WORD.findall(text.lower()) for text in texts)
        for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / max(1, len(grams))


def self_bleu(texts: Sequence[str]) -> float:
    """Return Self-BLEU (Zhu et al. 2018): the mean BLEU, from 0 to 1, of each text and the others.

    Texts that resemble each other give a high value. At most 50 of them, spread evenly, are
    compared, by sacrebleu with its default smoothing.
    """
    from sacrebleu.metrics.bleu import BLEU

    chosen = [t for t in texts if t.strip()][:: max(1, -(-len(texts) // _COMPARED))]
    if len(chosen) < 2:
        return 0.0
    bleu = BLEU(effective_order=True)
    scores = [
        bleu.sentence_score(text, [*chosen[:i], *chosen[i + 1 :]]).score
        for i, text in enumerate(chosen)
    ]
    return float(sum(scores)) / len(scores) / 100
