"""Texts of models and users made safe to show: no control characters, no Markdown."""

import re

# Control characters other than tab and line feed, those that reorder the text after them (Unicode's
# bidirectional embeddings, overrides and isolates), and halves of characters, which UTF-8 cannot
# express. The joiners and marks that Arabic, Indic scripts and emoji need are not among them.
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|~&$@#])")
# What begins a list or a rule at the start of a line, and what makes an address a link.
_AT_START = re.compile(r"^(\d*)([-+=.)])(?=\s|$|[-=])")
_ADDRESS = re.compile(r"(?i)(https?|ftp|www)([:.])")


def visible(text: str) -> str:
    """Replace characters that are hidden, or that change how others are shown, by their number.

    A right-to-left override becomes `‹U+202E›`, for example. Carriage returns before line feeds are
    dropped.
    """
    return _HIDDEN.sub(lambda m: f"‹U+{ord(m.group()):04X}›", text.replace("\r\n", "\n"))


def markdown(text: str) -> str:
    """Return a text as one line of Markdown that shows it literally, also in a cell of a table."""
    line = _MARKUP.sub(r"\\\1", " ".join(visible(text).split()))
    line = _AT_START.sub(r"\1\\\2", line)
    return _ADDRESS.sub(r"\1\\\2", line)


def fenced(text: str) -> str:
    """Return a text as a fenced block of Markdown, whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{visible(text)}\n{fence}"
