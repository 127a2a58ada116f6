"""Conversations to rendered ones of at most `max_length` tokens: cut at a good place, or dropped.

Nothing is cut in the middle of a sentence, and what is cut keeps its end token: a model tuned on
replies that break off never learns to stop.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import tee

from chattune.conversation import Conversation
from chattune.recipe import DataRecipe
from chattune.template import Rendered, Template

# A sentence ends in its mark and white space after it (none is needed after CJK marks), or in a
# line's end.
_SENTENCE_END = re.compile(r"[.!?…]['\")\]]*(?=\s)|[。！？]|(?<=\S)(?=\n)")

# What looks like a sentence's end and only opens an item: "2." or "b." at a line's start.
_LIST_MARKER = re.compile(r"(?:^|\n)[ \t]*(?:\d+|[A-Za-z])\.$")


@dataclass
class Cuts:
    """What fitting cost: conversations shortened, tokens and end tokens that were left out."""

    conversations: int = 0
    tokens: int = 0
    replies: int = 0  # whole replies, so end tokens too, that no longer are there


def fit(
    conversations: Iterable[Conversation],
    template: Template,
    recipe: DataRecipe,
    dropped: Counter[str],
    cuts: Cuts,
) -> Iterator[tuple[Conversation, Rendered]]:
    """Render, and make each fit `recipe.max_length`; the two arguments at the end are counted in.

    Drop reasons: too_long (with `overlong: drop`), prompt_too_long (the first question alone
    leaves no room for an answer), no_sentence_fits (its first answer has no sentence that fits).
    """
    plain, to_render = tee(conversations)
    for conversation, rendered in zip(plain, template.render_many(to_render), strict=True):
        if len(rendered.ids) <= recipe.max_length:
            yield conversation, rendered
        elif recipe.overlong == "drop":
            dropped["too_long"] += 1
        else:
            shorter = _shorten(conversation, template, recipe.max_length)
            if isinstance(shorter, str):
                dropped[shorter] += 1
                continue
            short = template.render(shorter)
            cuts.conversations += 1
            cuts.tokens += len(rendered.ids) - len(short.ids)
            cuts.replies += conversation.roles.count("assistant") - shorter.roles.count("assistant")
            yield shorter, short


def _shorten(conversation: Conversation, template: Template, room: int) -> Conversation | str:
    """Fewer turns if that is enough, else fewer sentences in the first reply that does not fit."""
    replies = [i for i, role in enumerate(conversation.roles) if role == "assistant"]
    fitting = None
    for last in replies:  # from the front: a long one has many turns that are never looked at
        turns = Conversation(conversation.messages[: last + 1])
        if len(template.render(turns).ids) > room:
            break
        fitting = turns
    if fitting is not None:
        return fitting
    first = Conversation(conversation.messages[: replies[0] + 1])
    reply = first.messages[-1]
    # Room for the words: what the conversation takes with no words in the reply.
    frame = len(
        template.render(Conversation((*first.messages[:-1], replace(reply, content="")))).ids
    )
    if frame >= room:
        return "prompt_too_long"
    start = template.decode(template.words(reply.content)[: room - frame])
    ends = [match.end() for match in _SENTENCE_END.finditer(reply.content, 0, len(start) + 1)]
    for end in reversed(ends):
        if _LIST_MARKER.search(reply.content, 0, end):
            continue
        short = Conversation((*first.messages[:-1], replace(reply, content=reply.content[:end])))
        if len(template.render(short).ids) <= room:
            return short
    return "no_sentence_fits"
