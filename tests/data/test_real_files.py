"""Tests with published data sets, which are not part of the project; skipped where absent."""

from pathlib import Path
from typing import Any

import pytest

from chattune.data import prepare
from chattune.data.formats import read_conversations
from chattune.data.report import Tally
from chattune.data.sources import read_rows
from chattune.errors import DataError
from conftest import SHARED
from rows import END, recipe_for, taught

FILES = {
    "guanaco.jsonl": ("guanaco", 517),
    "oasst_trees_en100.jsonl": ("oasst-tree", 100),
    "openorca_500.jsonl": ("openorca", 500),
    "openorca_10k.parquet": ("openorca", 10_000),
    "dolly15k.jsonl": ("dolly", 15_011),
    "alpaca_demo.json": ("alpaca", 999),
    "sharegpt_demo.json": ("sharegpt", 500),
}
SAMPLE = 300  # rows per file that are tokenised; more take too long


def present(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not on this machine")
    return path


@pytest.mark.parametrize("name", FILES)
def test_every_row_is_recognised(name: str) -> None:
    recipe = recipe_for(present(name)).data
    tally = Tally()
    count = sum(1 for _ in read_conversations(read_rows(recipe, 0), recipe, tally))
    print(f"{name}: {tally.format}, {tally.rows} rows, {count} conversations")
    assert (tally.format, tally.rows) == FILES[name]


def check(source: Path, fields: dict[str, Any], shape: str, output: Path) -> None:
    prepared = prepare(recipe_for(source, fields), output)
    report = prepared.report
    print(report.to_json())
    assert report.format == shape
    assert report.rows == report.kept + sum(report.dropped.values())
    assert "bad_row" not in report.dropped
    assert report.kept > report.rows / 2
    assert all(text.endswith(END) and text != END for text in taught(prepared))
    assert max(map(len, prepared.train["input_ids"])) <= fields["data.max_length"]


@pytest.mark.parametrize("name", FILES)
def test_real_conversations_are_prepared(name: str, tmp_path: Path) -> None:
    shape, rows = FILES[name]
    fields: dict[str, Any] = {
        "data.max_length": 512,
        "data.near_duplicates": "drop",
        "data.validation": 0.05,
    }
    if rows > SAMPLE:
        fields["data.rows"] = SAMPLE
    check(present(name), fields, shape, tmp_path / "out")


def test_every_path_of_real_trees_is_prepared(tmp_path: Path) -> None:
    fields = {"data.tree_paths": "all", "data.max_length": 512}
    check(present("oasst_trees_en100.jsonl"), fields, "oasst-tree", tmp_path / "out")


def test_questions_without_answers_are_refused_as_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vicuna80\.jsonl:1: unknown fields"):
        prepare(recipe_for(present("prompts/vicuna80.jsonl")), tmp_path / "out")
