"""What the base reads of our conversations: every reply as it is, questions in other words."""

import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from conversations import talks
from dialogues import held_out, in_other_words, letters

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
        assert not any(letters(line) in held for line in lines[::2])
    first, second = texts[: len(everything)], texts[len(everything) :]
    assert sum(a != b for a, b in zip(first, second, strict=True)) > 0.7 * len(first)


@pytest.mark.parametrize(
    ("ask", "kept"),
    [
        ("What is the capital of Norway?", ["capital", "norway"]),
        ("How much is seven plus two?", ["seven", "plus", "two"]),
        ("My name is Nora and I like cats.", ["name", "nora", "cats"]),
    ],
)
def test_what_a_question_is_about_stays(ask: str, kept: list[str]) -> None:
    rng = random.Random(0)
    changed = [in_other_words(ask, rng) for _ in range(300)]
    assert len(set(changed)) > 30
    whole = [text for text in changed if all(word in text.lower() for word in kept)]
    assert len(whole) > 0.9 * len(changed)  # the rest has a misspelt word
