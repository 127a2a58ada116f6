"""Verbatim copies of training replies."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from chattune.evaluate.failures.text import (
    Found,
    Span,
    is_character,
    merged,
    word_texts,
    words,
)
from chattune.evaluate.failures.word_lists import GENERIC
from chattune.evaluate.sample import Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    _Hashes = NDArray[np.uint64]

# Words in a row. Of 1,000 replies that people wrote, 18 have 8 in common with one of 7,500 others,
# 11 have 12 and 8 have 15: from 12 on they quote the same text. Brown et al. (2020) take 13.
RUN = 12
_SHORTEST_REPLY = 5  # words of a training reply that is compared as a whole
_BATCH = 1 << 22  # hashes that are collected before they are sorted
_BASE = 0x9E3779B97F4A7C15  # of the polynomial hash; any odd number would do


class TrainingReplies:
    """An index of training replies, in which the words that a reply copies are found.

    It keeps no text, but a 64-bit hash of every run of RUN words and of every shorter reply: 8
    bytes a word or less. The hashes differ from process to process.
    """

    def __init__(self, replies: Iterable[str]) -> None:
        self._known = _sorted(_hashes(word_texts(reply)) for reply in replies)

    def copied(self, reply: str, prompt: str = "") -> list[Span]:
        """Return the spans of a reply that are copied, except what stands in its prompt too."""
        import numpy as np

        found = words(reply)
        texts = [w.text for w in found]
        size = min(RUN, len(texts))
        hashes = _hashes(texts)
        hits = _contains(self._known, hashes) & ~np.isin(hashes, _hashes(word_texts(prompt)))
        return [
            (found[start].start, found[end - 1].end)
            for start, end in merged((i, i + size) for i in np.flatnonzero(hits).tolist())
            if _is_telling(texts[start:end], whole=end - start == len(texts))
        ]


def copying(samples: Sequence[Sample], training: TrainingReplies) -> Found:
    """Find replies that repeat training replies word for word.

    They have 12 words in a row that occur in one training reply (24 characters in scripts without
    spaces), or are equal to a shorter one of five words or more. Case and punctuation make no
    difference. Passed over are words that the prompt has in the same order, stock phrases and rows
    of numbers. The spans are the copied words. Brown et al. (2020, https://arxiv.org/abs/2005.14165)
    look for overlaps of 13 words in the same way.
    """
    return [training.copied(s.reply, "\n".join(m.content for m in s.messages)) for s in samples]


def _is_telling(texts: Sequence[str], *, whole: bool) -> bool:
    """Return whether copied words are more than a stock phrase or a row of numbers.

    `whole` says that they are a whole reply, which may be shorter.
    """
    length = sum(0.5 if is_character(word) else 1 for word in texts)
    topic = {word for word in texts if word not in GENERIC and not word.isdigit()}
    shortest = _SHORTEST_REPLY if whole else RUN
    return length >= shortest and len(topic) >= (min(length, RUN) + 1) // 3


def _hashes(texts: Sequence[str]) -> "_Hashes":
    """Return the hash of every run of RUN words, or of all of them if they are fewer.

    It is a polynomial in the hashes of the words, modulo 2^64, that begins with their number.
    """
    import numpy as np

    if len(texts) < _SHORTEST_REPLY:
        return np.empty(0, np.uint64)
    size = min(RUN, len(texts))
    of_words = np.fromiter(map(hash, texts), np.int64, len(texts)).view(np.uint64)
    count = len(texts) - size + 1
    total = np.full(count, size, np.uint64)
    for i in range(size):
        total *= np.uint64(_BASE)
        total += of_words[i : i + count]
    return total


def _sorted(parts: Iterable["_Hashes"]) -> "_Hashes":
    """Return the different hashes of all parts in order, of which a batch is sorted at a time."""
    import numpy as np

    known = np.empty(0, np.uint64)
    pending: list[_Hashes] = []
    size = 0

    def with_pending() -> "_Hashes":
        together = np.sort(np.concatenate([known, *pending]))
        different: _Hashes = together[np.diff(together, prepend=~together[:1]) != 0]
        return different

    for part in parts:
        pending.append(part)
        size += len(part)
        if size >= max(_BATCH, len(known)):
            known = with_pending()
            pending, size = [], 0
    return with_pending()


def _contains(known: "_Hashes", hashes: "_Hashes") -> "NDArray[np.bool_]":
    """Return for each hash whether it is one of those known, which are in order."""
    import numpy as np

    if not len(known):
        return np.zeros(len(hashes), bool)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    found: NDArray[np.bool_] = known[places] == hashes
    return found
