"""Replies that were written elsewhere, through files and the command line."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from chattune.errors import DataError
from chattune.evaluate import evaluate_replies
from chattune.evaluate.replies_file import read_replies
from conftest import Outcome


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_replies_are_read_with_all_that_is_known_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(
        tmp_path / "mine.jsonl",
        {"prompt": "Hi", "reply": " Hello! ", "finish": "length", "label": "good"},
        {
            "id": "b", "seed": 2, "stopped": True, "reply": "Bye!", "required": ["bye"],
            "messages": [{"role": "user", "content": "Hi"},
                         {"role": "assistant", "content": "Hello!"},
                         {"role": "user", "content": "Bye"}],
        },
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        first, second = read_replies(path)
    assert "not read: label (in 1 lines)" in caplog.text
    assert (first.prompt, first.reply, first.stopped, first.turn) == ("mine/1", "Hello!", False, 1)
    assert (second.key, second.stopped, second.question) == (("mine/b", 2, 2), True, "Bye")
    assert second.required == (("bye",),)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "Hi"}, "mine.jsonl:1: reply: field required"),
        ({"reply": "Hi"}, "mine.jsonl:1: no message of the user"),
        ({"prompt": "Hi", "reply": "Ho", "finish": "eos"}, "mine.jsonl:1: finish: "),
        ([], "mine.jsonl:1: the line: "),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, row: object, problem: str) -> None:
    with pytest.raises(DataError) as error:
        read_replies(write(tmp_path / "mine.jsonl", row))
    assert problem in str(error.value)


def test_their_failures_are_found_without_a_model(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.jsonl",
        {"prompt": "What is tea?", "reply": "A drink.\n### Human: And coffee?", "stopped": False},
        {"prompt": "Name a colour.", "reply": "Blue.", "stopped": True},
    )
    done = evaluate_replies(path, output=tmp_path / "out")
    assert set(done.judged[0].failures) >= {"self_talk", "not_stopping"}
    assert done.judged[1].failures == {}
    assert done.scores["failures"]["self_talk"]["value"] == 0.5
    assert "written elsewhere" in done.scores["not_measured"]["copying"]


def test_the_command_line_takes_them(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", {"prompt": "Hi", "reply": "Hello!"})
    checks = tmp_path / "checks.yaml"
    checks.write_text("- contains: hello\n- contains: bye\n")
    done = cli("evaluate", "--replies", path, "--output", tmp_path / "out", "--checks", checks)
    assert done.code == 1
    assert "passed: contains: hello" in done.err
    assert "FAILED: contains: bye" in done.err
    assert "1 of 2 checks failed" in done.err
    assert cli("evaluate").code == 2
    assert cli("evaluate", "starter", "--replies", path).code == 2
    assert cli("evaluate", "--replies", path, "--prompts", "general").code == 2
    assert cli("evaluate", "--replies", path, "--engine", "fast").code == 2
