"""GGUF files for tests: tiny models with random weights and a byte-level tokenizer."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

WIDTH, HEADS, KEY_VALUE_HEADS, FEED, LAYERS = 32, 4, 2, 64, 2
HEAD = WIDTH // HEADS
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [
    *("Ġ 1", "1 2", "12 3", "c a", "Ġ c", "Ġ ca", "Ġ Ġ", "ĠĠ Ġ", "H e", "l l", "He ll"),
    *("Ċ ĉ", "Ã ©", "f Ã©"),
]
WHOLE = "Zzz"  # a token that no merges lead to
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def vocabulary() -> list[str]:
    """Return the special tokens, the 256 characters that stand for bytes, and what merges make."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    made = [merge.replace(" ", "") for merge in MERGES]
    return [*SPECIAL, *bytes_to_unicode().values(), *made, WHOLE]


def write_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    pre: str | None = "smollm",
    template: str | None = CHATML,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray | None] | None = None,
) -> dict[str, np.ndarray]:
    """Write a tiny model and return its tensors, in the order of rows that the file has.

    `metadata` and `tensors` replace or add entries; None leaves an entry out.
    """
    tokens = vocabulary()
    entries: dict[str, Any] = {
        f"{architecture}.block_count": LAYERS,
        f"{architecture}.context_length": 128,
        f"{architecture}.embedding_length": WIDTH,
        f"{architecture}.feed_forward_length": FEED,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": KEY_VALUE_HEADS,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": template,
    }
    if architecture == "llama":
        entries |= {"llama.rope.dimension_count": HEAD, "llama.vocab_size": len(tokens)}
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (entries | (metadata or {})).items():
        _add(writer, key, value)
    weights = _weights(architecture, len(tokens)) | (tensors or {})
    kept = {name: weight for name, weight in weights.items() if weight is not None}
    for name, weight in kept.items():
        as_stored = kind if weight.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(weight, as_stored), raw_dtype=as_stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    add |= {str: writer.add_string, list: writer.add_array}
    if value is not None:
        add[type(value)](key, value)


def _weights(architecture: str, rows: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    narrow = KEY_VALUE_HEADS * HEAD
    shapes = {"token_embd.weight": (rows, WIDTH), "output_norm.weight": (WIDTH,)}
    layer = {
        "attn_q.weight": (WIDTH, WIDTH),
        "attn_k.weight": (narrow, WIDTH),
        "attn_v.weight": (narrow, WIDTH),
        "attn_output.weight": (WIDTH, WIDTH),
        "ffn_gate.weight": (FEED, WIDTH),
        "ffn_up.weight": (FEED, WIDTH),
        "ffn_down.weight": (WIDTH, FEED),
        "attn_norm.weight": (WIDTH,),
        "ffn_norm.weight": (WIDTH,),
    }
    if architecture == "qwen2":
        layer |= {"attn_q.bias": (WIDTH,), "attn_k.bias": (narrow,), "attn_v.bias": (narrow,)}
    if architecture == "qwen3":
        layer |= {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}
    shapes |= {f"blk.{i}.{name}": shape for i in range(LAYERS) for name, shape in layer.items()}
    return {
        name: random.normal(scale=0.1, size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }
