"""tune(): the content of a run folder, the plan, and refusals; see test_resume for resuming."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import MambaConfig, MambaForCausalLM

from chattune.base import find_base, load_template
from chattune.chat import Chatbot
from chattune.conversation import Message
from chattune.device import find_device
from chattune.errors import BaseError, OutputError, RecipeError, RunError
from chattune.generate import Decoding
from chattune.models import load
from chattune.recipe import MixedSource
from chattune.run import Run
from chattune.tuning import plan, samples, tune
from chattune.tuning.samples import sample_replies
from conftest import TALK, Outcome
from tuned import adapter, in_fp32, metrics, recipe, write_talks


@pytest.fixture(autouse=True)
def _short_and_exact(quick_tuning: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write short samples, in fp32; `run` and test_export load a run in a fresh process."""
    monkeypatch.setattr("chattune.tuning.planning._SAMPLE_TOKENS", 4)
    monkeypatch.setattr("chattune.tuning.planning.find_device", in_fp32)


GREEDY = Decoding(temperature=0, max_new_tokens=40)


@pytest.fixture(scope="module")
def run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run that tests only read."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_talks(folder / "talk.jsonl")
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
    data = write_talks(tmp_path / "talk.jsonl")
    wild = recipe(
        tiny_base, data, data__validation=0.25, training__steps=40, training__patience=1,
        training__learning_rate=1.0, training__evaluate_every=1, training__warmup_ratio=0,
    )  # fmt: skip
    result = tune(wild, tmp_path / "run").facts["result"]
    losses = [m["validation_loss"] for m in metrics(tmp_path / "run") if "validation_loss" in m]
    assert result["steps"] < 40
    assert result["stopped_early"]
    assert result["validation_loss"] == min(losses)
    assert losses[result["best_step"] - 1] == min(losses)


def test_a_run_names_every_source_of_its_mix(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    other = write_talks(tmp_path / "other.jsonl")
    mix = [{"source": str(other), "weight": 0.5}]
    run = tune(recipe(tiny_base, talk_file, data__mix=mix), tmp_path / "run")
    counts = [(s["source"], s["kept"]) for s in run.facts["data"]["sources"]]
    assert counts == [(str(talk_file), 4), (str(other), 2)]
    assert run.facts["data"]["train"] == 6
    assert Run.open(run.folder).recipe.data.mix == [MixedSource(source=str(other), weight=0.5)]


def test_a_concatenated_run_is_tuned_and_chatted_with(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    run = tune(recipe(tiny_base, talk_file, template="concatenated"), tmp_path / "run")
    assert run.facts["data"]["tokens"] == run.facts["data"]["supervised_tokens"]
    bot = Chatbot.load(run.folder)
    assert bot.template.concatenated
    assert bot.template.end_ids == {0}
    prompt = bot.template.prompt([Message("user", "How are you?")])
    assert bot.template.decode(prompt) == "### Human: How are you?\n### Assistant:"
    reply = bot.reply("How are you?", GREEDY)
    assert reply.tokens == 40
    assert reply.finish == "length"


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
    data = write_talks(tmp_path / "t.jsonl")
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


def test_a_step_has_no_more_conversations_than_there_are(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    many = recipe(tiny_base, talk_file, training__steps=3, training__batch_size=1000)
    planned = plan(many)
    text = "\n".join(planned.explain())
    assert "steps: 3 of 4 conversations, 3.0 passes over the data" in text
    assert "no 1,000" in text
    card = (tune(many, tmp_path / "run").folder / "README.md").read_text()
    assert "| steps | 3 of 4 conversations |" in card
    # The last step of a pass has what is left: 3 + 1 conversations, and 3 more of the second pass.
    uneven = recipe(tiny_base, talk_file, training__steps=3, training__batch_size=3)
    assert "3 of 3 conversations, 1.8 passes" in "\n".join(plan(uneven).explain())


def test_the_plan_says_when_it_may_stop_early(tiny_base: Path, tmp_path: Path) -> None:
    data = write_talks(tmp_path / "t.jsonl")
    for patience, text in ((1, "a validation"), (3, "3 validations in a row")):
        patient = recipe(tiny_base, data, data__validation=0.25, training__patience=patience)
        explained = "\n".join(plan(patient).explain())
        assert f"stops after {text} without a lower loss" in explained
        assert "every 2 steps" in explained
    assert "without a lower loss" not in "\n".join(plan(recipe(tiny_base, data)).explain())


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


def test_a_tokenizer_too_large_for_the_model_is_refused(
    tiny_base: Path, talk_file: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "vocab_size": 200}))
    with pytest.raises(BaseError, match=r"has only 200 rows of embeddings"):
        tune(recipe(base, talk_file), tmp_path / "run")
    assert not (tmp_path / "run").exists()


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


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_samples_end_where_the_positions_do(
    engine: str, tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "reference":
        monkeypatch.setattr(samples, "fast_engine_problem", lambda *_: "it is not wanted")
    base = find_base(tiny_run.recipe.base)
    template = load_template(base, tiny_run.folder)
    question = [Message("user", "word " * 50)]
    endless = Decoding(max_new_tokens=96, temperature=0)
    (row,) = sample_replies(base, tiny_run.folder, template, [question], endless)
    assert row["tuned"]["tokens"] == 128 - len(template.prompt(question)) < 96


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
