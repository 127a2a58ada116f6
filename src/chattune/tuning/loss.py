"""The loss: cross entropy of the supervised tokens, without computing the logits of any other.

The output layer over a whole vocabulary is a large part of a small model's step. It is computed
only where the next token is supervised, one cache-sized chunk at a time, and the gradient is made
from the same probabilities in the forward pass (the method of Liger Kernel's fused linear cross
entropy, Hsu et al. 2024), so that the logits of a step never exist together.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear

from chattune.models.packing import Packing, causal_model, evaluating
from chattune.template import IGNORED_LABEL

# Bytes of logits that are computed at once: on a CPU they should stay in its last-level cache.
_CHUNK_BYTES = {"cpu": 26_000_000, "cuda": 1 << 29}
_OTHER_CHUNK_BYTES = 1 << 28  # other devices


class SupervisedLoss:
    """Summed cross entropy, in nats, of one causal language model.

    It works on hidden states where the model's logits are its output layer applied to them, which
    is checked once. Where the model does more (it scales or caps logits), it computes all of them.
    """

    def __init__(self, model: Any, packing: Packing) -> None:
        """Take a transformers or peft model, and the way in which it takes packs."""
        self._causal = causal_model(model)
        self._packing = packing
        self._uses_hidden_states = self._logits_are_output_layer()

    def __call__(
        self, input_ids: torch.Tensor, labels: torch.Tensor, lengths: Sequence[int]
    ) -> torch.Tensor:
        """Return the nats summed over a pack's supervised tokens.

        `input_ids` and `labels` are (1, tokens), `lengths` the numbers of tokens of the
        conversations in the pack.
        """
        arguments = self._packing.arguments(lengths, input_ids.device)
        targets = labels[0, 1:]
        supervised = (targets != IGNORED_LABEL).nonzero()[:, 0]
        targets = targets[supervised]
        if not self._uses_hidden_states:
            logits = self._causal(input_ids, use_cache=False, **arguments).logits[0, supervised]
            return cross_entropy(logits.float(), targets, reduction="sum")
        hidden = self._causal.base_model(input_ids, use_cache=False, **arguments).last_hidden_state
        head = self._causal.get_output_embeddings()
        return summed_cross_entropy(hidden[0, supervised], head.weight, head.bias, targets)

    @torch.no_grad()
    def _logits_are_output_layer(self) -> bool:
        """Return whether the model's logits are its output layer applied to its hidden states."""
        with evaluating(self._causal):
            ids = torch.arange(8, device=self._causal.device)[None]
            logits = self._causal(ids, use_cache=False).logits
            hidden = self._causal.base_model(ids, use_cache=False).last_hidden_state
            projected = self._causal.get_output_embeddings()(hidden)
        return projected.shape == logits.shape and torch.allclose(
            projected, logits, rtol=1e-4, atol=1e-4
        )


def summed_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """Return the cross entropy, in nats, summed over `targets` (tokens).

    The logits are linear(hidden, weight, bias), with `hidden` (tokens, width) and `weight`
    (vocabulary, width). Gradients are computed for `hidden` and, if it requires one, for `weight`;
    not for `bias`. Without gradients, as in validation, the logits are computed in fp32, because
    this loss chooses the best checkpoint. In training they have the dtype of `hidden`: on 4,670
    tokens of Dolly, SmolLM2's mean loss was 0.0004 nats higher in bf16.
    """
    if not torch.is_grad_enabled():
        hidden, weight = hidden.float(), weight.float()
        bias = None if bias is None else bias.float()
    nats: torch.Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets
    )
    return nats


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The summed cross entropy, whose forward pass also computes the gradients, by chunks."""

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
        chunk_bytes = _CHUNK_BYTES.get(hidden.device.type, _OTHER_CHUNK_BYTES)
        chunk_tokens = max(32, chunk_bytes // (weight.shape[0] * hidden.element_size()))
        chunks = -(-len(hidden) // chunk_tokens)
        for i in range(chunks):  # of nearly equal length: a short one at the end would be slow
            chunk = slice(len(hidden) * i // chunks, len(hidden) * (i + 1) // chunks)
            probabilities = torch.softmax(linear(hidden[chunk], weight, bias), dim=-1)
            rows = torch.arange(len(probabilities), device=probabilities.device)
            target_indices = targets[chunk] + rows * probabilities.shape[1]
            flat = probabilities.view(-1)
            target_probabilities = flat[target_indices]
            # A probability below the dtype's smallest normal number counts as that number, which is
            # 87 nats in fp32 and bf16, instead of infinity.
            smallest = torch.finfo(target_probabilities.dtype).tiny
            nats -= target_probabilities.float().clamp_min(smallest).log().sum()
            flat[target_indices] = target_probabilities - 1  # now the gradient for the logits
            if d_hidden is not None:
                torch.mm(probabilities, weight, out=d_hidden[chunk])
            if d_weight is not None:
                d_weight += probabilities.T @ hidden[chunk]
        ctx.save_for_backward(d_hidden, d_weight)
        return nats

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        return _times(d_hidden, grad), _times(d_weight, grad), None, None


def _times(gradient: torch.Tensor | None, factor: torch.Tensor) -> torch.Tensor | None:
    return None if gradient is None else gradient * factor.to(gradient.dtype)
