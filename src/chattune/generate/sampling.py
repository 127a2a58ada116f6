"""The next token from a row of logits, as transformers' logits processors would have it.

A vocabulary of 50,000 is never sorted where a few hundred of its likeliest tokens decide, and no
operation of PyTorch's is called: twenty on a few numbers each take longer than the rest.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chattune.generate import kernels
from chattune.generate.decoding import Decoding

Floats = NDArray[np.floating[Any]]
Ids = NDArray[np.int64]

_FEW, _MANY = 256, 4096  # likeliest looked at in turn where no top_k says how many matter


def next_token(logits: Floats, decoding: Decoding, history: Sequence[int], uniform: float) -> int:
    """Draw from logits (vocabulary), fp32, after `history` (prompt and reply so far).

    `uniform` is a random number in [0, 1).
    """
    logits = penalised(logits, decoding, history)
    if decoding.greedy:
        return int(logits.argmax())
    ids, odds = candidates(logits, decoding)
    reached = odds.cumsum()
    index = int(reached.searchsorted(uniform * reached[-1], side="right"))
    return int(ids[min(index, len(ids) - 1)])


def penalised(logits: Floats, decoding: Decoding, history: Sequence[int]) -> Floats:
    """Logits after repetition_penalty and no_repeat_ngram; the same ones where both are off."""
    penalty, n = decoding.repetition_penalty, decoding.no_repeat_ngram
    if penalty == 1 and n == 0:
        return logits
    logits = logits.copy()
    if penalty != 1:
        seen = np.array(sorted(set(history)), np.int64)
        scores = logits[seen]
        logits[seen] = np.where(scores < 0, scores * penalty, scores / penalty)
    if n and len(history) >= n:
        last = tuple(history[len(history) - n + 1 :])
        starts = range(len(history) - n + 1)
        banned = [history[i + n - 1] for i in starts if tuple(history[i : i + n - 1]) == last]
        logits[banned] = -np.inf
    return logits


def candidates(logits: Floats, decoding: Decoding) -> tuple[Ids, Floats]:
    """Token ids that temperature, top_k, top_p and min_p leave, likeliest first, and their odds.

    The odds, in fp64, sum to one; with all filters off the ids are the whole vocabulary, in order.
    """
    scores, ids, mass = _likeliest(logits, decoding)
    odds = _odds(scores, decoding) / mass
    if decoding.top_p < 1:
        before = odds.cumsum() - odds
        odds = odds[: max(1, int((before < decoding.top_p).sum()))]
    if decoding.min_p > 0:
        odds = odds[odds >= decoding.min_p * odds[0]]
    return ids[: len(odds)], odds / odds.sum()


def _likeliest(logits: Floats, decoding: Decoding) -> tuple[Floats, Ids, float]:
    """Scores and ids of all that may be kept, best first, and what their odds are shares of."""
    size, k = len(logits), decoding.top_k
    if 0 < k < size:
        scores, ids = _top(logits, min(size, 2 * k))
        if scores[-1] == scores[k - 1]:  # transformers keeps all ties of the last
            scores, ids = _sorted(logits, (logits >= scores[k - 1]).nonzero()[0])
        kept = int((scores >= scores[k - 1]).sum())
        return scores[:kept], ids[:kept], _odds(scores[:kept], decoding).sum()
    mass = _odds(logits, decoding).sum()
    everything = np.arange(size)
    if decoding.top_p == 1 and decoding.min_p == 0:
        return logits, everything, mass
    for count in (_FEW, _MANY):
        if size > count:
            scores, ids = _top(logits, count)
            odds = _odds(scores, decoding) / mass
            if odds.sum() >= decoding.top_p or odds[-1] < decoding.min_p * odds[0]:
                return scores, ids, mass
    return *_sorted(logits, everything), mass


def _odds(scores: Floats, decoding: Decoding) -> Floats:
    """Beside the best of them: e to the scores over the temperature."""
    found = np.empty(len(scores), np.float32)
    scores = np.ascontiguousarray(scores, np.float32)
    kernels.odds(scores, scores.max(), np.float32(1 / decoding.temperature), found)
    return found.astype(np.float64)


def _sorted(logits: Floats, ids: Ids) -> tuple[Floats, Ids]:
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    return logits[ids], ids


def _top(logits: Floats, k: int) -> tuple[Floats, Ids]:
    """The k highest and their ids, best first."""
    if k > _FEW:
        return _sorted(logits, np.argpartition(logits, -k)[-k:])
    scores, ids = np.empty(k, np.float32), np.empty(k, np.int64)
    kernels.highest(np.ascontiguousarray(logits, np.float32), scores, ids)
    return scores, ids
