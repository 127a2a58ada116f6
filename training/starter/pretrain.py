"""Pre-train the starter's base from text in Parquet files, on a CPU or one CUDA GPU.

python training/starter/pretrain.py --corpus FOLDER [FOLDER ...] --heldout TEXTS.json --out OUT

The model is transformers' GPT-Neo computed by chattune's fast path: weights, states and gradients
in bf16 where the machine multiplies it fast, optimised in fp32. Muon (Jordan et al. 2024) on
matrices, AdamW elsewhere; a constant rate, then a linear decay from 45 % of the tokens on; windows
of 256 tokens in either half of the positions, of 512 in the last fifth. OUT/state.pt is written
every few minutes: stopped or killed, the same command goes on from there. OUT/log.jsonl holds loss
against tokens, OUT/model the base. With --start the weights and the tokenizer of a base that is
there already are trained on; with --mix every batch is half of another text, such as dialogues.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import GPTNeoConfig, GPTNeoForCausalLM, PreTrainedTokenizerFast

from bits import bits_per_byte
from chattune.device import find_device
from chattune.models.gpt_neo import speed_up
from chattune.tuning.loss import summed_cross_entropy
from corpus import END, documents, encode, parquet_files, train_tokenizer, windows

SHORT, LONG = 256, 512
STEADY, LENGTHEN = 0.45, 0.8  # shares of the tokens
WARM_UP = 60  # steps
MICRO = {"cpu": 2048, "cuda": 65_536}  # tokens a forward pass; a CPU's stay in its cache
ADAM_SHARE = 0.75  # of Muon's learning rate


def main() -> None:
    """Prepare the corpus if it is not, train, write the model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", nargs="+", type=Path, required=True)
    parser.add_argument("--mix", type=Path, help="folder of a text that is half of every batch")
    parser.add_argument("--heldout", type=Path, required=True, help="JSON list of texts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="a GPT-Neo of 512 positions to train further")
    parser.add_argument("--tokens", type=float, default=36e6, help="to train on (default 36e6)")
    parser.add_argument("--batch", type=int, default=8192, help="tokens an optimiser step")
    parser.add_argument("--lr", type=float, default=4e-3, help="Muon's")
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--save-every", type=float, default=4, help="minutes (default 4)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(given.seed)
    device = find_device()
    heldout = json.loads(given.heldout.read_text("utf-8"))
    tokenizer, *streams = prepare(given, heldout)
    sizes = " and ".join(f"{len(stream) / 1e6:.1f} M" for stream in streams)
    print(f"{sizes} tokens, vocabulary {tokenizer.get_vocab_size()}", flush=True)
    training = Training(new_model(given).to(device.torch), device.base_dtype(), given)
    train(training, streams, encode(tokenizer, heldout).tolist(), heldout)
    training.model.to(torch.bfloat16).save_pretrained(given.out / "model")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        model_max_length=LONG,
    ).save_pretrained(given.out / "model")


def prepare(given: argparse.Namespace, heldout: list[str]) -> tuple[Any, ...]:
    """The tokenizer, and the ids of the corpus and of `--mix`, made once for one OUT."""
    sources = {"tokens.npy": given.corpus} | ({"mix.npy": [given.mix]} if given.mix else {})
    kept, made_of = given.out / "tokenizer.json", given.out / "corpus.json"
    now = {
        "corpus": {
            name: [(f.name, f.stat().st_size) for folder in folders for f in parquet_files(folder)]
            for name, folders in sources.items()
        },
        "heldout": hashlib.sha256(json.dumps(heldout).encode()).hexdigest(),
        "vocabulary": given.vocabulary,
        "start": str(given.start),
        "seed": given.seed,
    }
    told = json.dumps(now)
    if made_of.exists() and made_of.read_text("utf-8") != told:
        raise SystemExit(f"{given.out}: holds another corpus, tokenizer or seed; choose another")
    made_of.write_text(told, "utf-8")
    for name, folders in sources.items():
        if (given.out / name).exists():
            continue
        texts = documents(folders, heldout, given.seed)
        print(f"{len(texts)} documents, {sum(map(len, texts)) / 1e6:.1f} M characters", flush=True)
        if not kept.exists():
            if given.start:
                tokenizer = Tokenizer.from_file(str(given.start / "tokenizer.json"))
            else:
                tokenizer = train_tokenizer(texts, given.vocabulary)
            tokenizer.save(str(given.out / "half.json"))
            (given.out / "half.json").replace(kept)
        tokenizer = Tokenizer.from_file(str(kept))
        np.save(given.out / "half.npy", encode(tokenizer, texts))
        (given.out / "half.npy").replace(given.out / name)
    ids = (np.load(given.out / name, mmap_mode="r") for name in sources)
    return Tokenizer.from_file(str(kept)), *ids


def new_model(given: argparse.Namespace) -> GPTNeoForCausalLM:
    """`--start`'s weights in fp32, or random ones.

    GPT-Neo does not scale its scores, so random queries and keys start small.
    """
    if given.start:
        return GPTNeoForCausalLM.from_pretrained(given.start, dtype=torch.float32)
    config = GPTNeoConfig(
        vocab_size=given.vocabulary,
        max_position_embeddings=LONG,
        hidden_size=given.hidden,
        num_layers=given.layers,
        num_heads=given.hidden // 64,
        attention_types=[[["global", "local"], given.layers // 2]],
        window_size=256,
        bos_token_id=0,
        eos_token_id=0,
        resid_dropout=0.0,
        embed_dropout=0.0,
        attention_dropout=0.0,
    )
    model = GPTNeoForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith(("out_proj.weight", "c_proj.weight")):
            weight.data /= (2 * given.layers) ** 0.5
        elif name.endswith(("q_proj.weight", "k_proj.weight")):
            weight.data *= 0.35
    return model


def positions(count: int, length: int) -> torch.Tensor:
    """Of windows in one row (1, count * length): short ones lie in either half of the model's.

    So every position is trained from the beginning. The later half comes first, for positions
    that go on from one window to the next would make them one.
    """
    later = count * (LONG - length) // LONG
    starts = torch.tensor([LONG - length] * later + [0] * (count - later))
    return (starts[:, None] + torch.arange(length)).reshape(1, -1)


def in_turn(sources: Sequence[Iterator[np.ndarray]], count: int) -> np.ndarray:
    """So many windows of them, one of each after the other: each lies in both halves then."""
    groups = islice(zip(*sources, strict=True), count // len(sources))
    return np.stack([window for group in groups for window in group])


class Training:
    """A model in its working dtype, fp32 weights beside it, and what a resumed run needs."""

    def __init__(self, model: GPTNeoForCausalLM, dtype: torch.dtype, given: argparse.Namespace):
        """`model` comes in fp32."""
        self.given = given
        self.masters = {n: nn.Parameter(p.detach().clone()) for n, p in model.named_parameters()}
        # Many rows' gradients are added up for one token: that needs fp32's digits.
        self.embedding = self.masters["transformer.wte.weight"]
        self.model = model.to(dtype)
        self.model.transformer.wte.weight.requires_grad_(False)
        speed_up(model)
        blocks = {n: p for n, p in self.masters.items() if ".h." in n and p.dim() == 2}
        rest = [p for n, p in self.masters.items() if n not in blocks]
        self.optimisers = [
            torch.optim.Muon(
                blocks.values(), lr=given.lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(
                rest, lr=ADAM_SHARE * given.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
            ),
        ]
        self.at: dict[str, Any] = {"step": 0, "tokens": 0, "seconds": 0.0}
        saved = given.out / "state.pt"
        if saved.exists():
            self._load(torch.load(saved, map_location=model.device, weights_only=True))

    def state(self) -> dict[str, Any]:
        """All that a killed run needs to go on."""
        return {
            "at": self.at,
            "masters": {n: p.detach() for n, p in self.masters.items()},
            "optimisers": [o.state_dict() for o in self.optimisers],
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.at = state["at"]
        with torch.no_grad():
            for name, value in state["masters"].items():
                self.masters[name].copy_(value)
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.take_masters()
        print(f"resumed after {self.at['tokens'] / 1e6:.2f} M tokens", flush=True)

    @torch.no_grad()
    def take_masters(self) -> None:
        """Bring the model's weights up to date."""
        for name, weight in self.model.named_parameters():
            weight.copy_(self.masters[name])

    def loss(self, rows: np.ndarray) -> torch.Tensor:
        """Mean nats of windows (rows, length + 1)."""
        ids = torch.from_numpy(rows.astype(np.int64)).to(self.model.device)
        count, length = ids.shape[0], ids.shape[1] - 1
        states = self.model.transformer(
            inputs_embeds=self.embedding[ids[:, :-1].reshape(1, -1)].to(self.model.dtype),
            position_ids=positions(count, length).to(ids.device),
            use_cache=False,
        ).last_hidden_state[0]
        head = self.embedding.to(states.dtype)
        return summed_cross_entropy(states, head, None, ids[:, 1:].flatten()) / (count * length)

    def step(self, parts: list[np.ndarray]) -> float:
        """One optimiser step; returns the mean loss in nats."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                share = ADAM_SHARE if isinstance(optimiser, torch.optim.AdamW) else 1.0
                group["lr"] = share * self.given.lr * self.rate()
        total = 0.0
        for part in parts:
            loss = self.loss(part) / len(parts)
            loss.backward()
            total += loss.item()
            self.at["tokens"] += part.shape[0] * (part.shape[1] - 1)
        for name, weight in self.model.named_parameters():
            if weight.grad is not None:
                self.masters[name].grad = weight.grad.float()
                weight.grad = None
        nn.utils.clip_grad_norm_(self.masters.values(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.take_masters()
        self.at["step"] += 1
        return total

    def rate(self) -> float:
        """Share of the learning rate at this step."""
        done = self.at["tokens"] / self.given.tokens
        warm = min(1.0, (self.at["step"] + 1) / WARM_UP)
        return warm * min(1.0, max(0.02, (1 - done) / (1 - STEADY)))


def train(training: Training, streams: list[np.ndarray], held: list[int], texts: list[str]) -> None:
    """Until `--tokens`, with the log and the state on disk; equal parts of each stream."""
    given, at = training.given, training.at
    micro = min(given.batch, MICRO.get(training.model.device.type, 2048))
    if micro % (LONG * len(streams)) or given.batch % micro:
        raise SystemExit(f"--batch {given.batch}: whole windows of {LONG} of each text are needed")
    n_bytes = sum(len(text.encode()) for text in texts)
    path = given.out / "log.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
    path.write_text("".join(x for x in lines if json.loads(x)["step"] <= at["step"]), "utf-8")
    log = path.open("a", encoding="utf-8")
    before, started, saved = at["seconds"], time.monotonic(), time.monotonic()
    length, rows = 0, []
    while at["tokens"] < given.tokens:
        wanted = SHORT if at["tokens"] < LENGTHEN * given.tokens else LONG
        if wanted != length:
            length = wanted
            first = at["tokens"] // length // len(streams)
            rows = [windows(stream, length, given.seed, first) for stream in streams]
        parts = [in_turn(rows, micro // length) for _ in range(given.batch // micro)]
        loss = training.step(parts)
        at["seconds"] = before + time.monotonic() - started
        last = at["tokens"] >= given.tokens
        if at["step"] % 50 == 0 or last:
            line = {**at, "seconds": round(at["seconds"], 1), "loss": round(loss, 4)}
            if at["step"] % 500 == 0 or last:
                line["bits_per_byte"] = round(bits_per_byte(training.model, held, n_bytes, 0), 4)
            log.write(json.dumps(line) + "\n")
            log.flush()
            print(line, flush=True)
        if time.monotonic() - saved >= 60 * given.save_every or last:
            torch.save(training.state(), given.out / "state.tmp")
            (given.out / "state.tmp").replace(given.out / "state.pt")
            saved = time.monotonic()


if __name__ == "__main__":
    main()
