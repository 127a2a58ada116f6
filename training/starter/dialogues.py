"""Write the starter's conversations as plain text for pre-training, with questions reworded.

Usage: python training/starter/dialogues.py OUT.parquet [--copies 16]

Each conversation is written several times. The user's words are changed as people would change
them: lower case, no final mark, a lead-in, a synonym, a short word left out, two letters swapped.
Words that the reply repeats are kept, and no question becomes a held-out prompt. The text has no
role names and no chat template.
"""

import argparse
import random
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from chattune.evaluate.prompts import load_prompts
from conversations import Talk, talks

LEAD_INS = (
    "Hey,", "Hi,", "Hello,", "So,", "Well,", "Please,", "Okay,", "Tell me,", "Excuse me,", "Hm,",
    "One question:", "I have a question.", "Just curious,", "I wonder:", "Maybe you know,",
    "Quick question:", "Now,", "And", "By the way,", "Chatbot,", "My friend asks:", "Oh,",
)  # fmt: skip
ENDINGS = ("please", "thanks", "do you know", "chatbot", "tell me", "I wonder", "any idea")
SYNONYMS = (
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
SYNONYMS_OF = {word.lower(): group for group in SYNONYMS for word in group}
REPLACEABLE = re.compile(
    rf"(?i)(?<![\w'])({'|'.join(sorted(SYNONYMS_OF, key=len, reverse=True))})(?![\w'])"
)
OPTIONAL = frozenset(  # words that people leave out
    (
        "a", "an", "the", "do", "does", "is", "are", "me", "my", "i", "you", "your", "of", "to",
        "for", "please", "can", "could", "some", "it", "there", "so", "very", "just", "really",
        "that", "this", "in", "on", "at",
    )
)  # fmt: skip


def main() -> None:
    """Write the Parquet file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--copies", type=int, default=16)
    args = parser.parse_args()
    texts = dialogues(args.copies)
    pq.write_table(pa.table({"text": texts}), args.out)
    print(f"{len(texts)} dialogues, {sum(map(len, texts)) / 1e6:.1f} M characters")


def dialogues(copies: int) -> list[str]:
    """Return each talk `copies` times, as text with one line for each message."""
    rng, forbidden, rows = random.Random(0), held_out(), talks()
    return ["\n".join(lines_of(talk, forbidden, rng)) for _ in range(copies) for talk in rows]


def lines_of(talk: Talk, forbidden: Collection[str], rng: random.Random) -> Iterator[str]:
    """Yield the messages of a talk with its questions reworded.

    A question keeps its wording if the new one contains one of the `forbidden` prompts.
    """
    for ask, reply in talk:
        reworded = reword(ask, reply, rng)
        spelt = letters(reworded)
        yield ask if any(prompt in spelt for prompt in forbidden) else reworded
        yield reply


def held_out() -> set[str]:
    """Return the letters of the held-out prompts, except short ones that anyone says (*why?*)."""
    prompts = (letters(prompt.turns[-1]) for prompt in load_prompts("starter"))
    return {prompt for prompt in prompts if len(prompt) >= 8}


def reword(ask: str, reply: str, rng: random.Random) -> str:
    """Reword a question, except one in five, and keep the words that the reply repeats."""
    if rng.random() < 0.2:
        return ask
    kept = {letters(word) for word in reply.split()}
    words = ask.split(" ")
    if len(words) > 3:
        words = [w for w in words if letters(w) not in OPTIONAL or rng.random() > 0.12]

    def synonym(match: re.Match[str]) -> str:
        word = match[0].lower()
        return match[0] if word in kept or rng.random() > 0.35 else rng.choice(SYNONYMS_OF[word])

    text = REPLACEABLE.sub(synonym, " ".join(words))
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
    """Return the text's letters and digits in lower case, without marks and spaces."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def misspelt(text: str, kept: Collection[str], rng: random.Random) -> str:
    """Swap two letters of one word of four letters or more that is not in `kept`."""
    words = [m for m in re.finditer(r"[A-Za-z]{4,}", text) if m[0].lower() not in kept]
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 2)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


if __name__ == "__main__":
    main()
