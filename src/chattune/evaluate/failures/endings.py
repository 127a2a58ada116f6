"""Replies that end badly: cut off, broken off, or empty."""

import re
import unicodedata
from collections.abc import Sequence

from chattune.evaluate.failures.text import (
    CODE_LINE,
    LIST_MARKER,
    SPECIAL_TOKEN,
    Found,
    Span,
    lines,
    open_fence,
    sentences,
    words,
)
from chattune.evaluate.failures.word_lists import (
    AUXILIARIES,
    LAST_IN_SHORT_PHRASES,
    NEVER_LAST,
)
from chattune.evaluate.sample import Sample

_FULL_STOPS = tuple(".!?…。！？｡．؟।۔‽")
_CLOSERS = "\"'”’»›)]}」』）】*_~`"
_QUOTED = '"”’»›)]）」』】'
_DANGLING = re.compile(
    r"[,;:(\[{“«„‘/\\&<–—،、，：；]$|(?:^|\s)[\"'=+$#@^|~-]+$|\w-$"  # and not "C++", "-_-"
)
_ABBREVIATED = re.compile(r"\b(?:e\.g|i\.e|mr|mrs|ms|dr|prof|vs|approx|fig)\.$", re.IGNORECASE)
_OPEN_NUMBER = re.compile(r"\([^)]*\d\.$")  # "(1." before its decimals
_BARE_MARKER = re.compile(r"[-*+•●]|#{1,6}|\(?(?:\d{1,3}|[a-zA-Z])[.)]")
_HEADING = re.compile(r"#{1,6} (?!.*:\**\s+\S).*")  # and not "### Note: Rinse the rice."
_VALEDICTION = re.compile(r"[A-Z][\w']*(?: [\w']+){0,3},")
_SEPARATOR = re.compile(r"[-*_=~]{3,}$")
_ADDRESS = re.compile(r"(?:https?://|www\.)\S|[^@]+@.+\.\w+$|#\w+$|.+\.(?:com|org|net)\b")
_EXPLAINED = re.compile(r"\w\W{0,3}:\W{0,3}\s")  # an item such as "**Sleep**: eight hours"
_LAST_WORD = re.compile(r"(?<![\w'])[a-z']+$")
# A clause that ends with its verb, such as "what it is" or "as fast as I can".
_INVERTED = re.compile(
    r"\b(?:what|who|where|how|which|than|as|whatever)(?: [\w']+){1,4}$", re.IGNORECASE
)
_UNPUNCTUATED_SCRIPT = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u0f00-\u0fff]$")
_EMOTICON = re.compile(r"(?<!\w)[:;=8xX]['^-]?[()\[\]|/\\<>*]|<3|\^_?\^|-_+-")
_MARKUP = re.compile(r"<br ?/?>|</?p>|&nbsp;|^[ \t]*(?:`{3,}|~{3,})[\w+-]*[ \t]*$", re.MULTILINE)
# Characters that Unicode calls symbols or letters and that show nothing.
_BLANK = frozenset("\ufffd\ufffc\u2800\u3164\u115f\u1160\uffa0")
_TAIL = 2000  # characters, in which the last sentence of a long text is looked for


def not_stopping(samples: Sequence[Sample]) -> Found:
    """Find replies that were cut off at the limit of tokens, because no end token came.

    The span is the last sentence, or the last line. Samples that do not know whether the model
    stopped are passed over.
    """
    return [[_last_sentence(s.reply)] if s.stopped is False else [] for s in samples]


def unfinished(samples: Sequence[Sample]) -> Found:
    """Find replies that end in the middle of a sentence, list item, code block or word.

    That is what a reply does that ends with a comma, a word such as "the", an opened bracket, a
    heading, or a code block that is never closed; and one whose last sentence has no full stop
    where those before it have theirs. A short answer, title, list item, line of verse, line of code
    or signature needs none. Of a reply that was cut off at the limit of tokens, any ending without
    a full stop is one, except an item of a list of words. The span is the last sentence, or line.
    """
    return [
        [_last_sentence(s.reply)] if _breaks_off(s.reply, s.stopped is False) else []
        for s in samples
    ]


def empty(samples: Sequence[Sample]) -> Found:
    """Find replies without a letter, a digit or a symbol that means something, such as an emoji.

    Punctuation alone, marks of formatting and the names of special tokens are nothing to read. The
    span is the whole reply.
    """
    return [[] if _is_readable(s.reply) else [(0, len(s.reply))] for s in samples]


def _last_sentence(text: str) -> Span:
    """Return the last sentence of a text, or the whole text if it is blank."""
    start = max(0, len(text.rstrip()) - _TAIL)
    found = sentences(text[start:])
    return (start + found[-1][0], start + found[-1][1]) if found else (0, len(text))


def _is_readable(reply: str) -> bool:
    text = _MARKUP.sub("", SPECIAL_TOKEN.sub("", reply))
    return any(map(_means_something, text)) or bool(_EMOTICON.search(text))


def _means_something(character: str) -> bool:
    category = unicodedata.category(character)
    if category[0] in "LN" or category in ("So", "Sc"):
        return character not in _BLANK
    return category == "Sm" and not character.isascii()


def _breaks_off(reply: str, cut: bool) -> bool:
    text = SPECIAL_TOKEN.sub("", reply).rstrip()
    if not _is_readable(text):
        return False
    if open_fence(text) is not None:
        return True
    found = [text[a:b] for a, b in lines(text)]
    while len(found) > 1 and _SEPARATOR.match(found[-1]):
        found.pop()
    *before, last = found
    if last.startswith(("```", "~~~")):
        return False
    if before and (_BARE_MARKER.fullmatch(last) or _HEADING.fullmatch(last)):
        return True
    if last.startswith("|"):
        return not last.endswith("|")
    bare = last.rstrip(_CLOSERS + " ")
    if bare.endswith(_FULL_STOPS):
        abbreviated = _ABBREVIATED.search(last) or _OPEN_NUMBER.search(last)
        return bool(abbreviated) or _ends_with_next_number(last)
    if not bare or unicodedata.category(bare[-1]) == "So":
        return False
    if _ADDRESS.match(bare.split()[-1]):
        return cut
    return _is_open(last, before) or _needs_full_stop(last, before, cut)


def _ends_with_next_number(line: str) -> bool:
    """Return whether a line such as "1. Apples 2. Pears 3." ends with the number of an item."""
    number = re.search(r"\s(\d{1,2})\.$", line)
    earlier = range(1, int(number.group(1))) if number else ()
    return bool(earlier) and all(re.search(rf"(?:^|\s){n}\.\s", line) for n in earlier)


def _is_open(last: str, before: Sequence[str]) -> bool:
    """Return whether a line ends with something after which more has to come."""
    if _EMOTICON.search(last[-3:]):
        return False
    is_code = _looks_like_code(last, before)
    if _DANGLING.search(last):
        closed = (is_code and last[-1] in ";>") or (last[-1] == ";" and len(words(last)) < 4)
        return not closed and not (before and _VALEDICTION.fullmatch(last))
    if _opens_more_than_it_closes(last):
        return True
    final = _LAST_WORD.search(last)
    if is_code or not final or final.group() not in NEVER_LAST:
        return False
    if final.group() in AUXILIARIES and _INVERTED.search(last):
        return False
    ending = last[slice(*sentences(last)[-1])]
    may_be_phrase = ending == last and final.group() in LAST_IN_SHORT_PHRASES
    return len(words(ending)) > (3 if may_be_phrase else 1)


def _needs_full_stop(last: str, before: Sequence[str], cut: bool) -> bool:
    """Return whether a line without a full stop should have one, by what stands before it."""
    marker = LIST_MARKER.match(last)
    if marker:
        items = [line[m.end() :] for line in before if (m := LIST_MARKER.match(line))]
        return _item_breaks_off(last[marker.end() :], items, cut)
    if cut:
        return True
    *earlier, ending = [last[a:b] for a, b in sentences(last)]
    count = len(words(ending))
    if count < 3 or ending[-1] in _QUOTED or _UNPUNCTUATED_SCRIPT.search(last):
        return False
    if _looks_like_code(last, before):
        return False
    if ending.count(",") > 2 and count < 4 * (ending.count(",") + 1):  # a list in words
        return False
    earlier += [line[a:b] for line in before for a, b in sentences(line)]
    earlier = [s for s in earlier if len(words(s)) > 2]
    stopped = sum(map(_has_full_stop, earlier))
    return len(earlier) > 1 and stopped >= 0.9 * len(earlier) and (ending != last or count > 7)


def _item_breaks_off(item: str, items: Sequence[str], cut: bool) -> bool:
    """Return whether the last item of a list breaks off, given the items before it."""
    count = len(words(item))
    if cut:
        return count > 3 or sum(len(words(x)) < 5 for x in items) * 2 < len(items)
    ending = item[slice(*sentences(item)[-1])]
    if ending != item:
        return len(words(ending)) > 2
    if len(items) < 2:
        return False
    if count < 4:
        return all(map(_EXPLAINED.search, items)) and not _EXPLAINED.search(item)
    return item[-1] not in _QUOTED and all(map(_has_full_stop, items))


def _has_full_stop(text: str) -> bool:
    return text.rstrip(_CLOSERS + " ").endswith(_FULL_STOPS)


def _looks_like_code(last: str, before: Sequence[str]) -> bool:
    """Return whether a line is code, and half of the lines before it are, too."""
    near = [last, *before[-4:]]
    like_code = [bool(CODE_LINE.search(line)) for line in near]
    return like_code[0] and 2 * sum(like_code) >= len(near)


def _opens_more_than_it_closes(line: str) -> bool:
    """Return whether a bracket, a quotation or bold type is opened in a line and never closed."""
    for left, right in ("()", "[]", "{}", "“”", "«»", "（）", "「」"):
        if line.count(left) > line.count(right) and line.rfind(left) > line.rfind(right):
            return not _EMOTICON.search(line)
    opens_quotation = line.count('"') % 2 == 1 and re.search(r'(?:^|[\s(])"\w', line)
    return bool(opens_quotation) or line.count("**") % 2 == 1
