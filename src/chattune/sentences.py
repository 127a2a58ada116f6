"""Where sentences end, for every stage that shortens a text without breaking one."""

import re
from collections.abc import Iterator

_CLOSING = r"""['"’”»›«‹)\]）」』】*_]*"""  # quotes, brackets and Markdown's emphasis
# A sentence ends at its mark if white space follows (none has to in the scripts of the second
# line), or at the end of a line. French writes a space before its closing quote.
_SENTENCE_END = re.compile(
    rf"[.!?…؟۔]{_CLOSING}(?:[\s\u202f]»)?(?=\s)"
    rf"|[。！？｡।॥]+{_CLOSING}"
    r"|(?<=\S)(?=\n)"
)

# "2." or "b." at the start of a line looks like the end of a sentence but only opens a list item.
_LIST_MARKER = re.compile(r"[^\S\n]*(?:\d+|[A-Za-z])\.")

# Abbreviations that hardly ever end a sentence.
_ABBREVIATION = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|Prof|vs|cf|approx|e\.g|i\.e|bzw|ca|z\.B|d\.h|Sr|Sra|Dra|p\.ej)\.\Z"
)
_LONGEST_ABBREVIATION = 10  # characters, more than any has

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_LINE_BREAK = re.compile(r"[^\S\n]*\n")
_FENCE = re.compile(r"\s*(`{3,}(?=[^`]*\Z)|~{3,})")  # the first line of a block of code
_HEADING = re.compile(r" {0,3}#{1,6}\s")
_LIST_ITEM = re.compile(r"\s*(?:[-*+•]|(?:\d+|[A-Za-z])[.)])[^\S\n]+\S")


def sentence_ends(text: str, start: int = 0, end: int | None = None) -> Iterator[int]:
    """Yield the indices in `text` behind each sentence that ends between `start` and `end`.

    What follows is looked at only up to `end`. The end of a line is the end of a sentence too.
    """
    previous = start
    for match in _SENTENCE_END.finditer(text, start, len(text) if end is None else end):
        found = match.end()
        if found == previous:  # a mark at the end of a line is found twice
            continue
        previous = found
        line = text.rfind("\n", 0, found) + 1
        if _LIST_MARKER.fullmatch(text, line, found):
            continue
        if not _ABBREVIATION.search(text[max(line, found - _LONGEST_ABBREVIATION) : found]):
            yield found


def unit_ends(text: str, start: int = 0) -> Iterator[int]:
    """Yield the indices behind each unit of a Markdown text that ends after `start`, itself an end.

    A unit is a sentence, an item of a list, or a block of code between fences. A heading, and a
    line that ends in a colon, belong to the unit after them. An item or a block is whole only with
    the line break behind it.
    """
    line_break = _LINE_BREAK.match(text, start)
    line = line_break.end() if line_break else text.rfind("\n", 0, start) + 1
    return (end for end in _unit_ends(text, line) if end > start)


def _unit_ends(text: str, start: int) -> Iterator[int]:
    """Yield the ends of units from the line on that begins at `start`, outside of any block."""
    fence = ""  # of the block of code that the line is in
    for line in _LINE.finditer(text, start):
        content = line[0].rstrip()
        line_end = line.start() + len(content)
        whole = [line_end] if line[0].endswith("\n") else []
        ends: list[int] = []
        if fence:
            if _closes(content, fence):
                fence, ends = "", whole
        elif opening := _FENCE.match(content):
            fence = opening[1]
        elif _LIST_ITEM.match(line[0]):
            ends = whole
        elif not _HEADING.match(line[0]):
            ends = list(sentence_ends(text, line.start(), line.end()))
        leads_on = content.rstrip("*_").endswith((":", "："))
        yield from (end for end in ends if not (leads_on and end == line_end))


def _closes(content: str, fence: str) -> bool:
    marks = content.strip()
    return len(marks) >= len(fence) and set(marks) == {fence[0]}
