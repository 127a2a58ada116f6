"""The draw of the next token from a row of logits, distributed as by transformers' processors.

Three things make it fast: a vocabulary of 50,000 is never sorted where its few hundred likeliest
tokens decide, exponentials are one compiled pass, and PyTorch is not called, because twenty of its
operations on a few numbers each take longer than all the rest.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chattune.generate.decoding import Decoding
from chattune.kernels.elementwise import exp
from chattune.kernels.jit import compiled

Floats = NDArray[np.floating[Any]]
Ids = NDArray[np.int64]

# Numbers of likeliest tokens that are tried in turn where no top_k says how many matter. Up to
# the first of them, inserting into a sorted list is faster than NumPy's partition.
_FEW, _MANY = 256, 4096
_COMPARED_AT_ONCE = 64  # logits whose comparison is one loop of vectors
_SMALLEST_EXPONENT = np.float32(-87)  # e to less than this is no normal fp32 number


def next_token(logits: Floats, decoding: Decoding, history: Sequence[int], uniform: float) -> int:
    """Draw a token id from logits (vocabulary), fp32.

    `history` is the prompt and the reply so far, `uniform` a random number in [0, 1).
    """
    logits = penalised(logits, decoding, history)
    if decoding.greedy:
        return int(logits.argmax())
    ids, probabilities = candidates(logits, decoding)
    cumulative = probabilities.cumsum()
    index = int(cumulative.searchsorted(uniform * cumulative[-1], side="right"))
    return int(ids[min(index, len(ids) - 1)])


def penalised(logits: Floats, decoding: Decoding, history: Sequence[int]) -> Floats:
    """Return the logits after repetition_penalty and no_repeat_ngram.

    Where both are off, it is the same array.
    """
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
    """Return the token ids that temperature, top_k, top_p and min_p leave, and their probabilities.

    The likeliest comes first; with all filters off, it is the whole vocabulary in its order. The
    probabilities (fp64) sum to one.
    """
    scores, ids, mass = _likeliest(logits, decoding)
    probabilities = _exponentials(scores, decoding) / mass
    if decoding.top_p < 1:
        before = probabilities.cumsum() - probabilities
        probabilities = probabilities[: max(1, int((before < decoding.top_p).sum()))]
    if decoding.min_p > 0:
        probabilities = probabilities[probabilities >= decoding.min_p * probabilities[0]]
    return ids[: len(probabilities)], probabilities / probabilities.sum()


def _likeliest(logits: Floats, decoding: Decoding) -> tuple[Floats, Ids, float]:
    """Return logits and ids of at least all tokens that the filters may keep, highest first.

    With all filters off they are the whole vocabulary in its order. The third value is the
    denominator of the probabilities: the sum of the exponentials, over the top_k tokens where
    there is a top_k, else over the vocabulary.
    """
    size, k = len(logits), decoding.top_k
    if 0 < k < size:
        scores, ids = _top(logits, min(size, 2 * k))
        if scores[-1] == scores[k - 1]:  # more tokens may tie with the last, and all are kept
            scores, ids = _sorted(logits, (logits >= scores[k - 1]).nonzero()[0])
        kept = int((scores >= scores[k - 1]).sum())
        return scores[:kept], ids[:kept], _exponentials(scores[:kept], decoding).sum()
    mass = _exponentials(logits, decoding).sum()
    all_ids = np.arange(size)
    if decoding.top_p == 1 and decoding.min_p == 0:
        return logits, all_ids, mass
    for count in (_FEW, _MANY):
        if size > count:
            scores, ids = _top(logits, count)
            probabilities = _exponentials(scores, decoding) / mass
            enough_mass = probabilities.sum() >= decoding.top_p
            if enough_mass or probabilities[-1] < decoding.min_p * probabilities[0]:
                return scores, ids, mass
    return *_sorted(logits, all_ids), mass


def _exponentials(scores: Floats, decoding: Decoding) -> Floats:
    """Return e to ((scores - the highest) / temperature), in fp64."""
    result = np.empty(len(scores), np.float32)
    scores = np.ascontiguousarray(scores, np.float32)
    _write_exponentials(scores, scores.max(), np.float32(1 / decoding.temperature), result)
    return result.astype(np.float64)


def _sorted(logits: Floats, ids: Ids) -> tuple[Floats, Ids]:
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    return logits[ids], ids


def _top(logits: Floats, k: int) -> tuple[Floats, Ids]:
    """Return the k highest logits and their ids, highest first."""
    if k > _FEW:
        return _sorted(logits, np.argpartition(logits, -k)[-k:])
    scores, ids = np.empty(k, np.float32), np.empty(k, np.int64)
    _write_highest(np.ascontiguousarray(logits, np.float32), scores, ids)
    return scores, ids


@compiled()
def _write_exponentials(logits, largest, inverse_temperature, out):
    """Write e to ((logits - largest) / temperature) to `out`; 0 where fp32 cannot hold it."""
    for i in range(len(logits)):
        x = (logits[i] - largest) * inverse_temperature
        value = exp(x)
        out[i] = value if x > _SMALLEST_EXPONENT else np.float32(0)


@compiled()
def _write_highest(logits, scores, ids):
    """Write the highest logits to `scores` and their indices to `ids`, highest first.

    As many are taken as `scores` has places; of equal logits the first comes first. Numbers are
    inserted into the sorted list one by one, and a block in which none exceeds the lowest of the
    list, as are most after the first few, is passed over with one vector comparison.
    """
    count, capacity = 0, len(scores)
    for start in range(0, len(logits), _COMPARED_AT_ONCE):
        end = min(start + _COMPARED_AT_ONCE, len(logits))
        if count == capacity:
            lowest, higher = scores[capacity - 1], np.int32(0)
            for i in range(start, end):
                higher += np.int32(logits[i] > lowest)
            if higher == 0:
                continue
        for i in range(start, end):
            value = logits[i]
            if count == capacity and not value > scores[capacity - 1]:  # a NaN is left out too
                continue
            place = min(count, capacity - 1)
            count = min(count + 1, capacity)
            while place > 0 and scores[place - 1] < value:
                scores[place], ids[place] = scores[place - 1], ids[place - 1]
                place -= 1
            scores[place], ids[place] = value, i
