"""What of a conversation the model can still see."""

from collections.abc import Sequence

from chattune.conversation import Message
from chattune.errors import ChatError
from chattune.generate import Decoding
from chattune.template import Template

_LEAST_ROOM = 16  # tokens that must be left for a reply, however long the reply may be


def fit_prompt(
    template: Template,
    system: str | None,
    messages: Sequence[Message],
    positions: int,
    decoding: Decoding,
) -> list[int]:
    """The prompt ids, after dropping whole oldest turns until prompt and reply fit `positions`.

    The system prompt and the last message always stay. The reply's room is `max_new_tokens`, or
    half of the positions if that is less. Raises ChatError if the last message alone is too long.
    """
    head = [Message("system", system)] if system and system.strip() else []
    room = min(decoding.max_new_tokens, positions // 2)
    turns = list(messages)
    prompt = template.prompt([*head, *turns])
    while len(prompt) + room > positions and len(turns) > 1:
        turns = turns[2:] or turns[-1:]  # a question and its answer
        prompt = template.prompt([*head, *turns])
    if len(prompt) + min(room, _LEAST_ROOM) <= positions:
        return prompt  # a long question gets a shorter answer
    raise ChatError(
        f"the message is too long: with the system prompt it takes {len(prompt)} tokens, and this "
        f"model sees {positions}, reply included; shorten it"
    )
