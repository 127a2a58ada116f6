"""The fitting of conversations into `max_length` tokens: cut at a turn or a sentence, or dropped.

No sentence is cut in the middle, and every reply keeps its end token, if the template writes one: a
model tuned on replies that break off does not learn to stop.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import tee

from chattune.conversation import Conversation
from chattune.data.report import Tally
from chattune.recipe import DataRecipe
from chattune.sentences import sentence_ends
from chattune.template import Rendered, Template


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
    start = len(template.prompt(first.messages[:-1]))
    prefix = template.decode(template.render(first).ids[start:][:budget])
    for end in reversed(list(sentence_ends(reply, 0, len(prefix) + 1))):
        shorter = with_reply(reply[:end])
        if len(template.render(shorter).ids) <= max_length:
            return shorter
    return "no_sentence_fits"
