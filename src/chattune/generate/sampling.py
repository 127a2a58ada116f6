"""The next token from a row of logits, as transformers' logits processors would have it.

A vocabulary of 50,000 is never sorted where a few hundred of its likeliest tokens decide.
"""

from collections.abc import Sequence

import torch

from chattune.generate.decoding import Decoding

_LIKELIEST = 256  # looked at first where no top_k says how many matter
_BLOCK = 32


def next_token(
    logits: torch.Tensor, decoding: Decoding, history: Sequence[int], uniform: float
) -> int:
    """Draw from logits (vocabulary), fp32, after `history` (prompt and reply so far).

    `uniform` is a random number in [0, 1).
    """
    logits = _penalised(logits, decoding, history)
    if decoding.greedy:
        return int(logits.argmax())
    ids, odds = candidates(logits, decoding)
    reached = odds.cumsum(0)
    index = int(torch.searchsorted(reached, uniform * float(reached[-1]), right=True))
    return int(ids[min(index, len(ids) - 1)])


def candidates(logits: torch.Tensor, decoding: Decoding) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids that temperature, top_k, top_p and min_p leave, likeliest first, and their odds.

    The odds, in fp64, sum to one; with all filters off the ids are the whole vocabulary, in order.
    """
    scores, ids, mass = _likeliest(logits, decoding)
    odds = (scores.double() / decoding.temperature - mass).exp()
    if decoding.top_p < 1:
        before = odds.cumsum(0) - odds
        odds = odds[: max(1, int((before < decoding.top_p).sum()))]
    if decoding.min_p > 0:
        odds = odds[odds >= decoding.min_p * odds[0]]
    return ids[: len(odds)], odds / odds.sum()


def _likeliest(
    logits: torch.Tensor, decoding: Decoding
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores and ids of all that may be kept, best first, and the log of the mass they count in."""
    size, k = len(logits), decoding.top_k
    if 0 < k < size:
        scores, ids = _top(logits, min(size, 2 * k))
        if scores[-1] == scores[k - 1]:  # transformers keeps all ties of the last
            tied = (logits >= scores[k - 1]).nonzero()[:, 0]
            scores, ids = _sorted(logits[tied], tied)
        kept = int((scores >= scores[k - 1]).sum())
        return scores[:kept], ids[:kept], _mass(scores[:kept], decoding)
    mass = _mass(logits, decoding)
    everything = torch.arange(size, device=logits.device)
    if decoding.top_p == 1 and decoding.min_p == 0:
        return logits, everything, mass
    if size > _LIKELIEST:
        scores, ids = _top(logits, _LIKELIEST)
        odds = (scores.double() / decoding.temperature - mass).exp()
        if odds.sum() >= decoding.top_p or odds[-1] < decoding.min_p * odds[0]:
            return scores, ids, mass
    return *_sorted(logits, everything), mass


def _top(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k highest and their ids, best first; in a large vocabulary faster than topk.

    They are among the k blocks that hold the highest, for each of these has one that is no lower
    than any outside of them.
    """
    count = len(logits) // _BLOCK
    if count < 4 * k:
        scores, ids = logits.topk(k)
        return scores, ids
    blocks = logits[: count * _BLOCK].view(count, _BLOCK)
    where = blocks.amax(1).topk(k).indices
    within = torch.arange(_BLOCK, device=logits.device)
    rest = torch.arange(count * _BLOCK, len(logits), device=logits.device)
    ids = torch.cat([(where[:, None] * _BLOCK + within).flatten(), rest])
    scores, places = logits[ids].topk(k)
    return scores, ids[places]


def _mass(scores: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    return (scores.double() / decoding.temperature).logsumexp(0)


def _sorted(scores: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scores, order = scores.sort(descending=True, stable=True)
    return scores, ids[order]


def _penalised(logits: torch.Tensor, decoding: Decoding, history: Sequence[int]) -> torch.Tensor:
    penalty, n = decoding.repetition_penalty, decoding.no_repeat_ngram
    if penalty == 1 and n == 0:
        return logits
    logits = logits.clone()
    if penalty != 1:
        seen = torch.tensor(sorted(set(history)), device=logits.device)
        scores = logits[seen]
        logits[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
    if n and len(history) >= n:
        last = tuple(history[len(history) - n + 1 :])
        starts = range(len(history) - n + 1)
        banned = [history[i + n - 1] for i in starts if tuple(history[i : i + n - 1]) == last]
        logits[banned] = -torch.inf
    return logits
