"""One run folder is tuned into by one process at a time."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chattune.errors import RecipeError, RunError
from chattune.recipe import Recipe, load_recipe
from chattune.run import Run
from chattune.tuning import tune
from chattune.tuning.lock import LOCK, refuse_owned, sole_owner
from chattune.tuning.progress import Unwatched


@pytest.fixture(autouse=True)
def _short(quick_tuning: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chattune.tuning.planning._SAMPLE_TOKENS", 4)


OWNER = """
import sys, time
from pathlib import Path
from chattune.tuning.lock import sole_owner
with sole_owner(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def recipe(base: Path, data: Path) -> Recipe:
    settings = {
        "base": str(base), "data.source": str(data), "data.max_length": 64,
        "data.validation": 0.0, "training.steps": 2, "training.patience": None,
    }  # fmt: skip
    return load_recipe("starter", settings)


@pytest.fixture
def owner(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process, which holds the lock of the folder `run`."""
    command = [sys.executable, "-c", OWNER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_another_process_tunes_into_is_refused(
    owner: "subprocess.Popen[str]",
    tiny_base: Path,
    talk_file: Path,
    tmp_path: Path,
    resume: bool,
) -> None:
    facts = json.loads((tmp_path / "run" / LOCK).read_text())
    assert facts["host"] == socket.gethostname()
    with pytest.raises(RunError, match="being tuned into by process") as error:
        tune(recipe(tiny_base, talk_file), tmp_path / "run", resume=resume)
    assert f"process {owner.pid} on {socket.gethostname()} since {facts['since']}" in str(
        error.value
    )


def test_the_lock_of_a_process_that_was_killed_is_taken_over(
    owner: "subprocess.Popen[str]",
    tiny_base: Path,
    talk_file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert (tmp_path / "run" / LOCK).exists()
    with caplog.at_level("INFO", logger="chattune"):
        run = tune(recipe(tiny_base, talk_file), tmp_path / "run")
    assert any(f"process {owner.pid}" in r.message for r in caplog.records)
    assert not (run.folder / LOCK).exists()
    assert Run.open(run.folder) == run


def test_the_second_of_two_runs_at_once_is_refused_before_it_trains(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    class Second(Unwatched):
        """A watcher that starts a second run while the first is training."""

        refusal: RunError | None = None

        def step(self, step: int, loss: float | None, tokens_per_s: float) -> None:
            assert (tmp_path / "run" / LOCK).exists()
            with pytest.raises(RunError, match=f"process {os.getpid()} ") as error:
                tune(recipe(tiny_base, talk_file), tmp_path / "run", resume=True)
            self.refusal = error.value

    watcher = Second()
    run = tune(recipe(tiny_base, talk_file), tmp_path / "run", watcher=watcher)
    assert watcher.refusal is not None
    assert Run.open(run.folder) == run
    assert LOCK not in json.loads((run.folder / "manifest.json").read_text())["files"]


def test_of_many_threads_one_is_the_owner(tmp_path: Path) -> None:
    owners: list[int] = []
    refused: list[RunError] = []
    start = threading.Barrier(8)
    done = threading.Barrier(8)

    def own(index: int) -> None:
        start.wait()
        try:
            with sole_owner(tmp_path):
                owners.append(index)
                done.wait()
        except RunError as error:
            refused.append(error)
            done.wait()

    threads = [threading.Thread(target=own, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(owners), len(refused)) == (1, 7)
    assert not (tmp_path / LOCK).exists()


def test_the_lock_is_released_after_an_error_and_no_folder_is_left(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    wrong = recipe(tiny_base, talk_file)
    wrong = wrong.model_copy(update={"data": wrong.data.model_copy(update={"max_length": 256})})
    with pytest.raises(RecipeError):
        tune(wrong, tmp_path / "runs" / "run")
    assert not (tmp_path / "runs").exists()
    tune(recipe(tiny_base, talk_file), tmp_path / "runs" / "run")


def test_a_damaged_lock_file_keeps_nobody_out(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("{")
    refuse_owned(tmp_path)
    assert not (tmp_path / LOCK).exists()
