"""Template answers: wording that replies to unrelated prompts share."""

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from chattune.evaluate.failures.text import (
    SPECIAL_TOKEN,
    Found,
    Word,
    content_words,
    merged,
    without_code,
    words,
)
from chattune.evaluate.failures.word_lists import GENERIC
from chattune.evaluate.sample import Sample

_SHORTEST_REPLY = 3  # words of replies that are compared as a whole
_RELATED = 0.25  # share of the shorter prompt's topic words from which on prompts are related


# A word that says something weighs 3, another 1, and a word of the prompt or a number 0. So a
# common phrase such as "there are many different ways to" is light, however many share it.
_CONTENT = 3


@dataclass(frozen=True)
class _Kind:
    """Where wording is compared, and how much of it has to be shared.

    Two replies to unrelated prompts, written by people, GPT-3.5 or GPT-4 (3,000 were compared),
    share words of weight w with a probability of about 2^-(rarity + w/2).
    """

    lengths: Sequence[int]
    rarity: int
    lightest: int  # weight that three unrelated prompts or more have to share
    lightest_of_two: int


_OPENINGS = _Kind(range(5, 13), rarity=11, lightest=8, lightest_of_two=11)
_RUNS = _Kind((8, 12), rarity=9, lightest=14, lightest_of_two=16)
_CHANCE = 0.05  # expected number of coincidences that is accepted
_SHARE = 0.01  # of all prompts, which share an opening or run at least


@dataclass(frozen=True)
class _Reply:
    """What is compared of a sample: its words, and how much the words before each weigh."""

    conversation: str
    topic: frozenset[str]  # stems
    words: list[Word]
    texts: list[str]
    weights: list[int]

    def weight(self, start: int, length: int) -> int:
        """Return how much so many words from `start` on weigh together."""
        return self.weights[start + length] - self.weights[start]


_Place = tuple[int, int, int]  # number of a reply, the first shared word, how many are shared


def template(samples: Sequence[Sample]) -> Found:
    """Find wording that a reply shares with replies to unrelated prompts.

    Either the whole reply, of three words or more, is equal to one to an unrelated prompt; or its
    first words, or 8 words in a row, are shared by more unrelated prompts than can be by chance
    (see `_needed`) and by one in a hundred. Words weigh more if they say something about a topic,
    and nothing if they stand in the prompt. Prompts are unrelated if they have fewer than a quarter
    of their topic words in common; replies to one prompt, to its turns or under other seeds, are
    not compared. The spans are the shared words.
    """
    replies = [_reply(s) for s in samples]
    found: Found = [[] for _ in samples]
    for number, start, length in [*_equal(replies), *_openings(replies), *_runs(replies)]:
        shared = replies[number].words[start : start + length]
        found[number].append((shared[0].start, shared[-1].end))
    return [merged(spans) for spans in found]


def _reply(sample: Sample) -> _Reply:
    asked = " ".join(m.content for m in sample.messages if m.role == "user")
    topic = frozenset(map(_stem, content_words(asked)))
    reply = SPECIAL_TOKEN.sub(lambda m: " " * len(m.group()), sample.reply)
    found = words(without_code(reply))
    weights = [
        0 if w.text.isdigit() or _stem(w.text) in topic else 1 if w.text in GENERIC else _CONTENT
        for w in found
    ]
    texts = [w.text for w in found]
    return _Reply(sample.prompt, topic, found, texts, [0, *itertools.accumulate(weights)])


def _stem(word: str) -> str:
    return word[:5]


def _equal(replies: Sequence[_Reply]) -> Iterator[_Place]:
    """Yield the replies that are equal as a whole, from two unrelated prompts on."""
    whole = ((i, 0, len(r.words)) for i, r in enumerate(replies) if len(r.words) >= _SHORTEST_REPLY)
    for places in _shared(replies, whole):
        if _unrelated(replies, places, 2):
            yield from places


def _openings(replies: Sequence[_Reply]) -> Iterator[_Place]:
    for length in _OPENINGS.lengths:
        places = ((i, 0, length) for i, r in enumerate(replies) if len(r.words) >= length)
        yield from _improbable(replies, _OPENINGS, places)


def _runs(replies: Sequence[_Reply]) -> Iterator[_Place]:
    for length in _RUNS.lengths:
        places = (
            (i, start, length)
            for i, r in enumerate(replies)
            for start in range(len(r.words) - length + 1)
        )
        yield from _improbable(replies, _RUNS, places)


def _improbable(
    replies: Sequence[_Reply], kind: _Kind, places: Iterable[_Place]
) -> Iterator[_Place]:
    """Yield the places whose words more unrelated prompts share than can be by chance."""
    several = len({r.conversation for r in replies})
    heavy = (p for p in places if replies[p[0]].weight(*p[1:]) >= kind.lightest)
    for shared in _shared(replies, heavy):
        weight = min(replies[number].weight(start, length) for number, start, length in shared)
        if _unrelated(replies, shared, _needed(kind, weight, several)):
            yield from shared


@functools.lru_cache(maxsize=4096)
def _needed(kind: _Kind, weight: int, several: int) -> int:
    """Return how many of several unrelated prompts have to share words of a weight.

    So many replies of n share them by chance n! / (m! (n - m)!) * p^(m - 1) times, where p is the
    probability that two of them do.
    """
    probability = 2.0 ** -(kind.rarity + weight / 2)
    if weight >= kind.lightest_of_two and math.comb(several, 2) * probability <= _CHANCE:
        return 2
    fewest = max(3, math.ceil(_SHARE * several))
    return next(
        m
        for m in itertools.count(fewest)
        if m > several or math.comb(several, m) * probability ** (m - 1) <= _CHANCE
    )


def _shared(replies: Sequence[_Reply], places: Iterable[_Place]) -> list[list[_Place]]:
    """Group places by their words, and return the groups with several replies."""
    groups: dict[tuple[str, ...], list[_Place]] = defaultdict(list)
    for place in places:
        number, start, length = place
        groups[tuple(replies[number].texts[start : start + length])].append(place)
    return [group for group in groups.values() if group[0][0] != group[-1][0]]


def _unrelated(replies: Sequence[_Reply], places: Iterable[_Place], needed: int) -> bool:
    """Return whether at least `needed` of the prompts are unrelated to each other."""
    chosen: dict[str, frozenset[str]] = {}
    for number, _, _ in places:
        reply = replies[number]
        if reply.conversation not in chosen and not any(
            _related(reply.topic, other) for other in chosen.values()
        ):
            chosen[reply.conversation] = reply.topic
            if len(chosen) >= needed:
                return True
    return False


def _related(one: frozenset[str], other: frozenset[str]) -> bool:
    """Return whether prompts have words in common, or so few that nobody can tell."""
    return len(one & other) >= _RELATED * min(len(one), len(other))
