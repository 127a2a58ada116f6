"""Tests for the report: its counts add up, are written and read, and shown in a terminal."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, Group
from rich.text import Text

from chattune.conversation import Conversation
from chattune.data import prepare
from chattune.data.report import DataReport, as_mask, as_table, languages, length_quantiles
from rows import END, exchanges, recipe_for, talk, template, write_rows

REPORT = DataReport(
    source="talk.jsonl",
    format="messages",
    rows=1250,
    kept=1200,
    dropped={"duplicate": 30, "empty_turn": 20},
    train=1100,
    validation=100,
    tokens=50_000,
    supervised_tokens=20_000,
    cut={"conversations": 7, "tokens": 900, "replies": 3},
    turns={1: 1000, 2: 200},
    length_quantiles={"0%": 10, "100%": 512},
    languages={"en": 300, "de": 100},
    fingerprint="0f",
)


def shown(report: DataReport) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(as_table(report))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_a_report_is_the_same_after_a_trip_through_json() -> None:
    assert DataReport.from_json(json.loads(json.dumps(REPORT.to_json()))) == REPORT


@pytest.mark.parametrize("wrong", [{"rows": 1251}, {"kept": 1199}, {"train": 1101}])
def test_a_report_that_does_not_add_up_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        dataclasses.replace(REPORT, **wrong)


@pytest.mark.parametrize(
    "text",
    [
        "talk.jsonl (recognised as messages)",
        "1,250 = 1,200 kept + 50 dropped (duplicate 30, empty_turn 20)",
        "1,100 train, 100 validation",
        "50,000, of which 20,000 supervised (40%)",
        "7 conversations, 900 tokens and 3 whole replies",
        "1: 1,000, 2: 200",
        "0%: 10, 100%: 512",
        "en 75%, de 25%",
    ],
)
def test_the_table_shows_every_count(text: str) -> None:
    assert text in shown(REPORT)


def test_the_table_says_when_nothing_was_dropped() -> None:
    assert "1,200 kept + 0 dropped" in shown(dataclasses.replace(REPORT, rows=1200, dropped={}))


@pytest.mark.parametrize("source", ["talk[train].jsonl", "x[/a].jsonl", "[bold]talk.jsonl"])
def test_the_table_shows_a_source_with_brackets_as_it_is(source: str) -> None:
    assert source in shown(dataclasses.replace(REPORT, source=source))


def test_quantiles_of_lengths() -> None:
    assert length_quantiles(list(range(101))) == {
        "0%": 0,
        "25%": 25,
        "50%": 50,
        "75%": 75,
        "95%": 95,
        "100%": 100,
    }


def test_quantiles_of_one_length() -> None:
    assert set(length_quantiles([7]).values()) == {7}


def test_languages_most_common_first() -> None:
    english = [
        Conversation.of(("user", f"Where is the {thing}?"), ("assistant", "It is over there."))
        for thing in ("house", "river", "garden")
    ]
    german = [
        Conversation.of(
            ("user", "Wo ist das Haus?"), ("assistant", "Es steht dort drüben am Fluss.")
        )
    ]
    assert languages(german + english) == {"en": 3, "de": 1}


def test_the_mask_marks_the_reply_and_its_end_token_and_nothing_else() -> None:
    conversation = Conversation.of(
        ("system", "Be kind."),
        ("user", "Hi [bold]there[/bold]"),
        ("assistant", "Hello!"),
        ("user", "Bye"),
        ("assistant", "See you."),
    )
    rendered = template().render(conversation)
    group = as_mask([rendered], template())
    assert isinstance(group, Group)
    (text,) = group.renderables
    assert isinstance(text, Text)
    marked = [text.plain[s.start : s.end] for s in text.spans if "green" in str(s.style)]
    assert marked == ["Hello!" + END, "See you." + END]
    count = f"{len(rendered.ids)} tokens, {sum(rendered.supervised)} supervised"
    assert text.plain.startswith(f"example 1: {count}\n")
    assert text.plain.partition("\n")[2] == template().decode(rendered.ids, special=True)


def test_the_mask_numbers_its_examples() -> None:
    one = template().render(Conversation.of(("user", "Hi"), ("assistant", "Hello")))
    group = as_mask([one, one], template())
    assert isinstance(group, Group)
    assert [str(r).partition(":")[0] for r in group.renderables] == ["example 1", "example 2"]


def test_the_report_counts_what_was_prepared(tmp_path: Path) -> None:
    rows = [*talk(4), *talk(1)]
    rows.append({"messages": [{"role": "user", "content": "Anybody?"}]})
    rows.append(
        {
            "messages": [
                {"role": r, "content": w}
                for r, w in [
                    ("user", "a?"),
                    ("assistant", "b."),
                    ("user", "c?"),
                    ("assistant", "d."),
                ]
            ]
        }
    )
    prepared = prepare(recipe_for(write_rows(tmp_path / "talk.jsonl", rows)), tmp_path / "out")
    report = prepared.report
    assert (report.rows, report.kept, report.train, report.validation) == (7, 5, 5, 0)
    assert report.dropped == {"duplicate": 1, "no_assistant_turn": 1}
    assert report.turns == {1: 4, 2: 1}
    ids = prepared.train["input_ids"]
    assert report.tokens == sum(map(len, ids))
    answers = [a for _, a in exchanges(4)] + ["b.", "d."]
    assert report.supervised_tokens == sum(len(template().encode(a)) + 1 for a in answers)
    assert report.length_quantiles["100%"] == max(map(len, ids))
    assert sum(report.languages.values()) == 5
