"""GPT-Neo's fast training path computes what transformers' eager path does, alone and in packs."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from chattune.models.packing import Packing, speed_up_training
from chattune.models.verify import relative_difference

LENGTHS = [1, 255, 256, 257, 512, 2048]
PACKING = Packing(takes_lengths=True)
BOUND = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(scope="module")
def eager() -> Any:
    """Two layers (global, local) with GPT-Neo's own window, and an adapter whose B is not zero."""
    torch.manual_seed(0)
    model = GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=131, hidden_size=64, num_layers=2, num_heads=4, window_size=256,
            attention_types=[[["global", "local"], 1]], max_position_embeddings=2048,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "c_fc", "c_proj"])
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
            elif "wpe" in name or "wte" in name:
                weight.mul_(5)
    return adapted.eval()


def fast(model: Any, dtype: torch.dtype) -> Any:
    """Return a copy with the base in `dtype` and the adapter in fp32, on the fast path."""
    quick = copy.deepcopy(model)
    for name, weight in quick.named_parameters():
        if "lora_" not in name:
            weight.data = weight.data.to(dtype)
    assert speed_up_training(quick, longest=300) == PACKING
    return quick


def tokens(length: int) -> torch.Tensor:
    return torch.randint(131, (1, length), generator=torch.Generator().manual_seed(length))


def pack(lengths: list[int]) -> dict[str, Any]:
    """Return the arguments that tell the model where the conversations of a pack begin."""
    return PACKING.arguments(lengths, torch.device("cpu"))


def logits_and_gradients(
    model: Any, ids: torch.Tensor, **arguments: Any
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return logits, and the adapter's gradients of a loss that depends on every logit."""
    model.zero_grad()
    logits = model(ids, use_cache=False, **arguments).logits.float()
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits).sin()
    (logits * weights).sum().backward()
    grads = [w.grad.clone() for n, w in model.named_parameters() if "lora_" in n]
    return logits.detach(), grads


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_logits_and_adapter_gradients_equal_eager(
    eager: Any, length: int, dtype: torch.dtype
) -> None:
    ids = tokens(length)
    reference = copy.deepcopy(eager)
    if dtype == torch.bfloat16:  # the rounded weights, computed in fp32
        for name, weight in reference.named_parameters():
            if "lora_" not in name:
                weight.data = weight.data.bfloat16().float()
    expected, expected_grads = logits_and_gradients(reference, ids)
    logits, grads = logits_and_gradients(fast(eager, dtype), ids, **pack([length]))
    assert relative_difference(expected, logits) <= BOUND[dtype]
    largest = max(float(g.abs().max()) for g in expected_grads)
    for theirs, ours in zip(expected_grads, grads, strict=True):
        assert float((theirs - ours).abs().max()) <= BOUND[dtype] * largest


@pytest.mark.parametrize(
    "lengths", [[1, 1], [255, 257, 3], [600, 1, 40, 256], [3, 40, 7, 60, 300, 20, 20]], ids=str
)
def test_a_pack_equals_its_conversations_one_by_one(eager: Any, lengths: list[int]) -> None:
    quick = fast(eager, torch.float32)
    ids = tokens(sum(lengths))
    with torch.no_grad():
        packed = quick(ids, use_cache=False, **pack(lengths)).logits[0]
        alone = torch.cat([eager(part).logits[0] for part in ids.split(lengths, dim=1)])
    assert relative_difference(alone, packed) <= 1e-5


def test_a_pack_may_begin_at_other_positions(eager: Any) -> None:
    later, first = torch.arange(256, 300)[None], torch.arange(30)[None]
    ids = tokens(74)
    with torch.no_grad():
        packed = fast(eager, torch.float32)(
            ids, position_ids=torch.cat([later, first], 1), pack_lengths=[44, 30], use_cache=False
        ).logits
        alone = [
            eager(ids[:, :44], position_ids=later, use_cache=False).logits,
            eager(ids[:, 44:], position_ids=first, use_cache=False).logits,
        ]
    assert relative_difference(torch.cat(alone, 1), packed) <= 1e-5


def test_other_calls_are_computed_as_before(eager: Any) -> None:
    """A padded batch, and generate() with its cache: what peft and TRL do with the model."""
    quick = fast(eager, torch.float32)
    ids = torch.cat([tokens(20), tokens(20).flip(1)])
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    with torch.no_grad():
        theirs, ours = (m(ids, attention_mask=mask).logits[mask == 1] for m in (eager, quick))
    assert relative_difference(theirs, ours) <= 1e-5
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(eager.generate(tokens(9), **options), quick.generate(tokens(9), **options))


def test_dropout_keeps_the_mean_and_differs_from_call_to_call(eager: Any) -> None:
    model = copy.deepcopy(eager)
    for module in model.modules():
        if hasattr(module, "lora_dropout") and "default" in module.lora_dropout:
            module.lora_dropout["default"] = torch.nn.Dropout(0.5)
    quick = fast(model, torch.float32).train()
    layer = quick.base_model.model.transformer.h[0].mlp.c_fc
    x = torch.ones(1, 64, requires_grad=True)
    torch.manual_seed(1)
    with torch.no_grad():
        drawn = torch.stack([layer(x) for _ in range(4000)])
        plain = layer.eval()(x)
    assert drawn.std(dim=0).min() > 0
    spread = drawn.std(dim=0) / 4000**0.5
    assert ((drawn.mean(dim=0) - plain).abs() < 5 * spread).all()
    # The gradient belongs to the mask that was drawn in the forward pass.
    layer.train()
    torch.manual_seed(2)
    layer(x).sum().backward()
    step = torch.zeros_like(x)
    step[0, 3] = 1.0
    torch.manual_seed(2)
    before = layer(x).sum()
    torch.manual_seed(2)
    after = layer(x + step).sum()
    assert (after - before).item() == pytest.approx(float(x.grad[0, 3]), rel=1e-3, abs=1e-4)
