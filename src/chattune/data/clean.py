"""Which conversations are kept; every drop has a name."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from chattune.conversation import Conversation, Message, alternates
from chattune.data.seen import Seen


def clean(
    conversations: Iterable[Conversation], dropped: Counter[str], *, near_duplicates: bool
) -> Iterator[Conversation]:
    """Yield what is usable, stripped; count the rest in `dropped` under its reason.

    Reasons: no_turns, no_assistant_turn, empty_turn, role_order, duplicate, near_duplicate. A last
    turn that nobody answered is cut off and the rest kept.
    """
    seen = Seen()
    for conversation in conversations:
        tidy = _tidy(conversation)
        reason = _fault(conversation, tidy)
        if reason is None:
            if seen.equal(tidy):
                reason = "duplicate"
            elif near_duplicates and seen.similar(tidy):
                reason = "near_duplicate"
        if reason is None:
            yield tidy
        else:
            dropped[reason] += 1


def _tidy(conversation: Conversation) -> Conversation:
    messages = [replace(m, content=m.content.strip()) for m in conversation.messages]
    # An empty system prompt is how OpenOrca says that there is none.
    if messages and messages[0] == Message("system", ""):
        del messages[0]
    while messages and messages[-1].role != "assistant":
        del messages[-1]
    return Conversation(tuple(messages))


def _fault(raw: Conversation, tidy: Conversation) -> str | None:
    if not raw.messages:
        return "no_turns"
    if "assistant" not in raw.roles:
        return "no_assistant_turn"
    if any(not m.content for m in tidy.messages):
        return "empty_turn"
    if not alternates(tidy.roles):
        return "role_order"
    return None
