"""Which conversations are kept; every drop has a name."""

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from chattune.conversation import Conversation, Message, alternates

SIMILAR = 0.9  # Jaccard similarity of word 5-grams above which two conversations count as one
_PERMUTATIONS = 64
_WORD = re.compile(r"\w+")


def clean(
    conversations: Iterable[Conversation], dropped: Counter[str], *, near_duplicates: bool
) -> Iterator[Conversation]:
    """Yield what is usable, stripped; count the rest in `dropped` under its reason.

    Reasons: no_turns, no_assistant_turn, empty_turn, role_order, duplicate, near_duplicate. A last
    turn that nobody answered is cut off and the rest kept.
    """
    seen: set[bytes] = set()
    is_near = _near_duplicate_finder() if near_duplicates else None
    for conversation in conversations:
        tidy = _tidy(conversation)
        reason = _fault(conversation, tidy)
        if reason is None:
            digest = hashlib.blake2b(repr(tidy.messages).encode(), digest_size=16).digest()
            if digest in seen:
                reason = "duplicate"
            elif is_near is not None and is_near(tidy):
                reason = "near_duplicate"
            seen.add(digest)
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


def _near_duplicate_finder() -> Callable[[Conversation], bool]:
    """MinHash with locality-sensitive hashing (Broder 1997; Indyk and Motwani 1998)."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=SIMILAR, num_perm=_PERMUTATIONS)
    empty = MinHash(num_perm=_PERMUTATIONS, hashfunc=zlib.crc32)

    def is_near(conversation: Conversation) -> bool:
        text = " ".join(m.content for m in conversation.messages).lower()
        words = _WORD.findall(text) or text.split()  # pictures and signs alone are words too
        grams = {" ".join(words[i : i + 5]).encode() for i in range(max(1, len(words) - 4))}
        sketch = empty.copy()
        sketch.update_batch(grams)
        near = index.query(sketch)
        if any(sketch.jaccard(sketches[key]) >= SIMILAR for key in near):
            return True
        sketches.append(sketch)
        index.insert(len(sketches) - 1, sketch, check_duplication=False)
        return False

    sketches: list[MinHash] = []
    return is_near
