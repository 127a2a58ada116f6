"""Checks, and a judge behind an endpoint of our own on this machine."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from chattune.conversation import Message
from chattune.errors import DataError, UserError
from chattune.evaluate import Judged, Sample
from chattune.evaluate.checks import apply_checks, read_checks
from chattune.evaluate.judge import Judge
from chattune.evaluate.verdicts import judge_pairs, length_controlled, read_votes


class Endpoint:
    """An OpenAI-compatible server that answers each question as `answer` says."""

    def __init__(self) -> None:
        self.answer: Callable[[str], str] = lambda question: "tie"
        self.bodies: list[dict[str, Any]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.bodies.append(body)
                text = endpoint.answer(body["messages"][0]["content"])
                content = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
                self.send_response(200 if self.path == "/v1/chat/completions" else 404)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("CHATTUNE_CACHE", str(tmp_path / "cache"))
    endpoint = Endpoint()
    threading.Thread(target=endpoint.server.serve_forever, daemon=True).start()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


def judged(*replies: str, failing: int = 0) -> list[Judged]:
    return [
        Judged(
            Sample(f"set/{i}", "", 1, 0, (Message("user", f"Question {i}?"),), reply),
            {"echo": [(0, 1)]} if i < failing else {},
        )
        for i, reply in enumerate(replies)
    ]


def prefers_good(question: str) -> str:
    """Prefer the reply that says good; of two equal ones, the first."""
    first, _, second = question.partition("[Answer 1]")[2].partition("[Answer 2]")
    return "1" if "good" in first or "good" not in second else "2"


def test_a_judge_is_asked_in_both_orders(endpoint: Endpoint) -> None:
    endpoint.answer = prefers_good
    judge = Judge(endpoint.url, "some-model")
    verdicts = judge_pairs(
        judge,
        judged("bad", "good", "bad", "good", "same"),
        judged("good", "bad", "worse", "very good", "same"),
        votes={"set/0": 1.0, "set/1": 1.0},
    )
    assert verdicts.by_prompt == {f"set/{i}": v for i, v in enumerate([1, 0, 0.5, 0.5, 0.5])}
    assert (verdicts.flipped, verdicts.unclear) == (2, 0)
    assert verdicts.win_rate.value == 0.5
    assert verdicts.agreement is not None
    assert verdicts.agreement.value == 0.5
    assert judge.asked == len(endpoint.bodies) == 8
    assert endpoint.bodies[0]["model"] == "some-model"


def test_answers_are_kept_and_their_number_is_limited(endpoint: Endpoint) -> None:
    endpoint.answer = prefers_good
    pair = judged("bad", "bad"), judged("good", "good")
    with pytest.raises(UserError, match="budget of 3 requests is used up"):
        judge_pairs(Judge(endpoint.url, "m", budget=3), *pair)
    assert len(endpoint.bodies) == 3
    second = Judge(endpoint.url, "m", budget=1)
    assert judge_pairs(second, *pair).win_rate.value == 1
    assert (second.asked, len(endpoint.bodies)) == (1, 4)
    judge_pairs(Judge(endpoint.url, "another", budget=4), *pair)
    assert len(endpoint.bodies) == 8


def test_an_answer_that_is_no_verdict_is_counted(endpoint: Endpoint) -> None:
    endpoint.answer = lambda question: "I cannot say."
    verdicts = judge_pairs(Judge(endpoint.url, "m"), judged("a"), judged("b"))
    assert (verdicts.by_prompt, verdicts.unclear) == ({"set/0": 0.5}, 1)


def test_an_endpoint_that_does_not_answer_is_named() -> None:
    with pytest.raises(
        UserError, match=r"judge http://127\.0\.0\.1:9/v1/chat/completions: no answer"
    ):
        Judge("http://127.0.0.1:9/v1", "m").ask("Hello?")


def test_a_preference_for_length_is_taken_out() -> None:
    longer = [10, -10] * 50
    assert length_controlled([1.0, 0.0] * 50, longer) == pytest.approx(0.5, abs=0.01)
    assert length_controlled([1.0] * 80 + [0.0] * 20, [0] * 100) == pytest.approx(0.8, abs=0.01)


def test_votes_are_read_and_wrong_ones_named(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_text('{"prompt": "set/0", "better": "b"}\n\n{"prompt": "set/1", "better": "tie"}\n')
    assert read_votes(path) == {"set/0": 1.0, "set/1": 0.5}
    path.write_text('{"prompt": "set/0", "better": "c"}\n')
    with pytest.raises(DataError, match=r"votes.jsonl:1: not a vote"):
        read_votes(path)


def checks_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "checks.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("check", "share", "passed"),
    [
        ("contains: paris", 0.5, False),
        ("contains: [paris, berlin]", 1.0, True),
        ("{contains: paris, at_least: 0.5}", 0.5, True),
        ("{contains: paris, prompts: set/0}", 1.0, True),
        ("excludes: london", 1.0, True),
        ("excludes: berlin", 0.5, False),
        ("regex: '^Par'", 0.5, False),
        ("words: {at_most: 3}", 0.5, False),
        ("words: {at_least: 1}", 1.0, True),
        ("language: en", 1.0, True),
        ("failure: echo", 0.5, False),
        ("{failure: echo, at_most: 0.5}", 0.5, True),
        ("failure: empty", 0.0, True),
    ],
)
def test_checks(tmp_path: Path, check: str, share: float, passed: bool) -> None:
    samples = judged("Paris is it.", "It is the city of Berlin, I think.", failing=1)
    (outcome,) = apply_checks(read_checks(checks_file(tmp_path, f"- {check}")), samples)
    assert (outcome.share.value, outcome.passed) == (share, passed)
    assert ("passed" in str(outcome)) is passed
    assert bool(outcome.examples) is (share not in (0, 1) or not passed)


def test_a_check_may_ask_the_judge(tmp_path: Path, endpoint: Endpoint) -> None:
    endpoint.answer = lambda question: "Yes." if "Thank you" in question else "No."
    path = checks_file(tmp_path, "- {judge: 'Is it polite?', at_least: 0.5}")
    checks = read_checks(path, Judge(endpoint.url, "m"))
    samples = judged("Thank you!", "Go away.")
    (outcome,) = apply_checks(checks, samples, Judge(endpoint.url, "m"))
    assert (outcome.share.value, outcome.passed) == (0.5, True)
    with pytest.raises(UserError, match="needs a judge"):
        apply_checks(checks, samples)
    with pytest.raises(UserError, match="needs a judge"):
        read_checks(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("contains: a", "write a list of checks"),
        ("- {contains: a, regex: b}", "check 1: give exactly one of"),
        ("- contains: a\n- {}", "check 2: give exactly one of"),
        ("- failure: rude", "no such failure; there are not_stopping"),
        ("- regex: '('", "check 1: regex: "),
        ("- {contains: a, at_least: 2}", "check 1, at_least"),
        ("- wish: a", "check 1, wish"),
    ],
)
def test_wrong_checks_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(DataError) as error:
        read_checks(checks_file(tmp_path, text))
    assert problem in str(error.value)


def test_a_check_of_no_prompt_is_refused(tmp_path: Path) -> None:
    checks = read_checks(checks_file(tmp_path, "- {contains: a, prompts: other/*}"))
    with pytest.raises(DataError, match=r"no prompt is called 'other/\*'"):
        apply_checks(checks, judged("a"))
