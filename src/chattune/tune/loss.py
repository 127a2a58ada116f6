"""The loss: cross entropy of the supervised tokens, and no logits but theirs.

The output layer over a whole vocabulary is a large part of a small model's step, so it is computed
only where the next token is supervised.
"""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from chattune.data.store import IGNORED


class SupervisedLoss:
    """Summed cross entropy in nats for one causal language model.

    Works on the hidden states where the model's logits are its output layer applied to them, which
    is checked once; where they are more (soft caps, scales) the model computes all its logits.
    """

    def __init__(self, model: Any) -> None:
        self._causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._by_hidden_states = self._head_is_all()

    def __call__(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Nats summed over all supervised tokens of a batch; all arguments are (rows, tokens)."""
        targets = labels[:, 1:]
        supervised = targets != IGNORED
        if self._by_hidden_states:
            hidden = self._causal.base_model(
                input_ids, attention_mask=attention_mask, use_cache=False
            ).last_hidden_state
            logits = self._causal.get_output_embeddings()(hidden[:, :-1][supervised])
        else:
            logits = self._causal(input_ids, attention_mask=attention_mask, use_cache=False).logits[
                :, :-1
            ][supervised]
        return cross_entropy(logits.float(), targets[supervised], reduction="sum")

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
