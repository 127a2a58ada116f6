"""Reading a reply: tokens become text while they arrive, until the reply ends."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tokenizers.decoders import DecodeStream

from chattune.template import Template

_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # a one-byte token, as ByteFallback decoders read it


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete reply: its text, its number of tokens (end token included), and why it ended.

    `tokens` counts those too whose text was left out in the end. `finish` is "stop" if the model
    wrote its end token or a stop text, and "length" if the reply was cut off.
    """

    text: str
    tokens: int
    finish: Literal["stop", "length"]

    def __str__(self) -> str:
        return self.text


def read_reply(
    tokens: Iterable[int], template: Template, stop: Sequence[str] = ()
) -> Iterator[str | Reply]:
    """Yield the text of a reply in pieces as it grows, then the Reply.

    The first text of `stop` that appears ends the reply and is left out of it. Text is held back
    while it may still become a stop text, and while the bytes of a character are incomplete.
    """
    decode = _incremental_decoder(template)
    ids: list[int] = []
    held, yielded = "", 0  # the text held back, and the number of characters yielded
    ended = False
    for token in tokens:
        if ended := token in template.end_ids:
            break
        ids.append(token)
        held += decode(token)
        if any(s in held for s in stop):
            break
        if ready := held[: len(held) - _stop_prefix(held, stop)]:
            yield ready
            held, yielded = held[len(ready) :], yielded + len(ready)
    text = template.decode(ids)
    cuts = [text.index(s) for s in stop if s in text]
    text = text[: min(cuts, default=None)]
    if rest := text[yielded:]:
        yield rest
    yield Reply(text.strip(), len(ids) + ended, "stop" if ended or cuts else "length")


def _incremental_decoder(template: Template) -> Callable[[int], str]:
    """Return a function that takes the next token id and returns the text that it completes.

    Special tokens and ids outside the vocabulary have no text.
    """
    tokenizer = template.tokenizer.backend_tokenizer
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    stream = DecodeStream()
    waiting: list[int] = []

    def decode(token: int) -> str:
        name = tokenizer.id_to_token(token)
        if name is None or token in special:
            return ""
        waiting.append(token)
        if _BYTE.fullmatch(name):
            # One invalid byte makes ByteFallback replace every byte of its run, even those that
            # were characters before it came, and DecodeStream would fail ("Invalid prefix"). So a
            # run is decoded only together with the token after it.
            return ""
        text = stream.step(tokenizer, waiting)
        waiting.clear()
        return text or ""

    return decode


def _stop_prefix(text: str, stop: Sequence[str]) -> int:
    """Return the length of the longest end of `text` with which a stop text begins."""
    return max(
        (n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])),
        default=0,
    )
