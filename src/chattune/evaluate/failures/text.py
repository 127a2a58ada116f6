"""The text of a reply: its words, sentences, lines and code, each with its character positions."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from chattune.evaluate.failures.word_lists import GENERIC

Span = tuple[int, int]  # character positions (start, end), the end not included
Found = list[list[Span]]  # for each sample, the spans of its reply that show a failure

# Scripts that put no space between words: each of their characters counts as a word.
UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u3040-\u30ff\u31f0-\u31ff"  # Japanese syllables
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese characters
)
_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+(?:'[^\W_{UNSPACED}]+)*")
_FENCE = re.compile(r"^[ \t]*(?:(?:[-*+>]|\d+[.)])[ \t]+)?(`{3,}|~{3,})", re.MULTILINE)
_INLINE_CODE = re.compile(r"`[^`\n]+`")
_SENTENCE_END = re.compile(
    r"""(?<![.!?…])[.!?…]+["'”’»)\]*_]*(?=\s|$)   # the spaced scripts
    |[。！？｡]+["'”’」』）]*            # Chinese and Japanese
    |[؟।۔]+(?=\s|$)                    # Arabic, Hindi, Urdu
    """,
    re.VERBOSE,
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:\w\.\w|mr|mrs|ms|dr|prof|st|vs|cf|approx|fig|no|jr|inc|ltd|al)"
    r"|(?:^|[\s(])[A-Z]|^\W*\d{1,3})\.$",
    re.IGNORECASE,
)
LIST_MARKER = re.compile(r"[ \t]*(?:[-*+•●–▪]|\(?(?:\d{1,3}|[a-zA-Z])[.)]|\d{1,3}:)[ \t]+")
# Lines that are probably code, in the syntax of many languages.
CODE_LINE = re.compile(
    r"[;{}]$|^[)}\]]|\w\(.*\)$|\w\[.+\] ?=|\w = \S|:=|=>|->|^</?\w+.*>$|::|&&|\|\||==|--\w"
    r"|^[$>#] \w|^(?:import|from \w+ import|def|class|return|else|elif|fi|done|end|endif|SELECT"
    r"|INSERT|FROM|WHERE)\b"
)
# Special tokens as tokenizers spell them, and ChatML's as models misspell them.
SPECIAL_TOKEN = re.compile(
    r"<[|｜][^\s|｜<>]{1,40}[|｜]>|<im_(?:start|end)\|?>|\|{1,2}im_(?:start|end)\|{1,2}>?|\[/?INST\]"
    r"|<</?SYS>>|</s>|<(?:start|end)_of_turn>|<(?:eos|bos|pad|unk)>|<extra_id_\d+>"
    r"|\[(?:PAD|CLS|SEP|UNK|EOS|BOS)\]"
)


def any_of(text: str) -> str:
    """Return a regular expression for any of several phrases.

    `text` has them with white space between them, as expressions with underscores for spaces.
    """
    return f"(?:{'|'.join(text.split()).replace('_', ' ')})"


def phrases(text: str) -> re.Pattern[str]:
    """Compile a pattern that finds any of several phrases (see `any_of`) as whole words."""
    return re.compile(rf"\b{any_of(text)}\b", re.IGNORECASE)


_MAKE = any_of(r"""
    (?:re)?write compose create generate draft make give tell show prepare provide simulate imagine
    invent produce design develop build ask act (?:role-?)?play continue complete finish convert
    turn present come_up_with sing perform recite i_need i_want i_would_like i'd_like let's do
    tradu\w+ translate crea\w* escr[ií]b\w* inventa haz schreib\w* erstelle écri\w+ напиши
    придумай
""")


def requests(things: str) -> re.Pattern[str]:
    """Compile a pattern that finds a request to make one of several things (see `any_of`).

    It is a verb such as "write" with one of them in its sentence, or a prompt that begins with one.
    """
    asking = any_of("what which who whose how is are was do does did why when where can could")
    return re.compile(
        rf"(?:\b{_MAKE}\b[^.?!\n]{{0,80}}?\b"
        rf"|^\W*(?:(?:an?|the|some|short)\b ?)*(?:(?!{asking}\b)[\w-]+ )?){any_of(things)}\b",
        re.IGNORECASE,
    )


class Word(NamedTuple):
    """A word in lower case, and where it is in its text."""

    text: str
    start: int
    end: int


def words(text: str) -> list[Word]:
    """Return the words of a text; those of Chinese, Japanese, Thai and the like are characters."""
    return [Word(m.group(), m.start(), m.end()) for m in _WORD.finditer(_lower(text))]


def word_texts(text: str) -> list[str]:
    """Return the words of a text in lower case, without their positions."""
    return _WORD.findall(_lower(text))


def _lower(text: str) -> str:
    """Return a text of equal length in lower case, with straight apostrophes."""
    lower = text.lower()
    if len(lower) != len(text):  # one letter may become two, such as the Turkish I with a dot
        lower = "".join(c if len(c.lower()) > 1 else c.lower() for c in text)
    return lower.replace("’", "'")


def content_words(text: str) -> set[str]:
    """Return the different words of a text that say something about its topic."""
    return set(word_texts(text)) - GENERIC


def lines(text: str) -> list[Span]:
    """Return the lines of a text that are not blank, without the white space around them."""
    return [
        span
        for m in re.finditer(r"[^\n\r\u2028\u2029]+", text)
        if (span := trimmed(text, m.span()))
    ]


def sentences(text: str) -> list[Span]:
    """Return the sentences of a text: lines, split after full stops and their like.

    The dots of common abbreviations, of initials and of a list's numbers end no sentence.
    """
    found = []
    for start, end in lines(text):
        begin = start
        for m in _SENTENCE_END.finditer(text, start, end):
            if not _ABBREVIATION.search(text[max(begin, m.end() - 12) : m.end()]):
                found.append((begin, m.end()))
                begin = m.end()
        found.append((begin, end))
    return [span for raw in found if (span := trimmed(text, raw))]


def trimmed(text: str, span: Span) -> Span | None:
    """Return a span without the white space at its ends, or None if there is nothing else."""
    start, end = span
    piece = text[start:end]
    if not piece.strip():
        return None
    start += len(piece) - len(piece.lstrip())
    return start, start + len(piece.strip())


def open_fence(text: str) -> int | None:
    """Return where a fenced code block begins that is never closed, or None."""
    return _fences(text)[1]


def without_code(text: str) -> str:
    """Return a text of equal length with spaces instead of code, whose lines stay."""
    blocks, opened = _fences(text)
    if opened is not None:
        blocks.append((opened, len(text)))
    pieces, done = [], 0
    for start, end in merged([*blocks, *(m.span() for m in _INLINE_CODE.finditer(text))]):
        pieces += [text[done:start], re.sub(r"[^\n]", " ", text[start:end])]
        done = end
    return "".join([*pieces, text[done:]])


def prose(text: str) -> str:
    """Return a text of equal length with spaces instead of code, tables and special tokens.

    A line of code without a fence is recognised if the line before or after it is one, too.
    """
    text = SPECIAL_TOKEN.sub(lambda m: "\n" * len(m.group()), without_code(text))
    spans = lines(text)
    like_code = [bool(CODE_LINE.search(text[a:b])) or text[a:b].count("|") > 1 for a, b in spans]
    pieces, done = [], 0
    for i, (start, end) in enumerate(spans):
        if like_code[i] and any(like_code[max(0, i - 1) : i] + like_code[i + 1 : i + 2]):
            pieces += [text[done:start], " " * (end - start)]
            done = end
    return "".join([*pieces, text[done:]])


def _fences(text: str) -> tuple[list[Span], int | None]:
    """Return the closed code blocks of a text, and where one begins that is never closed."""
    blocks: list[Span] = []
    opened: re.Match[str] | None = None
    for m in _FENCE.finditer(text):
        if opened is None:
            # A fence that is closed on its own line is inline code.
            if m.group(1) not in text[m.end() :].split("\n", 1)[0]:
                opened = m
        elif m.group(1).startswith(opened.group(1)):
            blocks.append((opened.start(), m.end()))
            opened = None
    return blocks, opened.start() if opened else None


def is_character(word: str) -> bool:
    """Return whether a word is one character of a script without spaces between words."""
    return len(word) == 1 and not word.isascii()


def merged(spans: Iterable[Span]) -> list[Span]:
    """Return spans in order, with those that touch or overlap made one."""
    result: list[Span] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = result[-1][0], max(end, result[-1][1])
        else:
            result.append((start, end))
    return result
