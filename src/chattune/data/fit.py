"""The fitting of conversations into `max_length` tokens: cut at a turn or a sentence, or dropped.

No sentence is cut in the middle, and every reply keeps its end token: a model tuned on replies
that break off does not learn to stop.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import tee

from chattune.conversation import Conversation
from chattune.data.report import Tally
from chattune.recipe import DataRecipe
from chattune.template import Rendered, Template

# A sentence ends at its mark if white space follows (none has to after CJK marks), or at the end
# of a line.
_SENTENCE_END = re.compile(r"[.!?…]['\")\]]*(?=\s)|[。！？]|(?<=\S)(?=\n)")

# "2." or "b." at the start of a line looks like the end of a sentence but only opens a list item.
_LIST_MARKER = re.compile(r"(?:^|\n)[ \t]*(?:\d+|[A-Za-z])\.$")


def fit(
    conversations: Iterable[Conversation], template: Template, recipe: DataRecipe, tally: Tally
) -> Iterator[tuple[Conversation, Rendered]]:
    """Yield conversations of at most `recipe.max_length` tokens, each with its rendered form.

    Updates `tally.cut` and `tally.dropped`. The reasons for a drop are too_long (with `overlong:
    drop`), prompt_too_long (the first question leaves no space for a reply) and no_sentence_fits
    (no sentence of the first reply fits).
    """
    originals, to_render = tee(conversations)
    for conversation, rendered in zip(originals, template.render_many(to_render), strict=True):
        if len(rendered.ids) <= recipe.max_length:
            yield conversation, rendered
        elif recipe.overlong == "drop":
            tally.dropped["too_long"] += 1
        else:
            shorter = _shorten(conversation, template, recipe.max_length)
            if isinstance(shorter, str):
                tally.dropped[shorter] += 1
                continue
            shorter_rendered = template.render(shorter)
            tally.cut["conversations"] += 1
            tally.cut["tokens"] += len(rendered.ids) - len(shorter_rendered.ids)
            tally.cut["replies"] += _replies(conversation) - _replies(shorter)
            yield shorter, shorter_rendered


def _replies(conversation: Conversation) -> int:
    return conversation.roles.count("assistant")


def _shorten(conversation: Conversation, template: Template, max_length: int) -> Conversation | str:
    """Cut a conversation after the last reply that fits, or else within its first reply.

    Returns the reason to drop the conversation if neither is possible.
    """
    replies = [i for i, role in enumerate(conversation.roles) if role == "assistant"]
    fitting = None
    for last in replies:  # from the front, so that most turns of a long one are never rendered
        turns = Conversation(conversation.messages[: last + 1])
        if len(template.render(turns).ids) > max_length:
            break
        fitting = turns
    if fitting is not None:
        return fitting
    first = Conversation(conversation.messages[: replies[0] + 1])
    return _shorten_reply(first, template, max_length)


def _shorten_reply(first: Conversation, template: Template, max_length: int) -> Conversation | str:
    """Cut the reply of a single exchange after its last sentence that fits.

    Returns the reason to drop the conversation if no sentence fits.
    """

    def with_reply(content: str) -> Conversation:
        return Conversation((*first.messages[:-1], replace(first.messages[-1], content=content)))

    reply = first.messages[-1].content
    budget = max_length - len(template.render(with_reply("")).ids)  # tokens left for the reply
    if budget <= 0:
        return "prompt_too_long"
    prefix = template.decode(template.encode(reply)[:budget])
    ends = [match.end() for match in _SENTENCE_END.finditer(reply, 0, len(prefix) + 1)]
    for end in reversed(ends):
        if _LIST_MARKER.search(reply, 0, end):
            continue
        shorter = with_reply(reply[:end])
        if len(template.render(shorter).ids) <= max_length:
            return shorter
    return "no_sentence_fits"
