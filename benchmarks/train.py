"""Training: chattune beside TRL in one run, same rows, same supervised tokens.

    python benchmarks/train.py --base BASE --data FILE [--quick] [--json] [--only best,default]

GPT-Neo with LoRA (r=16 on q_proj and v_proj, dropout 0.05), 16 conversations a step (TRL: 4 x 4),
length 512. TRL is given the same token ids and labels as chattune, so that both are supervised on
the same tokens. Each contender runs in a process of its own, one after the other, ours before and
after; tokens are those of the conversations, padding not counted. Our first step is left out, and
TRL's first pass of four conversations.

best     without gradient checkpointing; bf16 autocast only where the machine multiplies bf16 fast
default  TRL's defaults: bf16 autocast, gradient checkpointing; a CPU without bf16 takes minutes for
         four conversations, so there they run only if --only names them
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ceiling

ROWS, LENGTH, RANK, TARGETS = 400, 512, 16, ["q_proj", "v_proj"]


def recipe(base: str, data: str, steps: int) -> Any:
    """The study's recipe, for so many steps."""
    from chattune.recipe import load_recipe

    return load_recipe(
        "gpt-neo-125m-guanaco",
        {
            "base": base, "data.source": data, "data.validation": 0.0, "data.max_length": LENGTH,
            "lora.targets": TARGETS, "lora.rank": RANK, "training.steps": steps,
        },
    )  # fmt: skip


def ours(base: str, data: str, steps: int) -> dict[str, Any]:
    """chattune.tune as a user calls it, its own metrics read back."""
    import chattune
    from chattune.data import prepare
    from chattune.device import find_device
    from chattune.tuning import trainer

    chosen = recipe(base, data, steps + 1)
    started = time.perf_counter()
    first: list[float] = []
    peaks: list[dict[str, float]] = []
    done: list[tuple[list[int], int]] = []
    plain = trainer._Trainer.training_step

    def watched(self: Any, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        first.append(time.perf_counter() - started)
        done.append((inputs["lengths"], int((inputs["labels"] != -100).sum())))
        loss = plain(self, model, inputs, *rest)
        peaks.append(memory())
        return loss

    trainer._Trainer.training_step = watched
    prepare(chosen)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as aside:
        run = chattune.tune(chosen, Path(aside) / "run")
        rates = [json.loads(x)["tokens_per_s"] for x in (run.folder / "metrics.jsonl").open()]
    tokens = [sum(lengths) for lengths, _ in done]
    seconds = sum(t / r for t, r in zip(tokens[1:], rates[1:], strict=True))
    flop = sum(step_flop(base, lengths, supervised) for lengths, supervised in done[1:])
    return {
        "tokens_per_s": sum(tokens[1:]) / seconds,
        "supervised_per_s": sum(n for _, n in done[1:]) / seconds,
        "seconds_a_step": seconds / steps,
        "gflops": flop / seconds / 1e9,
        "first_step_after_s": first[0],
        "dtype": "bf16" if find_device().bf16 else "fp32",
        "rss_with_saving_gb": memory()["rss_gb"],
    } | peaks[-1]  # TRL saves and verifies nothing here


def step_flop(base: str, lengths: list[int], supervised: int) -> float:
    """Floating-point operations that a step needs: two for each multiply-add.

    Forward and the gradient of the inputs for every frozen matrix, forward and both gradients for
    the adapter and for the causal half of the attention; the output layer at supervised tokens.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    head = linear.pop("lm_head").weight.numel()
    blocks = sum(m.weight.numel() for m in linear.values())
    adapted = [m for name, m in linear.items() if name.split(".")[-1] in TARGETS]
    adapter = sum(RANK * (m.in_features + m.out_features) for m in adapted)
    window = getattr(config, "window_size", 0)
    pairs = 0.0  # of a query and a key that it sees, mean over the layers
    for length in lengths:
        near = min(length, window) if window else length
        everything, local = (n * (n + 1) / 2 + (length - n) * n for n in (length, near))
        pairs += (everything + local) / 2
    attention = 6 * 2 * config.hidden_size * config.num_hidden_layers * pairs
    return 4 * (blocks * sum(lengths) + head * supervised) + 6 * adapter * sum(lengths) + attention


def trl(base: str, data: str, steps: int, mode: str, limit: float) -> dict[str, Any]:
    """TRL's SFTTrainer on the rows that chattune prepared.

    For so many steps and one, or until `limit` seconds have passed; the first pass is left out.
    """
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    from chattune.data import prepare
    from chattune.device import find_device

    chosen = recipe(base, data, steps + 1)
    set_seed(0)
    prepared = prepare(chosen)
    tokenizer = prepared.template.tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    best = {"gradient_checkpointing": False, "bf16": find_device().bf16}
    flags = {} if mode == "default" else best
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=4, gradient_accumulation_steps=4,
        learning_rate=2e-4, max_steps=steps + 1, max_length=LENGTH, warmup_steps=0.03,
        lr_scheduler_type="constant", logging_steps=1, report_to=[], save_strategy="no",
        use_cpu=find_device().kind == "cpu", disable_tqdm=True, seed=chosen.seed, **flags,
    )  # fmt: skip
    lora = LoraConfig(
        r=RANK, lora_alpha=32, lora_dropout=0.05, target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    trainer = SFTTrainer(
        model=model, args=config, train_dataset=prepared.train, processing_class=tokenizer,
        peft_config=lora,
    )  # fmt: skip
    seen: dict[str, Any] = {"tokens": 0, "supervised": 0, "passes": 0}
    marks: list[dict[str, float]] = []  # what was seen after the first pass, and at the end
    compute = trainer.compute_loss

    def counted(model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        seen["tokens"] += inputs["attention_mask"].sum()  # a number only at the end: no wait
        seen["supervised"] += (inputs["labels"] != -100).sum()
        seen["passes"] += 1
        return compute(model, inputs, *rest, **more)

    def mark() -> None:
        ceiling.wait()
        now = time.perf_counter()
        marks.append({name: float(count) for name, count in seen.items()} | {"seconds": now})

    class Clock(TrainerCallback):
        def on_substep_end(self, *_: Any, **__: Any) -> None:
            if not marks:
                mark()
            elif time.perf_counter() - marks[0]["seconds"] > limit:
                raise TimeoutError

    trainer.compute_loss = counted
    trainer.add_callback(Clock())
    with suppress(TimeoutError):
        trainer.train()
    mark()
    done = {name: marks[1][name] - marks[0][name] for name in marks[0]}
    return {
        "tokens_per_s": done["tokens"] / done["seconds"],
        "supervised_per_s": done["supervised"] / done["seconds"],
        "seconds_a_step": done["seconds"] / done["passes"] * config.gradient_accumulation_steps,
    } | memory()


def memory() -> dict[str, float]:
    """Peak resident memory of this process, and of the GPU if there is one, in GB."""
    import torch

    found = {"rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
    if torch.cuda.is_available():
        found["gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def contend(name: str, given: argparse.Namespace, steps: int) -> dict[str, Any]:
    """Run one contender in a fresh process."""
    command = [sys.executable, __file__, "--base", given.base, "--data", given.data]
    done = subprocess.run(
        [*command, "--contender", name, "--steps", str(steps), "--limit", str(given.limit)],
        capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def first_rows(data: str, folder: Path) -> str:
    """The first rows of a JSON lines file, as a file."""
    lines = Path(data).read_text("utf-8").splitlines(keepends=True)[:ROWS]
    (folder / "rows.jsonl").write_text("".join(lines), "utf-8")
    return str(folder / "rows.jsonl")


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """All contenders, one after the other, with the ceiling before and after ours."""
    from chattune.device import find_device

    device = find_device()
    every = "best" if device.kind == "cpu" and not device.bf16 else "best,default"
    peers = [mode for mode in ("best", "default") if mode in (given.only or every).split(",")]
    dtype = device.base_dtype()
    steps = given.steps or (2 if given.quick else 10)
    peer_steps = given.steps or (2 if given.quick else 5)
    rows: dict[str, dict[str, Any]] = {}
    rates, runs = [], []
    for turn in (0, 1):
        rates.append(ceiling.matrix_rate(dtype))
        runs.append(contend("ours", given, steps))
        rates.append(ceiling.matrix_rate(dtype))
        if turn == 0:
            for mode in peers:
                rows[f"TRL {mode}"] = contend(mode, given, peer_steps)
    numbers = [k for k, v in runs[0].items() if not isinstance(v, str)]
    rows = {"chattune": runs[0] | {k: (runs[0][k] + runs[1][k]) / 2 for k in numbers}} | rows
    rate = sum(rates) / len(rates) / 1e9
    mine = rows["chattune"]
    found: dict[str, Any] = {
        "rows": rows,
        f"{mine['dtype']}_ceiling_gflops": rate,
        "ceiling_tokens_per_s": rate / mine["gflops"] * mine["tokens_per_s"],
        "share_of_ceiling": mine["gflops"] / rate,
        "first_step_after_s": mine["first_step_after_s"],
    }
    for mode in peers:
        found[f"vs_trl_{mode}"] = mine["tokens_per_s"] / rows[f"TRL {mode}"]["tokens_per_s"]
    if "best" in peers:
        found["rss_vs_trl"] = mine["rss_gb"] / rows["TRL best"]["rss_gb"]
    return found


def show(found: dict[str, Any]) -> None:
    """One table."""
    print(f"{'':14}{'tokens/s':>10}{'supervised/s':>14}{'s/step':>9}{'peak GB':>9}")
    for name, row in found["rows"].items():
        rates = f"{row['tokens_per_s']:10.0f}{row['supervised_per_s']:14.0f}"
        peak = row.get("gpu_gb", row["rss_gb"])
        print(f"{name:14}{rates}{row['seconds_a_step']:9.2f}{peak:9.2f}")
    print(f"{'ceiling':14}{found['ceiling_tokens_per_s']:10.0f}")
    for name, value in found.items():
        if name not in ("rows", "ceiling_tokens_per_s"):
            print(f"{name:22}{value:8.2f}")


def main() -> None:
    """Compare, or be one of the contenders."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", required=True, help="folder or Hub id of a base")
    parser.add_argument("--data", required=True, help="JSON lines; the first 400 rows are used")
    parser.add_argument("--quick", action="store_true", help="fewer steps: under 8 minutes")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--steps", type=int, help="measured steps of every contender")
    parser.add_argument("--limit", type=float, help="seconds that a peer is measured at most")
    parser.add_argument("--only", help="peers: best, default, or none")
    parser.add_argument("--contender", choices=["ours", "best", "default"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.limit = given.limit or (60 if given.quick else math.inf)
    if given.contender == "ours":
        print(json.dumps(ours(given.base, given.data, given.steps)))
    elif given.contender:
        print(json.dumps(trl(given.base, given.data, given.steps, given.contender, given.limit)))
    else:
        with tempfile.TemporaryDirectory() as aside:
            given.data = first_rows(given.data, Path(aside))
            found = compare(given)
        print(json.dumps(found)) if given.json else show(found)


if __name__ == "__main__":
    main()
