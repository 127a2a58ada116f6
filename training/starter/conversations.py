"""Write the starter's conversations: topics in several wordings, and tables for the regular parts.

python training/starter/conversations.py OUT.jsonl

Each line of topics/*.jsonl is a talk of one to four turns; a turn has the ways to ask it and one
reply. The tables below are ours too.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent

Talk = list[tuple[str, str]]  # user and assistant in turn

CAPITALS = {
    "Austria": "Vienna", "Belgium": "Brussels", "Brazil": "Brasilia", "Canada": "Ottawa",
    "Chile": "Santiago", "China": "Beijing", "Cuba": "Havana", "Denmark": "Copenhagen",
    "Egypt": "Cairo", "Finland": "Helsinki", "Greece": "Athens", "Hungary": "Budapest",
    "India": "New Delhi", "Ireland": "Dublin", "Kenya": "Nairobi", "Mexico": "Mexico City",
    "Norway": "Oslo", "Peru": "Lima", "Poland": "Warsaw", "Portugal": "Lisbon",
    "Russia": "Moscow", "Sweden": "Stockholm", "Thailand": "Bangkok", "Turkey": "Ankara",
    "the Netherlands": "Amsterdam", "the United States": "Washington", "Ukraine": "Kyiv",
}  # fmt: skip
CAPITAL_ASKS = (
    "What is the capital of {0}?", "capital of {0}", "Which city is the capital of {0}?",
    "Do you know the capital city of {0}?", "Tell me the capital of {0}.",
)  # fmt: skip

OPPOSITES = {
    "big": "small", "fast": "slow", "old": "young", "day": "night", "up": "down", "left": "right",
    "light": "dark", "open": "closed", "full": "empty", "happy": "sad", "rich": "poor",
    "loud": "quiet", "wet": "dry", "strong": "weak", "early": "late", "high": "low",
    "hard": "soft", "clean": "dirty", "long": "short", "thick": "thin", "sweet": "sour",
    "inside": "outside", "before": "after", "always": "never", "love": "hate", "war": "peace",
    "friend": "enemy", "win": "lose", "question": "answer", "begin": "end",
}  # fmt: skip
OPPOSITE_ASKS = (
    "What is the opposite of {0}?", "opposite of {0}", "Tell me the opposite of the word {0}.",
    "Which word means the opposite of {0}?", "What is the contrary of {0}?",
)  # fmt: skip

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
SUM_ASKS = (
    "What is {0} plus {1}?", "{2} + {3}", "How much is {0} and {1}?", "Can you add {2} and {3}?",
    "{0} plus {1} is what?",
)  # fmt: skip


def main() -> None:
    """All conversations, in an order that does not depend on anything but this folder."""
    rows = [talk for path in sorted((HERE / "topics").glob("*.jsonl")) for talk in _topics(path)]
    rows += [*_capitals(), *_opposites(), *_sums(random.Random(0))]
    with Path(sys.argv[1]).open("w", encoding="utf-8") as file:
        for talk in rows:
            messages = [
                {"role": role, "content": text}
                for turn in talk
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    print(f"{len(rows)} conversations")


def _topics(path: Path) -> Iterator[Talk]:
    for line in path.read_text("utf-8").splitlines():
        turns = json.loads(line)["turns"]
        for i in range(max(len(turn["ask"]) for turn in turns)):
            yield [(turn["ask"][i % len(turn["ask"])], turn["reply"]) for turn in turns]


def _capitals() -> Iterator[Talk]:
    for country, city in CAPITALS.items():
        for ask in CAPITAL_ASKS:
            yield [(ask.format(country), f"The capital of {country} is {city}.")]


def _opposites() -> Iterator[Talk]:
    for word, other in OPPOSITES.items():
        for a, b in ((word, other), (other, word)):
            for ask in OPPOSITE_ASKS[:3]:
                yield [(ask.format(a), f"The opposite of {a} is {b}.")]


def _sums(rng: random.Random) -> Iterator[Talk]:
    """Sums up to ten, each in two of the wordings."""
    for a in range(1, 10):
        for b in range(1, 11 - a):
            reply = f"{a} plus {b} is {a + b}."
            for ask in rng.sample(SUM_ASKS, 2):
                yield [(ask.format(NUMBERS[a], NUMBERS[b], a, b), reply)]


if __name__ == "__main__":
    main()
