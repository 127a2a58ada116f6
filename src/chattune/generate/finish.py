"""Tokens to text as they come, and why a reply ended."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from chattune.template import Template

Finish = Literal["stop", "length"]
_HALF_A_CHARACTER = "\ufffd"


@dataclass(frozen=True, slots=True)
class Reply:
    """What was said, how many tokens it took (end token included), and why it ended.

    `stop`: the model wrote its end token. `length`: it was cut off.
    """

    text: str
    tokens: int
    finish: Finish

    def __str__(self) -> str:
        return self.text


def read_reply(tokens: Iterable[int], template: Template) -> Iterator[str | Reply]:
    """Yield the text as it grows, in pieces, and at last the whole Reply.

    A character whose bytes are not all there yet waits for the next token.
    """
    ids: list[int] = []
    said, ended = "", False
    for token in tokens:
        ids.append(token)
        if ended := token in template.end_ids:
            break
        text = template.decode(ids)
        if not text.endswith(_HALF_A_CHARACTER) and len(text) > len(said):
            yield text[len(said) :]
            said = text
    words = [t for t in ids if t not in template.end_ids]
    whole = template.decode(words)
    if len(whole) > len(said):
        yield whole[len(said) :]
    yield Reply(whole.strip(), len(ids), "stop" if ended else "length")
