"""Tests of the starter's conversations and of their separation from the held-out prompts."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from chattune.base import starter_folder

TRAINING = Path(__file__).parents[2] / "training/starter"
EMBEDDED = starter_folder() / "conversations.jsonl"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def normalised(text: str) -> str:
    return re.sub(r"[^a-z0-9 ]", "", text.lower()).strip()


def test_the_embedded_conversations_are_what_the_generator_writes(tmp_path: Path) -> None:
    out = tmp_path / "conversations.jsonl"
    subprocess.run([sys.executable, TRAINING / "conversations.py", out], check=True)
    assert out.read_bytes() == EMBEDDED.read_bytes()


def test_conversations_have_one_to_four_turns_and_complete_replies() -> None:
    talks = [row["messages"] for row in rows(EMBEDDED)]
    assert len(talks) >= 1500
    for messages in talks:
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert 2 <= len(messages) <= 8
        for message in messages:
            assert message["content"].strip() == message["content"] != ""
            if message["role"] == "assistant":
                assert message["content"][-1] in '.!?"', message["content"]


@pytest.mark.parametrize("path", sorted(TRAINING.glob("topics/*.jsonl")), ids=lambda p: p.stem)
def test_a_topic_has_many_wordings(path: Path) -> None:
    for topic in rows(path):
        first, *later = (set(map(normalised, turn["ask"])) for turn in topic["turns"])
        assert len(first) >= 10, first
        assert all(len(wordings) >= 3 for wordings in later), first


def test_no_held_out_prompt_was_trained_on() -> None:
    heldout = rows(TRAINING / "heldout.jsonl")
    assert Counter(row["half"] for row in heldout) == {"development": 150, "test": 150}
    trained = {
        tuple(normalised(m["content"]) for m in row["messages"][: end + 1])
        for row in rows(EMBEDDED)
        for end in range(0, len(row["messages"]), 2)
    }
    for row in heldout:
        assert tuple(map(normalised, row["turns"])) not in trained, row["turns"]
        assert row["must"]
