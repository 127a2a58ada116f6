"""The main source's conversations, and those of further sources that are mixed in by weight."""

import json
import random
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

from chattune.conversation import Conversation
from chattune.data.clean import Seen, clean
from chattune.data.fit import fit
from chattune.data.formats import read_conversations
from chattune.data.report import Tally
from chattune.data.sources import read_rows, source_hash
from chattune.data.store import is_prepared
from chattune.errors import DataError
from chattune.recipe import DataRecipe, Recipe, Source
from chattune.template import Rendered, Template


def source_hashes(data: DataRecipe) -> list[str | None]:
    """Return the hash of each source's content, as `source_hash` does, the main source first.

    Raises DataError for a source that is missing, and for a mixed one that holds only tokens.
    """
    hashes = [source_hash(data)]
    for i, mixed in enumerate(data.mix):
        with _naming_entry(i):
            if is_prepared(mixed.source):
                raise DataError(
                    f"{mixed.source}: a folder of prepared conversations, which holds tokens and "
                    "no text; give the file or data set that it was prepared from"
                )
            hashes.append(source_hash(mixed))
    return hashes


def usable_conversations(
    recipe: Recipe, template: Template, tally: Tally
) -> Iterator[tuple[Conversation, Rendered]]:
    """Yield the usable conversations of all sources with their rendered forms; update `tally`.

    A mixed source gives as many as its weight asks for: a random sample of those that are usable,
    drawn by the recipe's seed, or all if there are fewer. A conversation is a duplicate of an equal
    one in any source. Raises DataError for what cannot be read.
    """
    data = recipe.data
    seen = Seen()

    def cleaned(source: Source) -> Iterator[Conversation]:
        rows = read_rows(source, recipe.seed)
        conversations = read_conversations(rows, source, tally, skip_bad_rows=data.skip_bad_rows)
        return clean(
            conversations,
            tally,
            near_duplicates=data.near_duplicates == "drop",
            max_per_opening=data.max_per_opening,
            seen=seen,
        )

    kept = 0
    for usable in fit(cleaned(data), template, data, tally):
        kept += 1
        yield usable
    tally.end_source(data.source)
    for i, mixed in enumerate(data.mix):
        wanted = round(mixed.weight * kept)
        with _naming_entry(i):
            shuffled = _shuffled(cleaned(mixed), recipe.seed)
            yield from islice(fit(shuffled, template, data, tally), wanted)
        tally.end_source(mixed.source, wanted)


def _shuffled(conversations: Iterable[Conversation], seed: int) -> Iterator[Conversation]:
    """Yield conversations in random order.

    They wait in a temporary database, so that memory holds no more of them than their numbers.
    """
    # The empty name makes a temporary file that SQLite deletes when the connection closes.
    database = sqlite3.connect("", isolation_level=None)
    database.executescript(
        """
        PRAGMA journal_mode = OFF;
        CREATE TABLE conversation (number INTEGER PRIMARY KEY, turns TEXT);
        BEGIN;
        """
    )
    count = 0
    for count, conversation in enumerate(conversations, 1):
        turns = json.dumps([(m.role, m.content) for m in conversation.messages])
        database.execute("INSERT INTO conversation VALUES (?, ?)", (count, turns))
    select = "SELECT turns FROM conversation WHERE number = ?"
    for number in random.Random(seed).sample(range(1, count + 1), count):
        (turns,) = database.execute(select, (number,)).fetchone()
        yield Conversation.of(*json.loads(turns))


@contextmanager
def _naming_entry(index: int) -> Iterator[None]:
    """Say in a DataError of the block that it is about an entry of `data.mix`."""
    try:
        yield
    except DataError as error:
        raise DataError(f"data.mix[{index}]: {error}") from error
