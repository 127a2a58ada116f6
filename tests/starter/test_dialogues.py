"""What the base reads of our conversations: every reply as it is, questions in other words."""

import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from conversations import talks
from dialogues import held_out, in_other_words, letters, lines_of

SCRIPT = Path(__file__).parents[2] / "training/starter/dialogues.py"


def test_each_talk_is_there_in_every_copy_and_no_held_out_prompt(tmp_path: Path) -> None:
    out = tmp_path / "talks.parquet"
    subprocess.run([sys.executable, SCRIPT, out, "--copies=2"], check=True)
    texts = pq.read_table(out).column("text").to_pylist()
    everything = talks()
    assert len(texts) == 2 * len(everything)
    held = held_out()
    assert len(held) > 200
    for text, talk in zip(texts, [*everything, *everything], strict=True):
        lines = text.split("\n")
        assert lines[1::2] == [reply for _, reply in talk]
        said = "|".join(letters(line) for line in lines[::2])
        assert not any(prompt in said for prompt in held)
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
def test_what_a_question_is_about_stays(ask: str, reply: str, kept: list[str]) -> None:
    rng = random.Random(0)
    changed = [in_other_words(ask, reply, rng) for _ in range(300)]
    assert len(set(changed)) > 30
    whole = [text for text in changed if all(word in text.lower() for word in kept)]
    assert len(whole) > 0.9 * len(changed)  # the rest has a misspelt word


def test_contractions_stay() -> None:
    rng = random.Random(0)
    changed = [in_other_words("I can't say what's wrong", "", rng).lower() for _ in range(300)]
    assert not any("may't" in text or "could't" in text or "which's" in text for text in changed)


def test_no_other_words_are_a_held_out_prompt() -> None:
    """Neither alone nor with a lead-in or an ending."""
    rng, talk = random.Random(0), [("How tall is it, please?", "Very.")]
    held = {letters("how tall is it")}
    said = [next(lines_of([("How tall is it now?", "Very.")], set(), rng)) for _ in range(300)]
    assert any("howtallisit" in letters(text) for text in said)
    said = [next(lines_of(talk, held, rng)) for _ in range(300)]
    assert {text for text in said if "howtallisit" in letters(text)} == {talk[0][0]}
