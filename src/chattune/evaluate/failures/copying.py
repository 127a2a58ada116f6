"""Verbatim copies of training replies."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from chattune.evaluate.failures.text import GENERIC, Found, Span, Word, merged, words
from chattune.evaluate.sample import Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    _Hashes = NDArray[np.uint64]

# Brown et al. (2020, appendix C) take 13 words in common as a sign that a text was seen in
# training. Of 1,500 replies that people wrote, N in common with ...
RUN = 13
_SHORTEST_REPLY = 5  # words of a training reply that is compared as a whole
_FEWEST_CONTENT_WORDS = 4  # different ones in a run; stock phrases and rows of numbers have fewer
_BATCH = 1 << 22  # hashes that are sorted at a time while an index is built
_BASE = 0x9E3779B97F4A7C15 | 1  # of the polynomial hash


class TrainingReplies:
    """An index of training replies, in which runs of words are found.

    It keeps a 64-bit hash of each run of `RUN` words and of each shorter reply, 8 bytes a word at
    most, and no text. Hashes depend on the process, so an index cannot be stored.
    """

    def __init__(self, replies: Iterable[str]) -> None:
        import numpy as np

        self.count = 0
        sorted_parts: list[_Hashes] = []
        part: list[_Hashes] = []
        size = 0
        ...
