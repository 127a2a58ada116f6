"""Text in Parquet files becomes a tokenizer and one stream of token ids."""

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"
_MOST, _LEAST = 1500, 20  # characters of a document


def documents(folders: Sequence[Path], heldout: Sequence[str], seed: int) -> list[str]:
    """Cleaned documents of every `text` column, shuffled; none twice, none that is held out.

    Of a long article its first paragraphs: they say what a thing is, the rest is for readers who
    know.
    """
    away = {clean(text)[:100] for text in heldout}
    found = {}
    for folder in folders:
        for file in parquet_files(folder):
            for raw in pq.read_table(file, columns=["text"]).column("text").to_pylist():
                text = clean(raw)
                if len(text) >= _LEAST and re.search(r"[.?!:]", text) and text[:100] not in away:
                    found[text] = None
    if not found:
        raise SystemExit(f"{folders[0]}: no sentence of {_LEAST} characters or more in its `text`")
    texts = list(found)
    random.Random(seed).shuffle(texts)
    return texts


def parquet_files(folder: Path) -> list[Path]:
    """In their order; at least one."""
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise SystemExit(f"{folder}: holds no .parquet file")
    return files


def clean(text: str) -> str:
    """Even spaces, no brackets that a removed template left empty, an end at a sentence's end."""
    text = re.sub(r"[ \t\xa0]+", " ", text.replace("\r", ""))
    text = re.sub(r" ?\( ?[;,]? ?\)", "", text)
    text = re.sub(r"\n\s*\n+", "\n", text).strip()
    if len(text) <= _MOST:
        return text
    ends = [m.end() for m in re.finditer(r"[.?!][\"')]?(?=\s)", text[: _MOST + 1])]
    return text[: ends[-1]] if ends else text[: text.rfind(" ", 0, _MOST)]


def train_tokenizer(texts: Sequence[str], size: int) -> Tokenizer:
    """Byte-level BPE with one special token, from every n-th of the texts."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts[:: max(1, len(texts) // 80_000)], trainer)
    return made


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """One stream of ids (uint16); the end token closes each text."""
    end = tokenizer.token_to_id(END)
    parts = [
        np.array([*encoding.ids, end], dtype=np.uint16)
        for start in range(0, len(texts), 5000)
        for encoding in tokenizer.encode_batch(texts[start : start + 5000])
    ]
    return np.concatenate(parts)


def windows(stream: np.ndarray, length: int, seed: int, first: int) -> Iterator[np.ndarray]:
    """Endless windows of `length` + 1 tokens, from the `first` on.

    Every token is a target once a pass; each pass has its own order and cuts elsewhere.
    """
    a_pass = (len(stream) - 1) // length - 1
    while True:
        turn, place = divmod(first, a_pass)
        shuffled = np.random.RandomState(seed + turn).permutation(a_pass)
        shift = turn * 37 % length
        for start in shuffled[place:] * length + shift:
            yield stream[start : start + length + 1]
        first = (turn + 1) * a_pass
