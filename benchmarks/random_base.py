"""A base with random weights, to measure speed, which does not depend on their values.

python benchmarks/random_base.py 125m TOKENIZER_FOLDER OUT
"""

import argparse
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoConfig,
    LlamaConfig,
    PreTrainedConfig,
)

SHAPES = {  # EleutherAI/gpt-neo-125m and -1.3B, and a Llama of the first one's size
    "125m": {"hidden_size": 768, "num_layers": 12, "num_heads": 12},
    "1.3b": {"hidden_size": 2048, "num_layers": 24, "num_heads": 16},
    "llama-125m": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 2048,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
}


def shaped(size: str) -> PreTrainedConfig:
    """Return the config of one of SHAPES, with GPT-2's vocabulary."""
    common = {"vocab_size": 50257, "bos_token_id": 50256, "eos_token_id": 50256} | SHAPES[size]
    if size.startswith("llama"):
        return LlamaConfig(**common)
    kinds = [[["global", "local"], SHAPES[size]["num_layers"] // 2]]
    return GPTNeoConfig(window_size=256, attention_types=kinds, **common)


def make(size: str, tokenizer: Path, out: Path) -> None:
    """Write config, bf16 weights and the tokenizer in folder `tokenizer` to `out`."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shaped(size))
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1 and "bias" not in name:  # a norm
                weight.fill_(1.0)
            else:
                weight.normal_(std=0.02)
    model.tie_weights()
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=SHAPES)
    parser.add_argument("tokenizer", type=Path, help="folder of a tokenizer")
    parser.add_argument("out", type=Path, help="folder to write")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out}: exists already; choose another folder")
    make(arguments.size, arguments.tokenizer, arguments.out)
