"""Tests for sources: every kind of file gives the same rows, and samples are uniform."""

import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from chattune.data import files
from chattune.data.formats import Row
from chattune.data.sources import read_rows, source_hash
from chattune.errors import DataError
from chattune.recipe import DataRecipe
from rows import lines, talk, write, write_rows

# Text that file formats often get wrong: quotes, separators, newlines and other alphabets.
AWKWARD = [
    {"question": "Plain?", "answer": "Yes."},
    {"question": 'A "quoted", word?', "answer": "One line,\nand\tanother.\r\nAnd a third."},
    {"question": "Grüße, 你好, مرحبا?", "answer": "😀 \u2028 works"},
    {"question": " spaces ", "answer": ""},
]
BOM = b"\xef\xbb\xbf"


def read(source: object, *, rows: int | None = None, seed: int = 0) -> list[Row]:
    return list(read_rows(DataRecipe(source=str(source), rows=rows), seed))


def fields(source: object, *, rows: int | None = None, seed: int = 0) -> list[dict[str, object]]:
    all_rows = read(source, rows=rows, seed=seed)
    assert [row.problem for row in all_rows] == [None] * len(all_rows)
    return [row.fields for row in all_rows]


@pytest.mark.parametrize("gzipped", ["", ".gz"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str, gzipped: str) -> None:
    assert fields(write_rows(tmp_path / f"talk.{kind}{gzipped}", AWKWARD)) == AWKWARD


def test_json_that_holds_lines_is_read_as_lines(tmp_path: Path) -> None:
    assert fields(write(tmp_path / "talk.json", lines(AWKWARD))) == AWKWARD


def test_json_array_with_white_space_before_it(tmp_path: Path) -> None:
    path = write(tmp_path / "talk.json", b"\r\n  \n" + json.dumps(AWKWARD).encode())
    assert fields(path) == AWKWARD


def test_suffix_in_capitals(tmp_path: Path) -> None:
    assert fields(write(tmp_path / "TALK.JSONL", lines(AWKWARD))) == AWKWARD


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
def test_byte_order_mark_is_no_part_of_the_rows(tmp_path: Path, kind: str) -> None:
    plain = write_rows(tmp_path / f"plain.{kind}", AWKWARD).read_bytes()
    assert fields(write(tmp_path / f"marked.{kind}", BOM + plain)) == AWKWARD


def test_json_array_in_a_file_with_a_byte_order_mark_and_gzip(tmp_path: Path) -> None:
    path = write(tmp_path / "talk.json.gz", BOM + json.dumps(AWKWARD).encode())
    assert fields(path) == AWKWARD


def test_carriage_returns_and_blank_lines_between_json_lines(tmp_path: Path) -> None:
    content = lines(AWKWARD).replace(b"\n", b"\r\n\r\n  \r\n")
    assert fields(write(tmp_path / "talk.jsonl", content)) == AWKWARD


def test_last_line_without_a_newline(tmp_path: Path) -> None:
    assert fields(write(tmp_path / "talk.jsonl", lines(AWKWARD).rstrip())) == AWKWARD


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_csv_with_either_line_end(tmp_path: Path, line_end: bytes) -> None:
    content = line_end.join([b"question,answer", b"a?,b", b"", b"c?,d", b""])
    assert fields(write(tmp_path / "talk.csv", content)) == [
        {"question": "a?", "answer": "b"},
        {"question": "c?", "answer": "d"},
    ]


def test_csv_field_larger_than_the_csv_module_allows_by_default(tmp_path: Path) -> None:
    rows = [{"question": "Long?", "answer": "word " * 100_000}]
    assert fields(write_rows(tmp_path / "talk.csv", rows)) == rows


def test_parquet_keeps_lists_of_messages(tmp_path: Path) -> None:
    rows = talk(3)
    assert fields(write_rows(tmp_path / "talk.parquet", rows)) == rows


def test_folder_reads_every_file_in_order_of_name_and_leaves_others_alone(tmp_path: Path) -> None:
    folder = tmp_path / "talks"
    rows = [{"question": f"{i}?", "answer": str(i)} for i in range(6)]
    write_rows(folder / "a.jsonl", rows[:1])
    write_rows(folder / "b.csv", rows[1:2])
    write_rows(folder / "c.json.gz", rows[2:3])
    write_rows(folder / "d" / "deep.parquet", rows[3:4])
    write_rows(folder / "e.tsv.gz", rows[4:5])
    write_rows(folder / "f.json", rows[5:])
    write(folder / "README.md", b"no rows here")
    write(folder / "notes.txt", b"nor here")
    assert fields(folder) == rows


def test_the_embedded_conversations_are_a_source() -> None:
    assert all("messages" in row for row in fields("starter"))


@pytest.mark.parametrize(
    ("name", "second"),
    [
        ("talk.jsonl", "talk.jsonl:2"),
        ("talk.csv", "talk.csv:3"),
        ("talk.json", "talk.json: record 2"),
        ("talk.parquet", "talk.parquet: row 2"),
    ],
)
def test_each_row_has_its_location(tmp_path: Path, name: str, second: str) -> None:
    path = write_rows(tmp_path / name, [{"question": "a", "answer": "b"}] * 2)
    assert read(path)[1].location == str(tmp_path / second)


def test_a_line_that_cannot_be_read_is_a_row_with_a_problem(tmp_path: Path) -> None:
    content = b'{"a": 1}\n{"a": \n[1, 2]\n{"a": "\xff"}\n{"a": 2}\n'
    rows = read(write(tmp_path / "talk.jsonl", content))
    assert [row.problem is None for row in rows] == [True, False, False, False, True]
    assert "broken JSON" in str(rows[1].problem)
    assert "not list" in str(rows[2].problem)
    assert "invalid UTF-8 at byte 8" in str(rows[3].problem)


def test_a_huge_line_is_refused_before_the_rows_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_LINE", 100)
    fits = json.dumps({"a": "x" * 90})[:99]
    path = write(tmp_path / "talk.jsonl", f'{{"a": 1}}\n{fits}\n{"x" * 101}\n{{"a": 2}}\n'.encode())
    with pytest.raises(DataError, match=r"talk\.jsonl:3: a line of over"):
        read(path)


def test_a_huge_json_array_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_JSON", 100)
    with pytest.raises(DataError, match=r"convert it to \.jsonl"):
        read(write_rows(tmp_path / "talk.json", AWKWARD))


def numbered(path: Path, count: int) -> Path:
    return write(path, lines({"n": i} for i in range(count)))


def sampled(source: Path, wanted: int, seed: int) -> list[Any]:
    return [row["n"] for row in fields(source, rows=wanted, seed=seed)]


def test_a_sample_is_the_same_for_a_seed_and_another_for_another(tmp_path: Path) -> None:
    path = numbered(tmp_path / "rows.jsonl", 500)
    assert sampled(path, 20, 7) == sampled(path, 20, 7)
    assert sampled(path, 20, 7) != sampled(path, 20, 8)


def test_a_sample_holds_different_rows_in_the_order_read(tmp_path: Path) -> None:
    chosen = sampled(numbered(tmp_path / "rows.jsonl", 500), 50, 3)
    assert len(set(chosen)) == 50
    assert chosen == sorted(chosen)


def test_every_row_is_as_likely_in_a_sample(tmp_path: Path) -> None:
    path = numbered(tmp_path / "rows.jsonl", 10)
    times = Counter(n for seed in range(600) for n in sampled(path, 3, seed))
    # Each is expected 180 times, with a standard deviation of 11.
    assert all(135 < times[n] < 225 for n in range(10)), times


def test_a_sample_larger_than_the_source_is_the_source(tmp_path: Path) -> None:
    assert sampled(numbered(tmp_path / "rows.jsonl", 5), 50, 0) == [0, 1, 2, 3, 4]


def test_a_sample_of_a_folder_draws_from_all_its_files(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / "many" / f"{name}.jsonl", lines({"n": f"{name}{i}"} for i in range(40)))
    drawn = Counter(str(n)[0] for n in sampled(tmp_path / "many", 30, 1))
    assert set(drawn) == {"a", "b", "c"}


def test_a_sample_needs_memory_for_its_own_rows_only(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", lines({"n": str(i) * 500} for i in range(6000)))
    assert path.stat().st_size > 10e6
    tracemalloc.start()
    try:
        assert len(read(path, rows=10)) == 10
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", lines({"n": "x" * 1000} for _ in range(5000)))
    tracemalloc.start()
    try:
        rows = read_rows(DataRecipe(source=str(path)), 0)
        assert sum(1 for _ in rows) == 5000
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_the_source_hash_follows_the_content(tmp_path: Path) -> None:
    path = numbered(tmp_path / "rows.jsonl", 5)
    before = source_hash(DataRecipe(source=str(path)))
    assert source_hash(DataRecipe(source=str(path))) == before
    numbered(path, 6)
    assert source_hash(DataRecipe(source=str(path))) != before


@pytest.mark.parametrize(
    "content", [b"", b"\n\n\r\n", BOM], ids=["no bytes", "blank lines", "a byte-order mark"]
)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "jsonl.gz"])
def test_a_source_without_rows_is_refused(tmp_path: Path, kind: str, content: bytes) -> None:
    with pytest.raises(DataError, match="empty"):
        read(write(tmp_path / f"talk.{kind}", content))


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_header_alone_is_no_row(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="empty"):
        read(write(tmp_path / f"talk.{kind}", b"question,answer\n"))
