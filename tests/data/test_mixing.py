"""Tests for data.mix through prepare(): how many of each source are kept, and which."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from chattune.data import Prepared, prepare
from chattune.data.formats import Row
from chattune.data.report import SourceCount, as_table
from chattune.errors import DataError
from chattune.recipe import Source
from chattune.template import Template
from conftest import Outcome
from rows import END, SHAPES, load_once, recipe_for, talk, taught, write_rows


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set an empty cache folder and load each tokenizer once."""
    monkeypatch.setenv("CHATTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Template, "load", load_once)


def answers(name: str, count: int, shape: str = "alpaca") -> list[dict[str, Any]]:
    """Return rows of one format whose answers tell from which source they are."""
    return [SHAPES[shape](f"Question {i} of {name}?", f"{name} {i}") for i in range(count)]


@pytest.fixture
def main(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "main.jsonl", answers("main", 20))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "other.csv", answers("other", 50, "dolly"))


def mixed(main: Path, *entries: dict[str, Any], **fields: Any) -> Prepared:
    """Prepare a main source with entries of data.mix; the names of fields have __ for the dot."""
    dotted = {name.replace("__", "."): value for name, value in fields.items()}
    entries = tuple(e | {"source": str(e["source"])} for e in entries)
    return prepare(recipe_for(main, {"data.mix": list(entries), **dotted}))


def kept_of(prepared: Prepared, name: str) -> list[str]:
    """Return the answers of one source, in their order."""
    texts = [text.removesuffix(END) for text in taught(prepared)]
    return [text for text in texts if text.startswith(f"{name} ")]


@pytest.mark.parametrize(("weight", "count"), [(0.5, 10), (1.0, 20), (2, 40), (0.01, 0)])
def test_the_weight_is_relative_to_what_the_main_source_keeps(
    main: Path, other: Path, weight: float, count: int
) -> None:
    prepared = mixed(main, {"source": other, "weight": weight})
    assert kept_of(prepared, "main") == [f"main {i}" for i in range(20)]
    assert len(set(kept_of(prepared, "other"))) == len(kept_of(prepared, "other")) == count


def test_only_kept_conversations_of_the_main_source_count(tmp_path: Path, other: Path) -> None:
    twice = write_rows(tmp_path / "twice.jsonl", 2 * answers("main", 10))
    assert len(kept_of(mixed(twice, {"source": other, "weight": 1}), "other")) == 10


def test_what_the_weight_leaves_out_is_counted(main: Path, other: Path) -> None:
    report = mixed(main, {"source": other, "weight": 0.5}).report
    assert (report.rows, report.kept, report.dropped) == (70, 30, {"not_sampled": 40})
    assert report.sources == [
        SourceCount(str(main), "alpaca", rows=20, kept=20),
        SourceCount(str(other), "dolly", rows=50, kept=10, wanted=10),
    ]


def test_a_source_with_fewer_gives_all_and_the_table_says_so(main: Path, other: Path) -> None:
    report = mixed(main, {"source": other, "weight": 3}).report
    assert (report.kept, report.dropped) == (70, {})
    assert report.sources[1].kept == 50
    console = Console(width=200)
    with console.capture() as shown:
        console.print(as_table(report))
    assert f"{main} (recognised as alpaca): 20 kept " in shown.get()
    fewer = f"{other} (recognised as dolly): 50 kept, all that it has of the 60 wanted"
    assert fewer in shown.get()


def test_the_seed_draws_the_sample(main: Path, other: Path) -> None:
    half = {"source": other, "weight": 0.5}
    first, again, third = (kept_of(mixed(main, half, seed=seed), "other") for seed in (0, 0, 1))
    assert first == again
    assert set(first) != set(third)
    assert set(first) != {f"other {i}" for i in range(10)}


def test_the_sample_is_drawn_from_what_fits(tmp_path: Path, main: Path) -> None:
    """Conversations that are too long take no place of the sample."""
    long = [SHAPES["alpaca"](f"Long {i}?", "word " * 200) for i in range(100)]
    rows = [row for pair in zip(long, answers("short", 100), strict=True) for row in pair]
    source = write_rows(tmp_path / "long.jsonl", rows)
    prepared = mixed(
        main, {"source": source, "weight": 2}, data__overlong="drop", data__max_length=64
    )
    assert len(kept_of(prepared, "short")) == 40
    report = prepared.report
    assert report.rows == 220 == report.kept + sum(report.dropped.values())
    assert report.dropped["too_long"] > 10
    assert report.sources[1].kept == 40


def test_a_conversation_of_both_sources_is_kept_once(tmp_path: Path, main: Path) -> None:
    same = write_rows(tmp_path / "same.json", answers("main", 20, "messages"))
    report = mixed(main, {"source": same, "weight": 1}).report
    assert (report.kept, report.dropped) == (20, {"duplicate": 20})


def test_the_limit_of_openings_holds_over_all_sources(main: Path, tmp_path: Path) -> None:
    rows = [SHAPES["alpaca"](f"Who is {i}?", f"As an AI model, {i}.") for i in range(20)]
    sources = [write_rows(tmp_path / f"{i}.jsonl", rows[i::2]) for i in range(2)]
    report = mixed(sources[0], {"source": sources[1], "weight": 1}, data__max_per_opening=4).report
    assert (report.kept, report.dropped) == (4, {"same_opening": 16})


def test_each_entry_is_read_by_its_own_settings(tmp_path: Path, main: Path) -> None:
    rows = [{"ask": f"Why {i}?", "tell": f"named {i}"} for i in range(9)]
    entry = {"source": write_rows(tmp_path / "named.tsv", rows), "weight": 1}
    with pytest.raises(DataError, match=r"data\.mix\[0\]: .*named\.tsv:2: unknown fields"):
        mixed(main, entry)
    columns = {"user": "ask", "assistant": "tell"}
    prepared = mixed(main, entry | {"columns": columns, "rows": 6})
    assert len(kept_of(prepared, "named")) == 6
    assert prepared.report.sources[1].format == "columns"


def test_an_entry_may_name_its_format(tmp_path: Path, main: Path) -> None:
    rows = [
        {"question": f"Why {i}?", "response": f"orca {i}", "answer": f"plain {i}"} for i in "ab"
    ]
    entry = {"source": write_rows(tmp_path / "both.jsonl", rows), "weight": 1}
    assert len(kept_of(mixed(main, entry), "orca")) == 2
    assert len(kept_of(mixed(main, entry | {"format": "question-answer"}), "plain")) == 2
    with pytest.raises(DataError, match=r"data\.mix\[0\]: .*'nonsense' is not known"):
        mixed(main, entry | {"format": "nonsense"})


def test_an_entry_from_the_hub_has_its_split(main: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(source: Source, _: int) -> Iterator[Row]:
        for i, fields in enumerate(answers(source.split, 5)):
            yield Row(f"{source.source}: row {i}", fields)

    monkeypatch.setattr("chattune.data.sources.hub_rows", rows)
    monkeypatch.setattr("chattune.data.sources.hub_commit", lambda _: None)
    entry = {"source": "org/data", "weight": 1}
    assert len(kept_of(mixed(main, entry), "train")) == 5
    assert len(kept_of(mixed(main, entry | {"split": "test"}), "test")) == 5


def test_the_paths_of_a_mixed_tree_are_chosen_by_its_entry(tmp_path: Path, main: Path) -> None:
    leaves = [{"text": f"tree {i}", "role": "assistant", "replies": []} for i in range(3)]
    tree = {"prompt": {"text": "Why?", "role": "prompter", "replies": leaves}}
    entry = {"source": write_rows(tmp_path / "tree.jsonl", [tree]), "weight": 1}
    for paths, count in (("best", 1), ("all", 3)):
        assert len(kept_of(mixed(main, entry | {"tree_paths": paths}), "tree")) == count


def test_several_sources_are_mixed(main: Path, other: Path, tmp_path: Path) -> None:
    third = write_rows(tmp_path / "third.jsonl", answers("third", 30, "sharegpt"))
    entries = [{"source": other, "weight": 0.5}, {"source": third, "weight": 1}]
    prepared = mixed(main, *entries, data__validation=0.3)
    counts = [(s.format, s.kept, s.wanted) for s in prepared.report.sources]
    assert counts == [("alpaca", 20, None), ("dolly", 10, 10), ("sharegpt", 20, 20)]
    assert prepared.report.validation == len(prepared.validation) > 0
    assert any(text.startswith("third") for text in taught(prepared, "validation"))


def test_languages_are_counted_in_every_source(tmp_path: Path) -> None:
    main = write_rows(tmp_path / "en.jsonl", talk(1500))
    german = "Wo steht das Haus Nummer {}?", "Es steht dort drüben am Fluss, Nummer {}."
    rows = [SHAPES["alpaca"](*(text.format(i) for text in german)) for i in range(1500)]
    entry = {"source": write_rows(tmp_path / "de.jsonl", rows), "weight": 1}
    languages = mixed(main, entry, data__near_duplicates="keep").report.languages
    assert 200 < sum(languages.values()) < 500
    assert languages["de"] == pytest.approx(sum(languages.values()) / 2, rel=0.2)


# --- errors ------------------------------------------------------------------------------------


def test_an_error_names_the_entry_and_the_line(main: Path, other: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(talk(1)[0]) + "\n{\n")
    entries = [{"source": other, "weight": 1}, {"source": broken, "weight": 1}]
    with pytest.raises(DataError, match=r"^data\.mix\[1\]: .*broken\.jsonl:2: broken JSON"):
        mixed(main, *entries)
    skipped = mixed(main, *entries, data__skip_bad_rows=True).report
    assert skipped.dropped["bad_row"] == 1


def test_a_missing_source_is_named_before_anything_is_read(main: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.mix\[0\]: .*gone\.jsonl: no such file"):
        mixed(main, {"source": tmp_path / "gone.jsonl", "weight": 1})


def test_prepared_conversations_cannot_be_mixed_in(main: Path, other: Path, tmp_path: Path) -> None:
    prepare(recipe_for(other), tmp_path / "prepared")
    with pytest.raises(DataError, match=r"^data\.mix\[0\]: .*prepared: a folder of prepared"):
        mixed(main, {"source": tmp_path / "prepared", "weight": 1})


def test_a_mix_beside_prepared_conversations_is_logged_as_not_used(
    main: Path, other: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepare(recipe_for(main), tmp_path / "prepared")
    caplog.set_level("INFO", "chattune")
    mixed(tmp_path / "prepared", {"source": other, "weight": 1})
    assert "data.mix: prepared with [], the recipe's " in caplog.text


def test_another_seed_than_that_of_a_prepared_mix_is_logged(
    main: Path, other: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mix = [{"source": str(other), "weight": 1}]
    prepare(recipe_for(main, {"data.mix": mix}), tmp_path / "prepared")
    caplog.set_level("INFO", "chattune")
    prepare(recipe_for(tmp_path / "prepared", {"data.mix": mix, "seed": 3}))
    assert "seed: conversations sampled with 0, the recipe's 3 is used for the" in caplog.text


# --- the cache ---------------------------------------------------------------------------------


def test_the_cache_knows_every_source_and_weight(main: Path, other: Path) -> None:
    half = {"source": other, "weight": 0.5}
    first = mixed(main, half)
    assert mixed(main, half).folder == first.folder
    os.utime(other, (1, 1))
    assert mixed(main, half).folder == first.folder
    reweighed = mixed(main, half | {"weight": 0.6})
    other.write_bytes(other.read_bytes().replace(b"other 7", b"other seven"))
    changed = mixed(main, half | {"weight": 3})
    others = [reweighed, changed, mixed(main), mixed(main, half)]
    assert len({p.folder for p in [first, *others]}) == 5
    assert len({p.report.fingerprint for p in [first, reweighed, changed, mixed(main)]}) == 4


def test_the_report_of_a_mix_is_read_back(main: Path, other: Path, tmp_path: Path) -> None:
    half = {"source": other, "weight": 0.5}
    again = (mixed(main, half), mixed(main, half))
    assert again[0].report == again[1].report
    saved = json.loads((again[0].folder / "report.json").read_text("utf-8"))
    assert saved["sources"][1] == {
        "source": str(other), "format": "dolly", "rows": 50, "kept": 10, "wanted": 10
    }  # fmt: skip


# --- rows == kept + dropped --------------------------------------------------------------------


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    weights=st.lists(st.sampled_from([0.1, 0.5, 1, 2, 10]), max_size=3),
    cap=st.sampled_from([None, 1, 3]),
    overlong=st.sampled_from(["drop", "cut"]),
    seed=st.integers(0, 5),
)
def test_every_row_is_kept_or_dropped_under_a_reason(
    tmp_path: Path, weights: list[float], cap: int | None, overlong: str, seed: int
) -> None:
    def rows(number: int) -> list[dict[str, Any]]:
        texts = ["Yes. " * 60, "It is so.", "", "As an AI, I do not know.", f"{number} again"]
        return [SHAPES["alpaca"](f"{number}: {i}?", texts[i % 5]) for i in range(15)]

    sources = [write_rows(tmp_path / f"{i}.jsonl", rows(i)) for i in range(len(weights) + 1)]
    entries = [{"source": s, "weight": w} for s, w in zip(sources[1:], weights, strict=True)]
    report = mixed(
        sources[0], *entries, data__max_per_opening=cap, data__overlong=overlong,
        data__max_length=48, seed=seed,
    ).report  # fmt: skip
    assert report.rows == 15 * (1 + sum(s.wanted != 0 for s in report.sources[1:]))
    assert report.rows == report.kept + sum(report.dropped.values())
    main_kept = report.sources[0].kept
    for count, weight in zip(report.sources[1:], weights, strict=True):
        assert count.wanted == round(weight * main_kept)
        assert count.kept <= count.wanted


# --- the command line --------------------------------------------------------------------------


def test_a_mix_is_given_on_the_command_line(
    main: Path, other: Path, cli: Callable[..., Outcome]
) -> None:
    mix = f"data.mix=[{{source: {other}, weight: 0.5}}]"
    out = cli("prepare", "--data", main, "--set", mix, "--json")
    assert out.code == 0
    counts = json.loads(out.out)
    assert [(s["source"], s["kept"]) for s in counts["sources"]] == [
        (str(main), 20),
        (str(other), 10),
    ]
