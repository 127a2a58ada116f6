"""The pre-training corpus: cleaned text from Parquet files, a tokenizer and a stream of ids."""

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"
_MAX_CHARACTERS, _MIN_CHARACTERS = 1500, 20  # of a document


def documents(folders: Sequence[Path], heldout: Sequence[str], seed: int) -> list[str]:
    """Return the shuffled, cleaned documents of every `text` column, without duplicates.

    Held-out texts are left out. Only the first paragraphs of a long article are kept: they say what
    a thing is, and the rest is for readers who know that already.
    """
    heldout_openings = {clean(text)[:100] for text in heldout}
    unique = {}
    for folder in folders:
        for file in parquet_files(folder):
            for raw in pq.read_table(file, columns=["text"]).column("text").to_pylist():
                text = clean(raw)
                if len(text) < _MIN_CHARACTERS or not re.search(r"[.?!:]", text):
                    continue
                if text[:100] not in heldout_openings:
                    unique[text] = None
    if not unique:
        raise SystemExit(
            f"{folders[0]}: its `text` column has no sentence of {_MIN_CHARACTERS} characters or "
            "more; choose another folder"
        )
    texts = list(unique)
    random.Random(seed).shuffle(texts)
    return texts


def parquet_files(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder in the order of their names; exit if it has none."""
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise SystemExit(f"{folder}: holds no .parquet file; choose another folder")
    return files


def clean(text: str) -> str:
    """Return the text with single spaces, without empty brackets, and cut at a sentence's end.

    Brackets are empty where the templates of a wiki page were removed.
    """
    text = re.sub(r"[ \t\xa0]+", " ", text.replace("\r", ""))
    text = re.sub(r" ?\( ?[;,]? ?\)", "", text)
    text = re.sub(r"\n\s*\n+", "\n", text).strip()
    if len(text) <= _MAX_CHARACTERS:
        return text
    ends = [m.end() for m in re.finditer(r"[.?!][\"')]?(?=\s)", text[: _MAX_CHARACTERS + 1])]
    return text[: ends[-1]] if ends else text[: text.rfind(" ", 0, _MAX_CHARACTERS)]


def train_tokenizer(texts: Sequence[str], size: int) -> Tokenizer:
    """Train a byte-level BPE of `size` entries, one of them special, on up to 160,000 texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts[:: max(1, len(texts) // 80_000)], trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Return the ids of all texts as one uint16 array, in which the end token closes each text."""
    end = tokenizer.token_to_id(END)
    parts = [
        np.array([*encoding.ids, end], dtype=np.uint16)
        for start in range(0, len(texts), 5000)
        for encoding in tokenizer.encode_batch(texts[start : start + 5000])
    ]
    return np.concatenate(parts)


def windows(stream: np.ndarray, length: int, seed: int, first: int) -> Iterator[np.ndarray]:
    """Yield windows of `length` + 1 tokens without end, beginning with the window number `first`.

    Every token is a target once in each pass. The order and the boundaries of the windows differ
    from pass to pass.
    """
    windows_per_pass = (len(stream) - 1) // length - 1
    while True:
        epoch, done = divmod(first, windows_per_pass)
        shuffled = np.random.RandomState(seed + epoch).permutation(windows_per_pass)
        shift = epoch * 37 % length
        for start in shuffled[done:] * length + shift:
            yield stream[start : start + length + 1]
        first = (epoch + 1) * windows_per_pass
