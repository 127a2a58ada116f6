"""Benchmark of decoding: chattune's fast engine beside transformers' generate and llama.cpp.

    python benchmarks/decode.py --base BASE [--quick] [--json] [--threads N]

Every contender samples 128 tokens after a prompt of 32 with the study's settings (temperature 0.9,
top-k 30, top-p 0.95) and without an end token. Each runs in a process of its own, and chattune runs
both before and after its peers. The first reply is a warm-up, and the rates leave out the first
token of each reply. The memory ceiling is the measured read bandwidth divided by the bytes of the
matrices that one token needs.
"""

import argparse
import importlib
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the engine and the ceilings are for CPUs

import ceiling
import contender

NEW, PROMPT, LONG = 128, 32, 400  # tokens of a reply, of a short prompt and of a long one


def prompt(length: int, seed: int) -> list[int]:
    """Return `length` random token ids."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(100, 5000, (length,), generator=generator).tolist()


def timed(tokens: Iterable[Any]) -> tuple[float, float, int]:
    """Return the seconds until the first token, the seconds after it, and the tokens after it."""
    started = time.perf_counter()
    first = count = 0.0
    for _ in tokens:
        count += 1
        if count == 1:
            first = time.perf_counter() - started
    return first, time.perf_counter() - started - first, int(count) - 1


def ours(base: str, quantize: str, repeats: int) -> dict[str, Any]:
    """Measure the fast engine: one stream, eight streams, a long prompt, and a second turn."""
    from chattune.base import find_base
    from chattune.cost import matrix_weights
    from chattune.device import find_device
    from chattune.families import find_wing
    from chattune.generate import Decoding
    from chattune.generate.fast import FastEngine
    from chattune.models import shape_of

    bf16, found = find_device().bf16, find_base(base)
    precision = "int8" if quantize == "int8" else ("bf16" if bf16 else "fp32")
    wing = find_wing(found.config["model_type"])
    assert wing is not None, "no wing for this base"
    started = time.perf_counter()
    engine = FastEngine(wing.load_decoder(found, None, precision, slots=8, bf16=bf16), (-1,))
    loading = time.perf_counter() - started
    settings = Decoding(max_new_tokens=NEW)
    one, eight, first, second = [], [], [], []
    for i in range(repeats + 1):
        _, seconds, count = timed(engine.generate([prompt(PROMPT, i)], settings))
        one.append(count / seconds)
        together = [prompt(PROMPT, 100 * i + j) for j in range(8)]
        _, seconds, count = timed(engine.generate(together, settings))
        eight.append(count / seconds)
        long = prompt(LONG, 7000 + i)
        short = settings.but(max_new_tokens=40)
        reply = [token for _, token in engine.generate([long], short)]
        first.append(timed(engine.generate([prompt(LONG, 8000 + i)], short))[0])
        turn = long + reply + prompt(20, i)
        second.append(timed(engine.generate([turn], short))[0])
    timings = {"one": one, "eight": eight, "first_token_s": first, "second_turn_s": second}
    return {name: statistics.median(values[1:]) for name, values in timings.items()} | {
        "load_s": loading,
        "int8_bytes": sum(matrix_weights(shape_of(found))),
        "rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def llama_cpp(gguf: str, threads: int, repeats: int) -> dict[str, Any]:
    """Measure llama.cpp on a GGUF file: one stream, eight streams and a long prompt."""
    from llama_cpp import LlamaCpp

    started = time.perf_counter()
    server = LlamaCpp(gguf, threads, 2 * LONG)
    loading = time.perf_counter() - started
    one, eight, first = [], [], []
    for i in range(repeats + 1):
        _, seconds, count = server.timed([prompt(PROMPT, i)], NEW)
        one.append(count / seconds)
        together = [prompt(PROMPT, 100 * i + j) for j in range(8)]
        _, seconds, count = server.timed(together, NEW)
        eight.append(count / seconds)
        first.append(server.timed([prompt(LONG, 8000 + i)], 2)[0])
    timings = {"one": one, "eight": eight, "first_token_s": first}
    return {name: statistics.median(values[1:]) for name, values in timings.items()} | {
        "load_s": loading,
        "rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def transformers(base: str, dtype: str, repeats: int) -> dict[str, Any]:
    """Measure transformers' `from_pretrained` and `generate`, with a streamer as the clock."""
    import torch
    from transformers import AutoModelForCausalLM

    from chattune.base import find_base

    folder = find_base(base).folder
    started = time.perf_counter()
    kind = torch.float32 if dtype == "fp32" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()
    loading = time.perf_counter() - started
    rates, first = [], []
    for i in range(repeats + 1):
        clock = Clock()
        ids = torch.tensor([prompt(PROMPT, i)])
        model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=0.9, top_k=30,
            top_p=0.95, min_new_tokens=NEW, max_new_tokens=NEW, pad_token_id=0, streamer=clock,
        )  # fmt: skip
        rates.append((len(clock.times) - 2) / (clock.times[-1] - clock.times[1]))
        long, clock = torch.tensor([prompt(LONG, 8000 + i)]), Clock()
        model.generate(
            long, attention_mask=torch.ones_like(long), max_new_tokens=1, pad_token_id=0,
            streamer=clock,
        )  # fmt: skip
        first.append(clock.times[1] - clock.times[0])
    return {
        "one": statistics.median(rates[1:]),
        "first_token_s": statistics.median(first[1:]),
        "load_s": loading,
        "rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


class Clock:
    """A streamer that records when `generate` passes the prompt and each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: Any) -> None:
        """Record the time of the prompt or of a token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing: there is no buffer to flush."""


def contend(name: str, arguments: argparse.Namespace, repeats: int) -> dict[str, Any]:
    """Measure one contender in a process of its own."""
    options = {"base": arguments.base, "gguf": arguments.gguf, "threads": arguments.threads}
    with contender.busy_process(busy=arguments.busy):
        return contender.measure(__file__, name, repeats=repeats, **options)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all contenders one after the other, and measure the read bandwidth between them."""
    repeats = 2 if arguments.quick else 5
    read_rates = [ceiling.read_rate()]
    before = {kind: contend(kind, arguments, repeats) for kind in ("int8", "none")}
    read_rates.append(ceiling.read_rate())
    rows = {f"transformers {d}": contend(d, arguments, 1 if arguments.quick else 2) for d in PEERS}
    if arguments.gguf:
        rows[LLAMA_CPP] = contend(LLAMA_CPP, arguments, repeats)
    read_rates.append(ceiling.read_rate())
    after = {kind: contend(kind, arguments, repeats) for kind in ("int8", "none")}
    mean = {k: {n: (before[k][n] + after[k][n]) / 2 for n in before[k]} for k in before}
    rows = {f"chattune {k}": row for k, row in mean.items()} | rows
    rate, mine = sum(read_rates) / len(read_rates), mean["int8"]
    limit = rate / mine["int8_bytes"]
    peer = rows.get(LLAMA_CPP)
    beside_llama_cpp = (
        {}
        if peer is None
        else {
            "vs_llama_cpp": mine["one"] / peer["one"],
            "eight_vs_llama_cpp": mine["eight"] / peer["eight"],
            "first_token_vs_llama_cpp": mine["first_token_s"] / peer["first_token_s"],
        }
    )
    return {
        "rows": rows,
        **beside_llama_cpp,
        "read_gb_per_s": rate / 1e9,
        "ceiling_tokens_per_s": limit,
        "vs_transformers_fp32": mine["one"] / rows["transformers fp32"]["one"],
        "vs_transformers_bf16": mine["one"] / rows["transformers bf16"]["one"],
        "share_of_bandwidth": mine["one"] / limit,
        "eight_streams_vs_one": mine["eight"] / mine["one"],
        "eight_streams_vs_one_unquantized": mean["none"]["eight"] / mean["none"]["one"],
        "first_token_s": mine["first_token_s"],
        "second_turn_s": mine["second_turn_s"],
    }


PEERS, LLAMA_CPP = ("fp32", "bf16"), "llama.cpp"


def gguf_file(base: str, folder: Path) -> str:
    """Return the path of the base as a GGUF file for llama.cpp, or "" if there can be none."""
    from llama_cpp import write_gguf

    from chattune.errors import ChattuneError

    try:
        importlib.import_module("xllamacpp")
        return str(write_gguf(base, folder))
    except (ImportError, ChattuneError) as error:
        print(f"llama.cpp is left out: {error}", file=sys.stderr)
        return ""


def show(results: dict[str, Any]) -> None:
    """Print the results as a table."""
    columns = ("one", "eight", "first_token_s", "second_turn_s", "load_s", "rss_gb")
    print(f"{'tokens/s:':20}" + "".join(f"{c:>15}" for c in columns))
    for name, row in results["rows"].items():
        cells = (f"{row[c]:15.3g}" if c in row else f"{'':15}" for c in columns)
        print(f"{name:20}" + "".join(cells))
    for name, value in results.items():
        if name != "rows":
            print(f"{name:34}{value:8.3f}")


def main() -> None:
    """Run the comparison, or a single contender if `--contender` names one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", required=True, help="base of a family with a wing")
    parser.add_argument("--quick", action="store_true", help="time fewer replies: under 8 minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=2, help=argparse.SUPPRESS)
    parser.add_argument("--busy", action="store_true", help="beside a busy process")
    parser.add_argument(
        "--contender", choices=["int8", "none", *PEERS, LLAMA_CPP], help=argparse.SUPPRESS
    )
    parser.add_argument("--gguf", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender is None:
        with tempfile.TemporaryDirectory() as folder:
            arguments.gguf = gguf_file(arguments.base, Path(folder))
            results = compare(arguments)
        print(json.dumps(results)) if arguments.json else show(results)
        return
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.contender == LLAMA_CPP:
        measured = llama_cpp(arguments.gguf, arguments.threads, arguments.repeats)
    else:
        run = transformers if arguments.contender in PEERS else ours
        measured = run(arguments.base, arguments.contender, arguments.repeats)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
