"""Pre-train the starter's base on text in Parquet files, on a CPU or one CUDA GPU.

Usage: python training/starter/pretrain.py --corpus FOLDER ... --heldout TEXTS.json --out OUT

The model is transformers' GPT-Neo, computed by chattune's fast path. Weights, states and gradients
are bf16 where the machine multiplies bf16 fast; the optimisers work on fp32 weights. Matrices are
trained with Muon (Jordan et al. 2024) and the rest with AdamW. The learning rate is constant for
45 % of the tokens and then decays linearly. Windows have 256 tokens, in either half of the
positions, and 512 tokens for the last fifth of the training.

OUT/state.pt is written every few minutes, and the same command resumes from it after a stop.
OUT/log.jsonl holds the loss against the number of tokens, and OUT/model holds the base. With
--start, the weights and the tokenizer of an existing base are trained further. With --mix, half of
every batch comes from another text, such as dialogues.
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
from chattune.gpt_neo.training import speed_up_training
from chattune.tuning.loss import summed_cross_entropy
from corpus import END, documents, encode, parquet_files, train_tokenizer, windows

SHORT, LONG = 256, 512  # tokens of a window
DECAY_START, LONG_START = 0.45, 0.8  # shares of the tokens
WARM_UP = 60  # steps
MICRO_BATCH = {"cpu": 2048, "cuda": 65_536}  # tokens of a forward pass; 2,048 fit a CPU's cache
ADAM_SHARE = 0.75  # AdamW's learning rate as a share of Muon's


def main() -> None:
    """Prepare the corpus unless that is done, train, and write the model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", nargs="+", type=Path, required=True)
    parser.add_argument("--mix", type=Path, help="folder of another text for half of every batch")
    parser.add_argument("--heldout", type=Path, required=True, help="JSON list of texts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="a GPT-Neo of 512 positions to train further")
    parser.add_argument("--tokens", type=float, default=36e6, help="to train on (default 36e6)")
    parser.add_argument("--batch", type=int, default=8192, help="tokens per optimiser step")
    parser.add_argument("--lr", type=float, default=4e-3, help="learning rate of Muon")
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--save-every", type=float, default=4, help="minutes (default 4)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    device = find_device()
    heldout = json.loads(args.heldout.read_text("utf-8"))
    tokenizer, *streams = prepare(args, heldout)
    sizes = " and ".join(f"{len(stream) / 1e6:.1f} M" for stream in streams)
    print(f"{sizes} tokens, vocabulary {tokenizer.get_vocab_size()}", flush=True)
    training = Training(initial_model(args).to(device.torch), device.base_dtype(), args)
    train(training, streams, encode(tokenizer, heldout).tolist(), heldout)
    training.model.to(torch.bfloat16).save_pretrained(args.out / "model")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        model_max_length=LONG,
    ).save_pretrained(args.out / "model")


def prepare(args: argparse.Namespace, heldout: list[str]) -> tuple[Any, ...]:
    """Return the tokenizer, then the ids of the corpus and of `--mix` as one array each.

    They are made once and kept in OUT. Exits if OUT was made from other inputs.
    """
    sources = {"tokens.npy": args.corpus} | ({"mix.npy": [args.mix]} if args.mix else {})
    tokenizer_file, inputs_file = args.out / "tokenizer.json", args.out / "corpus.json"
    inputs = {
        "corpus": {
            name: [(f.name, f.stat().st_size) for folder in folders for f in parquet_files(folder)]
            for name, folders in sources.items()
        },
        "heldout": hashlib.sha256(json.dumps(heldout).encode()).hexdigest(),
        "vocabulary": args.vocabulary,
        "start": str(args.start),
        "seed": args.seed,
    }
    description = json.dumps(inputs)
    if inputs_file.exists() and inputs_file.read_text("utf-8") != description:
        raise SystemExit(
            f"--out {args.out}: holds another corpus, tokenizer or seed; choose another folder"
        )
    inputs_file.write_text(description, "utf-8")
    for name, folders in sources.items():
        if (args.out / name).exists():
            continue
        texts = documents(folders, heldout, args.seed)
        print(f"{len(texts)} documents, {sum(map(len, texts)) / 1e6:.1f} M characters", flush=True)
        # Files are written under a temporary name first, because the command may be killed.
        if not tokenizer_file.exists():
            if args.start:
                tokenizer = Tokenizer.from_file(str(args.start / "tokenizer.json"))
            else:
                tokenizer = train_tokenizer(texts, args.vocabulary)
            tokenizer.save(str(args.out / "partial.json"))
            (args.out / "partial.json").replace(tokenizer_file)
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        np.save(args.out / "partial.npy", encode(tokenizer, texts))
        (args.out / "partial.npy").replace(args.out / name)
    streams = (np.load(args.out / name, mmap_mode="r") for name in sources)
    return Tokenizer.from_file(str(tokenizer_file)), *streams


def initial_model(args: argparse.Namespace) -> GPTNeoForCausalLM:
    """Load the model of `--start` in fp32, or make one with random weights.

    Random queries and keys start small, because GPT-Neo does not scale its attention scores.
    """
    if args.start:
        return GPTNeoForCausalLM.from_pretrained(args.start, dtype=torch.float32)
    config = GPTNeoConfig(
        vocab_size=args.vocabulary,
        max_position_embeddings=LONG,
        hidden_size=args.hidden,
        num_layers=args.layers,
        num_heads=args.hidden // 64,
        attention_types=[[["global", "local"], args.layers // 2]],
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
            weight.data /= (2 * args.layers) ** 0.5
        elif name.endswith(("q_proj.weight", "k_proj.weight")):
            weight.data *= 0.35
    return model


def positions(count: int, length: int) -> torch.Tensor:
    """Return the positions of `count` windows in one row, of shape (1, count * length).

    Half of the short windows lie in the second half of the model's positions, so that every
    position is trained from the beginning.
    """
    in_second_half = count * (LONG - length) // LONG
    starts = torch.tensor([LONG - length] * in_second_half + [0] * (count - in_second_half))
    return (starts[:, None] + torch.arange(length)).reshape(1, -1)


def interleave(sources: Sequence[Iterator[np.ndarray]], count: int) -> np.ndarray:
    """Stack `count` windows, taken from the sources in turn, as (count, length + 1).

    In this order the windows of every source lie in both halves of the positions.
    """
    groups = islice(zip(*sources, strict=True), count // len(sources))
    return np.stack([window for group in groups for window in group])


class Training:
    """A model in its working dtype, its fp32 weights, the optimisers and the progress so far.

    `model` is given in fp32. An earlier state in OUT is restored.
    """

    def __init__(self, model: GPTNeoForCausalLM, dtype: torch.dtype, args: argparse.Namespace):
        self.args = args
        self.masters = {n: nn.Parameter(p.detach().clone()) for n, p in model.named_parameters()}
        # The gradients of many rows are summed for one token, which needs fp32's precision.
        self.embedding = self.masters["transformer.wte.weight"]
        self.model = model.to(dtype)
        self.model.transformer.wte.weight.requires_grad_(False)
        if not speed_up_training(model):
            raise SystemExit(
                f"--start {args.start}: its attention_dropout is not supported; set it to 0 in "
                "config.json"
            )
        blocks = {n: p for n, p in self.masters.items() if ".h." in n and p.dim() == 2}
        rest = [p for n, p in self.masters.items() if n not in blocks]
        self.optimisers = [
            torch.optim.Muon(
                blocks.values(), lr=args.lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(
                rest, lr=ADAM_SHARE * args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
            ),
        ]
        self.progress: dict[str, Any] = {"step": 0, "tokens": 0, "seconds": 0.0}
        saved = args.out / "state.pt"
        if saved.exists():
            self._load(torch.load(saved, map_location=model.device, weights_only=True))

    def state(self) -> dict[str, Any]:
        """Return everything that is needed to resume the training."""
        return {
            "progress": self.progress,
            "masters": {n: p.detach() for n, p in self.masters.items()},
            "optimisers": [o.state_dict() for o in self.optimisers],
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.progress = state["progress"]
        with torch.no_grad():
            for name, value in state["masters"].items():
                self.masters[name].copy_(value)
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.update_model()
        print(f"resumed after {self.progress['tokens'] / 1e6:.2f} M tokens", flush=True)

    @torch.no_grad()
    def update_model(self) -> None:
        """Copy the fp32 weights into the model."""
        for name, weight in self.model.named_parameters():
            weight.copy_(self.masters[name])

    def loss(self, rows: np.ndarray) -> torch.Tensor:
        """Return the mean loss, in nats per token, of windows of shape (rows, length + 1)."""
        ids = torch.from_numpy(rows.astype(np.int64)).to(self.model.device)
        count, length = ids.shape[0], ids.shape[1] - 1
        states = self.model.transformer(
            inputs_embeds=self.embedding[ids[:, :-1].reshape(1, -1)].to(self.model.dtype),
            position_ids=positions(count, length).to(ids.device),
            pack_lengths=[length] * count,
            use_cache=False,
        ).last_hidden_state[0]
        head = self.embedding.to(states.dtype)
        return summed_cross_entropy(states, head, None, ids[:, 1:].flatten()) / (count * length)

    def step(self, micro_batches: list[np.ndarray]) -> float:
        """Make one optimiser step and return the mean loss in nats per token."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                share = ADAM_SHARE if isinstance(optimiser, torch.optim.AdamW) else 1.0
                group["lr"] = share * self.args.lr * self.rate_factor()
        total = 0.0
        for rows in micro_batches:
            loss = self.loss(rows) / len(micro_batches)
            loss.backward()
            total += loss.item()
            self.progress["tokens"] += rows.shape[0] * (rows.shape[1] - 1)
        for name, weight in self.model.named_parameters():
            if weight.grad is not None:
                self.masters[name].grad = weight.grad.float()
                weight.grad = None
        nn.utils.clip_grad_norm_(self.masters.values(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.update_model()
        self.progress["step"] += 1
        return total

    def rate_factor(self) -> float:
        """Return the factor of the learning rate at this step: warm-up, constant, linear decay."""
        done = self.progress["tokens"] / self.args.tokens
        warm_up = min(1.0, (self.progress["step"] + 1) / WARM_UP)
        return warm_up * min(1.0, max(0.02, (1 - done) / (1 - DECAY_START)))


def train(
    training: Training, streams: list[np.ndarray], heldout_ids: list[int], heldout: list[str]
) -> None:
    """Train on equal parts of each stream for `--tokens` tokens, writing the log and the state."""
    args, progress = training.args, training.progress
    largest = MICRO_BATCH.get(training.model.device.type, 2048)
    micro_batch, window = min(args.batch, largest), LONG * len(streams)
    if micro_batch % window or args.batch % micro_batch:
        raise SystemExit(
            f"--batch {args.batch}: give a multiple of {largest}, or a smaller multiple of {window}"
        )
    n_bytes = sum(len(text.encode()) for text in heldout)
    log_file = args.out / "log.jsonl"
    lines = log_file.read_text("utf-8").splitlines(keepends=True) if log_file.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] <= progress["step"]]
    log_file.write_text("".join(kept), "utf-8")
    log = log_file.open("a", encoding="utf-8")
    earlier, started, saved = progress["seconds"], time.monotonic(), time.monotonic()
    length, sources = 0, []
    while progress["tokens"] < args.tokens:
        new_length = SHORT if progress["tokens"] < LONG_START * args.tokens else LONG
        if new_length != length:
            length = new_length
            first = progress["tokens"] // length // len(streams)
            sources = [windows(stream, length, args.seed, first) for stream in streams]
        micro_batches = [
            interleave(sources, micro_batch // length) for _ in range(args.batch // micro_batch)
        ]
        loss = training.step(micro_batches)
        progress["seconds"] = earlier + time.monotonic() - started
        last = progress["tokens"] >= args.tokens
        if progress["step"] % 50 == 0 or last:
            line = {**progress, "seconds": round(progress["seconds"], 1), "loss": round(loss, 4)}
            if progress["step"] % 500 == 0 or last:
                bits = bits_per_byte(training.model, heldout_ids, n_bytes, end=0)
                line["bits_per_byte"] = round(bits, 4)
            log.write(json.dumps(line) + "\n")
            log.flush()
            print(line, flush=True)
        if time.monotonic() - saved >= 60 * args.save_every or last:
            torch.save(training.state(), args.out / "state.tmp")
            (args.out / "state.tmp").replace(args.out / "state.pt")
            saved = time.monotonic()


if __name__ == "__main__":
    main()
