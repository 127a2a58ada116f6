"""Our conversations as text to read in pre-training, each several times in other words.

python training/starter/dialogues.py OUT.parquet [--copies 16]

What the user says is changed as people would: small letters, no final mark, a lead-in, a word of
the same meaning, a little word left out, two letters swapped. What a question is about stays, what
it is made of does not, and none becomes a held-out prompt. The text has no roles and no template.
"""

import argparse
import json
import random
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from conversations import HERE, Talk, talks

LEAD_INS = (
    "Hey,", "Hi,", "Hello,", "So,", "Well,", "Please,", "Okay,", "Tell me,", "Excuse me,", "Hm,",
    "One question:", "I have a question.", "Just curious,", "I wonder:", "Maybe you know,",
    "Quick question:", "Now,", "And", "By the way,", "Chatbot,", "My friend asks:", "Oh,",
)  # fmt: skip
ENDINGS = ("please", "thanks", "do you know", "chatbot", "tell me", "I wonder", "any idea")
SAME = (
    ("suggest", "recommend", "propose"), ("tell", "give", "show"), ("explain", "describe"),
    ("big", "large", "huge"), ("small", "little", "tiny"), ("fast", "quick", "rapid"),
    ("child", "kid"), ("children", "kids"), ("begin", "start"), ("help", "assist"),
    ("glad", "happy"), ("make", "prepare"), ("need", "want", "would like"),
    ("why", "for what reason", "how come"), ("good", "nice", "great", "fine"),
    ("can", "could", "may"), ("what", "which"), ("how do I", "how can I", "how should I"),
    ("right", "correct"), ("often", "many times"), ("quickly", "rapidly"),
    ("reason", "cause"), ("friend", "buddy", "pal"), ("sad", "unhappy"),
    ("people", "persons", "humans"), ("funny", "amusing"), ("story", "tale"),
    ("idea", "tip", "advice"), ("learn", "study"), ("called", "named"),
    ("clever", "smart"), ("sick", "ill"), ("hurts", "aches"),
    ("think", "believe"), ("speak", "talk"), ("easy", "simple"), ("food", "meal"),
)  # fmt: skip
OTHERS = {word.lower(): group for group in SAME for word in group}
WORDS = re.compile(rf"(?i)(?<![\w'])({'|'.join(sorted(OTHERS, key=len, reverse=True))})(?![\w'])")
LITTLE = frozenset(
    (
        "a", "an", "the", "do", "does", "is", "are", "me", "my", "i", "you", "your", "of", "to",
        "for", "please", "can", "could", "some", "it", "there", "so", "very", "just", "really",
        "that", "this", "in", "on", "at",
    )
)  # fmt: skip


def main() -> None:
    """Write the Parquet file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--copies", type=int, default=16)
    given = parser.parse_args()
    texts = dialogues(given.copies)
    pq.write_table(pa.table({"text": texts}), given.out)
    print(f"{len(texts)} dialogues, {sum(map(len, texts)) / 1e6:.1f} M characters")


def dialogues(copies: int) -> list[str]:
    """Each talk so many times: what is said, a line each."""
    rng, held, rows = random.Random(0), held_out(), talks()
    return ["\n".join(lines_of(talk, held, rng)) for _ in range(copies) for talk in rows]


def lines_of(talk: Talk, held: Collection[str], rng: random.Random) -> Iterator[str]:
    """Its lines, the user's in other words, but not in those of a prompt that is held out."""
    for ask, reply in talk:
        changed = in_other_words(ask, reply, rng)
        said = letters(changed)
        yield ask if any(prompt in said for prompt in held) else changed
        yield reply


def held_out() -> set[str]:
    """The letters of what the starter is judged by, but for what anyone says (*why?*)."""
    lines = (HERE / "heldout.jsonl").read_text("utf-8").splitlines()
    return {x for line in lines if len(x := letters(json.loads(line)["turns"][-1])) >= 8}


def in_other_words(ask: str, reply: str, rng: random.Random) -> str:
    """The same question; one in five as it is. Words that the reply repeats are kept."""
    if rng.random() < 0.2:
        return ask
    kept = {letters(word) for word in reply.split()}
    words = ask.split(" ")
    if len(words) > 3:
        words = [w for w in words if letters(w) not in LITTLE or rng.random() > 0.12]

    def another(found: re.Match[str]) -> str:
        word = found[0].lower()
        return found[0] if word in kept or rng.random() > 0.35 else rng.choice(OTHERS[word])

    text = WORDS.sub(another, " ".join(words))
    if rng.random() < 0.06:
        text = misspelt(text, kept, rng)
    if rng.random() < 0.3:
        text = text.rstrip(".?!")
        if rng.random() < 0.3:
            text += f", {rng.choice(ENDINGS)}{rng.choice(['', '?', '.'])}"
    if rng.random() < 0.2:
        text = f"{rng.choice(LEAD_INS)} {text}"
    if rng.random() < 0.3:
        return text.lower()
    return text[:1].upper() + text[1:]


def letters(text: str) -> str:
    """Without marks and spaces, in lower case."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def misspelt(text: str, kept: Collection[str], rng: random.Random) -> str:
    """Two letters of one long word swapped."""
    words = [m for m in re.finditer(r"[A-Za-z]{4,}", text) if m[0].lower() not in kept]
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 2)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


if __name__ == "__main__":
    main()
