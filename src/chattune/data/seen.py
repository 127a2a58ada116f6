"""Which conversations came before, kept on disk: a million of them take no more memory than ten."""

import hashlib
import re
import sqlite3
import zlib

import numpy as np
from numpy.typing import NDArray

from chattune.conversation import Conversation

SIMILAR = 0.9  # Jaccard similarity of word 5-grams above which two conversations count as one
_BANDS, _ROWS = 8, 8  # finds 99 of 100 pairs as similar as that: 1 - (1 - 0.9^8)^8
_WORD = re.compile(r"\w+")

_Minima = NDArray[np.uint32]


class Seen:
    """Remembers conversations, equal ones by their hash and similar ones by MinHash signatures with
    locality-sensitive hashing (Broder 1997; Indyk and Motwani 1998).
    """

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)  # a file of its own, gone when closed
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
        """Whether the same came before; it is remembered."""
        digest = hashlib.blake2b(repr(conversation.messages).encode(), digest_size=16).digest()
        added = self._db.execute("INSERT OR IGNORE INTO equal VALUES (?)", (digest,))
        return added.rowcount == 0

    def similar(self, conversation: Conversation) -> bool:
        """Whether one as similar as SIMILAR came before; if not, it is remembered."""
        minima = self._signature(conversation)
        # Each band's number is part of its hash.
        bands = [
            zlib.crc32(band.tobytes(), i) << 3 | i
            for i, band in enumerate(minima.reshape(_BANDS, _ROWS))
        ]
        marks = ",".join("?" * _BANDS)
        candidates = self._db.execute(
            "SELECT minima FROM signature WHERE number IN "
            f"(SELECT signature FROM band WHERE hash IN ({marks}))",
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

    def _signature(self, conversation: Conversation) -> _Minima:
        text = " ".join(m.content for m in conversation.messages).lower()
        words = _WORD.findall(text) or text.split()  # pictures and signs alone are words too
        grams = {" ".join(words[i : i + 5]).encode() for i in range(max(1, len(words) - 4))}
        sketch = self._empty.copy()
        sketch.update_batch(grams)
        minima: _Minima = sketch.hashvalues.astype(np.uint32)
        return minima
