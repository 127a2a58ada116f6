"""The reference engine's int8 layers stay near the fp32 model."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig
from transformers.pytorch_utils import Conv1D

from chattune.generate.int8_linear import to_int8_linear


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        # Wide enough for matrices of which some are multiplied by our kernel and some by PyTorch's.
        LlamaConfig(vocab_size=99, hidden_size=64, intermediate_size=1 << 16, num_hidden_layers=2,
                    num_attention_heads=4),
        GPT2Config(vocab_size=99, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0),
    ],
    ids=["llama", "gpt2"],
)  # fmt: skip
def test_the_reference_engine_in_int8_is_near_its_fp32(config: Any, bf16: bool) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert sum(type(m) in (nn.Linear, Conv1D) for m in model.modules()) >= 9
    ids = torch.randint(0, 99, (1, 30))
    with torch.no_grad():
        exact = model(ids).logits
        rounded = to_int8_linear(model, bf16=bf16)(ids).logits.float()
    assert 0 < float((exact - rounded).abs().max() / exact.abs().max()) < 0.05
    assert not any(type(m) in (nn.Linear, Conv1D) for m in model.modules())
