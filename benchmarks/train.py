"""Training speed: chattune beside TRL in one run, on the same rows and supervised tokens.

    python benchmarks/train.py --base BASE --data FILE [--quick] [--json] [--only best,default]

A base with LoRA (r=16 on q_proj and v_proj, dropout 0.05), 16 conversations a step (TRL: 4 x 4) of
at most 512 tokens. TRL gets the token ids and labels that chattune prepared, so that both are
supervised on the same tokens. Each contender runs in a process of its own, one after the other, and
chattune runs before and after TRL. Tokens are those of conversations, without padding. chattune's
first step and TRL's first pass of four conversations are not measured.

best     without gradient checkpointing, batches of conversations of like length, and bf16 autocast
         only if the machine multiplies bf16 fast
default  TRL's defaults: bf16 autocast and gradient checkpointing. A CPU without bf16 takes minutes
         for four conversations, so there it runs only if --only names it
"""

import argparse
import json
import math
import resource
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ceiling
import contender

ROWS, LENGTH, RANK, TARGETS = 400, 512, 16, ["q_proj", "v_proj"]


def recipe(base: str, data: str, steps: int) -> Any:
    """Return the study's recipe for the benchmark's base and data, with `steps` steps."""
    from chattune.recipe import load_recipe

    return load_recipe(
        "gpt-neo-125m-guanaco",
        {
            "base": base, "data.source": data, "data.validation": 0.0, "data.max_length": LENGTH,
            "lora.targets": TARGETS, "lora.rank": RANK, "training.steps": steps,
        },
    )  # fmt: skip


def ours(base: str, data: str, steps: int) -> dict[str, Any]:
    """Measure chattune.tune as a user calls it, by its own metrics."""
    import chattune
    from chattune.base import find_base
    from chattune.data import prepare
    from chattune.device import find_device
    from chattune.models import shape_of
    from chattune.tuning import trainer

    chosen = recipe(base, data, steps + 1)
    first_steps: list[float] = []
    peaks: list[dict[str, float]] = []
    batches: list[tuple[list[int], int]] = []  # lengths and supervised tokens of each step
    plain = trainer._Trainer.training_step

    def watched(self: Any, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        first_steps.append(time.perf_counter() - started)
        batches.append((inputs["lengths"], int((inputs["labels"] != -100).sum())))
        loss = plain(self, model, inputs, *rest)
        peaks.append(memory())
        return loss

    trainer._Trainer.training_step = watched
    prepare(chosen)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = chattune.tune(chosen, Path(folder) / "run")
        rates = [json.loads(x)["tokens_per_s"] for x in (run.folder / "metrics.jsonl").open()]
    tokens = [sum(lengths) for lengths, _ in batches]
    seconds = sum(t / r for t, r in zip(tokens[1:], rates[1:], strict=True))
    shape = shape_of(find_base(base))
    flop = sum(step_flop(shape, lengths, supervised) for lengths, supervised in batches[1:])
    return {
        "tokens_per_s": sum(tokens[1:]) / seconds,
        "supervised_per_s": sum(n for _, n in batches[1:]) / seconds,
        "seconds_a_step": seconds / steps,
        "gflops": flop / seconds / 1e9,
        "first_step_after_s": first_steps[0],
        "dtype": "bf16" if find_device().bf16 else "fp32",
        "rss_with_saving_gb": memory()["rss_gb"],
    } | peaks[-1]  # the peak while training: TRL saves and verifies nothing here


def step_flop(shape: Any, lengths: list[int], supervised: int) -> float:
    """Return the floating-point operations that a step needs.

    `shape` is the model without weights; `lengths` are those of the step's conversations.
    """
    from chattune.cost import attention_operations, matrix_weights, training_operations
    from chattune.models.lora import adapter_weights
    from chattune.recipe import LoraRecipe

    config = shape.config
    kinds = getattr(config, "attention_layers", ["global"] * config.num_hidden_layers)
    windows = [config.window_size if kind == "local" else None for kind in kinds]
    return training_operations(
        *matrix_weights(shape),
        tokens=sum(lengths),
        supervised=supervised,
        adapter=adapter_weights(LoraRecipe(rank=RANK, targets=TARGETS), shape),
        attention=attention_operations(lengths, config.hidden_size, windows),
    )


def trl(base: str, data: str, steps: int, mode: str, limit: float) -> dict[str, Any]:
    """Measure TRL's SFTTrainer on the rows that chattune prepared.

    It trains for `steps` steps and one more, or until `limit` seconds have passed. The first pass
    is not measured.
    """
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    from chattune.base import find_base
    from chattune.data import prepare
    from chattune.device import find_device, synchronize

    chosen, device = recipe(base, data, steps + 1), find_device()
    set_seed(0)
    prepared = prepare(chosen)
    tokenizer = prepared.template.tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    best = {
        "gradient_checkpointing": False,
        "bf16": device.bf16,
        "train_sampling_strategy": "group_by_length",  # less padding
    }
    flags = {} if mode == "default" else best
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=4, gradient_accumulation_steps=4,
        learning_rate=2e-4, max_steps=steps + 1, max_length=LENGTH, warmup_steps=0.03,
        lr_scheduler_type="constant", logging_steps=1, report_to=[], save_strategy="no",
        use_cpu=device.kind == "cpu", disable_tqdm=True, seed=chosen.seed, **flags,
    )  # fmt: skip
    lora = LoraConfig(
        r=RANK, lora_alpha=32, lora_dropout=0.05, target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    model = AutoModelForCausalLM.from_pretrained(find_base(base).folder, dtype=torch.float32)
    trainer = SFTTrainer(
        model=model, args=config, train_dataset=prepared.train, processing_class=tokenizer,
        peft_config=lora,
    )  # fmt: skip
    counts: dict[str, Any] = {"tokens": 0, "supervised": 0, "passes": 0}
    marks: list[dict[str, float]] = []  # counts and time after the first pass, and at the end
    compute = trainer.compute_loss

    def counted(model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        counts["tokens"] += inputs["attention_mask"].sum()  # stays on the GPU: nothing waits
        counts["supervised"] += (inputs["labels"] != -100).sum()
        counts["passes"] += 1
        return compute(model, inputs, *rest, **more)

    def mark() -> None:
        synchronize()
        now = time.perf_counter()
        marks.append({name: float(count) for name, count in counts.items()} | {"seconds": now})

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
    """Return the peak memory of this process and, if there is one, of the GPU, in GB."""
    import torch

    peaks = {"rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
    if torch.cuda.is_available():
        peaks["gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return peaks


def contend(name: str, arguments: argparse.Namespace, steps: int) -> dict[str, Any]:
    """Measure one contender in a process of its own."""
    options = {"base": arguments.base, "data": arguments.data, "limit": arguments.limit}
    with contender.busy_process(busy=arguments.busy):
        return contender.measure(__file__, name, steps=steps, **options)


def first_rows(data: str, folder: Path) -> str:
    """Write the first rows of a JSON lines file to `folder` and return the new file's path."""
    lines = Path(data).read_text("utf-8").splitlines(keepends=True)[:ROWS]
    (folder / "rows.jsonl").write_text("".join(lines), "utf-8")
    return str(folder / "rows.jsonl")


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all contenders in turn, measuring the ceiling before and after chattune's runs."""
    from chattune.device import find_device

    device = find_device()
    all_peers = "best" if device.kind == "cpu" and not device.bf16 else "best,default"
    chosen_peers = (arguments.only or all_peers).split(",")
    peers = [mode for mode in ("best", "default") if mode in chosen_peers]
    steps = arguments.steps or (2 if arguments.quick else 10)
    peer_steps = arguments.steps or (2 if arguments.quick else 5)
    rows: dict[str, dict[str, Any]] = {}
    rates, runs = [], []
    for turn in (0, 1):
        rates.append(ceiling.matrix_rate(device.bf16))
        runs.append(contend("ours", arguments, steps))
        rates.append(ceiling.matrix_rate(device.bf16))
        if turn == 0:
            for mode in peers:
                rows[f"TRL {mode}"] = contend(mode, arguments, peer_steps)
    numbers = [name for name, value in runs[0].items() if not isinstance(value, str)]
    mine = runs[0] | {name: (runs[0][name] + runs[1][name]) / 2 for name in numbers}
    rate = sum(rates) / len(rates) / 1e9
    comparison: dict[str, Any] = {
        "rows": {"chattune": mine} | rows,
        f"{mine['dtype']}_ceiling_gflops": rate,
        "ceiling_tokens_per_s": rate / mine["gflops"] * mine["tokens_per_s"],
        "share_of_ceiling": mine["gflops"] / rate,
        "first_step_after_s": mine["first_step_after_s"],
    }
    for mode in peers:
        ratio = mine["tokens_per_s"] / rows[f"TRL {mode}"]["tokens_per_s"]
        comparison[f"vs_trl_{mode}"] = ratio
    if "best" in peers:
        comparison["rss_vs_trl"] = mine["rss_gb"] / rows["TRL best"]["rss_gb"]
    return comparison


def show(comparison: dict[str, Any]) -> None:
    """Print the comparison as a table."""
    print(f"{'':14}{'tokens/s':>10}{'supervised/s':>14}{'s/step':>9}{'peak GB':>9}")
    for name, row in comparison["rows"].items():
        rates = f"{row['tokens_per_s']:10.0f}{row['supervised_per_s']:14.0f}"
        peak = row.get("gpu_gb", row["rss_gb"])
        print(f"{name:14}{rates}{row['seconds_a_step']:9.2f}{peak:9.2f}")
    print(f"{'ceiling':14}{comparison['ceiling_tokens_per_s']:10.0f}")
    for name, value in comparison.items():
        if name not in ("rows", "ceiling_tokens_per_s"):
            print(f"{name:22}{value:8.2f}")


def main() -> None:
    """Run the comparison, or a single contender if `--contender` names one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", required=True, help="folder or Hub id of a base")
    parser.add_argument("--data", required=True, help="JSON lines; the first 400 rows are used")
    parser.add_argument("--quick", action="store_true", help="fewer steps: under 8 minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--steps", type=int, help="measured steps of every contender")
    parser.add_argument("--limit", type=float, help="seconds of measuring a peer, at most")
    parser.add_argument("--only", help="TRL's contenders: best, default, best,default or none")
    parser.add_argument("--busy", action="store_true", help="beside a busy process")
    parser.add_argument("--contender", choices=["ours", "best", "default"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    base, data, steps = arguments.base, arguments.data, arguments.steps
    arguments.limit = arguments.limit or (60 if arguments.quick else math.inf)
    if arguments.contender == "ours":
        print(json.dumps(ours(base, data, steps)))
    elif arguments.contender:
        print(json.dumps(trl(base, data, steps, arguments.contender, arguments.limit)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            arguments.data = first_rows(data, Path(folder))
            comparison = compare(arguments)
        print(json.dumps(comparison)) if arguments.json else show(comparison)


if __name__ == "__main__":
    main()
