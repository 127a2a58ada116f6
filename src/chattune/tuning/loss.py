"""The loss: cross entropy of the supervised tokens, and no logits but theirs.

The output layer over a whole vocabulary is a large part of a small model's step. So it is computed
only where the next token is supervised, a cache-sized chunk at a time, and the gradient is made
from the same probabilities in the forward pass (as in Liger Kernel's fused linear cross entropy,
Hsu et al. 2024): the logits of a step never exist together.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear

from chattune.models.packing import positions_of
from chattune.template import IGNORED_LABEL

_CHUNK_BYTES = {"cpu": 26_000_000, "cuda": 1 << 29}  # a CPU's should stay in its cache


class SupervisedLoss:
    """Summed cross entropy in nats for one causal language model with a frozen output layer.

    Works on the hidden states where the model's logits are its output layer applied to them, which
    is checked once; where they are more (soft caps, scales) the model computes all its logits.
    """

    def __init__(self, model: Any, *, packs: bool) -> None:
        """`packs` says whether the model computes packs exactly; if not, it is given none."""
        self._causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._packs = packs
        self._by_hidden_states = self._head_is_all()

    def __call__(
        self, input_ids: torch.Tensor, labels: torch.Tensor, lengths: Sequence[int]
    ) -> torch.Tensor:
        """Nats summed over a pack's supervised tokens; ids and labels are (1, tokens).

        `lengths` are those of the conversations in the pack.
        """
        assert self._packs or len(lengths) == 1
        given = {"position_ids": positions_of(lengths, input_ids.device)} if self._packs else {}
        targets = labels[0, 1:]
        supervised = (targets != IGNORED_LABEL).nonzero()[:, 0]
        targets = targets[supervised]
        if not self._by_hidden_states:
            logits = self._causal(input_ids, use_cache=False, **given).logits[0, supervised]
            return cross_entropy(logits.float(), targets, reduction="sum")
        hidden = self._causal.base_model(input_ids, use_cache=False, **given).last_hidden_state
        head = self._causal.get_output_embeddings()
        return summed_cross_entropy(hidden[0, supervised], head.weight, head.bias, targets)

    @torch.no_grad()
    def _head_is_all(self) -> bool:
        was_training = self._causal.training
        self._causal.eval()
        ids = torch.arange(8, device=self._causal.device)[None]
        whole = self._causal(ids, use_cache=False).logits
        hidden = self._causal.base_model(ids, use_cache=False).last_hidden_state
        ours = self._causal.get_output_embeddings()(hidden)
        self._causal.train(was_training)
        return ours.shape == whole.shape and torch.allclose(ours, whole, rtol=1e-4, atol=1e-4)


def summed_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """Nats summed over `targets` (tokens), whose logits are `hidden` (tokens, width) @ weight.T.

    Gradients for `hidden` and, where it wants one, for `weight` (vocabulary, width); none for bias.
    """
    nats: torch.Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets
    )
    return nats


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight, dtype=torch.float) if ctx.needs_input_grad[1] else None
        nats = torch.zeros((), device=hidden.device)
        room = _CHUNK_BYTES.get(hidden.device.type, 1 << 28)
        most = max(32, room // (weight.shape[0] * hidden.element_size()))
        chunks = -(-len(hidden) // most)
        for i in range(chunks):  # alike in size: a small one at the end would be slow
            chunk = slice(len(hidden) * i // chunks, len(hidden) * (i + 1) // chunks)
            odds = torch.softmax(linear(hidden[chunk], weight, bias), dim=-1)
            here = targets[chunk] + torch.arange(len(odds), device=odds.device) * odds.shape[1]
            flat = odds.view(-1)
            right = flat[here]
            # Odds too small for the dtype count as its smallest number: 87 nats, not infinity.
            nats -= right.float().clamp_min(torch.finfo(right.dtype).tiny).log().sum()
            flat[here] = right - 1
            if d_hidden is not None:
                torch.mm(odds, weight, out=d_hidden[chunk])
            if d_weight is not None:
                d_weight += odds.T @ hidden[chunk]
        ctx.save_for_backward(d_hidden, d_weight)
        return nats

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        return _scaled(d_hidden, grad), _scaled(d_weight, grad), None, None


def _scaled(gradient: torch.Tensor | None, by: torch.Tensor) -> torch.Tensor | None:
    return None if gradient is None else gradient * by.to(gradient.dtype)
