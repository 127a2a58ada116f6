"""tune(resume=True): a run goes on as if nothing had happened, or says why it cannot."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chattune.device import Device
from chattune.errors import Interrupted, RunError, VerificationError
from chattune.recipe import Recipe
from chattune.run import Run
from chattune.tuning import tune
from chattune.tuning.progress import Unwatched
from conftest import TALK, Outcome, write_talk
from tuned import adapter, in_fp32, metrics, recipe, write_talks


@pytest.fixture(autouse=True)
def _short_and_exact(quick_tuning: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write short samples, in fp32."""
    monkeypatch.setattr("chattune.tuning.planning._SAMPLE_TOKENS", 4)
    use(monkeypatch, in_fp32())


def use(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    monkeypatch.setattr("chattune.tuning.planning.find_device", lambda: device)


@pytest.fixture(scope="module")
def run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of four steps that tests only read."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chattune.tuning.verify_run", lambda *_: 0.0)
        use(patch, in_fp32())
        return tune(recipe(tiny_base, write_talk(folder / "t.jsonl", TALK)), folder / "run")


class StopAfter(Unwatched):
    """A watcher that stops the training by a signal, and counts the steps.

    The signal comes when step `last` is over, so that the next one is the last that is done.
    """

    def __init__(self, last: int | None = None) -> None:
        self.steps, self._last = 0, last

    def step(self, step: int, loss: float | None, tokens_per_s: float) -> None:
        self.steps += 1
        if step == self._last:
            os.kill(os.getpid(), signal.SIGTERM)


def same(a: Run, b: Run) -> bool:
    """Return whether two runs have the same adapter, bit by bit."""
    ours, theirs = adapter(a), adapter(b)
    return ours.keys() == theirs.keys() and all(ours[k].equal(theirs[k]) for k in ours)


def content(folder: Path) -> dict[str, bytes]:
    """Return the files of a run folder, without its checkpoints."""
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}


@pytest.mark.parametrize("neftune", [0, 5])
def test_a_resumed_run_equals_one_that_was_never_stopped(
    neftune: float, tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    def steps(count: int) -> Recipe:
        return recipe(tiny_base, talk_file, training__steps=count, training__neftune=neftune)

    whole = tune(steps(6), tmp_path / "whole")
    tune(steps(2), tmp_path / "parts")
    parts = tune(steps(6), tmp_path / "parts", resume=True)
    assert same(whole, parts)
    assert [m["loss"] for m in metrics(parts.folder)] == [m["loss"] for m in metrics(whole.folder)]


def test_a_signal_saves_and_resume_goes_on(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    plain = recipe(tiny_base, talk_file, training__steps=6)
    whole = tune(plain, tmp_path / "whole")
    with pytest.raises(Interrupted) as stop:
        tune(plain, tmp_path / "run", watcher=StopAfter(3))
    assert stop.value.exit_code == 143
    with pytest.raises(RunError, match="not finished"):
        Run.open(tmp_path / "run")
    resumed = tune(plain, tmp_path / "run", resume=True)
    assert [m["step"] for m in metrics(resumed.folder)] == [1, 2, 3, 4, 5, 6]
    assert same(whole, resumed)


def test_a_checkpoint_whose_saving_was_cut_short_is_passed_over(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    two = tune(recipe(tiny_base, talk_file, training__steps=2), tmp_path / "run")
    half = two.folder / "checkpoints" / "checkpoint-3"
    half.mkdir()
    (half / "trainer_state.json").write_text("{")
    more = tune(recipe(tiny_base, talk_file, training__steps=4), two.folder, resume=True)
    assert more.facts["result"]["steps"] == 4


def test_going_on_with_another_recipe_is_refused(run: Run) -> None:
    other = run.recipe.model_copy(update={"seed": 5})
    with pytest.raises(RunError, match=r"seed \(was 0, now 5\)"):
        tune(other, run.folder, resume=True)


def test_a_finished_run_has_nothing_to_go_on_with(run: Run) -> None:
    before = (run.folder / "manifest.json").read_bytes()
    assert tune(run.recipe, run.folder, resume=True) == run
    assert (run.folder / "manifest.json").read_bytes() == before


def test_a_run_stopped_after_its_last_step_is_only_finished(
    tiny_base: Path, talk_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = recipe(tiny_base, talk_file, training__steps=3)
    whole = tune(plain, tmp_path / "whole")

    def interrupted(_: Path) -> Run:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("chattune.tuning.runs.seal", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune(plain, tmp_path / "run")
    resumed = tune(plain, tmp_path / "run", resume=True)
    assert resumed.facts["result"]["steps"] == 3
    assert same(whole, resumed)


def test_a_run_that_stopped_early_has_nothing_to_go_on_with(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    data = write_talks(tmp_path / "t.jsonl")
    wild = recipe(
        tiny_base, data, data__validation=0.25, training__steps=40, training__patience=1,
        training__learning_rate=3.0, training__evaluate_every=1, training__warmup_ratio=0,
    )  # fmt: skip
    run = tune(wild, tmp_path / "run")
    before = (run.folder / "manifest.json").read_bytes()
    assert tune(wild, run.folder, resume=True) == run
    assert (run.folder / "manifest.json").read_bytes() == before


def test_a_finished_run_whose_checkpoints_are_gone_is_not_trained_anew(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    plain = recipe(tiny_base, talk_file, training__steps=2)
    run = tune(plain, tmp_path / "run")
    shutil.rmtree(run.folder / "checkpoints")
    assert tune(plain, run.folder, resume=True) == run
    more = recipe(tiny_base, talk_file, training__steps=4)
    with pytest.raises(RunError, match="its checkpoints are gone"):
        tune(more, run.folder, resume=True)
    Run.open(run.folder)


def test_going_on_over_other_conversations_or_weights_is_refused(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    run = tune(recipe(base, talk_file, training__steps=2), tmp_path / "run")
    more = recipe(base, talk_file, training__steps=4)
    talk = talk_file.read_bytes()
    write_talk(talk_file, [*TALK, ("One more?", "Yes, one more.")])
    with pytest.raises(RunError, match="no longer holds the conversations"):
        tune(more, run.folder, resume=True)
    talk_file.write_bytes(talk)
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    with pytest.raises(RunError, match="no longer holds the weights"):
        tune(more, run.folder, resume=True)


def test_a_run_goes_on_where_its_base_is_now(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    whole = tune(recipe(tiny_base, talk_file, training__steps=4), tmp_path / "whole")
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(tiny_base, old)
    with pytest.raises(Interrupted):
        tune(recipe(old, talk_file), tmp_path / "run", watcher=StopAfter(1))
    old.rename(new)
    moved = tune(recipe(new, talk_file), tmp_path / "run", resume=True)
    assert same(whole, moved)
    assert moved.recipe.base == str(new)
    assert tune(recipe(tiny_base, talk_file), tmp_path / "run", resume=True) == moved


def test_a_signal_where_a_validation_is_due_leaves_none_out(
    tiny_base: Path, tmp_path: Path
) -> None:
    data = write_talks(tmp_path / "t.jsonl")
    plain = recipe(tiny_base, data, data__validation=0.25)
    whole = tune(plain, tmp_path / "whole")
    with pytest.raises(Interrupted):
        tune(plain, tmp_path / "run", watcher=StopAfter(2))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as half_written:
        half_written.write('{"step": 3, "lo')
    resumed = tune(plain, tmp_path / "run", resume=True)
    keys = ("step", "loss", "validation_loss")
    ours, theirs = (
        [{k: m.get(k) for k in keys} for m in metrics(run.folder)] for run in (resumed, whole)
    )
    assert ours == theirs
    assert sum("validation_loss" in m for m in metrics(whole.folder)) == 2


def test_patience_is_counted_on_over_a_stop(tiny_base: Path, tmp_path: Path) -> None:
    class StopAtValidation(Unwatched):
        def validated(self, step: int, loss: float) -> None:
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    data = write_talks(tmp_path / "t.jsonl")
    wild = recipe(
        tiny_base, data, data__validation=0.25, training__steps=40, training__patience=1,
        training__learning_rate=1.0, training__evaluate_every=1, training__warmup_ratio=0,
    )  # fmt: skip
    whole = tune(wild, tmp_path / "whole")
    with pytest.raises(Interrupted):
        tune(wild, tmp_path / "run", watcher=StopAtValidation())
    resumed = tune(wild, tmp_path / "run", resume=True)
    assert resumed.facts["result"]["steps"] == whole.facts["result"]["steps"] < 40


def test_fewer_steps_than_are_done_are_refused(
    tiny_base: Path, talk_file: Path, tmp_path: Path, run: Run
) -> None:
    plain = recipe(tiny_base, talk_file, training__steps=6)
    with pytest.raises(Interrupted):
        tune(plain, tmp_path / "run", watcher=StopAfter(3))
    for folder, source, done in (
        (tmp_path / "run", talk_file, 4),
        (run.folder, Path(run.recipe.data.source), 4),
    ):
        before = content(folder)
        with pytest.raises(RunError, match=f"has done {done} steps, and the recipe asks for 2;"):
            tune(recipe(tiny_base, source, training__steps=2), folder, resume=True)
        assert content(folder) == before
    assert tune(plain, tmp_path / "run", resume=True).facts["result"]["steps"] == 6


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_rate_that_would_jump_is_refused_or_accepted(
    schedule: str, tiny_base: Path, talk_file: Path, tmp_path: Path, cli: Any
) -> None:
    first = recipe(tiny_base, talk_file, training__steps=3, training__schedule=schedule)
    folder = tune(first, tmp_path / "run").folder
    before = content(folder)
    (tmp_path / "recipe.yaml").write_text(first.to_yaml())
    tune_again = ("tune", tmp_path / "recipe.yaml", "--output", folder, "--set", "training.steps=6")
    outcome: Outcome = cli(*tune_again, "--resume")
    assert outcome.code == 2
    for part in ("started for 3 steps and has done 3", f"{schedule} learning rate", "--extend"):
        assert part in outcome.err
    assert content(folder) == before
    assert cli(*tune_again, "--resume", "--extend").code == 0
    facts = Run.open(folder).facts
    assert facts["result"]["steps"] == 6
    assert facts["training"]["steps_changed"] == [{"after_step": 3, "before": 3, "now": 6}]
    outcome = cli(*tune_again, "--extend")
    assert outcome.code == 2
    assert "add --resume" in outcome.err


def test_a_schedule_may_also_not_be_cut_short(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    linear = recipe(tiny_base, talk_file, training__steps=6, training__schedule="linear")
    with pytest.raises(Interrupted):
        tune(linear, tmp_path / "run", watcher=StopAfter(2))
    short = recipe(tiny_base, talk_file, training__steps=3, training__schedule="linear")
    with pytest.raises(RunError, match="started for 6 steps and has done 3"):
        tune(short, tmp_path / "run", resume=True)
    with pytest.raises(RunError, match="not finished"):
        Run.open(tmp_path / "run")


def test_a_constant_rate_goes_on_and_does_not_warm_up_again(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"training__learning_rate": 1e-3, "training__warmup_ratio": 0.5}
    tune(recipe(tiny_base, talk_file, training__steps=4, **settings), tmp_path / "run")
    more = recipe(tiny_base, talk_file, training__steps=12, **settings)
    run = tune(more, tmp_path / "run", resume=True)
    rates = [m["learning_rate"] for m in metrics(run.folder)]
    assert rates == pytest.approx([0, 5e-4] + 10 * [1e-3])
    assert run.facts["training"]["steps_changed"] == [{"after_step": 4, "before": 4, "now": 12}]


@pytest.mark.parametrize("bf16", [False, True])
def test_a_resumed_run_keeps_its_dtype_and_its_packs(
    bf16: bool, tiny_base: Path, talk_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether bf16 is worth it is measured, and the machine's memory may have changed."""
    plain = recipe(tiny_base, talk_file)
    device = replace(in_fp32(), bf16=bf16)
    use(monkeypatch, device)
    whole = tune(plain, tmp_path / "whole")
    with pytest.raises(Interrupted):
        tune(plain, tmp_path / "run", watcher=StopAfter(2))
    use(monkeypatch, replace(device, bf16=not bf16, memory=1 << 20))
    resumed = tune(plain, tmp_path / "run", resume=True)
    assert same(whole, resumed)
    assert resumed.facts["device"]["bf16"] == bf16
    assert resumed.facts["training"] == whole.facts["training"]


def test_a_damaged_record_of_the_start_is_refused(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    plain = recipe(tiny_base, talk_file)
    with pytest.raises(Interrupted):
        tune(plain, tmp_path / "run", watcher=StopAfter(1))
    facts = tmp_path / "run" / "run.json"
    for damaged in (facts.read_text()[:-9], "{}"):
        facts.write_text(damaged)
        with pytest.raises(RunError, match=r"run\.json is damaged"):
            tune(plain, tmp_path / "run", resume=True)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        tune(plain, tmp_path / "run", resume=True)


def test_another_kind_of_device_is_refused(
    tiny_base: Path, talk_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = recipe(tiny_base, talk_file)
    with pytest.raises(Interrupted):
        tune(plain, tmp_path / "run", watcher=StopAfter(2))
    before = content(tmp_path / "run")
    use(monkeypatch, replace(in_fp32(), kind="mps"))
    with pytest.raises(RunError, match=r"started on cpu and this machine has mps.*go on where"):
        tune(plain, tmp_path / "run", resume=True)
    assert content(tmp_path / "run") == before


@pytest.mark.parametrize("early", [False, True], ids=["last step", "patience"])
def test_a_run_whose_proof_failed_is_proved_again_without_training(
    early: bool, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"data__validation": 0.25, "training__steps": 3}
    if early:  # a ruinous rate, so that the validation loss rises
        changes |= {
            "training__steps": 40, "training__patience": 1, "training__learning_rate": 1.0,
            "training__evaluate_every": 1, "training__warmup_ratio": 0,
        }  # fmt: skip
    plain = recipe(tiny_base, write_talks(tmp_path / "t.jsonl"), **changes)
    whole = tune(plain, tmp_path / "whole")

    def failing(*_: Any) -> float:
        raise VerificationError("the logits differ")

    with monkeypatch.context() as patch:
        patch.setattr("chattune.tuning.verify_run", failing)
        with pytest.raises(VerificationError):
            tune(plain, tmp_path / "run")
    watcher = StopAfter()
    proved = tune(plain, tmp_path / "run", resume=True, watcher=watcher)
    assert watcher.steps == 0
    assert same(whole, proved)
    results = [run.facts["result"] for run in (whole, proved)]
    for result in results:
        del result["seconds"], result["tokens_per_s"]
    assert results[0] == results[1]
    assert results[0]["stopped_early"] == early
