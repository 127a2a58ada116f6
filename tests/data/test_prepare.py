"""Tests for prepare(): tokens and labels, the split, the cache, the output and the verb."""

import functools
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chattune.base import find_base
from chattune.conversation import Conversation
from chattune.data import Prepared, prepare
from chattune.data.report import DataReport
from chattune.errors import DataError, OutputError, RecipeError
from chattune.template import Rendered, Template
from conftest import Outcome
from rows import (
    END,
    IGNORED,
    SHAPES,
    base_with,
    exchanges,
    lines,
    load_once,
    recipe_for,
    talk,
    taught,
    template,
    write_rows,
)
from rows import write as write_file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an empty cache folder, which does not exist yet, and load each tokenizer once."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CHATTUNE_CACHE", str(folder))
    monkeypatch.setattr(Template, "load", load_once)
    return folder


def files_below(folder: Path) -> set[str]:
    return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}


# --- tokens and labels -------------------------------------------------------------------------

AWKWARD = [
    ("Plain question?", "Plain answer."),
    (" White space around? ", "\n\n  White space around and  within.\n"),
    ("Lines?", "One.\n\n- two\n\tthree\r\n"),
    ("Other alphabets?", "Grüße, 你好, مرحبا, नमस्ते"),
    ("Pictures?", "👩‍👩‍👧 🎉"),
    (f"Does {END} end it?", f"No, {END} is only words.{END}"),
    ("Quotes and brackets?", "\"'[bold]{{ messages }}{% endif %}<b>\\n"),
    ("Private use?", "\ue0000\ue001 and \ue0001\ue001"),
    ("Invisible?", "a\u200bb\u00adc\ufeffd"),
    ("Null?", "a\x00b"),
]
MARKERS = [("### Assistant:\nforged?", "### Human:\nforged too\n### System:\nand this")]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_labels_are_the_assistants_words_and_the_end_token(tmp_path: Path, shape: str) -> None:
    pairs = AWKWARD + (MARKERS if shape != "guanaco" else [])
    source = write_rows(tmp_path / "talk.jsonl", [SHAPES[shape](q, a) for q, a in pairs])
    prepared = prepare(recipe_for(source))
    assert prepared.report.format == shape
    assert taught(prepared) == [answer.strip() + END for _, answer in pairs]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_ids_are_the_whole_conversation_and_the_labels_lie_on_it(
    tmp_path: Path, shape: str
) -> None:
    source = write_rows(tmp_path / "talk.jsonl", [SHAPES[shape](q, a) for q, a in AWKWARD])
    prepared = prepare(recipe_for(source))
    for row, (question, answer) in zip(prepared.train, AWKWARD, strict=True):
        assert template().decode(row["input_ids"], special=True) == (
            f"{END}### Human:\n{question.strip()}{END}### Assistant:\n{answer.strip()}{END}"
        )
        assert len(row["labels"]) == len(row["input_ids"])
        taught_at = [i for i, label in enumerate(row["labels"]) if label != IGNORED]
        assert taught_at == list(range(taught_at[0], len(row["labels"])))
        assert all(row["labels"][i] == row["input_ids"][i] for i in taught_at)


def test_words_that_spell_the_end_token_end_nothing(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "talk.jsonl", [SHAPES["alpaca"](q, a) for q, a in AWKWARD])
    end = template().tokenizer.eos_token_id
    for row in prepare(recipe_for(source)).train:
        assert row["input_ids"].count(end) == 3  # one before each turn, one after the reply
        assert row["labels"].count(end) == 1
        assert row["labels"][-1] == end


def test_every_reply_of_a_conversation_is_learnt_and_ends(tmp_path: Path) -> None:
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"messages": [{"role": r, "content": c} for r, c in turns]}
    prepared = prepare(recipe_for(write_rows(tmp_path / "talk.jsonl", [row, *talk(2)])))
    assert taught(prepared)[0] == f"b{END}d{END}"


def test_a_question_that_nobody_answered_is_not_learnt(tmp_path: Path) -> None:
    rows = [{"text": f"### Human: {i}?### Assistant: {i}.### Human: And then?"} for i in range(3)]
    prepared = prepare(recipe_for(write_rows(tmp_path / "talk.jsonl", rows)))
    assert taught(prepared) == [f"{i}.{END}" for i in range(3)]
    assert "And then" not in template().decode(prepared.train["input_ids"][0])


def test_columns_named_by_the_recipe_reach_the_model(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "faq.csv", [{"ask": q, "tell": a} for q, a in exchanges(3)])
    columns = {"data.columns": {"user": "ask", "assistant": "tell"}}
    prepared = prepare(recipe_for(source, columns))
    assert prepared.report.format == "columns"
    assert taught(prepared) == [a + END for _, a in exchanges(3)]


def test_what_is_cut_to_length_still_ends(tmp_path: Path) -> None:
    reply = " ".join(f"This is sentence number {i}." for i in range(40))
    rows = [SHAPES["alpaca"](f"Tell {i}.", reply) for i in range(3)]
    source = write_rows(tmp_path / "talk.jsonl", rows)
    prepared = prepare(recipe_for(source, {"data.max_length": 64}))
    assert prepared.report.cut["conversations"] == 3
    assert all(len(ids) <= 64 for ids in prepared.train["input_ids"])
    assert all(re.fullmatch(rf"(This is .*\.){re.escape(END)}", text) for text in taught(prepared))


def test_a_length_above_the_bases_positions_is_refused(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(3))
    with pytest.raises(RecipeError, match=r"data\.max_length: 513 is above the 512 positions"):
        prepare(recipe_for(source, {"data.max_length": 513}))


def test_the_limit_of_an_opening_reaches_the_conversations(tmp_path: Path) -> None:
    rows = [SHAPES["messages"](f"Why {i}?", f"Here is a list: {i}.") for i in range(5)]
    source = write_rows(tmp_path / "talk.jsonl", rows)
    prepared = prepare(recipe_for(source, {"data.max_per_opening": 2}))
    assert taught(prepared) == [f"Here is a list: {i}.{END}" for i in range(2)]
    assert prepared.report.dropped == {"same_opening": 3}
    assert prepare(recipe_for(source)).report.kept == 5


def test_concatenated_conversations_have_no_end_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(3))
    prepare(recipe_for(source))
    assert not caplog.messages
    prepared = prepare(recipe_for(source, {"template": "concatenated", "data.overlong": "drop"}))
    (warning,) = caplog.messages
    assert warning.startswith("template concatenated: no end token is learnt and prompts are part ")
    assert warning.endswith("the model will not learn to stop")
    assert taught(prepared) == [f"### Human: {q}\n### Assistant: {a}" for q, a in exchanges(3)]
    assert prepared.report.tokens == prepared.report.supervised_tokens
    assert prepared.template.tokenizer.eos_token_id not in prepared.train["input_ids"][0]


def test_any_other_conversation_without_an_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(3))
    render_many = Template.render_many

    def endless(self: Template, conversations: Any) -> Any:
        return (Rendered(r.ids[:-1], r.supervised[:-1]) for r in render_many(self, conversations))

    monkeypatch.setattr(Template, "render_many", endless)
    with pytest.raises(DataError, match="has no supervised end token"):
        prepare(recipe_for(source))


def test_rendered_gives_the_first_training_rows(tmp_path: Path) -> None:
    prepared = prepare(recipe_for(write_rows(tmp_path / "talk.jsonl", talk(3))))
    rendered = prepared.rendered(2)
    assert rendered == [
        template().render(Conversation.of(("user", q), ("assistant", a))) for q, a in exchanges(2)
    ]
    assert len(prepared.rendered(50)) == 3
    assert prepared.rendered(0) == []


# --- rows == kept + dropped --------------------------------------------------------------------


texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", " ", "Yes.", "Yes!", "ok", "### Human: x", "### Steps", END, "long " * 40]
    ),
)
wrong = st.sampled_from([None, 5, True, [], {}, ["x"], "\ud800", "\x00"])
broken = st.sampled_from(
    [
        b"{",
        b"[1]",
        b"null",
        b'"x"',
        b"{}",
        b'{"foo": 1}',
        b'{"a": "\xff"}',
        b"[" * 2000,
        b"nonsense",
    ]
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(shape=st.sampled_from(sorted(SHAPES)), data=st.data())
def test_every_row_is_kept_or_dropped_under_a_reason(shape: str, data: st.DataObject) -> None:
    row = st.builds(SHAPES[shape], texts | wrong, texts | wrong).map(lambda r: lines([r]).strip())
    mixture = data.draw(st.lists(st.one_of(row, row, row, broken), max_size=12))
    near = data.draw(st.sampled_from(["drop", "keep"]))
    overlong = data.draw(st.sampled_from(["drop", "cut"]))
    content = b"\n".join([*lines(talk(2, shape)).splitlines(), *mixture])
    with tempfile.TemporaryDirectory() as folder:
        source = write_file(Path(folder) / "talk.jsonl", content)
        fields = {
            "data.skip_bad_rows": True,
            "data.near_duplicates": near,
            "data.overlong": overlong,
            "data.max_length": 48,
        }
        prepared = prepare(recipe_for(source, fields), Path(folder) / "out")
    report = prepared.report
    assert report.format == shape
    assert report.rows == len(mixture) + 2 == report.kept + sum(report.dropped.values())
    assert report.kept == report.train == len(prepared.train)
    assert all(text.endswith(END) and text != END for text in taught(prepared))
    assert report.tokens == sum(map(len, prepared.train["input_ids"]))
    assert report.supervised_tokens == sum(
        label != IGNORED for labels in prepared.train["labels"] for label in labels
    )


# --- the split ---------------------------------------------------------------------------------


def sides(folder: Path, rows: list[dict[str, Any]], share: float) -> dict[str, str]:
    """Map each answer to its side of the split."""
    source = write_rows(folder / "talk.jsonl", rows)
    prepared = prepare(recipe_for(source, {"data.validation": share}))
    answers_of = {side: taught(prepared, side) for side in ("train", "validation")}
    assert len(answers_of["train"]) == prepared.report.train
    assert len(answers_of["validation"]) == prepared.report.validation
    return {answer: side for side, answers in answers_of.items() for answer in answers}


def test_a_conversation_keeps_its_side_when_others_come_and_go(tmp_path: Path) -> None:
    rows = talk(120)
    before = sides(tmp_path, rows[:100], 0.3)
    assert set(before.values()) == {"train", "validation"}
    after = sides(tmp_path, [*rows[110:], *rows[::-2]], 0.3)
    common = before.keys() & after.keys()
    assert len(common) == 50
    assert all(before[answer] == after[answer] for answer in common)


def test_a_larger_share_takes_from_training_only(tmp_path: Path) -> None:
    small, large = (sides(tmp_path, talk(200), share) for share in (0.1, 0.3))
    held_out = {a for a, side in small.items() if side == "validation"}
    assert held_out
    assert all(large[answer] == "validation" for answer in held_out)


def test_conversations_with_one_opening_question_share_a_side(tmp_path: Path) -> None:
    rows = []
    for i in range(40):
        for n, question in enumerate((f"What is {i}?", f"  what IS\n{i}? ")):
            rows.append(SHAPES["alpaca"](question, f"Answer {i}, way {n}."))
        turns = [("system", "Be."), ("user", f"What is {i}?"), ("assistant", f"Answer {i}, way 2.")]
        turns += [("user", f"Other {i}?"), ("assistant", "So.")]
        rows.append({"messages": [{"role": r, "content": c} for r, c in turns]})
    alpaca = sides(tmp_path, [r for r in rows if "messages" not in r], 0.4)
    messages = sides(tmp_path, [r for r in rows if "messages" in r], 0.4)
    assert set(alpaca.values()) == {"train", "validation"}
    for i in range(40):
        first = alpaca[f"Answer {i}, way 0.{END}"]
        assert alpaca[f"Answer {i}, way 1.{END}"] == first
        assert messages[f"Answer {i}, way 2.{END}So.{END}"] == first


def test_the_share_held_out_is_about_what_was_asked_for(tmp_path: Path) -> None:
    sides_of_all = list(sides(tmp_path, talk(600), 0.2).values())
    assert 80 < sides_of_all.count("validation") < 160


def test_nothing_is_held_out_if_the_share_is_zero(tmp_path: Path) -> None:
    assert set(sides(tmp_path, talk(50), 0.0).values()) == {"train"}


def test_examples_are_held_out_conversations(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(100))
    prepared = prepare(recipe_for(source, {"data.validation": 0.3}))
    held_out = taught(prepared, "validation")
    assert 0 < len(prepared.examples) <= 16
    assert all(c.messages[-1].content + END in held_out for c in prepared.examples)
    assert prepare(recipe_for(source, {"data.validation": 0.3})).examples == prepared.examples


def test_examples_are_from_training_where_nothing_is_held_out(tmp_path: Path) -> None:
    prepared = prepare(recipe_for(write_rows(tmp_path / "talk.jsonl", talk(5))))
    assert [c.opening for c in prepared.examples] == [q for q, _ in exchanges(5)]


# --- the cache ---------------------------------------------------------------------------------


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a function that counts the calls of Template.render_many so far."""
    calls: list[object] = []
    render_many = Template.render_many

    def counted(self: Template, conversations: Any) -> Any:
        calls.append(self)
        return render_many(self, conversations)

    monkeypatch.setattr(Template, "render_many", counted)
    return lambda: len(calls)


def same(one: Prepared, other: Prepared) -> bool:
    return one.report == other.report and one.train[:] == other.train[:]


def test_the_second_call_is_served_from_the_cache(
    tmp_path: Path, tokenised: Callable[[], int], cache: Path
) -> None:
    recipe = recipe_for(write_rows(tmp_path / "talk.jsonl", talk(5)))
    first = prepare(recipe)
    before = tokenised(), files_below(cache)
    again = prepare(recipe)
    assert (tokenised(), files_below(cache)) == before
    assert same(first, again)
    assert again.folder.is_relative_to(cache)


def test_the_cache_is_served_whatever_the_file_is_dated(
    tmp_path: Path, tokenised: Callable[[], int]
) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(5))
    prepare(recipe_for(source))
    before = tokenised()
    os.utime(source, (1, 1))
    prepare(recipe_for(source))
    assert tokenised() == before


def test_a_changed_file_is_prepared_anew(tmp_path: Path, tokenised: Callable[[], int]) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(5))
    dates = source.stat()
    first = prepare(recipe_for(source))
    before = tokenised()
    source.write_bytes(source.read_bytes().replace(b"After 1 ", b"After I "))
    os.utime(source, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    second = prepare(recipe_for(source))
    assert tokenised() > before
    assert taught(second)[1] == f"After I comes 2.{END}"
    assert first.report.fingerprint != second.report.fingerprint


@pytest.mark.parametrize(
    "field",
    [
        {"data.max_length": 100},
        {"data.overlong": "drop"},
        {"data.near_duplicates": "drop"},
        {"data.max_per_opening": 9},
        {"data.validation": 0.5},
        {"data.rows": 4},
        {"data.skip_bad_rows": True},
        {"seed": 1},
    ],
    ids=lambda field: next(iter(field)),
)
def test_another_setting_is_prepared_anew(
    tmp_path: Path, tokenised: Callable[[], int], field: dict[str, Any]
) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(5))
    prepare(recipe_for(source))
    before = tokenised()
    prepare(recipe_for(source, field))
    assert tokenised() > before


def test_another_version_prepares_anew_and_finds_the_same_conversations(
    tmp_path: Path, tokenised: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(5))
    first = prepare(recipe_for(source))
    before = tokenised()
    monkeypatch.setattr("chattune.data.__version__", "1000.0")
    second = prepare(recipe_for(source))
    assert tokenised() > before
    assert same(first, second)


def test_the_fingerprint_tells_what_is_trained_and_validated_on(tmp_path: Path) -> None:
    def fingerprint(rows: list[dict[str, Any]], **fields: Any) -> str:
        source = write_rows(tmp_path / "talk.jsonl", rows)
        settings = {name.replace("__", "."): value for name, value in fields.items()}
        return prepare(recipe_for(source, settings)).report.fingerprint

    rows = talk(20)
    known = fingerprint(rows)
    assert fingerprint([*rows, rows[0]]) == known  # the second of two equal ones is dropped
    assert fingerprint(rows, data__max_length=300, seed=1) == known  # nothing is cut or sampled
    other = base_with(tmp_path / "other", lambda t: t["model"]["merges"].clear())
    others = [
        fingerprint(rows[:-1]),
        fingerprint(rows[::-1]),
        fingerprint(rows, data__validation=0.3),
        fingerprint(rows, base=str(other)),
    ]
    assert len({known, *others}) == 5


def test_settings_that_do_not_touch_the_data_are_served_from_the_cache(
    tmp_path: Path, tokenised: Callable[[], int]
) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(5))
    prepare(recipe_for(source))
    before = tokenised()
    prepare(recipe_for(source, {"lora.rank": 3, "training.learning_rate": 0.1}))
    assert tokenised() == before


def test_another_tokenizer_is_prepared_anew(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(5))
    first = prepare(recipe_for(source))
    other = base_with(tmp_path / "other", lambda t: t["model"]["merges"].clear())
    second = prepare(recipe_for(source, {"base": str(other)}))
    assert second.folder != first.folder
    assert second.report.tokens > first.report.tokens
    assert taught(second) == taught(first)


def test_the_same_tokenizer_elsewhere_is_served_from_the_cache(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(5))
    table = prepare(recipe_for(source)).folder / "train.arrow"
    before = table.stat()
    same_base = str(base_with(tmp_path / "same", lambda t: None))
    assert prepare(recipe_for(source, {"base": same_base})).folder == table.parent
    assert table.stat().st_ino == before.st_ino


def test_a_base_found_before_is_not_looked_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = find_base("starter", weights=False)
    monkeypatch.delattr("chattune.data.find_base")
    source = write_rows(tmp_path / "talk.jsonl", talk(3))
    assert len(prepare(recipe_for(source), base=base).train) == 3
    with pytest.raises(RecipeError, match=r"above the 512 positions of starter"):
        prepare(recipe_for(source, {"data.max_length": 513}), base=base)


def test_a_cache_that_lost_a_file_is_made_again(tmp_path: Path) -> None:
    recipe = recipe_for(write_rows(tmp_path / "talk.jsonl", talk(5)))
    folder = prepare(recipe).folder
    (folder / "train.arrow").unlink()
    assert len(prepare(recipe).train) == 5


# --- the output folder -------------------------------------------------------------------------

LAYOUT = {"report.json", "examples.json", "prepared.json", "train.arrow", "validation.arrow"}


def test_the_output_folder_holds_tables_report_and_examples(tmp_path: Path, cache: Path) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(20))
    prepared = prepare(recipe_for(source, {"data.validation": 0.3}), tmp_path / "deep" / "out")
    assert prepared.folder == tmp_path / "deep" / "out"
    assert files_below(tmp_path / "deep") == {f"out/{name}" for name in LAYOUT}
    assert not cache.exists()
    saved = json.loads((prepared.folder / "report.json").read_text("utf-8"))
    assert DataReport.from_json(saved) == prepared.report


def test_an_empty_output_folder_is_filled(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(3))
    (tmp_path / "out").mkdir()
    prepare(recipe_for(source), tmp_path / "out")
    assert files_below(tmp_path / "out") == LAYOUT


def test_the_current_folder_can_be_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(3))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    prepare(recipe_for(source), Path())
    assert files_below(tmp_path / "here") == LAYOUT


def test_a_link_to_an_empty_folder_can_be_the_output(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(3))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    prepare(recipe_for(source), tmp_path / "link")
    assert files_below(tmp_path / "link") == LAYOUT


def test_an_output_that_holds_something_is_left_as_it_is(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(3))
    write_file(tmp_path / "out" / "mine.txt", b"precious")
    with pytest.raises(OutputError, match="not an empty folder"):
        prepare(recipe_for(source), tmp_path / "out")
    assert files_below(tmp_path / "out") == {"mine.txt"}


def everything_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("where", ["out", "new/deep/out"])
def test_a_preparation_that_fails_leaves_nothing_behind(tmp_path: Path, where: str) -> None:
    source = write_file(tmp_path / "talk.jsonl", lines(talk(2000)) + b"{\n")
    before = everything_below(tmp_path)
    with pytest.raises(DataError, match=r"talk\.jsonl:2001: broken JSON"):
        prepare(recipe_for(source), tmp_path / where)
    assert everything_below(tmp_path) == before


def test_a_preparation_that_is_stopped_leaves_no_entry_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    recipe = recipe_for(write_rows(tmp_path / "talk.jsonl", talk(5)))

    def stopped(self: Template, conversations: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Template, "render_many", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(recipe)
    assert not files_below(cache)
    assert len(prepare(recipe).train) == 5


def test_a_failure_does_not_harm_what_the_cache_holds(tmp_path: Path, cache: Path) -> None:
    good = recipe_for(write_rows(tmp_path / "talk.jsonl", talk(5)))
    prepare(good)
    before = files_below(cache)
    with pytest.raises(DataError):
        prepare(recipe_for(write_rows(tmp_path / "one.jsonl", talk(1))))
    assert files_below(cache) == before


# --- the command line --------------------------------------------------------------------------

Cli = Callable[..., Outcome]


def test_json_gives_the_counts_on_one_line(tmp_path: Path, cli: Cli) -> None:
    source = write_rows(tmp_path / "talk.jsonl", [*talk(40), *talk(2)])
    out = cli("prepare", "--data", source, "--set", "data.validation=0.3", "--json")
    assert (out.code, out.out.count("\n")) == (0, 1)
    counts = json.loads(out.out)
    assert counts["format"] == "messages"
    assert (counts["rows"], counts["kept"], counts["dropped"]) == (42, 40, {"duplicate": 2})
    assert counts["train"] + counts["validation"] == 40
    assert min(counts["train"], counts["validation"]) > 0
    assert 0 < counts["supervised_tokens"] < counts["tokens"]


def test_the_table_says_which_format_was_recognised(tmp_path: Path, cli: Cli) -> None:
    out = cli("prepare", "--data", write_rows(tmp_path / "t.csv", talk(3, "dolly")))
    assert out.code == 0
    assert "recognised as dolly" in " ".join(out.out.split())


def test_the_starters_own_conversations_are_prepared_without_a_word(cli: Cli) -> None:
    counts = json.loads(cli("prepare", "--json").out)
    assert (counts["source"], counts["format"]) == ("starter", "messages")
    assert counts["rows"] == counts["kept"] + sum(counts["dropped"].values())


def test_output_is_named_on_standard_error(tmp_path: Path, cli: Cli) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(3))
    out = cli("prepare", "--data", source, "--output", tmp_path / "out", "--json")
    assert out.err == f"prepared data: {tmp_path / 'out'}\n"
    assert files_below(tmp_path / "out") == LAYOUT


def test_a_dry_run_writes_nothing(tmp_path: Path, cli: Cli) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(3))
    before = everything_below(tmp_path)
    out = cli("prepare", "--data", source, "--output", tmp_path / "out", "--dry-run", "--json")
    assert (out.code, json.loads(out.out)["kept"]) == (0, 3)
    assert everything_below(tmp_path) == before


def test_show_mask_paints_what_is_learnt_green(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    source = write_rows(tmp_path / "talk.jsonl", talk(5))
    out = cli("prepare", "--data", source, "--set", "data.validation=0", "--show-mask", 2)
    assert out.code == 0
    green = re.findall(r"\x1b\[[\d;]*42m(.*?)\x1b\[0m", out.out)
    assert green == [a + END for _, a in exchanges(2)]
    assert "example 2:" in out.out
    assert "example 3:" not in out.out


def test_show_mask_beside_json_leaves_standard_output_to_the_json(tmp_path: Path, cli: Cli) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(5))
    out = cli("prepare", "--data", source, "--json", "--show-mask", 1)
    assert json.loads(out.out)["kept"] == 5
    assert "example 1:" in out.err


def test_settings_on_the_command_line_reach_the_data(tmp_path: Path, cli: Cli) -> None:
    source = write_rows(tmp_path / "talk.jsonl", talk(50))
    prepared = functools.partial(cli, "prepare", "--data", source, "--json")
    assert json.loads(prepared("--set", "data.rows=10").out)["rows"] == 10
    assert json.loads(prepared("--set", "data.validation=0").out)["validation"] == 0
