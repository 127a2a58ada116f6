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
from chattune.evaluate.prompts import load_prompts
from conversations import REPLIES

TRAINING = Path(__file__).parents[2] / "training/starter"
EMBEDDED = starter_folder() / "conversations.jsonl"
FEW = starter_folder() / "few.jsonl"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def normalised(text: str) -> str:
    return re.sub(r"[^a-z0-9 ]", "", text.lower()).strip()


@pytest.mark.parametrize(("path", "options"), [(EMBEDDED, []), (FEW, ["--few"])])
def test_the_embedded_conversations_are_what_the_generator_writes(
    path: Path, options: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "conversations.jsonl"
    subprocess.run([sys.executable, TRAINING / "conversations.py", out, *options], check=True)
    assert out.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("path", [EMBEDDED, FEW], ids=lambda p: p.stem)
def test_conversations_have_one_to_four_turns_and_complete_replies(path: Path) -> None:
    talks = [row["messages"] for row in rows(path)]
    assert len(talks) >= 1400
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


def test_the_few_have_every_reply_of_the_topics_a_few_times() -> None:
    occurred = Counter(m["content"] for row in rows(FEW) for m in row["messages"][1::2])
    for path in TRAINING.glob("topics/*.jsonl"):
        for topic in rows(path):
            assert all(occurred[turn["reply"]] >= REPLIES for turn in topic["turns"])
    for row in rows(TRAINING / "general.jsonl"):
        assert occurred[row["reply"]] == 2


@pytest.mark.parametrize("path", [EMBEDDED, FEW], ids=lambda p: p.stem)
def test_no_held_out_prompt_was_trained_on(path: Path) -> None:
    heldout = load_prompts("starter")
    assert Counter(prompt.kind for prompt in heldout) == {"development": 150, "test": 150}
    trained = {
        tuple(normalised(m["content"]) for m in row["messages"][: end + 1])
        for row in rows(path)
        for end in range(0, len(row["messages"]), 2)
    }
    for prompt in heldout:
        texts = [*(message.content for message in prompt.messages), *prompt.turns]
        assert tuple(map(normalised, texts)) not in trained, texts
        assert prompt.required
