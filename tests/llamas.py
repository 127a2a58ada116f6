"""Small models of Llama's family with random weights, one of each shape that the wing computes."""

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from chattune.base import starter_folder

_LLAMA_3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
# A name, transformers' model type, and what differs from the plain config.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-3": ("llama", {"rope_parameters": _LLAMA_3_ROPE, "tie_word_embeddings": False}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "yarn": ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0,
             "factor": 4.0, "original_max_position_embeddings": 128}}),
    "mistral": ("mistral", {"head_dim": 32, "sliding_window": None, "num_key_value_heads": 1}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": False}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1], "pad_token_id": 0}),
}  # fmt: skip


def random_model(shape: str, folder: Path, **changes: Any) -> Path:
    """Save a model of a shape whose greedy text does not repeat itself at once; return its folder.

    It has three layers of width 64, four heads that share two heads of keys and values, 512
    positions, and the starter's tokenizer.
    """
    model_type, special = SHAPES[shape]
    plain = {
        "vocab_size": 8192, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True,
    }  # fmt: skip
    torch.manual_seed(1)
    config = CONFIG_MAPPING[model_type](**(plain | special | changes))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(6.0)
            elif name.endswith("bias"):
                weight.normal_(std=0.1)
            else:
                weight.mul_(1 + 0.2 * torch.randn_like(weight))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(starter_folder()).save_pretrained(folder)
    return folder
