"""Attention over packs, by compiled loops and by matrix products, beside PyTorch's."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from chattune.kernels.packed_attention import packed_attention
from chattune.kernels.short_attention import attend_pack

SIZE = 24
LENGTHS = [[1], [128], [50, 62, 1, 70, 3], [129, 7]]  # the last has a conversation for the products
WAYS = {"loops": attend_pack, "products": packed_attention}


def tensors(tokens: int, heads: int, key_heads: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return queries, keys, values and gradients of the attention, (tokens, heads * SIZE)."""
    torch.manual_seed(tokens)
    counts = heads, key_heads, key_heads, heads
    return [torch.randn(tokens, n * SIZE).to(dtype) for n in counts]


def alone(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, window: int | None
) -> torch.Tensor:
    """Return the attention of one conversation by PyTorch, with a mask."""
    tokens = len(query)
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    seen = (distance >= 0) & (distance < (window or tokens))
    q, k, v = (x.view(tokens, -1, SIZE).transpose(0, 1) for x in (query, key, value))
    group = heads // len(k)
    k, v = (x.repeat_interleave(group, 0) for x in (k, v))
    out = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=1.0)
    return out.transpose(0, 1).reshape(tokens, -1)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_a_pack_and_its_gradients_equal_single_conversations(
    way: str, lengths: list[int], heads: int, key_heads: int, window: int | None,
    dtype: torch.dtype, bound: float,
) -> None:  # fmt: skip
    *inputs, grad = tensors(sum(lengths), heads, key_heads, dtype)
    leaves = [x.clone().requires_grad_() for x in inputs]
    doubles = [x.double().requires_grad_() for x in inputs]
    ours = WAYS[way](*leaves, lengths, heads, window)
    parts = zip(*(x.split(lengths) for x in doubles), strict=True)
    exact = torch.cat([alone(*part, heads, window) for part in parts])
    our_grads = torch.autograd.grad(ours, leaves, grad)
    exact_grads = torch.autograd.grad(exact, doubles, grad.double())
    for mine, wanted in zip((ours, *our_grads), (exact, *exact_grads), strict=True):
        assert mine.dtype == dtype
        difference, largest = (x.detach().abs().max() for x in (mine - wanted, wanted))
        assert float(difference) <= bound * float(largest)


def test_loops_give_the_same_bits_again_and_with_any_number_of_threads() -> None:
    *inputs, grad = tensors(300, 6, 2, torch.float32)
    leaves = [x.requires_grad_() for x in inputs]
    threads, seen, obstacles = torch.get_num_threads(), [], []
    try:
        for count in (1, 2, 2, 1):
            torch.set_num_threads(count)
            obstacles.append(torch.empty(1001 * count))  # so that arrays lie elsewhere in memory
            out = attend_pack(*leaves, [100, 60, 20, 120], 6, None)
            seen.append(torch.cat([x.flatten() for x in torch.autograd.grad(out, leaves, grad)]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(seen[0], other) for other in seen)
