"""Tests for the folder of a preparation as a data source: it is loaded as it is, or refused."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chattune.base import find_base
from chattune.data import Prepared, prepare
from chattune.errors import DataError, OutputError, RecipeError
from chattune.recipe import Recipe
from chattune.template import CHAT_TEMPLATE, Template
from conftest import Outcome
from rows import (
    SHAPES,
    base_with,
    exchanges,
    lines,
    load_once,
    recipe_for,
    talk,
    taught,
    write,
    write_rows,
)

Cli = Callable[..., Outcome]
FILES = ("train.arrow", "validation.arrow", "examples.json", "report.json", "prepared.json")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Template, "load", load_once)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "talk.jsonl", talk(40))


@pytest.fixture
def original(source: Path, tmp_path: Path) -> Prepared:
    """Forty conversations prepared into a folder, about a third of them held out."""
    fields = {"data.validation": 0.3, "data.max_length": 64}
    return prepare(recipe_for(source, fields), tmp_path / "prepared")


def recipe_on(prepared: Prepared, **fields: Any) -> Recipe:
    """Return a recipe whose source is the folder and whose settings are those of `original`."""
    settings = {"data.validation": 0.3, "data.max_length": 64}
    settings |= {name.replace("__", "."): value for name, value in fields.items()}
    return recipe_for(prepared.folder, settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def assert_same(one: Prepared, other: Prepared) -> None:
    assert one.train[:] == other.train[:]
    assert one.validation[:] == other.validation[:]
    assert one.examples == other.examples
    assert one.report == other.report


# --- loading -----------------------------------------------------------------------------------


def test_a_prepared_folder_is_loaded_as_it_is(
    original: Prepared, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.unlink()
    monkeypatch.delattr(Template, "render_many")
    before = contents(original.folder)
    loaded = prepare(recipe_on(original))
    assert_same(loaded, original)
    assert loaded.folder == original.folder
    assert loaded.report.source == str(source)
    assert min(loaded.report.train, loaded.report.validation) > 0
    assert contents(original.folder) == before
    assert not (tmp_path / "cache").exists()


def test_the_folder_says_what_it_was_prepared_with(original: Prepared, source: Path) -> None:
    saved = json.loads((original.folder / "prepared.json").read_text("utf-8"))
    assert saved["base"] == "starter"
    assert saved["seed"] == 0
    assert saved["data"]["source"] == str(source)
    assert saved["data"]["max_length"] == 64
    assert saved["files"].keys() == set(FILES) - {"prepared.json"}


def test_a_folder_of_the_cache_is_a_source_too(source: Path) -> None:
    cached = prepare(recipe_for(source))
    assert_same(prepare(recipe_for(cached.folder)), cached)


def test_a_folder_with_two_files_of_the_same_names_is_read_as_rows(tmp_path: Path) -> None:
    folder = tmp_path / "talks"
    write(folder / "examples.json", lines(talk(3)))
    write(folder / "report.json", lines([SHAPES["messages"]("One more?", "Yes.")]))
    answers = [answer for _, answer in exchanges(3)] + ["Yes."]
    assert [t.partition("<|")[0] for t in taught(prepare(recipe_for(folder)))] == answers


def test_the_base_that_the_caller_found_is_used(
    original: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = find_base("starter", weights=False)
    monkeypatch.delattr("chattune.data.find_base")
    assert_same(prepare(recipe_on(original), base=base), original)


# --- settings ----------------------------------------------------------------------------------


def test_settings_that_are_not_used_are_logged(
    original: Prepared, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "chattune")
    loaded = prepare(recipe_on(original, data__max_length=512, data__overlong="drop"))
    assert_same(loaded, original)
    (message,) = caplog.messages
    assert message.startswith(f"{original.folder}: ")
    assert "data.max_length: prepared with 64, the recipe's 512 is not used" in message
    assert "data.overlong: prepared with cut, the recipe's drop is not used" in message
    assert message.count("is not used") == 2
    assert "data.source" not in message


def test_equal_settings_are_not_logged(
    original: Prepared, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "chattune")
    prepare(recipe_on(original, seed=1))  # without data.rows, the seed changes no row
    assert "not used" not in caplog.text
    assert "seed" not in caplog.text


def test_another_seed_is_logged_if_rows_were_sampled(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sampled = prepare(recipe_for(source, {"data.rows": 20}), tmp_path / "sampled")
    caplog.set_level(logging.INFO, "chattune")
    assert_same(prepare(recipe_for(sampled.folder, {"data.rows": 20, "seed": 7})), sampled)
    assert "seed: conversations sampled with 0, the recipe's 7 is used for the" in caplog.text


def test_a_length_above_the_positions_is_refused(original: Prepared) -> None:
    with pytest.raises(RecipeError, match=r"data\.max_length: 513 is above the 512 positions"):
        prepare(recipe_on(original, data__max_length=513))


def test_a_folder_with_longer_conversations_than_the_base_has_positions_is_refused(
    original: Prepared, tmp_path: Path
) -> None:
    small = base_with(tmp_path / "small", lambda tokenizer: None)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 32}))
    with pytest.raises(DataError) as refused:
        prepare(recipe_on(original, base=str(small), data__max_length=32))
    said = str(refused.value)
    assert said.startswith(f"{original.folder}: prepared with data.max_length 64, above the 32 pos")
    assert said.endswith("prepare the conversations again with --set data.max_length=32")


# --- the base ----------------------------------------------------------------------------------


def test_the_same_tokenizer_elsewhere_is_accepted(original: Prepared, tmp_path: Path) -> None:
    same = base_with(tmp_path / "same", lambda tokenizer: None)
    assert_same(prepare(recipe_on(original, base=str(same))), original)


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    tokenizer["model"]["merges"].clear()
    path.write_text(json.dumps(tokenizer), "utf-8")


def other_end_token(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "eos_token": "!"}), "utf-8")


def other_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("Human", "Person"), "utf-8")


@pytest.mark.parametrize("change", [other_tokenizer, other_end_token, other_chat_template])
def test_another_base_is_refused(
    original: Prepared, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    other = base_with(tmp_path / "other", lambda tokenizer: None)
    change(other)
    with pytest.raises(DataError) as refused:
        prepare(recipe_on(original, base=str(other)))
    message = str(refused.value)
    assert message.startswith(f"{original.folder}: prepared for base starter, whose tokenizer or")
    assert message.endswith(f"that of {other}; prepare the conversations again with --base {other}")


# --- damage ------------------------------------------------------------------------------------

REMEDY = "run `chattune prepare` again with a new --output folder"


def refused(cli: Cli, folder: Path) -> str:
    """Return the only line of the refusal, without the folder's path; nothing may change."""
    before = contents(folder)
    outcome = cli("prepare", "--data", folder)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith(f"chattune: {folder}/")
    assert outcome.err.endswith(f"; {REMEDY}\n")
    assert contents(folder) == before
    return outcome.err.removeprefix(f"chattune: {folder}/")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(cli: Cli, original: Prepared, name: str) -> None:
    (original.folder / name).unlink()
    assert refused(cli, original.folder).startswith(f"{name}: missing")


@pytest.mark.parametrize("removed", [("train.arrow", "validation.arrow"), FILES[3:]])
def test_a_folder_that_lost_two_files_is_still_recognised(
    cli: Cli, original: Prepared, removed: tuple[str, str]
) -> None:
    for name in removed:
        (original.folder / name).unlink()
    assert refused(cli, original.folder).startswith(f"{removed[0]}: missing")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"not what was written", b"[]", b"{}"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(cli: Cli, original: Prepared, name: str, content: bytes) -> None:
    (original.folder / name).write_bytes(content)
    assert refused(cli, original.folder).startswith(f"{name}: damaged")


@pytest.mark.parametrize("name", FILES[:4])
def test_a_flipped_bit_and_a_lost_end_are_noticed(cli: Cli, original: Prepared, name: str) -> None:
    whole = (original.folder / name).read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (flipped, whole[:-8]):
        (original.folder / name).write_bytes(content)
        assert refused(cli, original.folder).startswith(f"{name}: damaged or changed")


# --- output ------------------------------------------------------------------------------------


def test_output_makes_a_copy(original: Prepared, tmp_path: Path) -> None:
    copy = prepare(recipe_on(original), tmp_path / "deep" / "copy")
    assert copy.folder == tmp_path / "deep" / "copy"
    assert contents(copy.folder) == contents(original.folder)
    assert_same(prepare(recipe_on(copy)), original)


def test_the_folder_itself_cannot_be_the_output(original: Prepared) -> None:
    before = contents(original.folder)
    with pytest.raises(OutputError, match="not an empty folder"):
        prepare(recipe_on(original), original.folder)
    assert contents(original.folder) == before


def test_a_damaged_folder_is_not_copied(original: Prepared, tmp_path: Path) -> None:
    (original.folder / "report.json").write_text("{}")
    with pytest.raises(DataError, match=r"report\.json: damaged"):
        prepare(recipe_on(original), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


# --- the command line --------------------------------------------------------------------------


def test_what_prepare_writes_prepare_reads(cli: Cli, source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    first = cli("prepare", "--data", source, "--output", folder, "--json")
    again = cli("prepare", "--data", folder, "--set", "data.max_length=100", "--json")
    assert (again.code, again.out) == (0, first.out)
    assert again.err == (
        f"{folder}: prepared before, loaded as it is; data.max_length: prepared with 256, "
        "the recipe's 100 is not used\n"
    )
    before = contents(tmp_path)
    dry = cli("prepare", "--data", folder, "--output", tmp_path / "copy", "--dry-run", "--json")
    assert (dry.code, dry.out) == (0, first.out)
    assert contents(tmp_path) == before


def test_another_base_is_refused_in_one_line(cli: Cli, original: Prepared, tmp_path: Path) -> None:
    other = base_with(tmp_path / "other", lambda tokenizer: None)
    other_tokenizer(other)
    outcome = cli("tune", "starter", "--data", original.folder, "--base", other, "--dry-run")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)


# --- tuning ------------------------------------------------------------------------------------


@pytest.fixture
def on_tiny_base(cli: Cli, tiny_base: Path, quick_tuning: None) -> Cli:
    """Run a verb on the tiny base with a learning rate that does not depend on the steps."""

    def run(verb: str, *arguments: object) -> Outcome:
        settings = ["data.max_length=64", "data.validation=0.3"]
        settings += ["training.schedule=constant", "training.warmup_ratio=0"]
        pairs = [part for setting in settings for part in ("--set", setting)]
        outcome = cli(verb, "starter", "--base", tiny_base, *pairs, *arguments)
        assert "Traceback" not in outcome.err
        return outcome

    return run


def losses(run: Path) -> list[float]:
    rows = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["loss"] for row in rows if "loss" in json.loads(row)]


def test_a_run_on_the_folder_equals_one_on_its_source_and_is_resumed_on_no_other(
    on_tiny_base: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version of chattune is no other source."""
    folder = tmp_path / "prepared"
    assert on_tiny_base("prepare", "--data", source, "--output", folder).code == 0

    def tune(data: Path, run: str, steps: int, *options: str) -> Outcome:
        settings = ("--data", data, "--set", f"training.steps={steps}", *options)
        return on_tiny_base("tune", *settings, "--output", tmp_path / run)

    for outcome in (
        tune(source, "plain", 2),
        tune(folder, "reopened", 1),
        tune(folder, "reopened", 2, "--resume"),
    ):
        assert outcome.code == 0, outcome.err
    plain, reopened = (tmp_path / run for run in ("plain", "reopened"))
    assert losses(reopened) == losses(plain)
    assert len(losses(plain)) == 2
    facts = [json.loads((run / "run.json").read_text()) for run in (plain, reopened)]
    assert facts[0]["data"] == facts[1]["data"]
    assert facts[0]["data"]["source"] == str(source)

    monkeypatch.setattr("chattune.data.__version__", "1000.0")
    upgraded = tune(source, "plain", 3, "--resume")
    assert upgraded.code == 0, upgraded.err
    assert losses(plain)[:2] == losses(reopened)
    assert len(losses(plain)) == 3

    shutil.rmtree(folder)
    write_rows(source, talk(41))
    assert on_tiny_base("prepare", "--data", source, "--output", folder).code == 0
    refusal = tune(folder, "reopened", 3, "--resume")
    assert refusal.code == 2
    assert "no longer holds the conversations" in refusal.err
