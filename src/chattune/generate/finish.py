"""Tokens to text as they come, and why a reply ended."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from chattune.template import Template

Finish = Literal["stop", "length"]
_HALF_A_CHARACTER = "\ufffd"


@dataclass(frozen=True, slots=True)
class Reply:
    """What was said, how many tokens it took (end token included), and why it ended.

    `stop`: the model wrote its end token, or a text that ends it. `length`: it was cut off.
    """

    text: str
    tokens: int
    finish: Finish

    def __str__(self) -> str:
        return self.text


def read_reply(
    tokens: Iterable[int], template: Template, stop: Sequence[str] = ()
) -> Iterator[str | Reply]:
    """Yield the text as it grows, in pieces, and at last the whole Reply.

    A character whose bytes are not all there yet waits for the next token, and so does what may
    become a text in `stop`: such a text ends the reply and is left out of it.
    """
    ids: list[int] = []
    said, ended = "", False
    for token in tokens:
        ids.append(token)
        if ended := token in template.end_ids:
            break
        text = template.decode(ids)
        if found := [text.find(s) for s in stop if s in text]:
            yield from _rest(said, text[: min(found)])
            yield Reply(text[: min(found)].strip(), len(ids), "stop")
            return
        ready = text[: len(text) - _may_become(text, stop)]
        if not text.endswith(_HALF_A_CHARACTER) and len(ready) > len(said):
            yield ready[len(said) :]
            said = ready
    words = [t for t in ids if t not in template.end_ids]
    whole = template.decode(words)
    yield from _rest(said, whole)
    yield Reply(whole.strip(), len(ids), "stop" if ended else "length")


def _rest(said: str, whole: str) -> Iterator[str]:
    if len(whole) > len(said):
        yield whole[len(said) :]


def _may_become(text: str, stop: Sequence[str]) -> int:
    """How much of the text's end is the beginning of a stop text."""
    return max(
        (n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])),
        default=0,
    )
