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
_WORD = re.compile(r"\w+")

_Signature = NDArray[np.uint32]


def clean(
    conversations: Iterable[Conversation], tally: Tally, *, near_duplicates: bool
) -> Iterator[Conversation]:
    """Yield the usable conversations, stripped of outer white space; count the others in `tally`.

    The reasons are no_turns, no_assistant_turn, empty_turn, role_order, duplicate and
    near_duplicate (only if `near_duplicates` is set). Turns after the last reply are removed.
    """
    seen = _Seen()
    for conversation in conversations:
        stripped = _strip(conversation)
        reason = _fault(conversation, stripped)
        if reason is None:
            if seen.equal(stripped):
                reason = "duplicate"
            elif near_duplicates and seen.similar(stripped):
                reason = "near_duplicate"
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


class _Seen:
    """The conversations seen so far, in a temporary database, so that memory does not grow.

    Equal ones are found by hash, similar ones by MinHash signatures and locality-sensitive hashing
    (Broder 1997; Indyk and Motwani 1998).
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
            BEGIN;
            """
        )
        from datasketch import MinHash

        self._empty = MinHash(num_perm=_BANDS * _ROWS, hashfunc=zlib.crc32)

    def equal(self, conversation: Conversation) -> bool:
        """Return whether an equal conversation was seen; remember this one."""
        digest = hashlib.blake2b(repr(conversation.messages).encode(), digest_size=16).digest()
        added = self._db.execute("INSERT OR IGNORE INTO equal VALUES (?)", (digest,))
        return added.rowcount == 0

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
        text = " ".join(m.content for m in conversation.messages).lower()
        words = _WORD.findall(text) or text.split()  # a text of emoji alone has no \w
        grams = {" ".join(words[i : i + 5]).encode() for i in range(max(1, len(words) - 4))}
        sketch = self._empty.copy()
        sketch.update_batch(grams)
        minima: _Signature = sketch.hashvalues.astype(np.uint32)
        return minima
