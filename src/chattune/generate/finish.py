"""The end of a reply that is too long: cut, at a whole sentence, or without some of its sentences.

Text that may still be left out is held back, so that what was shown always begins the reply.
"""

import re
from collections.abc import Iterable, Iterator

from chattune.generate.decoding import Decoding
from chattune.generate.reply import Reply, read_reply
from chattune.generate.summary import summarise
from chattune.sentences import unit_ends
from chattune.template import Template

# What looks like the end of a sentence, or of a block of code, though nothing follows that would
# prove it. A digit and a point are as likely the beginning of a number.
_LIKELY_END = re.compile(r"""(?:[!?…؟۔]|(?<!\d)\.)['"’”»›)\]*_]*\Z|(?:^|\n)\s*(?:`{3,}|~{3,})\Z""")


def finish_reply(
    tokens: Iterable[int], template: Template, decoding: Decoding
) -> Iterator[str | Reply]:
    """Yield the text of a reply in pieces as it grows, then the Reply, as read_reply does.

    If `max_new_tokens` tokens come without an end, the reply ends as `decoding.finish` says; for
    that, up to `decoding.most_tokens` are read. A reply without any whole sentence is left as it
    is. The Reply counts the tokens that were read, and its `finish` is "length" if the limit was
    reached, also if the model ended its reply soon after.
    """
    if decoding.finish == "cut":
        yield from read_reply(tokens, template, decoding.stop)
        return
    read, limit = 0, decoding.max_new_tokens

    def counted() -> Iterator[int]:
        nonlocal read
        for token in tokens:
            read += 1
            yield token

    text, shown, whole = "", 0, 0  # `whole` is the index behind the last whole sentence
    needed = None  # the index up to which sentences must be whole, known at the limit
    for piece in read_reply(counted(), template, decoding.stop):
        if isinstance(piece, Reply):
            break
        if needed is None and read >= limit:
            needed = len((text if read > limit else text + piece).rstrip())
        text += piece
        whole = max(unit_ends(text, whole), default=whole)
        if decoding.finish != "summary" and whole > shown:
            yield text[shown:whole]
            shown = whole
        if needed is not None and whole >= needed:
            break
    ended = isinstance(piece, Reply) and piece.finish == "stop"
    at_limit = read > limit or not ended
    if not ended:
        text = text[: _last_end(text, whole)]
    if at_limit and decoding.finish == "summary":
        text = summarise(text, lambda shorter: len(template.encode(shorter)) <= limit)
    if rest := text[shown:]:
        yield rest
    yield Reply(text.strip(), read, "length" if at_limit else "stop")


def _last_end(text: str, whole: int) -> int:
    """Return the index behind the last whole sentence of a text that was broken off, or all of it.

    `whole` is one that is known to be whole, or 0.
    """
    as_if_followed = text + "\n" if _LIKELY_END.search(text) else text
    return max(unit_ends(as_if_followed, whole), default=whole) or len(text)
