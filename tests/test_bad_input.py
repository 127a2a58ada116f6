"""Tests of bad input: exit code 2, one line with a remedy, no traceback and nothing written."""

import gzip
import io
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chattune.data import files
from chattune.recipe import load_recipe
from chattune.template import Template
from conftest import Outcome
from rows import SHAPES, lines, load_once, talk, write, write_rows

Cli = Callable[..., Outcome]

# Every refusal says what to do, with at least one of these words.
REMEDY = re.compile(
    r"\b(mend|pass|choose|give|use|name|save|convert|add|write|try|remove|run|make|set|check)\b"
    r"|\bknown: |did you mean|are needed|is it JSON Lines|not a Hub id"
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Template, "load", load_once)


def files_below(folder: Path) -> dict[Path, tuple[int, int]]:
    return {
        f: (f.stat().st_size, f.stat().st_mtime_ns)
        for f in folder.rglob("*")
        if f.is_file() and not f.is_symlink()
    }


def refused(cli: Cli, folder: Path, *args: object) -> str:
    """Return the one line of the refusal, after checking that no file was added or changed."""
    before = files_below(folder)
    outcome = cli(*args)
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    # Terminals and log readers also break lines at other characters than a line feed.
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert outcome.err.startswith("chattune: ")
    assert files_below(folder) == before
    return outcome.err.removeprefix("chattune: ").strip()


def refused_data(cli: Cli, source: Path, *args: object) -> str:
    folder = source.parent
    line = refused(cli, folder, "prepare", "--data", source, "--output", folder / "out", *args)
    return line.replace(f"{folder}/", "")


def parquet(rows: list[dict[str, object]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def damaged(content: bytes, position: float = 0.5) -> bytes:
    """Invert eight bytes at a position between 0 (the beginning) and 1 (the end)."""
    start, end = int(len(content) * position), int(len(content) * position) + 8
    return content[:start] + bytes(b ^ 0xFF for b in content[start:end]) + content[end:]


@dataclass(frozen=True)
class Case:
    """A file's name and bytes, and the pattern that the refusal must match."""

    name: str
    content: bytes
    says: str


GOOD = lines(talk(3))
GZIP = gzip.compress(lines(talk(300)), mtime=0)
ALPACA = lines([SHAPES["alpaca"]("a", "b")])

CASES = {
    "empty file": Case("talk.jsonl", b"", r"^talk\.jsonl: empty"),
    "blank lines": Case("talk.jsonl", b"\n\n", r"^talk\.jsonl: empty"),
    "empty array": Case("talk.json", b"[]", r"^talk\.json: empty"),
    "empty gzip": Case("talk.jsonl.gz", gzip.compress(b""), r"^talk\.jsonl\.gz: empty"),
    "only a header": Case("talk.csv", b"question,answer\n", r"^talk\.csv: empty"),
    "broken JSON": Case("talk.jsonl", GOOD + b'{"a": 1,\n' + GOOD, r"^talk\.jsonl:4: broken JSON"),
    "broken JSON array": Case("talk.json", b'[{"a": 1},\n {"b": 2},\n {"c"}]', r"^talk\.json:3: b"),
    "cut off JSON array": Case("talk.json", b'[{"a": 1},\n', r"^talk\.json:\d: broken JSON"),
    "one JSON object over lines": Case(
        "talk.json", json.dumps(talk(1)[0], indent=1).encode(), r"^talk\.json:1: broken JSON"
    ),
    "invalid UTF-8": Case(
        "talk.jsonl", GOOD + b'{"a": "\xff"}\n', r"^talk\.jsonl:4: invalid UTF-8"
    ),
    "invalid UTF-8 in an array": Case("talk.json", b'[\n{"a": "\xff"}]', r"^talk\.json:2: invalid"),
    "invalid UTF-8 in CSV": Case(
        "talk.csv", b"question,answer\na,b\nc,\xff\n", r"^talk\.csv:3: invalid UTF-8"
    ),
    "UTF-16": Case("talk.jsonl", GOOD.decode().encode("utf-16"), r"^talk\.jsonl:1: invalid UTF-8"),
    "unknown fields": Case(
        "talk.jsonl",
        lines([{"frage": "Wer?", "antwort": "Ich."}]),
        r'^talk\.jsonl:1: unknown fields \({"frage": "Wer\?", "antwort": "Ich\."}\).*'
        r"openorca \(system_prompt, question, response\).*data\.columns",
    ),
    "unknown fields that break a line": Case(
        "talk.jsonl", lines([{"foo": "a\u2028b\x85c"}]), r"^talk\.jsonl:1: unknown fields"
    ),
    "mixed shapes": Case(
        "talk.jsonl",
        GOOD + ALPACA,
        r'^talk\.jsonl:4: mixed shapes: this row is alpaca \({"instruction": "a".*'
        r"talk\.jsonl:1 is messages \({.*What comes after 0",
    ),
    "row that is a list": Case("talk.jsonl", GOOD + b"[1]\n", r"^talk\.jsonl:4: .*not list"),
    "row that is a string": Case("talk.jsonl", b'"words"\n', r"^talk\.jsonl:1: .*not str"),
    "row that is null": Case("talk.jsonl", b"null\n", r"^talk\.jsonl:1: .*not NoneType"),
    "array of strings": Case("talk.json", b'["words"]', r"^talk\.json: record 1: .*not str"),
    "lone surrogate": Case(
        "talk.jsonl",
        GOOD + lines([SHAPES["messages"]("a\ud83d", "b")]),
        r"^talk\.jsonl:4: content holds half a character",
    ),
    "nested too deep": Case("talk.jsonl", b"[" * 100_000, r"^talk\.jsonl:1: .*nested too deep"),
    "nested too deep in an array": Case("talk.json", b"[" * 100_000, r"^talk\.json:?.*nested too"),
    "number of 5,000 digits": Case(
        "talk.jsonl", GOOD + b'{"text": ' + b"1" * 5000 + b"}\n", r"^talk\.jsonl:4: "
    ),
    "number of 5,000 digits in an array": Case(
        "talk.json", b'[{"text": ' + b"1" * 5000 + b"}]", r"^talk\.json:"
    ),
    "message that is not text": Case(
        "talk.jsonl", lines([SHAPES["messages"]("a", True)]), r"^talk\.jsonl:1: content is not text"
    ),
    "unknown role": Case(
        "talk.jsonl",
        lines([{"messages": [{"role": "tool", "content": "x"}]}]),
        r"^talk\.jsonl:1: unknown role 'tool'",
    ),
    "role of 100,000 characters": Case(
        "talk.jsonl",
        lines([{"messages": [{"role": "x" * 100_000, "content": "x"}]}]),
        r"^talk\.jsonl:1: unknown role 'xxx",
    ),
    "not a gzip": Case("talk.jsonl.gz", b"", r"^talk\.jsonl\.gz: "),
    "gzip cut short": Case("talk.jsonl.gz", b"", r"^talk\.jsonl\.gz: cannot be read"),
    "gzip of nonsense": Case("talk.jsonl.gz", b"", r"^talk\.jsonl\.gz: cannot be read"),
    "damaged gzip": Case("talk.jsonl.gz", b"", r"^talk\.jsonl\.gz:(\d+:)? "),
    "damaged gzip of an array": Case("talk.json.gz", b"", r"^talk\.json\.gz:"),
    "damaged gzip of Parquet": Case("talk.parquet.gz", b"", r"^talk\.parquet\.gz: cannot be read"),
    "empty Parquet": Case("talk.parquet", b"", r"^talk\.parquet: damaged Parquet"),
    "not a Parquet": Case("talk.parquet", b"PAR1 no PAR1", r"^talk\.parquet: damaged"),
    "Parquet cut short": Case(
        "talk.parquet", parquet(talk(500))[:-100], r"^talk\.parquet: damaged Parquet"
    ),
    "damaged Parquet": Case(
        "talk.parquet",
        damaged(parquet(talk(5000)), 0.3),
        r"^talk\.parquet: (damaged Parquet|cannot be read)",
    ),
    "CSV row too short": Case(
        "talk.csv", b"question,answer\na,b\nc\n", r"^talk\.csv:3: not 2 columns"
    ),
    "CSV row too long": Case(
        "talk.csv", b"question,answer\na,b\nc,d,e\n", r"^talk\.csv:3: not 2 columns"
    ),
    "CSV quote left open": Case(
        "talk.csv", b'question,answer\na,b\nc,"d\ne,f\n', r"^talk\.csv:[345]: broken CSV"
    ),
    "CSV quote out of place": Case(
        "talk.csv", b'question,answer\na,b\nc,"d"x\n', r"^talk\.csv:3: broken CSV"
    ),
    "unknown suffix": Case("talk.txt", GOOD, r"^talk\.txt: unknown kind of file.*\.jsonl.*\.gz"),
    "one conversation": Case("talk.jsonl", lines(talk(1)), r"^talk\.jsonl: 1 usable conv.* 1 row;"),
    "one conversation twice": Case(
        "talk.jsonl", lines([*talk(1), *talk(1)]), r"1 usable .* 2 rows .*duplicate.* 1"
    ),
    "no assistant message": Case(
        "talk.jsonl",
        lines([{"messages": [{"role": "user", "content": "Anybody?"}]}] * 3),
        r"^talk\.jsonl: 0 usable .* 3 rows .*no_assistant_turn.* 3",
    ),
    "questions too long": Case(
        "talk.jsonl",
        lines([SHAPES["alpaca"](f"{i} " * 2000, "b") for i in range(3)]),
        r"0 usable .*prompt_too_long.* 3",
    ),
}

GZIPPED = {  # the content of the cases above whose own content is empty
    "not a gzip": b"not packed at all",
    "gzip cut short": GZIP[: len(GZIP) // 2],
    "gzip of nonsense": GZIP[:10] + b"\xff" * 40,  # no deflate block begins with these bytes
    "damaged gzip": damaged(GZIP),
    "damaged gzip of an array": damaged(gzip.compress(json.dumps(talk(300)).encode(), mtime=0)),
    "damaged gzip of Parquet": damaged(gzip.compress(parquet(talk(3000)), mtime=0)),
}


def file_of(case: str, folder: Path) -> Path:
    path = folder / CASES[case].name
    if case in GZIPPED:
        path.write_bytes(GZIPPED[case])
    else:
        path.write_bytes(CASES[case].content)
    return path


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, cli: Cli, case: str) -> None:
    line = refused_data(cli, file_of(case, tmp_path))
    assert re.search(CASES[case].says, line)
    assert len(line) < 1500
    assert REMEDY.search(line), line


# Sources that are not a file.


@pytest.mark.parametrize("name", ["none.jsonl", "none.txt", "none", "deep/down/none.csv"])
def test_a_missing_file_is_refused(tmp_path: Path, cli: Cli, name: str) -> None:
    line = refused_data(cli, tmp_path / name)
    assert "no such file or folder" in line
    assert REMEDY.search(line), line


def test_a_folder_without_data_is_refused(tmp_path: Path, cli: Cli) -> None:
    write(tmp_path / "talks" / "README.md", b"nothing here")
    line = refused(cli, tmp_path, "prepare", "--data", tmp_path / "talks")
    assert "talks: holds no .jsonl, .json, .csv, .tsv, .parquet file" in line


def test_files_of_two_shapes_in_a_folder_are_refused(tmp_path: Path, cli: Cli) -> None:
    write(tmp_path / "talks" / "a.jsonl", GOOD)
    write(tmp_path / "talks" / "b.jsonl", ALPACA)
    line = refused(cli, tmp_path, "prepare", "--data", tmp_path / "talks")
    assert re.search(r"b\.jsonl:1: mixed shapes.*a\.jsonl:1 is messages", line)


def test_a_name_longer_than_the_system_allows_is_refused(tmp_path: Path, cli: Cli) -> None:
    line = refused(cli, tmp_path, "prepare", "--data", f"{'x' * 300}.jsonl")
    assert re.search("no such file|too long", line)


@pytest.mark.skipif(
    not Path("/proc/self/mem").exists(), reason="needs a file that exists and cannot be read"
)
def test_a_file_that_fails_to_read_is_refused(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "talk.jsonl").symlink_to("/proc/self/mem")
    assert "talk.jsonl: cannot be read" in refused_data(cli, tmp_path / "talk.jsonl")


# Lines that are too long.


@pytest.mark.parametrize("name", ["talk.jsonl", "talk.csv", "talk.jsonl.gz", "talk.json"])
def test_a_huge_line_is_refused(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(files, "MAX_LINE", 1000)
    content = b"question,answer\n" if "csv" in name else b""
    source = write(tmp_path / name, content + b"x" * 1001 + b"\n" + GOOD)
    line = refused_data(cli, source)
    assert re.search(rf"^{re.escape(name)}:[12]: a line of over", line)
    assert REMEDY.search(line)


def test_a_gigabyte_without_a_line_end_is_refused_at_once(tmp_path: Path, cli: Cli) -> None:
    assert cli("prepare", "--data", write(tmp_path / "warm.jsonl", GOOD), "--dry-run").code == 0
    source = tmp_path / "talk.jsonl"
    source.touch()
    os.truncate(source, 1 << 30)
    start = time.process_time()  # the time of this process alone
    line = refused_data(cli, source)
    assert time.process_time() - start < 2
    assert line.startswith("talk.jsonl:1: a line of over 32 MB")


# --output.


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("taken/out", "cannot be written to"),
        ("taken/deep/down/out", "cannot be written to"),
        ("full", "not an empty folder"),
        ("taken", "output"),
        ("nowhere", "output"),
    ],
    ids=["file as parent", "file as grandparent", "not empty", "a file", "broken link"],
)
def test_an_output_that_cannot_be_written_is_refused(
    tmp_path: Path, cli: Cli, where: str, says: str
) -> None:
    write(tmp_path / "taken", b"a file")
    write(tmp_path / "full" / "mine.txt", b"precious")
    (tmp_path / "nowhere").symlink_to(tmp_path / "not there" / "at all")
    source = write(tmp_path / "talk.jsonl", GOOD)
    line = refused(cli, tmp_path, "prepare", "--data", source, "--output", tmp_path / where)
    assert line.startswith(f"output {tmp_path / where}: ")
    assert says in line
    assert REMEDY.search(line)


def test_a_cache_that_cannot_be_written_is_refused(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATTUNE_CACHE", str(write(tmp_path / "taken", b"a file")))
    source = write(tmp_path / "talk.jsonl", GOOD)
    assert "cannot be written to" in refused(cli, tmp_path, "prepare", "--data", source)


# --skip-bad-rows.


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path: Path, cli: Cli) -> None:
    bad = [
        b'{"a": \n',
        b'{"a": "\xff"}\n',
        b"[1]\n",
        b"[" * 100_000 + b"\n",
        lines([{"foo": 1}]),
        ALPACA,
        lines([SHAPES["messages"]("a\ud83d", "b")]),
    ]
    source = write(tmp_path / "talk.jsonl", b"".join([bad[0], GOOD, *bad[1:]]))
    outcome = cli("prepare", "--data", source, "--skip-bad-rows", "--json")
    assert outcome.code == 0
    counts = json.loads(outcome.out)
    assert (counts["rows"], counts["kept"]) == (3 + len(bad), 3)
    assert counts["dropped"] == {"bad_row": len(bad)}


def test_ragged_csv_rows_can_be_skipped(tmp_path: Path, cli: Cli) -> None:
    source = write(tmp_path / "talk.csv", b"question,answer\na,b\nc\nd,e,f\ng,h\n")
    outcome = cli("prepare", "--data", source, "--skip-bad-rows", "--json")
    assert json.loads(outcome.out)["dropped"] == {"bad_row": 2}


def test_a_file_of_bad_rows_alone_is_refused_even_if_they_may_be_skipped(
    tmp_path: Path, cli: Cli
) -> None:
    source = write(tmp_path / "talk.jsonl", b"{\n[]\n")
    line = refused_data(cli, source, "--skip-bad-rows")
    assert re.search(r"0 usable conversations of 2 rows .*bad_row.* 2", line)


# Recipes and settings.


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("lora.rnk=3", "lora.rnk: unknown field; did you mean lora.rank?"),
        ("data.maxlength=3", "data.maxlength: unknown field; did you mean data.max_length?"),
        ("sed=3", "sed: unknown field; did you mean seed?"),
        ("training.lr=3", "training.lr: unknown field; did you mean training.learning_rate?"),
        ("lora.targets=.*_proj", "lora.targets: patterns are not supported; give the names"),
        ("lora=8", "lora: a section; set its fields, such as lora.rank, not 8"),
        ("lora.rank=0", "lora.rank: input should be greater than or equal to 1, not 0"),
        ("lora.rank=many", "lora.rank: input should be a valid integer"),
        ("data.validation=0.9", "data.validation: input should be less than or equal to 0.5"),
        ("data.overlong=squeeze", "data.overlong: input should be 'cut' or 'drop'"),
        ("data.max_length=513", "data.max_length: 513 is above the 512 positions of starter"),
        ("data.format=chatml", "data.format: 'chatml' is not known; known: auto, messages"),
        ("data.columns={user: q}", "data.columns: assistant missing"),
        ("data.columns={usr: q, assistant: a}", "'usr'"),
        (
            "data.columns={user: q, assistant: a}",
            "talk.jsonl:1: no column 'q'; the row has messages",
        ),
        ("data=3", "data: "),
        ("base.folder=3", "--set base.folder: base is a value, not a section"),
        ("seed", "--set seed: write it as field=value"),
        ("=3", "--set =3: write it as field=value"),
        (".=3", "unknown field"),
        ("seed={", "--set seed={: '{' is not a YAML value"),
        ("seed=2023-99-99", "--set seed=2023-99-99: "),
        ("seed=" + "1" * 5000, "--set seed="),
        ("seed=" + "[" * 1500, "--set seed="),
        ("training={steps: 1, epochs: 1}", "training: give either steps or epochs"),
    ],
    ids=lambda value: value[:30],
)
def test_a_bad_setting_is_refused(tmp_path: Path, cli: Cli, setting: str, says: str) -> None:
    assert says in refused_data(cli, write(tmp_path / "talk.jsonl", GOOD), "--set", setting)


def recipe_file(folder: Path, content: bytes) -> Path:
    return write(folder / "mine.yaml", content)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "expected fields such as"),
        (b"- base\n- data\n", "expected fields such as"),
        (b"base: starter\ndata: {source: x\ntraining: {", r"mine\.yaml:3: not valid YAML"),
        (b"\xff\xfe", "cannot be read as UTF-8"),
        (b"base: a\x00b\n", r"mine\.yaml"),
        (b"seed: 2023-99-99\n", r"mine\.yaml"),
        (b"[" * 1500, r"mine\.yaml"),
        (b"base: !!python/object/apply:os.getcwd []\n", r"mine\.yaml:1: not valid YAML"),
    ],
    ids=["empty", "list", "broken", "UTF-16", "null byte", "date", "deep", "code"],
)
def test_a_bad_recipe_is_refused(tmp_path: Path, cli: Cli, content: bytes, says: str) -> None:
    assert re.search(says, refused(cli, tmp_path, "prepare", recipe_file(tmp_path, content)))


def test_the_error_of_a_missing_recipe_lists_the_shipped_ones(tmp_path: Path, cli: Cli) -> None:
    line = refused(cli, tmp_path, "prepare", "gpt-neo-125")
    assert "recipe 'gpt-neo-125': no such file" in line
    assert "gpt-neo-125m-guanaco" in line


@pytest.mark.parametrize("verb", ["prepare", "tune"])
def test_conversations_in_place_of_a_recipe_are_explained(
    tmp_path: Path, cli: Cli, verb: str
) -> None:
    source = write(tmp_path / "talk.jsonl", GOOD)
    assert f"did you mean --data {source}, after" in refused(cli, tmp_path, verb, source)


def test_a_recipe_name_longer_than_the_system_allows_is_refused(tmp_path: Path, cli: Cli) -> None:
    assert re.search("no such file|too long", refused(cli, tmp_path, "prepare", "x" * 300))


def test_all_errors_of_a_recipe_come_at_once_on_a_line_each(tmp_path: Path, cli: Cli) -> None:
    content = b"""\
base: starter
data: {source: starter, max_lenght: 100, validation: 2}
lora: {rank: none}
training: {epochs: 1}
seeds: 3
"""
    outcome = cli("prepare", recipe_file(tmp_path, content))
    assert outcome.code == 2
    shown = outcome.err.splitlines()
    assert len(shown) == 4
    for field, more in [
        ("data.max_lenght: unknown field", "did you mean data.max_length?"),
        ("data.validation: ", "not 2"),
        ("lora.rank: ", "not 'none'"),
        ("seeds: unknown field", "did you mean seed?"),
    ]:
        assert any(field in line and more in line for line in shown), (field, shown)
    assert all(line.startswith(f"chattune: recipe {tmp_path / 'mine.yaml'}: ") for line in shown)


def test_the_errors_of_missing_fields_say_how_to_give_them(tmp_path: Path, cli: Cli) -> None:
    outcome = cli("prepare", recipe_file(tmp_path, b"lora: {rank: 4}\n"))
    assert outcome.code == 2
    missing = [line.split(": ")[2] for line in outcome.err.splitlines()]
    assert missing == ["base", "data", "training"]
    assert outcome.err.count("pass --set") == 3


def test_a_setting_of_steps_replaces_the_epochs_of_the_recipe() -> None:
    assert load_recipe("starter", {"training.steps": 5}).training.epochs is None


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("taken", "a file; give the folder"),
        ("hollow", "holds no config.json"),
        ("none/of/these", "no such folder, and not a Hub id"),
    ],
)
def test_a_base_that_is_not_a_model_is_refused(
    tmp_path: Path, cli: Cli, base: str, says: str
) -> None:
    write(tmp_path / "taken", b"a file")
    write(tmp_path / "hollow" / "README.md", b"no model")
    source = write_rows(tmp_path / "talk.jsonl", talk(3))
    line = refused(cli, tmp_path, "prepare", "--data", source, "--base", tmp_path / base)
    assert line.startswith(f"base {tmp_path / base}: ")
    assert says in line


def test_a_dry_run_refuses_bad_input_too(tmp_path: Path, cli: Cli) -> None:
    line = refused_data(cli, file_of("broken JSON", tmp_path), "--dry-run")
    assert re.search(CASES["broken JSON"].says, line)
