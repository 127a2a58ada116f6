"""Write the starter's conversations from topic files and from the tables below.

Usage: python training/starter/conversations.py OUT.jsonl [--few]

Each line of topics/*.jsonl is a talk of one to four turns. A turn holds several wordings of its
question and one reply. The tables give the regular parts: capitals, opposites, sums and names. With
--few, each reply is there a few times only, and the passages of general.jsonl are there too: that
is for a base that knows English.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent

Talk = list[tuple[str, str]]  # a question and its reply for each turn
MAX_TURNS = 4
REPLIES = 3  # times that each reply of the topics is among the few

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
    "What city is the capital in {0}?", "Name the capital city of {0}.",
    "In {0}, which city is the capital?", "{0} capital?", "I forgot what the capital of {0} is.",
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
    "{0} has which opposite?", "What is the reverse of {0}?", "I need a word against {0}.",
)  # fmt: skip

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
SUM_ASKS = (
    "What is {0} plus {1}?", "{2} + {3}", "How much is {0} and {1}?", "Can you add {2} and {3}?",
    "{0} plus {1} is what?", "what is {2}+{3}", "Please add {0} to {1}.", "{2} plus {3} makes?",
    "I have {0} and get {1} more. How many is that?", "Calculate {2} + {3} for me.",
)  # fmt: skip

NAMES = (
    "Ada", "Adam", "Aisha", "Alice", "Amir", "Amy", "Anna", "Ben", "Bob", "Carla", "Chen",
    "Clara", "Daniel", "David", "Diana", "Elena", "Ella", "Emil", "Emma", "Eric", "Fatima",
    "Felix", "Frank", "Grace", "Hana", "Harry", "Helen", "Hugo", "Ida", "Ines", "Ivan", "Jack",
    "James", "Jane", "Jonas", "Julia", "Karim", "Kate", "Kim", "Laura", "Lena", "Leo", "Lily",
    "Lisa", "Lucas", "Lucy", "Luis", "Maria", "Mark", "Martin", "Mia", "Mina", "Nadia", "Nina",
    "Nora", "Olga", "Oliver", "Omar", "Oscar", "Paul", "Peter", "Rita", "Robert", "Rosa",
    "Ruth", "Sam", "Sara", "Simon", "Sofia", "Sophie", "Stella", "Tim", "Tina", "Tom", "Vera",
    "Victor", "Wendy", "Yusuf", "Zoe",
)  # fmt: skip
NAME_SAYS = (
    "My name is {0}.", "I am {0}.", "i'm {0}", "Hello, I'm {0}!", "Hi, my name is {0}.",
    "You can call me {0}.", "{0} is my name.", "Hey, {0} here.", "They call me {0}.",
    "Good morning, this is {0}.", "Please call me {0}.", "I go by {0}.", "im {0} by the way",
)  # fmt: skip
NAME_REPLIES = (
    "Nice to meet you, {0}! How are you today?", "Hello {0}! What would you like to talk about?",
    "Hi {0}, it is good to meet you! What can I do for you?",
)  # fmt: skip
NAME_ASKS = (
    "What is my name?", "whats my name", "Do you remember my name?", "Who am I?",
    "Can you tell me my name?", "Do you know what I am called?", "How do people call me?",
    "Which name did I tell you?", "say my name", "Do you still know my name?",
    "What was my name again?", "Have you forgotten my name?", "Please repeat my name.",
)  # fmt: skip
NAME_ANSWERS = ("Your name is {0}.", "You told me that your name is {0}.", "You are {0}.")


def main() -> None:
    """Write the conversations to the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--few", action="store_true", help="few wordings, and general talk")
    args = parser.parse_args()
    rows = few() if args.few else talks()
    with args.out.open("w", encoding="utf-8") as file:
        for talk in rows:
            messages = [
                {"role": role, "content": text}
                for turn in talk
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    print(f"{len(rows)} conversations")


def talks() -> list[Talk]:
    """Return all conversations, in an order that depends only on this file and the topics."""
    rows = _all_topics()
    rng = random.Random(0)
    rows += [*_capitals(rng), *_opposites(rng), *_sums(rng), *_names(rng)]
    return rows + _changes_of_subject(rng, rows)


def few() -> list[Talk]:
    """Return talks in which each reply of the topics occurs at least REPLIES times, and others.

    The others are a sample from each table, and the passages of general.jsonl. The passages come in
    pairs, so that the model also keeps the rarer words and the longer texts that its base knows.
    """
    rng = random.Random(0)
    rows = _covering(_all_topics(), rng)
    for table, number in ((_capitals, 27), (_opposites, 30), (_sums, 30), (_names, 40)):
        rows += rng.sample(list(table(rng)), number)
    lines = HERE.joinpath("general.jsonl").read_text("utf-8").splitlines()
    passages = [(row["ask"], row["reply"]) for row in map(json.loads, lines)]
    following = [*passages[1:], passages[0]]
    return rows + [list(pair) for pair in zip(passages, following, strict=True)]


def _covering(rows: list[Talk], rng: random.Random) -> list[Talk]:
    """Return talks in random order, without those whose replies all occurred REPLIES times."""
    chosen, occurred = [], Counter[str]()
    for talk in rng.sample(rows, len(rows)):
        replies = [reply for _, reply in talk]
        if any(occurred[reply] < REPLIES for reply in replies):
            chosen.append(talk)
            occurred.update(replies)
    return chosen


def _all_topics() -> list[Talk]:
    return [talk for path in sorted((HERE / "topics").glob("*.jsonl")) for talk in _topics(path)]


def _topics(path: Path) -> Iterator[Talk]:
    """Yield each talk once for every wording of its first question.

    Only as many of them continue after the first turn as each later wording needs to occur once.
    """
    for line in path.read_text("utf-8").splitlines():
        first, *later = json.loads(line)["turns"]
        continued = max((len(turn["ask"]) for turn in later), default=0)
        for i, ask in enumerate(first["ask"]):
            talk = [(ask, first["reply"])]
            if i < continued:
                talk += [(turn["ask"][i % len(turn["ask"])], turn["reply"]) for turn in later]
            yield talk


def _capitals(rng: random.Random) -> Iterator[Talk]:
    for country, city in CAPITALS.items():
        for ask in rng.sample(CAPITAL_ASKS, 7):
            yield [(ask.format(country), f"The capital of {country} is {city}.")]


def _opposites(rng: random.Random) -> Iterator[Talk]:
    for word, other in OPPOSITES.items():
        for a, b in ((word, other), (other, word)):
            for ask in rng.sample(OPPOSITE_ASKS, 4):
                yield [(ask.format(a), f"The opposite of {a} is {b}.")]


def _sums(rng: random.Random) -> Iterator[Talk]:
    """Yield sums of two numbers from one to nine whose result is at most ten."""
    for a in range(1, 10):
        for b in range(1, 11 - a):
            reply = f"{a} plus {b} is {a + b}."
            for ask in rng.sample(SUM_ASKS, 4):
                yield [(ask.format(NUMBERS[a], NUMBERS[b], a, b), reply)]


def _names(rng: random.Random) -> Iterator[Talk]:
    """Yield talks about many names, so that the model learns to look back for the name given."""
    for name in NAMES:
        for says in rng.sample(NAME_SAYS, 4):
            first = says.format(name), rng.choice(NAME_REPLIES).format(name)
            yield [first, (rng.choice(NAME_ASKS), rng.choice(NAME_ANSWERS).format(name))]


def _changes_of_subject(rng: random.Random, rows: list[Talk]) -> list[Talk]:
    """Join pairs of unrelated short talks, because people change the subject."""
    short = [talk for talk in rows if len(talk) <= MAX_TURNS // 2]
    return [[*rng.choice(short), *talk] for talk in rng.sample(short, len(rows) // 20)]


if __name__ == "__main__":
    main()
