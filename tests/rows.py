"""Rows in every format that chattune knows, files that hold them, and recipes to prepare them."""

import csv
import functools
import gzip
import io
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chattune.base import starter_folder
from chattune.data import Prepared
from chattune.recipe import Recipe, load_recipe
from chattune.template import Template

END = "<|endoftext|>"
IGNORED = -100

# Each entry writes one question and its answer as a row of that format.
SHAPES: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "messages": lambda q, a: {
        "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
    },
    "sharegpt": lambda q, a: {
        "id": "s1",
        "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}],
    },
    "oasst-tree": lambda q, a: {
        "message_tree_id": "t1",
        "prompt": {
            "text": q,
            "role": "prompter",
            "replies": [{"text": a, "role": "assistant", "rank": 0, "replies": []}],
        },
    },
    "guanaco": lambda q, a: {"text": f"### Human: {q}### Assistant: {a}"},
    "openorca": lambda q, a: {"id": "o1", "system_prompt": "", "question": q, "response": a},
    "dolly": lambda q, a: {"instruction": q, "context": "", "response": a, "category": "open_qa"},
    "alpaca": lambda q, a: {"instruction": q, "input": "", "output": a},
    "prompt-completion": lambda q, a: {"prompt": q, "completion": a},
    "question-answer": lambda q, a: {"question": q, "answer": a},
}


def exchanges(count: int) -> list[tuple[str, str]]:
    """Return `count` different questions, each with its own answer."""
    return [(f"What comes after {i}?", f"After {i} comes {i + 1}.") for i in range(count)]


def talk(count: int, shape: str = "messages") -> list[dict[str, Any]]:
    """Return `count` usable rows of one format."""
    return [SHAPES[shape](q, a) for q, a in exchanges(count)]


def lines(rows: Iterable[Any]) -> bytes:
    """Encode rows as JSON Lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(path: Path, content: bytes) -> Path:
    """Write a file and its parent folders; a name that ends in .gz is gzipped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows in the file format of the name's suffix."""
    suffix = path.name.removesuffix(".gz").rpartition(".")[2]
    return write(path, _ENCODERS[suffix](rows))


def recipe_for(source: object, overrides: dict[str, Any] | None = None) -> Recipe:
    """Return the starter's recipe with another source and, by default, no validation share."""
    fields = {"data.source": str(source), "data.validation": 0.0, **(overrides or {})}
    return load_recipe("starter", fields)


# Loading a tokenizer takes longer than preparing a few rows, so each is loaded once.
load_once = functools.cache(Template.load)


def template() -> Template:
    """Return the embedded base's tokenizer with chattune's template."""
    return load_once(starter_folder())


def taught(prepared: Prepared, side: str = "train") -> list[str]:
    """Decode the supervised tokens of each row, special tokens included."""
    rows = getattr(prepared, side)
    return [
        prepared.template.decode([t for t in labels if t != IGNORED], special=True)
        for labels in rows["labels"]
    ]


def base_with(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write a base without weights whose tokenizer is the embedded base's after `change`."""
    folder.mkdir()
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        shutil.copyfile(starter_folder() / name, folder / name)
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    change(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    return folder


def _separated(rows: Sequence[dict[str, Any]], delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


_ENCODERS: dict[str, Callable[[Sequence[dict[str, Any]]], bytes]] = {
    "jsonl": lines,
    "json": lambda rows: json.dumps(rows, indent=1).encode(),
    "csv": lambda rows: _separated(rows, ","),
    "tsv": lambda rows: _separated(rows, "\t"),
    "parquet": _parquet,
}
