"""Prompt sets: those that are part of chattune, and files of many kinds."""

import json
from collections import Counter
from pathlib import Path

import pytest

from chattune.conversation import Message
from chattune.errors import DataError
from chattune.evaluate.prompts import hash_of, load_prompts, shipped_sets


def test_the_general_set_has_eighty_prompts_of_eight_kinds() -> None:
    prompts = load_prompts("general")
    assert set(Counter(prompt.kind for prompt in prompts).values()) == {10}
    assert len({prompt.kind for prompt in prompts}) == 8
    assert len({prompt.turns for prompt in prompts}) == 80
    recall = [prompt for prompt in prompts if prompt.kind.startswith("recall")]
    assert all(len(prompt.turns) == 3 and prompt.required for prompt in recall)


def test_every_shipped_set_can_be_loaded() -> None:
    assert shipped_sets() == ["general", "starter", "study"]
    assert [len(load_prompts(name)) for name in shipped_sets()] == [80, 300, 5]


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "content", "turns", "reference"),
    [
        ("a.txt", "How are you?\n\nWho are you?\n", ["How are you?"], None),
        ("a.jsonl", lines({"prompt": "Hi"}), ["Hi"], None),
        ("a.jsonl", lines({"turns": ["Hi", "And you?"]}), ["Hi", "And you?"], None),
        ("a.jsonl", lines({"prompt": "Hi", "reference": "Hello!"}), ["Hi"], "Hello!"),
        (
            "a.jsonl",
            lines({"messages": [{"role": "user", "content": "Hi"}], "required": ["hello"]}),
            ["Hi"],
            None,
        ),
        (
            "a.jsonl",
            lines({"messages": [{"role": "user", "content": "Hi"},
                                {"role": "assistant", "content": "Hello!"}]}),
            ["Hi"],
            "Hello!",
        ),
        ("a.jsonl", lines({"prompt": "Hi", "completion": "Hello!"}), ["Hi"], "Hello!"),
        ("a.json", json.dumps([{"instruction": "Hi", "output": "Hello!"}]), ["Hi"], "Hello!"),
        ("a.csv", "question,answer\nHi,Hello!\n", ["Hi"], "Hello!"),
    ],
)  # fmt: skip
def test_files_of_prompts_and_of_conversations(
    tmp_path: Path, name: str, content: str, turns: list[str], reference: str | None
) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    first = load_prompts(str(tmp_path / name))[0]
    assert list(first.turns) == turns
    assert first.reference == reference


def test_messages_before_the_turns_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    path.write_text(
        lines({"id": "x", "system": "Be kind.", "messages": history, "turns": ["Bye"],
               "required": [["bye", "see you"]], "forbidden": ["hello"]})
    )  # fmt: skip
    (prompt,) = load_prompts(str(path))
    assert prompt.name == "a/x"
    assert prompt.messages == (
        Message("system", "Be kind."),
        Message("user", "Hi"),
        Message("assistant", "Hello!"),
    )
    assert (prompt.turns, prompt.required) == (("Bye",), (("bye", "see you"),))
    assert prompt.forbidden == ("hello",)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (lines({"prompt": "Hi", "wish": 1}), "a.jsonl:1: wish: unknown field"),
        (lines({"turns": []}), "a.jsonl:1: no message of the user"),
        (lines({"turns": "Hi"}), "a.jsonl:1: turns: input should be a valid array"),
        (lines({"prompt": "Hi"}) + "{", "a.jsonl:2: "),
        (lines({"prompt": "Hi", "id": 1}, {"prompt": "Ho", "id": 1}), "a.jsonl:2: the id 1 is"),
        (lines({"prompt": "  "}), "a.jsonl:1: prompt: "),
        (
            lines({"messages": [{"role": "user", "content": "Hi"}], "turns": ["Ho"]}),
            "a.jsonl:1: messages: user and assistant do not take turns",
        ),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError) as error:
        load_prompts(str(tmp_path / "a.jsonl"))
    assert problem in str(error.value)


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; give a file, or one of general"):
        load_prompts("generall")
    (tmp_path / "a.txt").write_text("\n \n")
    with pytest.raises(DataError, match="holds no prompt"):
        load_prompts(str(tmp_path / "a.txt"))


def test_the_hash_depends_on_every_field() -> None:
    prompts = load_prompts("general")
    assert hash_of(prompts) == hash_of(load_prompts("general"))
    assert hash_of(prompts[1:]) != hash_of(prompts)
