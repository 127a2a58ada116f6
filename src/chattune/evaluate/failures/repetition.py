"""Replies that repeat themselves, and how much of a text is repetition."""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from chattune.evaluate.failures.text import (
    Found,
    Span,
    Word,
    any_of,
    is_character,
    merged,
    phrases,
    prose,
    requests,
    sentences,
    word_texts,
    words,
)
from chattune.evaluate.failures.word_lists import GENERIC
from chattune.evaluate.sample import Sample

# Of 7,500 replies by people, GPT-3.5 and GPT-4, one in 100 has a higher seq_rep_4, songs aside.
_MUCH = 0.2
_MUCH_OF_VERSE = 0.6
_ENOUGH = 40  # words below which a share of repeated 4-grams says nothing
_LONG_PASSAGE = 20, 80  # words and characters
_LOOP = 8  # words of a loop, the first time included
_LOOP_IN_CODE, _COPIES_OF_CODE = 40, 8  # words, and times, of a loop in code
_LONG_SENTENCE, _SENTENCE, _SHORT_SENTENCE = 6, 5, 3  # words
_LONGEST_ITEM, _LONGEST_FRAME = 12, 8  # words of list items, and those that they have in common
_ASKS_FOR_VERSE = requests(r"""
    songs? lyrics? poems? poetry rap chorus hymns? haikus? sonnets? ballads? verses? odes?
    limericks? rhymes? chants? carols? lullab\w+ anthems? refrains? psalms? prayers? mantras?
    canci[oó]n\w* letra chansons? po[eèé]m\w* gedichte? lied(?:er)? canzon\w+ песн\w* стих\w*
""")
_IS_VERSE = re.compile(
    r"^[ \t\[(*#]{0,8}(?:pre-?)?(?:chorus|refrain|verse|coro|estribillo)\b", re.I | re.M
)
_SEVERAL = any_of(r"\d+ two three four five six seven eight nine ten twenty fifty hundred thousand")
_ASKS_FOR_REPETITION = phrases(rf"""
    repeat_(?:after|the|this|that|it|what|your|my) repeat: over_and_over again_and_again
    (?:say|write|print|type|copy|sing|repeat)\b[^.?!\n]{{0,60}}?{_SEVERAL}_times
""")
# What numbers or names a line: "2. ", "b) ", "Step 3: ", "### Assistant: ".
_LABEL = re.compile(
    r"[\s#>*•●▪–-]*(?:(?:(?:step|part|day|week|item)[\s-]*)?\(?(?:\d{1,3}|[a-z])[.):]\s"
    r"|(?<=[#] )[\w -]{1,20}:\s)?[\s*#]*",
    re.IGNORECASE,
)
_FIELD = re.compile(r"[\s*•–-]*[A-Z][\w /-]{0,30}:\s")  # a line such as "Breakfast: porridge"
# A unit of two to eight letters, or of one to four signs, over and over; without the signs that
# draw lines. Digits, single letters and laughter are repeated for longer in good replies.
_CHARACTERS = re.compile(
    r"([^\W_]{2,8}?)\1{6,}|([^\W_])\2{39,}|([^\s\w=_.*#~|-]{1,4}?)\3{24,}", re.IGNORECASE
)
_LAUGHTER = frozenset(("ah", "eh", "ha", "he", "hi", "ho", "ja", "je", "la", "lo", "na", "xa"))
_LONG_LAUGHTER = 40  # letters
_COPIES_OF_WORD = 4

_SENTENCE_END = re.compile(r"[.:;!?\n]")

_Run = tuple[int, int, int]  # its first word, how many words it has, how far before they occurred
_Unit = tuple[Span, tuple[str, ...]]  # where a sentence is, and its words


def seq_rep_4(text: str) -> float:
    """Return the share of a text's word 4-grams that occurred in it before, from 0 to 1.

    This is 1 - unique 4-grams / all 4-grams, which Welleck et al. (2020) call seq-rep-4, over words
    instead of tokens, so that it does not depend on a tokenizer. https://arxiv.org/abs/1908.04319
    """
    return _seq_rep_4(word_texts(text))


def repetition(samples: Sequence[Sample]) -> Found:
    """Find replies that say the same thing again and again.

    One of these is in the reply: a sentence, line or list item of six words or more for the second
    time, of five words for the second time soon after, or of three for the third time; a phrase
    three times without a break, a word four times, or letters seven times; a passage of 20 words
    that occurred before; or so many repeated words that a fifth of the 4-grams occurred before (see
    `seq_rep_4`). In a song or poem that was asked for, only unbroken repetition counts, and 4-grams
    from six tenths on.

    Passed over are code and tables (unless they loop eight times), words of the prompt, a result
    that is stated once more after a colon, lines of a plan such as "Rest: 60 seconds" that recur at
    a distance, the words that the items of a list have in common, and prompts that ask to repeat
    something. The spans are what occurred before.
    """
    return [_repeated(s) for s in samples]


def _repeated(sample: Sample) -> list[Span]:
    if _ASKS_FOR_REPETITION.search(sample.question):
        return []
    asked = " ".join(m.content for m in sample.messages if m.role != "assistant")
    text = prose(sample.reply)
    found = words(text)
    runs = list(_runs(found))
    spans = [*_repeated_characters(text), *_repeated_words(found), *_loops(text, found, runs)]
    if text != sample.reply:
        spans += _loops_in_code(words(sample.reply))
    if _ASKS_FOR_VERSE.search(asked) or _IS_VERSE.search(text):
        much = _seq_rep_4([w.text for w in found]) >= _MUCH_OF_VERSE
    else:
        said = " ".join(word_texts(asked))
        units = _units(text)
        again = [*_repeated_units(text, units, said), *_long_passages(found, runs, said)]
        if len(again) == 1 and _restates_result(text, again[0]):
            start, end = again[0]
            units = [unit for unit in units if unit[0][1] <= start or unit[0][0] >= end]
        else:
            spans += again
        much = _repeats_much(text, units)
    if much and not spans:
        spans += _repeated_4_grams(found)
    return merged(spans)


def _repeated_characters(text: str) -> Iterator[Span]:
    for m in _CHARACTERS.finditer(text):
        unit = (m.group(1) or "").lower()
        usual = unit in _LAUGHTER or unit.isdigit() or len(set(unit)) == 1
        if not usual or len(m.group()) >= _LONG_LAUGHTER:
            yield m.span()


def _repeated_words(found: Sequence[Word]) -> Iterator[Span]:
    """Yield the copies of words that say something and occur four times in a row."""
    for text, group in itertools.groupby(found, key=lambda w: w.text):
        copies = list(group)
        usual = len(text) < 3 or text in GENERIC or not text.isalpha()
        if len(copies) >= _COPIES_OF_WORD and not usual:
            yield copies[1].start, copies[-1].end


def _units(text: str) -> list[_Unit]:
    """Return the sentences of a text, without the labels that lines begin with."""
    units = []
    for start, end in sentences(text):
        label = _LABEL.match(text, start, end)
        begin = label.end() if label and label.end() < end else start
        if key := tuple(word_texts(text[begin:end])):
            units.append(((start, end), key))
    return units


def _repeated_units(text: str, units: Sequence[_Unit], prompt: str) -> list[Span]:
    """Return the sentences that are repeated too often; `prompt` is the words of the prompt."""
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, (_, key) in enumerate(units):
        places[key].append(i)
    repeated = []
    for key, at in places.items():
        apart = min((b - a for a, b in itertools.pairwise(at)), default=0)
        if apart > 2 and _FIELD.match(text, *units[at[0]][0]):
            continue
        if _too_often(key, at) and (len(at) > 3 or not _quotes(prompt, key)):
            repeated += [units[i][0] for i in at[1:]]
    return repeated


def _quotes(prompt: str, texts: Sequence[str]) -> bool:
    """Return whether words are the prompt's, without those of a label before them."""
    return any(" ".join(texts[i:]) in prompt for i in range(min(3, len(texts))))


def _too_often(key: Sequence[str], at: Sequence[int]) -> bool:
    """Return whether a sentence with these words, at these places, is repeated too often."""
    count = sum(0.5 if is_character(word) else 1 for word in key)
    if len(at) < 2:
        return False
    if count >= _LONG_SENTENCE:
        return True
    if count >= _SENTENCE and at[1] - at[0] < 3:
        return True
    if count >= _SHORT_SENTENCE:
        return len(at) > 2
    return any(fourth - first == 3 for first, fourth in zip(at, at[3:], strict=False))


def _loops(text: str, found: Sequence[Word], runs: Iterable[_Run]) -> Iterator[Span]:
    """Yield the runs that are loops.

    A run is one if it is twice as long as its distance from where it occurred before, because then
    its phrase occurs three times, and within one sentence if it is as long as that.
    """
    for first, length, distance in runs:
        if length >= distance and length + distance >= _LOOP:
            end = found[first + length - 1].end
            one_sentence = not _SENTENCE_END.search(text, found[first - distance].start, end)
            if one_sentence or length >= 2 * distance:
                yield found[first].start, end


def _long_passages(found: Sequence[Word], runs: Iterable[_Run], prompt: str) -> Iterator[Span]:
    """Yield the long runs, unless they are words of the prompt."""
    for first, length, _ in runs:
        run = found[first : first + length]
        start, end = run[0].start, run[-1].end
        is_long = length >= _LONG_PASSAGE[0] and end - start >= _LONG_PASSAGE[1]
        if is_long and not _quotes(prompt, [w.text for w in run]):
            yield start, end


def _loops_in_code(found: Sequence[Word]) -> Iterator[Span]:
    """Yield the loops that are too long even for code and tables."""
    for first, length, distance in _runs(found):
        if distance > 1 and length >= _COPIES_OF_CODE * distance and length >= _LOOP_IN_CODE:
            yield found[first].start, found[first + length - 1].end


def _runs(found: Sequence[Word]) -> Iterator[_Run]:
    """Yield the longest runs of 4-grams that all occurred as many words before."""
    last: dict[tuple[str, ...], int] = {}
    texts = [w.text for w in found]
    distance = begin = 0
    for i in range(len(texts) - 2):  # the last round has no 4-gram, and ends the last run
        gram = tuple(texts[i : i + 4])
        apart = i - last.get(gram, i) if len(gram) == 4 else 0
        if apart != distance:
            if distance:
                yield begin, i - begin + 3, distance
            distance, begin = apart, i
        last[gram] = i


def _restates_result(text: str, span: Span) -> bool:
    """Return whether a passage is quoted, or stands after a colon, as the result of a task does."""
    before = text[: span[0]].rstrip(" \n\t*-")
    return before.endswith((":", '"', "“", "'")) or text[span[0]] in "\"“'"


def _repeats_much(text: str, units: Iterable[_Unit]) -> bool:
    """Return whether many 4-grams of a text's sentences are repeated.

    The words that a short line begins or ends with like one of the three before it are left out
    where its others are new, because the items of a list may have the same frame, and so are the
    lines of a plan that recur.
    """
    kept: list[str] = []
    seen: set[str] = set()
    keys: list[tuple[str, ...]] = []
    known: set[tuple[str, ...]] = set()
    for (start, end), key in units:
        if key in known and _FIELD.match(text, start, end):
            continue
        own: Sequence[str] = key
        if len(key) <= _LONGEST_ITEM and _is_line(text, start, end):
            own = min((_outside_frame(key, k) for k in keys[-3:]), key=len, default=key)
        kept += key if seen.issuperset(own) else own
        seen.update(key)
        keys.append(key)
        known.add(key)
    # In scripts without spaces each character is a word, so that 4-grams are short.
    characters = sum(map(is_character, kept))
    limit = 2 * _MUCH if 2 * characters > len(kept) else _MUCH
    return len(kept) >= _ENOUGH and _seq_rep_4(kept) >= limit


def _is_line(text: str, start: int, end: int) -> bool:
    """Return whether nothing else stands in the line of a sentence."""
    before, after = text[max(0, start - 3) : start].rstrip(" "), text[end : end + 3].lstrip(" ")
    return before[-1:] in ("", "\n") and after[:1] in ("", "\n", "\r")


def _outside_frame(key: Sequence[str], before: Sequence[str]) -> Sequence[str]:
    """Return the words of a sentence without those it begins and ends with like another."""
    shorter = min(len(key), len(before))
    start = next((i for i in range(shorter) if key[i] != before[i]), shorter)
    rest = shorter - start
    end = next((i for i in range(rest) if key[-1 - i] != before[-1 - i]), rest)
    return key[start : len(key) - end] if 3 <= start + end <= _LONGEST_FRAME else key


def _repeated_4_grams(found: Sequence[Word]) -> Iterator[Span]:
    seen = set()
    for i in range(len(found) - 3):
        gram = tuple(w.text for w in found[i : i + 4])
        if gram in seen:
            yield found[i].start, found[i + 3].end
        seen.add(gram)


def _seq_rep_4(texts: Sequence[str]) -> float:
    grams = [tuple(texts[i : i + 4]) for i in range(len(texts) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
