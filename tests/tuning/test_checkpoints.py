"""Damaged checkpoints are passed over by their content, and a full disk loses no checkpoint."""

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chattune.errors import OutputError, RunError
from chattune.recipe import Recipe, load_recipe
from chattune.run import Run
from chattune.tuning import tune
from chattune.tuning.progress import Unwatched
from chattune.tuning.resuming import latest_checkpoint
from conftest import TALK, Outcome, write_talk


@pytest.fixture(autouse=True)
def _short(quick_tuning: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chattune.tuning.planning._SAMPLE_TOKENS", 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pairs = [(f"{q} ({i})", a) for i in range(8) for q, a in TALK]
    return write_talk(tmp_path_factory.mktemp("data") / "talk.jsonl", pairs)


def recipe(base: Path, data: Path, **settings: Any) -> Recipe:
    """Return a recipe of six steps with dropout, and a checkpoint after every second."""
    return load_recipe(
        "starter",
        {
            "base": str(base), "data.source": str(data), "data.max_length": 64,
            "data.validation": 0.0, "lora.dropout": 0.1, "training.batch_size": 2,
            "training.accumulation": 1, "training.steps": 6, "training.evaluate_every": 2,
            "training.patience": None,
        }
        | {name.replace("__", "."): value for name, value in settings.items()},
    )  # fmt: skip


def adapter(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run that tests copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chattune.tuning.verify_run", lambda *_: 0.0)
        patch.setattr("chattune.tuning.planning._SAMPLE_TOKENS", 4)
        return tune(recipe(tiny_base, data), tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def stopped(finished: Run, tmp_path: Path) -> Path:
    """The run as it was when it was stopped after step 6, before it was saved."""
    folder = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    (folder / "manifest.json").unlink()
    (folder / "adapter_model.safetensors").unlink()
    return folder


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, empty, Path.unlink])
def test_any_damage_to_any_file_of_a_checkpoint_is_noticed(
    damage: Callable[[Path], None], stopped: Path, tmp_path: Path
) -> None:
    checkpoint = stopped / "checkpoints" / "checkpoint-6"
    assert latest_checkpoint(stopped) == checkpoint
    names = [file.name for file in checkpoint.iterdir()]
    assert {"adapter_model.safetensors", "optimizer.pt", "trainer_state.json"} < set(names)
    for name in names:
        intact = (checkpoint / name).read_bytes()
        damage(checkpoint / name)
        assert latest_checkpoint(stopped) == checkpoint.with_name("checkpoint-4"), name
        (checkpoint / name).write_bytes(intact)
    assert latest_checkpoint(stopped) == checkpoint


def test_an_older_checkpoint_takes_the_place_of_a_damaged_one(
    stopped: Path, finished: Run, tiny_base: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truncate(stopped / "checkpoints" / "checkpoint-6" / "optimizer.pt")
    resumed = tune(recipe(tiny_base, data), stopped, resume=True)
    assert adapter(resumed.folder) == adapter(finished.folder)
    assert any("checkpoint-6 is damaged" in r.message for r in caplog.records)
    assert latest_checkpoint(stopped) == stopped / "checkpoints" / "checkpoint-6"


def test_without_an_intact_checkpoint_the_training_begins_again(
    stopped: Path, finished: Run, tiny_base: Path, data: Path
) -> None:
    for checkpoint in (stopped / "checkpoints").glob("checkpoint-*"):
        flip_a_bit(checkpoint / "optimizer.pt")
    resumed = tune(recipe(tiny_base, data), stopped, resume=True)
    assert adapter(resumed.folder) == adapter(finished.folder)


def test_a_checkpoint_is_not_used_without_the_best_one(
    tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    """The adapter of the best step is that of the run, so the later checkpoint is not enough."""
    chosen = recipe(
        tiny_base, data, data__validation=0.25, training__learning_rate=0.03,
        training__schedule="constant", training__warmup_ratio=0.0, training__evaluate_every=1,
        training__steps=5,
    )  # fmt: skip
    whole = tune(chosen, tmp_path / "whole")
    best = whole.facts["result"]["best_step"]
    assert best < 5
    folder = Path(shutil.copytree(whole.folder, tmp_path / "run"))
    (folder / "manifest.json").unlink()
    flip_a_bit(folder / "checkpoints" / f"checkpoint-{best}" / "adapter_model.safetensors")
    resumed = tune(chosen, folder, resume=True)
    assert adapter(resumed.folder) == adapter(whole.folder)
    assert resumed.facts["result"]["best_step"] == best


def test_a_finished_run_whose_checkpoints_are_damaged_is_not_extended(
    finished: Run, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    for checkpoint in (folder / "checkpoints").glob("checkpoint-*"):
        truncate(checkpoint / "trainer_state.json")
    longer = recipe(tiny_base, data, training__steps=8, training__schedule="constant")
    with pytest.raises(RunError):
        tune(longer, folder, resume=True)
    Run.open(folder)


def test_a_damaged_line_of_the_metrics_is_removed(
    stopped: Path, finished: Run, tiny_base: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(stopped / "checkpoints" / "checkpoint-6")
    metrics = stopped / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([lines[0], '{"st\n', *lines[2:]]))
    resumed = tune(recipe(tiny_base, data), stopped, resume=True)
    assert adapter(resumed.folder) == adapter(finished.folder)
    assert len(metrics.read_text().splitlines()) == len(lines) - 1
    assert any("metrics.jsonl:2: is damaged" in r.message for r in caplog.records)


# --- a full disk -------------------------------------------------------------------------------


def no_space(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_for_torch(*_: Any, **__: Any) -> Any:
    raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


def no_space_in_rust(*_: Any, **__: Any) -> Any:
    raise Exception("No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("place", "failure"),
    [
        ("torch.save", no_space_for_torch),
        ("peft.PeftModel.save_pretrained", no_space_in_rust),
        ("chattune.tuning.runs.seal", no_space),
    ],
)
def test_a_full_disk_is_named_and_the_run_goes_on_afterwards(
    place: str,
    failure: Callable[..., Any],
    tiny_base: Path,
    data: Path,
    finished: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = recipe(tiny_base, data)
    with monkeypatch.context() as patch:
        patch.setattr(place, failure)
        with pytest.raises(OutputError, match=r"run: the disk is full: .* MB are free") as error:
            tune(chosen, tmp_path / "run")
    assert "this run needs about" in str(error.value)
    resuming = (tmp_path / "run" / "recipe.yaml").exists()
    resumed = tune(chosen, tmp_path / "run", resume=resuming)
    assert adapter(resumed.folder) == adapter(finished.folder)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_the_file_that_finds_no_space_is_named(
    tiny_base: Path, data: Path, finished: Run, tmp_path: Path
) -> None:
    metrics = tmp_path / "run" / "metrics.jsonl"

    class Filling(Unwatched):
        def step(self, step: int, loss: float | None, tokens_per_s: float) -> None:
            if step == 4:
                metrics.unlink()
                metrics.symlink_to("/dev/full")

    with pytest.raises(OutputError, match=r"run/metrics\.jsonl: the disk is full"):
        tune(recipe(tiny_base, data), tmp_path / "run", watcher=Filling())
    metrics.unlink()
    resumed = tune(recipe(tiny_base, data), tmp_path / "run", resume=True)
    assert adapter(resumed.folder) == adapter(finished.folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a file system in memory, which only root can; resize it with the function returned."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size: str, *, mounted: bool = True) -> Path:
        option = f"remount,size={size}" if mounted else f"size={size}"
        command = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("this machine mounts no file system")
        return folder

    resize("64k", mounted=False)
    yield resize
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_anywhere_names_a_path_and_is_resumed(
    small_disk: Callable[[str], Path],
    tiny_base: Path,
    data: Path,
    finished: Run,
    cli: Callable[..., Outcome],
    tmp_path: Path,
) -> None:
    """The disk grows until the run fits, so that it is full at one write after another."""
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe(tiny_base, data).to_yaml())
    whole = sum(f.stat().st_size for f in finished.folder.rglob("*") if f.is_file())
    sizes = [*range(4096, 6 * 4096, 4096), *range(whole // 9, 3 * whole, whole // 9)]
    named = set()
    for size in sizes:
        run = small_disk(str(size)) / "run"
        resume = ["--resume"] if (run / "recipe.yaml").is_file() else []
        outcome = cli("tune", file, "--output", run, *resume)
        if outcome.code == 0:
            break
        assert outcome.code == 2, outcome.err
        assert "Traceback" not in outcome.err
        line = re.search(rf"output {run}(\S*): the disk is full: 0\.", outcome.err)
        assert line, outcome.err
        named.add(line[1])
    assert named >= {"/recipe.yaml", "/run.json", ""}
    assert adapter(run) == adapter(finished.folder)
    assert [f.name for f in run.iterdir() if f.name.startswith(".")] == []
