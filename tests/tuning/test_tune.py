"""tune(): the content of a run folder, refusals, and resuming as if nothing had happened."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import MambaConfig, MambaForCausalLM

from chattune.chat import Chatbot
from chattune.conversation import Message
from chattune.device import Device, find_device
from chattune.errors import BaseError, Interrupted, OutputError, RecipeError, RunError
from chattune.generate import Decoding
from chattune.models import load
from chattune.models.lora import add_lora
from chattune.recipe import LoraRecipe, Recipe
from chattune.run import Run
from chattune.tuning import plan, tune
from chattune.tuning.progress import Unwatched
from chattune.tuning.samples import sample_replies
from conftest import TALK, Outcome, write_talk


def in_fp32() -> Device:
    """Return this machine's device without bf16, whose rounding would hide small differences."""
    return replace(find_device(), bf16=False)


@pytest.fixture(autouse=True)
def _short_and_exact(quick_tuning: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write short samples, in fp32; `run` and test_export load a run in a fresh process."""
    monkeypatch.setattr("chattune.tuning.planning._SAMPLE_TOKENS", 4)
    monkeypatch.setattr("chattune.tuning.planning.find_device", in_fp32)


GREEDY = Decoding(temperature=0, max_new_tokens=40)


def recipe(base: Path, data: Path, **changes: Any) -> Recipe:
    """Return a recipe of few steps; `changes` are dotted fields with __ for the dot."""
    tree: dict[str, Any] = {
        "base": str(base),
        "data": {
            "source": str(data),
            "max_length": 64,
            "validation": 0,
            "near_duplicates": "keep",
        },
        "lora": {"rank": 4, "dropout": 0.1},
        "training": {
            "steps": 4,
            "batch_size": 2,
            "accumulation": 1,
            "learning_rate": 5e-3,
            "evaluate_every": 2,
        },
    }
    for field, value in changes.items():
        section, _, leaf = field.rpartition("__")
        (tree[section] if section else tree)[leaf] = value
    return Recipe.model_validate(tree)


def adapter(run: Run) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run.folder / "adapter_model.safetensors")


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run that tests only read."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_talk(folder / "talk.jsonl", [(f"{q} ({i})", a) for i in range(8) for q, a in TALK])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chattune.tuning.planning.find_device", in_fp32)
        base = Path(shutil.copytree(tiny_base, folder / "base"))
        (base / "generation_config.json").write_text('{"temperature": 0.5, "eos_token_id": 0}')
        return tune(recipe(base, data, data__validation=0.25), folder / "run")


def test_run_folder_explains_itself(run: Run) -> None:
    assert Run.open(run.folder) == run
    names = {f.name for f in run.folder.iterdir()}
    assert names >= {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja",
        "generation_config.json", "recipe.yaml", "run.json", "data.json", "metrics.jsonl",
        "samples.json", "loss.png", "README.md", "manifest.json",
    }  # fmt: skip
    facts = run.facts
    assert facts["result"]["steps"] == 4
    assert facts["reload_difference"] <= 1e-5
    assert facts["base"]["fingerprint"]
    assert facts["data"]["train"] + facts["data"]["validation"] == 32
    assert facts["versions"]["trl"]
    assert Decoding.of(run.folder) == Decoding(temperature=0.5)  # as its base recommends
    assert (run.folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_samples_set_the_base_beside_the_tuned_model(run: Run) -> None:
    assert len(run.samples) == 4
    for sample in run.samples:
        assert sample["prompt"]
        assert {"text", "tokens", "stopped"} == set(sample["base"]) == set(sample["tuned"])


def test_validation_loss_is_the_mean_over_supervised_tokens(run: Run) -> None:
    """The best checkpoint's loss is computed again with transformers' own logits and loss."""
    import torch

    from chattune.data import prepare
    from chattune.device import find_device
    from chattune.models import load

    model = load(run.folder, find_device()).model
    nats = tokens = 0.0
    with torch.no_grad():
        for row in prepare(run.recipe).validation:
            labels = torch.tensor([row["labels"]])
            out = model(torch.tensor([row["input_ids"]]), labels=labels)
            count = int((labels[:, 1:] != -100).sum())
            nats, tokens = nats + float(out.loss) * count, tokens + count
    assert run.facts["result"]["validation_loss"] == pytest.approx(nats / tokens, rel=1e-4)


def test_other_tools_load_the_run_folder(run: Run) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run.folder)
    tokenizer = AutoTokenizer.from_pretrained(run.folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    assert model(ids).logits.shape[-1] == model.config.vocab_size
    assert tokenizer.pad_token is None  # the base has none, and tuning saves none


def test_conversations_learned_by_heart_are_answered_word_for_word(
    talk_file: Path, tmp_path: Path
) -> None:
    learned = recipe(
        Path("starter"), talk_file, lora__rank=16, lora__alpha=32, lora__dropout=0,
        training__steps=40, training__batch_size=4, training__learning_rate=4e-3,
        training__evaluate_every=40, training__schedule="linear",
    )  # fmt: skip
    bot = Chatbot.load(tune(learned, tmp_path / "run").folder)
    for question, answer in TALK:
        bot.reset()
        reply = bot.reply(question, GREEDY)
        assert (reply.text, reply.finish) == (answer, "stop")


def test_a_resumed_run_equals_one_that_was_never_stopped(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    whole = tune(recipe(tiny_base, talk_file, training__steps=6), tmp_path / "whole")
    tune(recipe(tiny_base, talk_file, training__steps=2), tmp_path / "parts")
    parts = tune(recipe(tiny_base, talk_file, training__steps=6), tmp_path / "parts", resume=True)
    a, b = adapter(whole), adapter(parts)
    assert a.keys() == b.keys()
    assert all(a[k].equal(b[k]) for k in a)
    assert [m["loss"] for m in metrics(parts.folder)] == [m["loss"] for m in metrics(whole.folder)]


def test_a_signal_saves_and_resume_goes_on(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    class Impatient(Unwatched):
        def step(self, step: int, loss: float | None, tokens_per_s: float) -> None:
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    plain = recipe(tiny_base, talk_file, training__steps=6)
    whole = tune(plain, tmp_path / "whole")
    with pytest.raises(Interrupted) as stop:
        tune(plain, tmp_path / "run", watcher=Impatient())
    assert stop.value.exit_code == 143
    with pytest.raises(RunError, match="not finished"):
        Run.open(tmp_path / "run")
    resumed = tune(plain, tmp_path / "run", resume=True)
    assert [m["step"] for m in metrics(resumed.folder)] == [1, 2, 3, 4, 5, 6]
    a, b = adapter(whole), adapter(resumed)
    assert all(a[k].equal(b[k]) for k in a)


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


def test_batch_and_accumulation_make_one_step(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    """4 x 1, 2 x 2 and 1 x 4 conversations are the same step, to rounding."""
    runs = [
        tune(
            recipe(
                tiny_base, talk_file, lora__dropout=0,
                training__batch_size=size, training__accumulation=4 // size,
            ),
            tmp_path / str(size),
        )
        for size in (4, 2, 1)
    ]  # fmt: skip
    first = adapter(runs[0])
    for other in map(adapter, runs[1:]):
        assert all(first[k].allclose(other[k], atol=2e-5) for k in first)


def test_recomputing_activations_changes_nothing_but_memory(
    tiny_base: Path, talk_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = recipe(tiny_base, talk_file)
    a = adapter(tune(plain, tmp_path / "plain"))
    small = replace(in_fp32(), memory=1 << 20)
    monkeypatch.setattr("chattune.tuning.planning.find_device", lambda: small)
    assert plan(plain).estimate.checkpointing
    b = adapter(tune(plain, tmp_path / "recomputed"))
    assert all(a[k].allclose(b[k], atol=1e-6) for k in a)


def test_a_damaged_base_leaves_no_folder_behind(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BaseError, match="weights cannot be loaded"):
        tune(recipe(base, talk_file), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_early_stopping_and_best_adapter(tiny_base: Path, tmp_path: Path) -> None:
    """With a ruinous learning rate the run stops after a worse validation and keeps the best."""
    data = write_talk(
        tmp_path / "talk.jsonl", [(f"{q} ({i})", a) for i in range(8) for q, a in TALK]
    )
    wild = recipe(
        tiny_base, data, data__validation=0.25, training__steps=40, training__patience=1,
        training__learning_rate=1.0, training__evaluate_every=1, training__warmup_ratio=0,
    )  # fmt: skip
    result = tune(wild, tmp_path / "run").facts["result"]
    losses = [m["validation_loss"] for m in metrics(tmp_path / "run") if "validation_loss" in m]
    assert result["steps"] < 40
    assert result["validation_loss"] == min(losses)
    assert losses[result["best_step"] - 1] == min(losses)


def test_fields_of_the_recipe_reach_the_training(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    ready = recipe(
        tiny_base, talk_file, lora__rank=3, lora__alpha=9, lora__dropout=0.2,
        lora__targets=["q_proj"], training__steps=10, training__warmup_ratio=0.2,
        training__schedule="linear", training__learning_rate=1e-3,
    )  # fmt: skip
    run = tune(ready, tmp_path / "run")
    saved = json.loads((run.folder / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["lora_dropout"]) == (3, 9, 0.2)
    assert saved["target_modules"] == ["q_proj"]
    rates = [m["learning_rate"] for m in metrics(run.folder)]
    assert rates[0] == 0
    assert rates[2] == pytest.approx(1e-3)
    assert rates == sorted(rates[:3]) + sorted(rates[3:], reverse=True)


def test_seed_schedule_and_intervals_reach_the_training(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    data = write_talk(tmp_path / "t.jsonl", [(f"{q} ({i})", a) for i in range(8) for q, a in TALK])
    common = {"data__validation": 0.25, "training__steps": 5, "training__evaluate_every": 2}
    first = tune(recipe(tiny_base, data, **common), tmp_path / "first")
    cosine = recipe(tiny_base, data, seed=1, training__schedule="cosine", **common)
    second = tune(cosine, tmp_path / "second")
    for run in (first, second):
        assert [m["step"] for m in metrics(run.folder) if "validation_loss" in m] == [2, 4, 5]
    rates = [m["learning_rate"] for m in metrics(second.folder) if "loss" in m]
    assert rates[0] == 0  # one step of warm-up
    assert all(
        rate == pytest.approx(5e-3 * (1 + math.cos(math.pi * i / 4)) / 2)
        for i, rate in enumerate(rates[1:])
    )
    a, b = adapter(first), adapter(second)
    assert not any(a[k].equal(b[k]) for k in a)


def test_epochs_come_to_steps(tiny_base: Path, talk_file: Path) -> None:
    half = recipe(tiny_base, talk_file, training__steps=None, training__epochs=2.5)
    assert plan(half).steps == 5  # 4 conversations, 2 a step


def test_all_is_refused_before_anything_is_written(
    tiny_base: Path, talk_file: Path, tmp_path: Path, run: Run
) -> None:
    target = tmp_path / "run"
    for wrong, message in [
        (recipe(tiny_base, talk_file, data__max_length=256), "128 positions"),
        (recipe(tiny_base, talk_file, lora__targets=["q_prj"]), "did you mean q_proj"),
    ]:
        with pytest.raises(RecipeError, match=message):
            tune(wrong, target)
        assert not target.exists()
    with pytest.raises(RunError, match="already holds a run"):
        tune(recipe(tiny_base, talk_file), run.folder)
    with pytest.raises(OutputError, match="cannot be written to"):
        tune(recipe(tiny_base, talk_file), talk_file / "run")


def test_the_stage_is_imported_without_torch() -> None:
    """The command line imports it before it reads the recipe, so a wrong one is refused at once."""
    script = "import sys, chattune.tuning; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_dry_run_says_what_would_be_done(
    tiny_base: Path, talk_file: Path, tmp_path: Path, cli: Any
) -> None:
    outcome: Outcome = cli(
        "tune", "starter", "--base", tiny_base, "--data", talk_file, "--set", "data.max_length=64",
        "--output", tmp_path / "run", "--dry-run",
    )  # fmt: skip
    assert outcome.code == 0
    for part in ("memory: about", "time: about", "device: ", "dtype: ", "passes over the data"):
        assert part in outcome.out
    assert not (tmp_path / "run").exists()


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
    a, b = adapter(whole), adapter(resumed)
    assert all(a[k].equal(b[k]) for k in a)


def test_a_run_that_stopped_early_has_nothing_to_go_on_with(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    data = write_talk(tmp_path / "t.jsonl", [(f"{q} ({i})", a) for i in range(8) for q, a in TALK])
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


def test_a_signal_where_a_validation_is_due_leaves_none_out(
    tiny_base: Path, tmp_path: Path
) -> None:
    class Impatient(Unwatched):
        def step(self, step: int, loss: float | None, tokens_per_s: float) -> None:
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    data = write_talk(tmp_path / "t.jsonl", [(f"{q} ({i})", a) for i in range(8) for q, a in TALK])
    plain = recipe(tiny_base, data, data__validation=0.25)
    whole = tune(plain, tmp_path / "whole")
    with pytest.raises(Interrupted):
        tune(plain, tmp_path / "run", watcher=Impatient())
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
    class Impatient(Unwatched):
        def validated(self, step: int, loss: float) -> None:
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    data = write_talk(tmp_path / "t.jsonl", [(f"{q} ({i})", a) for i in range(8) for q, a in TALK])
    wild = recipe(
        tiny_base, data, data__validation=0.25, training__steps=40, training__patience=1,
        training__learning_rate=1.0, training__evaluate_every=1, training__warmup_ratio=0,
    )  # fmt: skip
    whole = tune(wild, tmp_path / "whole")
    with pytest.raises(Interrupted):
        tune(wild, tmp_path / "run", watcher=Impatient())
    resumed = tune(wild, tmp_path / "run", resume=True)
    assert resumed.facts["result"]["steps"] == whole.facts["result"]["steps"] < 40


def test_patience_needs_something_to_lose_it_over(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"training\.patience: no conversation is held out"):
        tune(recipe(tiny_base, talk_file, training__patience=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_base_that_recommends_greedy_is_tuned_and_sampled_so(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (base / "generation_config.json").write_text('{"do_sample": false, "eos_token_id": 0}')
    run = tune(recipe(base, talk_file, training__steps=1), tmp_path / "run")
    assert Decoding.of(run.folder).greedy


def test_attention_dropout_is_left_to_transformers(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.5}))
    losses = [
        [m["loss"] for m in metrics(tune(recipe(b, talk_file), tmp_path / name).folder)]
        for b, name in ((base, "with"), (tiny_base, "without"))
    ]
    assert losses[0] != losses[1]


def test_samples_end_where_the_positions_do(tiny_base: Path) -> None:
    loaded = load(tiny_base, find_device())
    question = [Message("user", "word " * 50)]
    prompt = loaded.template.prompt(question)
    endless = Decoding(max_new_tokens=96, temperature=0)
    adapted = add_lora(loaded.model, LoraRecipe(), 0)
    (row,) = sample_replies(adapted, loaded.template, [question], endless, loaded.positions)
    assert row["tuned"]["tokens"] == loaded.positions - len(prompt) < 96


def test_a_base_without_attention_can_be_planned(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    config = MambaConfig(
        vocab_size=8192, hidden_size=16, num_hidden_layers=1, state_size=4, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    for file in tiny_base.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "mamba")
    assert plan(recipe(tmp_path / "mamba", talk_file)).estimate.memory > 0


def test_bf16_trains_alike(
    tiny_base: Path, talk_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training with the base in bf16 has nearly the losses of fp32; the adapter stays in fp32."""
    plain = recipe(tiny_base, talk_file, lora__dropout=0)
    fp32 = tune(plain, tmp_path / "fp32")
    monkeypatch.setattr(
        "chattune.tuning.planning.find_device", lambda: replace(find_device(), bf16=True)
    )
    bf16 = tune(plain, tmp_path / "bf16")
    assert bf16.facts["device"]["bf16"]
    losses = [[m["loss"] for m in metrics(run.folder)] for run in (fp32, bf16)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    assert all(tensor.dtype.itemsize == 4 for tensor in adapter(bf16).values())
