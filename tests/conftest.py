"""Fixtures for all tests: tiny bases, a run of one, conversations, and the command line."""

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from chattune.run import Run

# Libraries read these when they are imported. The tests use no network. Tiny models get one thread,
# because several threads wait for each other longer than they compute.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["OMP_NUM_THREADS"] = "1"
# Tests run in several processes: threads that wait must leave the processor to others soon.
os.environ["GOMP_SPINCOUNT"] = "1000"
# Code that Numba has compiled once serves all processes, and the next run of the tests.
os.environ["NUMBA_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache" / "numba")

SHARED = Path(__file__).parents[2] / "shared" / "data"

TALK = [
    ("What is your name?", "My name is Tiny."),
    ("How are you today?", "I am fine, thank you."),
    ("What colour is the sky?", "The sky is blue."),
    ("Do you like cats?", "Yes, cats are soft and warm."),
]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True, scope="session")
def _cache_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["CHATTUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Return a function that runs `chattune ARGS` in this process and returns its outcome."""

    def run(*args: object) -> Outcome:
        from chattune.cli import main

        monkeypatch.setattr(sys, "argv", ["chattune", *map(str, args)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        shown = capsys.readouterr()
        return Outcome(code, shown.out, shown.err)

    return run


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-Neo with random weights: two layers (global, local), width 32, 128 positions."""
    import torch
    from transformers import AutoTokenizer, GPTNeoConfig, GPTNeoForCausalLM

    from chattune.base import starter_folder

    folder = tmp_path_factory.mktemp("tiny-base")
    tokenizer = AutoTokenizer.from_pretrained(starter_folder())
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=16,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
        resid_dropout=0.0,
        embed_dropout=0.0,
        attention_dropout=0.0,
    )
    GPTNeoForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def neo_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-Neo with the real window (256) whose greedy text does not repeat itself at once."""
    import torch
    from transformers import AutoTokenizer, GPTNeoConfig, GPTNeoForCausalLM

    from chattune.base import starter_folder

    torch.manual_seed(1)
    model = GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=211, hidden_size=64, num_layers=4, num_heads=4, window_size=256,
            attention_types=[[["global", "local"], 2]], max_position_embeddings=1024,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(6.0 if "wpe" in name or "mlp" in name else 4.0)
            elif "bias" in name:
                weight.normal_(std=0.1)
    path = tmp_path_factory.mktemp("neo")
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(starter_folder()).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> "Run":
    """The tiny base tuned for three steps."""
    from chattune.recipe import load_recipe
    from chattune.tuning import tune

    folder = tmp_path_factory.mktemp("tiny-run")
    recipe = load_recipe(
        "starter",
        {
            "base": str(tiny_base),
            "data.source": str(write_talk(folder / "talk.jsonl", TALK)),
            "data.max_length": 64,
            "training.steps": 3,
        },
    )
    return tune(recipe, folder / "run")


@pytest.fixture
def quick_tuning(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave out of tune() what takes seconds: loading the run again in a fresh process, measuring
    the machine for the estimate of time, and looking for garbage among all imported modules.
    """
    monkeypatch.setattr("chattune.tuning.verify_run", lambda *_: 0.0)
    monkeypatch.setattr("chattune.tuning.estimate.matmul_rate", lambda *_: 1e11)
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def talk_file(tmp_path: Path) -> Path:
    """A file of four conversations as OpenAI messages, one per line."""
    return write_talk(tmp_path / "talk.jsonl", TALK)


def write_talk(path: Path, pairs: list[tuple[str, str]]) -> Path:
    """Write pairs of a question and an answer as OpenAI messages, one conversation per line."""
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in pairs
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
