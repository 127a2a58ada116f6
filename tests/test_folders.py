"""Tests of folders: where the cache is, who may read what is written, and other devices."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from chattune import run as runs
from chattune.data import prepare
from chattune.folders import write_bytes, write_json
from chattune.tuning import tune
from conftest import Outcome
from rows import recipe_for, talk, write_rows

Cli = Callable[..., Outcome]
NOWHERE = "/dev/null/none"  # below a file, where not even root can create a folder
TEMPORARY = "set CHATTUNE_CACHE to a folder where it can be kept"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "talk.jsonl", talk(5))


# --- the cache ---------------------------------------------------------------------------------


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Unset every variable that says where caches are; return the folder of temporary files."""
    for name in ("CHATTUNE_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR", "HOME"):
        monkeypatch.setenv(name, "")  # so that it is restored although it may be absent now
        monkeypatch.delenv(name)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize(
    ("variables", "because"),
    [
        ({}, "there is no home directory"),
        ({"HOME": NOWHERE}, f"{NOWHERE}/.cache/chattune cannot be written to: Not a directory"),
        ({"XDG_CACHE_HOME": NOWHERE}, f"{NOWHERE}/chattune cannot be written to: Not a directory"),
    ],
    ids=["no home", "HOME", "XDG_CACHE_HOME"],
)
def test_without_a_place_for_the_cache_a_temporary_one_is_used(
    cli: Cli,
    source: Path,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    because: str,
) -> None:
    if not variables:
        monkeypatch.setattr(Path, "home", no_home)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    first = cli("prepare", "--data", source, "--json")
    assert first.code == 0
    assert first.err == f"the cache is temporary, because {because}; {TEMPORARY}\n"
    again = cli("prepare", "--data", source, "--json")
    assert (again.code, again.out) == (0, first.out)
    assert again.err == "the conversations were prepared before and are read from the cache\n"
    (cache,) = scratch.iterdir()
    assert (cache.stat().st_mode & 0o777) == 0o700


def test_a_temporary_cache_is_removed_at_the_end(source: Path, tmp_path: Path) -> None:
    """Nothing is left either in the current folder, such as a folder called `~`."""
    scratch, current = tmp_path / "scratch", tmp_path / "current"
    scratch.mkdir()
    current.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "chattune.cli", "prepare", "--data", source, "--json"],
        cwd=current,
        env={"HOME": NOWHERE, "TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith(f"{TEMPORARY}\n")
    assert done.stderr.count("\n") == 1
    assert [*scratch.iterdir(), *current.iterdir()] == []


def test_the_cache_of_a_user_is_in_the_home_directory(
    cli: Cli, source: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    outcome = cli("prepare", "--data", source, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert list((tmp_path / "home" / ".cache" / "chattune" / "prepared").iterdir())


def test_a_cache_that_was_asked_for_and_cannot_be_made_is_an_error(
    cli: Cli, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATTUNE_CACHE", NOWHERE)
    outcome = cli("prepare", "--data", source)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        f"chattune: cache (CHATTUNE_CACHE) {NOWHERE}: cannot be written to (Not a directory); "
        "choose another\n"
    )


def test_a_cache_that_cannot_be_written_to_is_called_a_cache(
    cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "prepared").write_text("a file")
    outcome = cli("prepare", "--data", source)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith("chattune: cache (CHATTUNE_CACHE) ")


@pytest.mark.usefixtures("umask")
def test_only_its_owner_can_read_the_cache(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATTUNE_CACHE", str(tmp_path / "cache"))
    prepare(recipe_for(source))
    assert mode(tmp_path / "cache") == 0o700


# --- permissions -------------------------------------------------------------------------------


@pytest.fixture(params=[0o077, 0o027, 0o022, 0o002], ids="umask {:03o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def assert_new(paths: list[Path], umask: int) -> None:
    """Check that files and folders have the permissions of ones that are just created."""
    assert paths
    expected = {p: (0o777 if p.is_dir() else 0o666) & ~umask for p in paths}
    assert {p: oct(mode(p)) for p in paths} == {p: oct(m) for p, m in expected.items()}


def test_prepared_folders_follow_the_umask(
    source: Path, tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATTUNE_CACHE", str(tmp_path / "cache"))
    output = prepare(recipe_for(source), tmp_path / "parent" / "output").folder
    copy = prepare(recipe_for(output), tmp_path / "copy").folder
    cached = prepare(recipe_for(source)).folder
    for folder in (output, output.parent, copy, cached, cached.parent):
        assert_new([folder, *folder.iterdir()], umask)


def test_an_existing_output_keeps_its_permissions(source: Path, tmp_path: Path, umask: int) -> None:
    output = tmp_path / "output"
    output.mkdir(mode=0o700)
    assert_new(list(prepare(recipe_for(source), output).folder.iterdir()), umask)
    assert mode(output) == 0o700


def test_single_files_follow_the_umask(tmp_path: Path, umask: int) -> None:
    write_bytes(tmp_path / "a.bin", b"a")
    write_json(tmp_path / "b.json", {})
    write_json(tmp_path / "b.json", {"replaced": True})
    runs.save_into(tmp_path, lambda folder: save_file({"x": torch.ones(1)}, folder / "c"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "b.json", "c"]
    assert_new(list(tmp_path.iterdir()), umask)


def test_a_run_follows_the_umask(
    source: Path, tiny_base: Path, tmp_path: Path, quick_tuning: None, umask: int
) -> None:
    settings = {"base": str(tiny_base), "data.max_length": 64, "training.steps": 1}
    folder = tune(recipe_for(source, settings), tmp_path / "run").folder
    assert_new([folder, *folder.iterdir()], umask)
    inner = list(folder.rglob("*/*"))
    assert inner
    assert [p for p in inner if mode(p) & umask] == []


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_bytes(tmp_path / "folder", b"a folder has this name")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


# --- other devices -----------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """Return an empty folder on another device than the one that it is in."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_mounted_folder_can_be_the_output(cli: Cli, source: Path, mounted: Path) -> None:
    outcome = cli("prepare", "--data", source, "--output", mounted, "--json")
    assert (outcome.code, outcome.err) == (0, f"prepared data: {mounted}\n")
    assert len(list(mounted.iterdir())) == 5
