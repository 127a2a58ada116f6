"""The fast training path of Llama's family computes what transformers does, alone and in packs."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from chattune.models.packing import Packing, speed_up_training
from chattune.models.verify import relative_difference

PACKING = Packing(takes_lengths=True)
BOUND = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
# Model types with what is special about them, and numbers of heads of queries and of keys.
MODELS = {
    "llama": {"num_key_value_heads": 2},
    "llama with one key head": {"num_key_value_heads": 1},
    "llama with biases": {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    "llama with other angles": {
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    },
    "mistral": {"num_key_value_heads": 2, "sliding_window": None},
    "mistral with a window": {"num_key_value_heads": 2, "sliding_window": 20},
    "qwen2": {"num_key_value_heads": 2},
    "qwen2 with a window": {
        "num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 20,
        "max_window_layers": 1,
    },
    "qwen3": {"num_key_value_heads": 2, "head_dim": 24},
    "smollm3": {"num_key_value_heads": 1, "no_rope_layers": [1, 0]},
}  # fmt: skip
LENGTHS = [[1], [300], [1, 1], [130, 3, 41, 60, 7, 129], [50, 62, 47, 70, 66]]
PLAIN = [n for n in MODELS if " " not in n]


def adapted(name: str) -> Any:
    """Return two layers of width 32 with random norms and biases, and an adapter with B not 0."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        name.partition(" ")[0], vocab_size=131, hidden_size=32, intermediate_size=56,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, **MODELS[name],
    )  # fmt: skip
    model = get_peft_model(
        AutoModelForCausalLM.from_config(config), LoraConfig(r=4, target_modules="all-linear")
    )
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "lora_B" in key or "bias" in key:
                weight.normal_(std=0.05)
            elif "norm" in key:
                weight.uniform_(0.5, 1.5)
            elif "lora_" not in key:
                weight.mul_(5)
    return model.eval()


def fast(model: Any, dtype: torch.dtype) -> Any:
    """Return a copy with the base in `dtype` and the adapter in fp32, on the fast path."""
    quick = with_base_in(model, dtype)
    assert speed_up_training(quick, longest=300) == PACKING
    return quick


def with_base_in(model: Any, dtype: torch.dtype) -> Any:
    """Return a copy whose base is rounded to `dtype`; it computes in `dtype`."""
    rounded = copy.deepcopy(model)
    for name, weight in rounded.named_parameters():
        if "lora_" not in name:
            weight.data = weight.data.to(dtype)
    return rounded


def tokens(length: int) -> torch.Tensor:
    return torch.randint(131, (1, length), generator=torch.Generator().manual_seed(length))


def loss_and_gradients(
    model: Any, parts: list[torch.Tensor], **arguments: Any
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the logits of all parts, and the adapter's gradients of a loss on every logit."""
    model.zero_grad()
    logits = torch.cat([model(p, use_cache=False, **arguments).logits[0].float() for p in parts])
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits).sin()
    (logits * weights).sum().backward()
    return logits.detach(), [w.grad.clone() for n, w in model.named_parameters() if "lora_" in n]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_packs_equal_their_conversations_one_by_one(name: str, dtype: torch.dtype) -> None:
    """The reference is transformers, in fp32, with the same rounded weights."""
    model = adapted(name)
    quick, reference = fast(model, dtype), with_base_in(with_base_in(model, dtype), torch.float32)
    for lengths in LENGTHS:
        ids = tokens(sum(lengths))
        expected, expected_grads = loss_and_gradients(reference, list(ids.split(lengths, dim=1)))
        arguments = PACKING.arguments(lengths, torch.device("cpu"))
        logits, grads = loss_and_gradients(quick, [ids], **arguments)
        assert relative_difference(expected, logits) <= BOUND[dtype]
        largest = max(float(g.abs().max()) for g in expected_grads)
        for theirs, ours in zip(expected_grads, grads, strict=True):
            assert float((theirs - ours).abs().max()) <= BOUND[dtype] * largest


@pytest.mark.parametrize("name", PLAIN)
def test_other_calls_are_computed_by_transformers(name: str) -> None:
    """A padded batch, and generate() with its cache: what peft and TRL do with the model."""
    model = adapted(name)
    quick = fast(model, torch.float32)
    for ids in (tokens(40), torch.cat([tokens(20), tokens(20).flip(1)])):
        mask = torch.ones_like(ids)
        mask[-1, :5] = 0
        with torch.no_grad():
            theirs, ours = (m(ids, attention_mask=mask).logits[mask == 1] for m in (model, quick))
        assert relative_difference(theirs, ours) <= 1e-6
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(tokens(9), **options), quick.generate(tokens(9), **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_gives_the_same_bits_again(dtype: torch.dtype) -> None:
    quick = fast(adapted("llama"), dtype).train()
    for lengths in LENGTHS:
        arguments = PACKING.arguments(lengths, torch.device("cpu"))
        first, again = (
            loss_and_gradients(quick, [tokens(sum(lengths))], **arguments) for _ in "12"
        )
        assert torch.equal(first[0], again[0])
        assert all(torch.equal(*pair) for pair in zip(first[1], again[1], strict=True))


def test_gradient_checkpointing_changes_no_bit() -> None:
    quick = fast(adapted("qwen3"), torch.float32).train()
    arguments = PACKING.arguments([50, 70], torch.device("cpu"))
    _, expected = loss_and_gradients(quick, [tokens(120)], **arguments)
    quick.gradient_checkpointing_enable()
    quick.enable_input_require_grads()
    _, grads = loss_and_gradients(quick, [tokens(120)], **arguments)
    assert all(torch.equal(*pair) for pair in zip(expected, grads, strict=True))


@pytest.mark.parametrize(
    "special",
    [
        {"attention_dropout": 0.1},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ],
    ids=str,
)
def test_what_the_wing_cannot_compute_is_left_to_transformers(special: dict[str, Any]) -> None:
    config = AutoConfig.for_model(
        "llama", vocab_size=131, hidden_size=32, intermediate_size=56, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=512, **special,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    assert speed_up_training(model, longest=60) == Packing(takes_lengths=False)


def test_another_activation_is_computed_by_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "llama", {"hidden_act": "gelu"})
    model = adapted("llama")
    ids = tokens(60)
    expected, _ = loss_and_gradients(model, list(ids.split([20, 40], dim=1)))
    arguments = PACKING.arguments([20, 40], torch.device("cpu"))
    ours, _ = loss_and_gradients(fast(model, torch.float32), [ids], **arguments)
    assert relative_difference(expected, ours) <= 1e-5


def test_packs_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chattune.kernels.numba_problem", lambda: "not installed")
    model, lengths = adapted("qwen3"), [130, 3, 41]
    ids = tokens(sum(lengths))
    expected, expected_grads = loss_and_gradients(model, list(ids.split(lengths, dim=1)))
    arguments = PACKING.arguments(lengths, torch.device("cpu"))
    logits, grads = loss_and_gradients(fast(model, torch.float32), [ids], **arguments)
    assert relative_difference(expected, logits) <= 1e-5
    largest = max(float(g.abs().max()) for g in expected_grads)
    for theirs, ours in zip(expected_grads, grads, strict=True):
        assert float((theirs - ours).abs().max()) <= 1e-5 * largest
