"""The cleaning of conversations: unusable and repeated ones are dropped and counted by reason."""

import hashlib
import re
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from chattune.conversation import Conversation, Message, alternates
from chattune.data.report import Tally

SIMILAR = 0.9  # Jaccard similarity of word 5-grams from which on conversations are duplicates
# Eight bands of eight rows find 99 of 100 pairs of that similarity: 1 - (1 - 0.9^8)^8.
_BANDS, _ROWS = 8, 8
# Words that replies with the same opening share. Three join replies that have little in common
# ("Here is a"), and six find few of the stock phrases ("As an AI language model"): of Dolly's
# 15,011 replies 752 share their first three words with nine or more others, 122 their first four,
# and 18 their first six.
_OPENING_WORDS = 4
_WORD = re.compile(r"\w+")

_Signature = NDArray[np.uint32]


def clean(
    conversations: Iterable[Conversation],
    tally: Tally,
    *,
    near_duplicates: bool,
    max_per_opening: int | None = None,
    seen: "Seen | None" = None,
) -> Iterator[Conversation]:
    """Yield the usable conversations, stripped of outer white space; count the others in `tally`.

    The reasons are no_turns, no_assistant_turn, empty_turn, role_order, duplicate, near_duplicate
    (only if `near_duplicates` is set) and same_opening (if `max_per_opening` earlier conversations
    have a first reply that begins alike). Turns after the last reply are removed. `seen` are the
    conversations of earlier sources, to which those of this one are added.
    """
    seen = seen or Seen()
    for conversation in conversations:
        stripped = _strip(conversation)
        reason = _fault(conversation, stripped)
        if reason is None:
            if seen.equal(stripped):
                reason = "duplicate"
            elif near_duplicates and seen.similar(stripped):
                reason = "near_duplicate"
            elif max_per_opening and seen.same_opening(stripped) >= max_per_opening:
                reason = "same_opening"
        if reason is None:
            yield stripped
        else:
            tally.dropped[reason] += 1


def _strip(conversation: Conversation) -> Conversation:
    messages = [replace(m, content=m.content.strip()) for m in conversation.messages]
    # OpenOrca writes an empty system prompt where there is none.
    if messages and messages[0] == Message("system", ""):
        del messages[0]
    while messages and messages[-1].role != "assistant":
        del messages[-1]
    return Conversation(tuple(messages))


def _fault(original: Conversation, stripped: Conversation) -> str | None:
    """Return the reason to drop a conversation, or None if it can be used."""
    if not original.messages:
        return "no_turns"
    if "assistant" not in original.roles:
        return "no_assistant_turn"
    if any(not m.content for m in stripped.messages):
        return "empty_turn"
    if not alternates(stripped.roles):
        return "role_order"
    return None


class Seen:
    """The conversations seen so far, in a temporary database, so that memory does not grow.

    Equal ones are found by hash, similar ones by MinHash signatures and locality-sensitive hashing
    (Broder 1997; Indyk and Motwani 1998), and those that begin alike by the hash of the beginning.
    """

    def __init__(self) -> None:
        # The empty name makes a temporary file that SQLite deletes when the connection closes.
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(
            """
            PRAGMA journal_mode = OFF;
            PRAGMA cache_size = -65536;
            CREATE TABLE equal (digest BLOB PRIMARY KEY) WITHOUT ROWID;
            CREATE TABLE band (hash INTEGER, signature INTEGER, PRIMARY KEY (hash, signature))
                WITHOUT ROWID;
            CREATE TABLE signature (number INTEGER PRIMARY KEY, minima BLOB);
            CREATE TABLE opening (digest BLOB PRIMARY KEY, count INTEGER) WITHOUT ROWID;
            BEGIN;
            """
        )
        from datasketch import MinHash

        self._empty = MinHash(num_perm=_BANDS * _ROWS, hashfunc=zlib.crc32)

    def equal(self, conversation: Conversation) -> bool:
        """Return whether an equal conversation was seen; remember this one."""
        added = self._db.execute(
            "INSERT OR IGNORE INTO equal VALUES (?)", (_digest(repr(conversation.messages)),)
        )
        return added.rowcount == 0

    def same_opening(self, conversation: Conversation) -> int:
        """Return how many conversations were seen whose first reply begins alike; count this one.

        Replies begin alike if their first _OPENING_WORDS words are the same, whatever their case
        and punctuation.
        """
        reply = next(m.content for m in conversation.messages if m.role == "assistant")
        opening = opening_of(reply)
        (count,) = self._db.execute(
            "INSERT INTO opening VALUES (?, 1) "
            "ON CONFLICT (digest) DO UPDATE SET count = count + 1 RETURNING count",
            (_digest(opening),),
        ).fetchone()
        return int(count) - 1

    def similar(self, conversation: Conversation) -> bool:
        """Return whether a conversation with at least the similarity SIMILAR was seen.

        If none was, remember this one.
        """
        minima = self._signature(conversation)
        # The band's number is part of the hash, so that only equal bands of equal number match.
        bands = [
            zlib.crc32(band.tobytes(), i) << 3 | i
            for i, band in enumerate(minima.reshape(_BANDS, _ROWS))
        ]
        placeholders = ",".join("?" * _BANDS)
        candidates = self._db.execute(
            "SELECT minima FROM signature WHERE number IN "
            f"(SELECT signature FROM band WHERE hash IN ({placeholders}))",
            bands,
        )
        for (known,) in candidates:
            if np.mean(np.frombuffer(known, np.uint32) == minima) >= SIMILAR:
                return True
        number = self._db.execute(
            "INSERT INTO signature (minima) VALUES (?)", (minima.tobytes(),)
        ).lastrowid
        self._db.executemany(
            "INSERT OR IGNORE INTO band VALUES (?, ?)", [(band, number) for band in bands]
        )
        return False

    def _signature(self, conversation: Conversation) -> _Signature:
        """Return the MinHash signature (_BANDS * _ROWS) of a conversation's word 5-grams."""
        words = _words(" ".join(m.content for m in conversation.messages))
        grams = {" ".join(words[i : i + 5]).encode() for i in range(max(1, len(words) - 4))}
        sketch = self._empty.copy()
        sketch.update_batch(grams)
        minima: _Signature = sketch.hashvalues.astype(np.uint32)
        return minima


def opening_of(reply: str) -> str:
    """Return the first four words of a reply, in lower case and without punctuation."""
    return " ".join(_words(reply)[:_OPENING_WORDS])


def _words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    lower = text.lower()
    return _WORD.findall(lower) or lower.split()  # a text of emoji alone has no \w


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
