"""GPT-Neo's forward pass with a cache of keys and values, for decoding on a CPU.

The residual stream and attention are in fp32, the matrices in the precision that the weights were
rounded to, and the cache is in bf16 if they were rounded at all. Prompts are computed in chunks by
PyTorch's operations, with matrix products by whichever code is faster (`products.Linear`). Single
tokens are computed by compiled loops, in one call per layer (`block`). A local layer caches its
window, `_EXTRA` tokens before it, and a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding, layer_norm

from chattune.gpt_neo.block import transformer_block
from chattune.gpt_neo.weights import GptNeoWeights
from chattune.kernels.cache import attend_prompt, zeros_on_demand
from chattune.kernels.jit import as_array, run_kernel
from chattune.kernels.products import Linear, OutputLayer, padded

_CHUNK = 512  # tokens of a prompt that are computed at once
# Tokens before the window that a local layer keeps, so that a prompt which differs from the cached
# one in its last few tokens, as the next turn of a chat may, can still use the cache.
_EXTRA = 64
_LINEAR_LAYERS = ("qkv", "out", "fc", "proj")


@dataclass(frozen=True)
class _Layer:
    """One layer: its norms (weight, bias) and linear layers, and its cache for every slot.

    `keys` and `values` are (slots, heads, capacity, head size). `arrays` holds norms, linear layers
    and cache as NumPy arrays over the same memory, in the order in which `transformer_block` takes
    them.
    """

    ln_1: tuple[torch.Tensor, torch.Tensor]
    qkv: Linear
    out: Linear
    ln_2: tuple[torch.Tensor, torch.Tensor]
    fc: Linear
    proj: Linear
    is_local: bool
    keys: torch.Tensor
    values: torch.Tensor
    arrays: tuple[NDArray[Any], ...]


class GptNeoDecoder:
    """A GPT-Neo model with a cache that has one row per slot; see `families.Decoder`."""

    def __init__(self, weights: GptNeoWeights, slots: int, *, bf16: bool) -> None:
        tensors = weights.tensors
        self.slots = slots
        self.positions = weights.positions
        self._bf16 = bf16
        self._wte, self._wpe = tensors["wte"], tensors["wpe"]
        self._head = OutputLayer.of(tensors)
        self._ln_f = tensors["ln_f"], tensors["ln_f.bias"]
        self._heads, self._width = weights.heads, self._wte.shape[1]
        self._window, self._epsilon = weights.window, weights.epsilon
        self._kept = self._window + _EXTRA  # tokens that stay in a local layer when it is full
        # For each slot the position of the first token that its local layers hold.
        self._local_start = [0] * slots
        self._layers = [self._layer(weights, i) for i in range(len(weights.is_local))]
        self._local_layers = [layer for layer in self._layers if layer.is_local]

    def _layer(self, weights: GptNeoWeights, i: int) -> _Layer:
        tensors, is_local = weights.tensors, weights.is_local[i]
        capacity = min(self._kept + _CHUNK, self.positions) if is_local else self.positions
        shape = self.slots, self._heads, capacity, self._width // self._heads
        rounded = self._wte.dtype != torch.float32
        keys, values = zeros_on_demand(shape, bf16=rounded), zeros_on_demand(shape, bf16=rounded)

        def norm(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            return tensors[f"{i}.{name}"], tensors[f"{i}.{name}.bias"]

        ln_1, ln_2 = norm("ln_1"), norm("ln_2")
        qkv, out, fc, proj = (
            Linear.of(tensors, f"{i}.{name}", bf16=self._bf16) for name in _LINEAR_LAYERS
        )
        in_order = [*ln_1, *qkv.tensors, *out.tensors, *ln_2, *fc.tensors, *proj.tensors]
        arrays = tuple(as_array(tensor) for tensor in (*in_order, keys, values))
        return _Layer(ln_1, qkv, out, ln_2, fc, proj, is_local, keys, values, arrays)

    def rewind(self, slot: int, length: int) -> int:
        """Prepare a slot to continue after the first `length` tokens that it holds.

        Returns `length`, or 0 where a local layer no longer holds what the next token would see.
        """
        start = self._local_start[slot]
        if start > 0 and length - self._window + 1 < start:
            length = 0
        if length == 0:
            self._local_start[slot] = 0
        return length

    def prefill(self, slot: int, tokens: Sequence[int], start: int) -> torch.Tensor:
        """Compute tokens from position `start` on; return the last one's logits (vocabulary)."""
        for i in range(0, len(tokens), _CHUNK):
            h = self._prefill_chunk(slot, tokens[i : i + _CHUNK], start + i)
        return self._logits(h)[0]

    def decode(
        self, slots: Sequence[int], tokens: Sequence[int], lengths: Sequence[int]
    ) -> torch.Tensor:
        """Compute one more token in each slot; return its logits (slots, vocabulary), fp32."""
        for slot, length in zip(slots, lengths, strict=True):
            self._compact_local_caches(slot, length, 1)
        h = padded(self._embed(tokens, lengths))
        starts = np.array([self._local_start[slot] for slot in slots])
        # For each row the first place in its slot's cache that it sees, and the place that it
        # takes.
        slot_array, places = np.array(slots), np.array(lengths)
        everything = slot_array, np.zeros_like(places), places
        local_places = places - starts
        window = slot_array, np.maximum(0, local_places - self._window + 1), local_places
        rows = as_array(h)  # the memory of h, which every layer changes
        for layer in self._layers:
            visible = window if layer.is_local else everything
            run_kernel(transformer_block, rows, *layer.arrays, *visible, self._epsilon)
        return self._logits(h[: len(slots)])

    def _prefill_chunk(self, slot: int, tokens: Sequence[int], start: int) -> torch.Tensor:
        """Return the last token's hidden state (1, width) after all layers.

        The last layer needs every token's key and value, but only the last token's query.
        """
        count, stop = len(tokens), start + len(tokens)
        self._compact_local_caches(slot, start, count)
        h = self._embed(tokens, range(start, stop))
        for layer in self._layers:
            q, k, v = self._project(layer, h)
            first = self._first_cached(layer, slot)
            layer.keys[slot, :, start - first : stop - first] = k.transpose(0, 1)
            layer.values[slot, :, start - first : stop - first] = v.transpose(0, 1)
            if layer is self._layers[-1]:
                q, h = q[-1:], h[-1:]
            h = self._after_attention(layer, h, self._attend(layer, slot, q, stop - len(q)))
        return h

    def _compact_local_caches(self, slot: int, length: int, count: int) -> None:
        """Move what local layers still need to the front if `count` more tokens do not fit.

        `length` is the number of tokens that the slot holds.
        """
        if not self._local_layers:
            return
        start = self._local_start[slot]
        if length - start + count <= self._local_layers[0].keys.shape[2]:
            return
        new_start = max(start, length - self._kept)
        for layer in self._local_layers:
            for cache in (layer.keys, layer.values):
                kept = cache[slot, :, new_start - start : length - start].clone()
                cache[slot, :, : length - new_start] = kept
        self._local_start[slot] = new_start

    def _first_cached(self, layer: _Layer, slot: int) -> int:
        """Return the position of the first token that a layer holds of a slot."""
        return self._local_start[slot] if layer.is_local else 0

    def _embed(self, tokens: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        token_ids, position_ids = torch.tensor(tokens), torch.tensor(list(positions))
        return embedding(token_ids, self._wte).float() + embedding(position_ids, self._wpe).float()

    def _project(self, layer: _Layer, h: torch.Tensor) -> Any:
        """Return query, key and value, each (tokens, heads, head size) in fp32."""
        x = layer_norm(h, (self._width,), *layer.ln_1, self._epsilon)
        return layer.qkv(x).view(len(h), 3, self._heads, -1).unbind(1)

    def _attend(self, layer: _Layer, slot: int, q: torch.Tensor, start: int) -> torch.Tensor:
        """Return the attention of queries (tokens, heads, head size), the first at `start`."""
        return attend_prompt(
            q,
            layer.keys[slot],
            layer.values[slot],
            start=start,
            first=self._first_cached(layer, slot),
            window=self._window if layer.is_local else None,
        )

    def _after_attention(self, layer: _Layer, h: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """Return the block's result, given attention's (tokens, heads, head size); changes h."""
        h = layer.out(mixed.reshape(len(h), -1), add_to=h)
        x = layer_norm(h, (self._width,), *layer.ln_2, self._epsilon)
        return layer.proj(layer.fc(x, gelu=True), add_to=h)

    def _logits(self, h: torch.Tensor) -> torch.Tensor:
        """Return the logits (tokens, vocabulary) of hidden states (tokens, width)."""
        return self._head(layer_norm(h, (self._width,), *self._ln_f, self._epsilon))
