"""Tests of the dialogues for pre-training: unchanged replies and reworded questions."""

import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from conversations import talks
from dialogues import held_out, letters, lines_of, reword

SCRIPT = Path(__file__).parents[2] / "training/starter/dialogues.py"


def test_every_copy_has_each_talk_and_no_held_out_prompt(tmp_path: Path) -> None:
    out = tmp_path / "talks.parquet"
    subprocess.run([sys.executable, SCRIPT, out, "--copies=2"], check=True)
    texts = pq.read_table(out).column("text").to_pylist()
    everything = talks()
    assert len(texts) == 2 * len(everything)
    forbidden = held_out()
    assert len(forbidden) > 200
    for text, talk in zip(texts, [*everything, *everything], strict=True):
        lines = text.split("\n")
        assert lines[1::2] == [reply for _, reply in talk]
        questions = "|".join(letters(line) for line in lines[::2])
        assert not any(prompt in questions for prompt in forbidden)
    first, second = texts[: len(everything)], texts[len(everything) :]
    assert sum(a != b for a, b in zip(first, second, strict=True)) > 0.7 * len(first)


@pytest.mark.parametrize(
    ("ask", "reply", "kept"),
    [
        ("What is the capital of Norway?", "It is Oslo.", ["capital", "norway"]),
        ("How much is seven plus two?", "7 plus 2 is 9.", ["seven", "plus", "two"]),
        ("My name is Daniel.", "Hello Daniel!", ["name", "daniel"]),
        ("What is the opposite of right?", "The opposite of right is left.", ["opposite", "right"]),
    ],
)
def test_words_that_the_reply_repeats_are_kept(ask: str, reply: str, kept: list[str]) -> None:
    rng = random.Random(0)
    reworded = [reword(ask, reply, rng) for _ in range(300)]
    assert len(set(reworded)) > 30
    complete = [text for text in reworded if all(word in text.lower() for word in kept)]
    assert len(complete) > 0.9 * len(reworded)  # the others have a misspelt word


def test_contractions_are_not_reworded() -> None:
    rng = random.Random(0)
    reworded = [reword("I can't say what's wrong", "", rng).lower() for _ in range(300)]
    assert not any("may't" in text or "could't" in text or "which's" in text for text in reworded)


def test_no_reworded_question_contains_a_held_out_prompt() -> None:
    rng, talk = random.Random(0), [("How tall is it, please?", "Very.")]
    forbidden = {letters("how tall is it")}
    unchecked = [next(lines_of([("How tall is it now?", "Very.")], set(), rng)) for _ in range(300)]
    assert any("howtallisit" in letters(text) for text in unchecked)
    checked = [next(lines_of(talk, forbidden, rng)) for _ in range(300)]
    assert {text for text in checked if "howtallisit" in letters(text)} == {talk[0][0]}
