"""A text made shorter by leaving out its least important sentences, ranked by TextRank."""

import math
import re
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

from chattune.sentences import unit_ends

# In scripts without spaces each character counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


def summarise(text: str, fits: Callable[[str], bool]) -> str:
    """Leave out sentences, the lowest ranked first, until the rest fits; return it in its order.

    The first sentence always stays, even if it does not fit alone. Items of lists and blocks of
    code count as sentences.
    """
    units = split_units(text)
    kept = list(range(len(units)))
    ranks = text_ranks(units)
    # Of equals the later one is left out first. Rounding makes ranks equal that should be.
    for index in sorted(kept[1:], key=lambda i: (round(ranks[i], 6), -i)):
        if fits(_join(units, kept)):
            break
        kept.remove(index)
    return _join(units, kept)


def split_units(text: str) -> list[str]:
    """Split a text into units, each with the white space before it; see unit_ends."""
    text = text.rstrip()
    ends = [*(end for end in unit_ends(text) if end < len(text)), len(text)]
    return [text[start:end] for start, end in pairwise([0, *ends])]


def text_ranks(sentences: Sequence[str]) -> list[float]:
    """Return the importance of each sentence, which add up to 1.

    It is the PageRank in a graph whose edges are weighted with the number of words that two
    sentences share, divided by the sum of the logarithms of their lengths (TextRank: Mihalcea and
    Tarau 2004, https://aclanthology.org/W04-3252/).
    """
    import networkx

    words = [_WORD.findall(sentence.casefold()) for sentence in sentences]
    graph = networkx.Graph()
    graph.add_nodes_from(range(len(sentences)))
    for (i, a), (j, b) in combinations(enumerate(words), 2):
        shared, length = len(set(a) & set(b)), math.log(max(1, len(a)) * max(1, len(b)))
        if shared and length:  # two sentences of one word each have the length 0
            graph.add_edge(i, j, weight=shared / length)
    ranks = networkx.pagerank(graph)
    return [ranks[i] for i in range(len(sentences))]


def _join(units: Sequence[str], kept: Sequence[int]) -> str:
    """Join units; where some are left out, the widest break between paragraphs or lines stays."""
    text = units[kept[0]]
    for before, unit in pairwise(kept):
        body = units[unit].lstrip()
        gaps = [u[: len(u) - len(u.lstrip())] for u in units[before + 1 : unit + 1]]
        text += max(gaps, key=lambda gap: gap.count("\n")) + body
    return text
