"""Tests of run folders: written completely, sealed with a manifest, checked when opened."""

import hashlib
import json
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest

from chattune import run as runs
from chattune.errors import OutputError, RunError
from chattune.folders import write_bytes, write_json
from chattune.recipe import load_recipe
from chattune.run import MANIFEST, RECIPE, Run


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """Return the folder of a finished run with as little content as possible."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_bytes(folder / RECIPE, load_recipe("starter").to_yaml().encode())
    write_json(folder / runs.FACTS, {"base": {"name": "starter"}})
    write_json(folder / runs.SAMPLES, [{"prompt": "Hi, Größe 答"}])
    for name in runs.ADAPTER:
        write_bytes(folder / name, b"\x00weights")
    runs.seal(folder)
    return folder


# --- opening -----------------------------------------------------------------------------------


def test_a_sealed_run_opens_with_its_content(sealed: Path) -> None:
    run = Run.open(sealed)
    assert run.recipe == load_recipe("starter")
    assert run.facts == {"base": {"name": "starter"}}
    assert run.samples == [{"prompt": "Hi, Größe 答"}]


def test_a_path_may_be_a_string(sealed: Path) -> None:
    assert Run.open(str(sealed)) == Run(sealed)


def test_the_manifest_has_size_and_hash_of_each_file(sealed: Path) -> None:
    listed = json.loads((sealed / MANIFEST).read_text("utf-8"))["files"]
    assert set(listed) == {f.name for f in sealed.iterdir()} - {MANIFEST}
    for name, entry in listed.items():
        content = (sealed / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        Run.open(tmp_path / "nowhere")


def test_a_file_is_not_a_run(sealed: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        Run.open(sealed / RECIPE)


def test_any_other_folder_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"not a run folder.*{MANIFEST}"):
        Run.open(tmp_path)


def test_the_error_of_an_unfinished_run_says_how_to_go_on(sealed: Path) -> None:
    runs.unseal(sealed)
    with pytest.raises(RunError, match=r"not finished; go on with chattune tune --resume"):
        Run.open(sealed)


@pytest.mark.parametrize("name", [RECIPE, *runs.ADAPTER])
def test_a_missing_file_is_named(sealed: Path, name: str) -> None:
    (sealed / name).unlink()
    with pytest.raises(RunError, match=f"{name} is missing"):
        Run.open(sealed)


def test_a_git_lfs_pointer_is_named(sealed: Path) -> None:
    (sealed / runs.ADAPTER[1]).write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    with pytest.raises(RunError, match=r"adapter_model.safetensors is a Git LFS pointer.*lfs pull"):
        Run.open(sealed)


def test_the_place_of_the_base_is_that_in_the_adapter(sealed: Path) -> None:
    path = sealed / runs.ADAPTER_CONFIG
    path.write_text('{"base_model_name_or_path": "org/model"}')
    assert Run(sealed).base_place == "org/model"
    for unknown in ('{"base_model_name_or_path": null}', "{}"):
        path.write_text(unknown)
        assert Run(sealed).base_place is None
    path.unlink()  # a run that was stopped has no adapter yet
    assert Run(sealed).base_place is None


@pytest.mark.parametrize("content", [b"\x00weighty", b"\x00weight", b""])
def test_a_changed_file_is_named(sealed: Path, content: bytes) -> None:
    (sealed / runs.ADAPTER[1]).write_bytes(content)
    with pytest.raises(RunError, match=rf"{runs.ADAPTER[1]} is not what was saved"):
        Run.open(sealed)


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "{}", "[]", "5", "null", '{"files": []}', '{"files": null}'),
        pytest.param("\ufeff{}", id="byte-order mark"),
    ],
)
def test_a_damaged_manifest_is_refused(sealed: Path, content: str) -> None:
    (sealed / MANIFEST).write_text(content, "utf-8")
    with pytest.raises(RunError, match=f"{MANIFEST} is damaged"):
        Run.open(sealed)


def test_an_empty_manifest_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / MANIFEST, {"files": {}})
    with pytest.raises(RunError):
        Run.open(tmp_path)


def test_other_files_in_a_run_folder_are_allowed(sealed: Path) -> None:
    (sealed / "notes.txt").write_text("mine")
    assert Run.open(sealed).folder == sealed


def test_sealing_again_lists_new_files(sealed: Path) -> None:
    runs.unseal(sealed)
    write_bytes(sealed / runs.CARD, b"# card")
    runs.seal(sealed)
    assert runs.CARD in json.loads((sealed / MANIFEST).read_text("utf-8"))["files"]
    Run.open(sealed)


def test_int8_weights_and_hidden_files_are_not_sealed(sealed: Path) -> None:
    """The int8 weights are made when a run is loaded for chat and removed when it is resumed."""
    for name in (runs.INT8, ".README.md.half-written"):
        (sealed / name).write_text("x")
    assert Run.open(runs.seal(sealed).folder)
    (sealed / runs.INT8).write_text("y")
    assert Run.open(sealed)
    runs.unseal(sealed)
    assert not (sealed / runs.INT8).exists()


def test_unsealing_twice_is_allowed(sealed: Path) -> None:
    runs.unseal(sealed)
    runs.unseal(sealed)
    assert not (sealed / MANIFEST).exists()


@pytest.mark.parametrize("content", ["base: [", "base: starter\nsurprise: 1\n", "- 1\n"])
def test_a_recipe_that_cannot_be_read_is_an_error_of_the_run(sealed: Path, content: str) -> None:
    """The file may be damaged, or written by another version of chattune."""
    (sealed / RECIPE).write_text(content)
    with pytest.raises(RunError, match=RECIPE):
        runs.read_recipe(sealed)


# --- which folders are runs --------------------------------------------------------------------


def test_sealed_and_started_folders_are_runs(sealed: Path, tmp_path: Path) -> None:
    assert runs.is_run(sealed)
    started = tmp_path / "started"
    (started / runs.CHECKPOINTS).mkdir(parents=True)
    assert not runs.is_run(started)
    (started / RECIPE).write_text("base: starter\n")
    assert runs.is_run(started)
    assert runs.is_run(str(started))


def test_empty_and_missing_folders_are_not_runs(tmp_path: Path) -> None:
    assert not runs.is_run(tmp_path)
    assert not runs.is_run(tmp_path / "nowhere")


# --- output folders ----------------------------------------------------------------------------


def test_absent_and_empty_folders_can_be_used(tmp_path: Path) -> None:
    runs.check_new_run(tmp_path / "a" / "b")
    runs.check_new_run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_overwritten(sealed: Path) -> None:
    with pytest.raises(RunError, match="already holds a run; choose another, or go on"):
        runs.check_new_run(sealed)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not an empty folder"):
        runs.check_new_run(tmp_path)


def test_a_file_cannot_become_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="not an empty folder"):
        runs.check_new_run(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be written to"):
        runs.check_new_run(tmp_path / "file" / "run")


def test_a_folder_without_write_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match=r"cannot be written to \(Permission denied\)"):
        runs.check_new_run(tmp_path / "run")


# --- writing -----------------------------------------------------------------------------------


def test_files_are_replaced_and_readable_by_everyone(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.txt", "Größe 答\n".encode())
    write_bytes(tmp_path / "a.txt", b"b")
    assert [f.name for f in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text("utf-8") == "b"
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644


def test_json_is_indented_and_unescaped(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"größe": ["答", 1.5, None]})
    text = (tmp_path / "a.json").read_text("utf-8")
    assert '"größe"' in text
    assert "答" in text
    assert text.endswith("}\n")
    assert json.loads(text) == {"größe": ["答", 1.5, None]}


def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", object())
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "1\n"


def test_saved_files_replace_those_in_the_folder(tmp_path: Path) -> None:
    def save(temporary: Path) -> None:
        assert temporary.parent == tmp_path
        (temporary / "one").write_text("1")
        (temporary / "two").write_text("2")

    (tmp_path / "one").write_text("old")
    runs.save_into(tmp_path, save)
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {"one": "1", "two": "2"}


def test_a_save_that_fails_leaves_the_folder_unchanged(tmp_path: Path) -> None:
    def save(temporary: Path) -> None:
        (temporary / "one").write_text("half")
        raise OSError("disk full")

    (tmp_path / "one").write_text("old")
    with pytest.raises(OSError, match="disk full"):
        runs.save_into(tmp_path, save)
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {"one": "old"}
