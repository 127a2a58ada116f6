"""Our conversations as text to read in pre-training, each several times in other words.

python training/starter/dialogues.py OUT.parquet [--copies 24]

What the user says is changed as people would: small letters, no final mark, a lead-in, a word of the
same meaning, a little word left out, two letters swapped. What a question is about stays, what it
is made of does not, and none becomes a held-out prompt. The text has no roles and no template.
"""

import argparse
import json
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from conversations import HERE, talks

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
    ("right", "correct"), ("often", "many times"),
    ("reason", "cause"), ("friend", "buddy", "pal"), ("sad", "unhappy"),
    ("job", "work"), ("people", "persons", "humans"), ("funny", "amusing"), ("story", "tale"),
    ("idea", "tip", "advice"), ("learn", "study"), ("called", "named"),
    ("clever", "smart"), ("sick", "ill"), ("hurts", "aches"), ("like", "enjoy", "love"),
    ("quickly", "fast"), ("think", "believe"), ("speak", "talk"), ("easy", "simple"),
    ("does", "will"), ("food", "meal"), ("is there", "do you have"),
)  # fmt: skip
LITTLE = frozenset(
    "a an the do does is are me my i you your of to for please can could some it there so very just"
    " really that this in on at".split()
)


def main() -> None:
    """Write the Parquet file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--copies", type=int, default=24)
    given = parser.parse_args()
    texts = dialogues(given.copies)
    pq.write_table(pa.table({"text": texts}), given.out)
    print(f"{len(texts)} dialogues, {sum(map(len, texts)) / 1e6:.1f} M characters")


def dialogues(copies: int) -> list[str]:
    """Each talk so many times: what is said, a line each."""
    rng, held, texts = random.Random(0), held_out(), []
    for _ in range(copies):
        for talk in talks():
            lines = []
            for ask, reply in talk:
                changed = in_other_words(ask, rng)
                lines += [ask if letters(changed) in held else changed, reply]
            texts.append("\n".join(lines))
    return texts


def held_out() -> set[str]:
    """The letters of the prompts that the starter is judged by, where they stand alone."""
    lines = (HERE / "heldout.jsonl").read_text("utf-8").splitlines()
    every = [json.loads(line)["turns"] for line in lines]
    return {letters(turns[0]) for turns in every if len(turns) == 1}


def in_other_words(ask: str, rng: random.Random) -> str:
    """The same question; one in five as it is."""
    if rng.random() < 0.2:
        return ask
    words = ask.split(" ")
    if len(words) > 3:
        words = [w for w in words if letters(w) not in LITTLE or rng.random() > 0.12]
    text = " ".join(words)
    for group in SAME:
        for word in group:
            if rng.random() < 0.35 and re.search(rf"(?i)\b{word}\b", text):
                text = re.sub(rf"(?i)\b{word}\b", rng.choice(group), text, count=1)
                break
    if rng.random() < 0.06:
        text = misspelt(text, rng)
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


def misspelt(text: str, rng: random.Random) -> str:
    """Two letters of one long word swapped."""
    places = [m.start() for m in re.finditer(r"(?<=[a-z])[a-z]{2}(?=[a-z])", text)]
    if not places:
        return text
    at = rng.choice(places)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


if __name__ == "__main__":
    main()
