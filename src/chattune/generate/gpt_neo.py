"""GPT-Neo's forward pass with a static cache, for decoding on a CPU.

The residual stream and attention are in fp32, the matrices in what the weights were rounded to, the
cache in bf16 if they were rounded at all. A prompt goes through PyTorch's operations (its matrices
through whichever is faster), a token of a reply through our kernels, and so does the output layer.
Local layers keep only their window, and room behind it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding, layer_norm, scaled_dot_product_attention

from chattune.compiled import as_array, call
from chattune.generate import kernels
from chattune.generate.matrix import Affine, affine
from chattune.models.gpt_neo_weights import GptNeoWeights

_CHUNK = 512  # tokens of a prompt computed at once
_BLOCK = 64  # of them that attend at once
_SLACK = 64  # tokens before the window that a local layer keeps, for prompts that go back a little


@dataclass(frozen=True)
class _Layer:
    ln_1: tuple[torch.Tensor, torch.Tensor]
    qkv: Affine
    out: Affine
    ln_2: tuple[torch.Tensor, torch.Tensor]
    fc: Affine
    proj: Affine
    local: bool
    keys: torch.Tensor  # (slots, heads, room, head), as `values`
    values: torch.Tensor
    arrays: tuple[NDArray[Any], ...]  # of all these, as kernels.block takes them


class GptNeo:
    """A model with one cache row per slot. Every method is called under inference mode."""

    def __init__(self, weights: GptNeoWeights, slots: int, *, bf16: bool) -> None:
        t = weights.tensors
        self._bf16 = bf16
        self._wte, self._wpe = t["wte"], t["wpe"]
        self._head, self._mean = _scaled(t, "head"), t["head.mean"]
        self._ln_f = t["ln_f"], t["ln_f.bias"]
        self._heads, self._width = weights.heads, self._wte.shape[1]
        self._window, self._epsilon = weights.window, weights.epsilon
        self.positions = weights.positions
        self._kept = self._window + _SLACK  # tokens that a local layer keeps when it makes room
        # Position of the first token in a slot's local layers.
        self._start = [0] * slots
        self._layers = [self._layer(weights, i, slots) for i in range(weights.layers)]
        self._locals = [layer for layer in self._layers if layer.local]

    def _layer(self, weights: GptNeoWeights, i: int, slots: int) -> _Layer:
        t, local = weights.tensors, weights.local[i]
        room = min(self._kept + _CHUNK, self.positions) if local else self.positions
        shape = slots, self._heads, room, self._width // self._heads
        keys, values = (_zeros(shape, rounded=self._wte.dtype != torch.float32) for _ in range(2))

        def norm(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            return t[f"{i}.{name}"], t[f"{i}.{name}.bias"]

        def linear(name: str) -> tuple[torch.Tensor, ...]:
            weight, scale = _scaled(t, f"{i}.{name}")
            return weight, scale, t.get(f"{i}.{name}.bias", torch.zeros(len(weight)))

        qkv, out, fc, proj = map(linear, ("qkv", "out", "fc", "proj"))
        arrays = *norm("ln_1"), *qkv, *out, *norm("ln_2"), *fc, *proj, keys, values
        return _Layer(
            ln_1=norm("ln_1"),
            qkv=affine(*qkv, bf16=self._bf16),
            out=affine(*out, bf16=self._bf16),
            ln_2=norm("ln_2"),
            fc=affine(*fc, bf16=self._bf16),
            proj=affine(*proj, bf16=self._bf16),
            local=local,
            keys=keys,
            values=values,
            arrays=tuple(as_array(tensor) for tensor in arrays),
        )

    def rewind(self, slot: int, length: int) -> int:
        """How many of a slot's first `length` tokens can be gone on from: all, or none."""
        start = self._start[slot]
        if start > 0 and length - self._window + 1 < start:
            length = 0  # a local layer has dropped what the next token would look at
        if length == 0:
            self._start[slot] = 0
        return length

    def prefill(self, slot: int, tokens: Sequence[int], start: int) -> torch.Tensor:
        """Put tokens into a slot from position `start` on; fp32 logits (vocabulary) of the last."""
        for i in range(0, len(tokens), _CHUNK):
            h = self._prefill(slot, tokens[i : i + _CHUNK], start + i)
        return self._logits(h)[0]

    def decode(
        self, slots: Sequence[int], tokens: Sequence[int], lengths: Sequence[int]
    ) -> torch.Tensor:
        """One token more in each slot, which holds so many; fp32 logits (slots, vocabulary)."""
        for slot, length in zip(slots, lengths, strict=True):
            self._make_room(slot, length, 1)
        h = kernels.padded(self._embed(tokens, lengths))
        starts = np.array([self._start[slot] for slot in slots])
        ends = {False: np.array(lengths), True: np.array(lengths) - starts}
        lows = {False: 0 * starts, True: np.maximum(0, ends[True] - self._window + 1)}
        rows, places = as_array(h), np.array(slots)
        for layer in self._layers:
            here = places, lows[layer.local], ends[layer.local]
            call(kernels.block, rows, *layer.arrays, *here, self._epsilon)
        return self._logits(h[: len(slots)])

    def _prefill(self, slot: int, tokens: Sequence[int], start: int) -> torch.Tensor:
        """The last token's hidden state (1, width): the last layer computes no other's."""
        count, stop = len(tokens), start + len(tokens)
        self._make_room(slot, start, count)
        h = self._embed(tokens, range(start, stop))
        for layer in self._layers:
            q, k, v = self._project(layer, h)
            first = self._start[slot] if layer.local else 0
            layer.keys[slot, :, start - first : stop - first] = k.transpose(0, 1)
            layer.values[slot, :, start - first : stop - first] = v.transpose(0, 1)
            if layer is self._layers[-1]:
                q, h = q[-1:], h[-1:]
            h = self._finish(layer, h, self._attend(layer, slot, q, stop - len(q)))
        return h

    def _make_room(self, slot: int, length: int, count: int) -> None:
        """Move a slot's local caches to the front where `count` more tokens would not fit."""
        if not self._locals:
            return
        start = self._start[slot]
        if length - start + count <= self._locals[0].keys.shape[2]:
            return
        first = max(start, length - self._kept)
        for layer in self._locals:
            for cache in (layer.keys, layer.values):
                kept = cache[slot, :, first - start : length - start].clone()
                cache[slot, :, : length - first] = kept
        self._start[slot] = first

    def _embed(self, tokens: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        words, places = torch.tensor(tokens), torch.tensor(list(positions))
        return embedding(words, self._wte).float() + embedding(places, self._wpe).float()

    def _project(self, layer: _Layer, h: torch.Tensor) -> Any:
        """Query, key and value, each (tokens, heads, head) in fp32."""
        x = layer_norm(h, (self._width,), *layer.ln_1, self._epsilon)
        return layer.qkv(x).view(len(h), 3, self._heads, -1).unbind(1)

    def _attend(self, layer: _Layer, slot: int, q: torch.Tensor, start: int) -> torch.Tensor:
        """What queries (tokens, heads, head) from position `start` on see of a slot; as they are.

        Block by block, for a block sees nothing of those behind it, and little of what is far.
        """
        first = self._start[slot] if layer.local else 0
        reach = self._window if layer.local else self.positions
        far = max(first, start - reach + 1)
        cached = slot, slice(None), slice(far - first, start + len(q) - first)
        keys, values = layer.keys[cached].float(), layer.values[cached].float()
        mixed = torch.empty_like(q)
        for i in range(0, len(q), _BLOCK):
            queries = q[i : i + _BLOCK]
            here, stop = start + i, start + i + len(queries)
            low = max(far, here - reach + 1)
            back = torch.arange(here, stop)[:, None] - torch.arange(low, stop)
            found = scaled_dot_product_attention(
                queries.transpose(0, 1)[None],
                keys[None, :, low - far : stop - far],
                values[None, :, low - far : stop - far],
                attn_mask=(back >= 0) & (back < reach),
                scale=1.0,
            )
            mixed[i : i + _BLOCK] = found[0].transpose(0, 1)
        return mixed

    def _finish(self, layer: _Layer, h: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """The rest of the block, given what attention mixed (tokens, heads, head)."""
        h = layer.out(mixed.reshape(len(h), -1), onto=h)
        x = layer_norm(h, (self._width,), *layer.ln_2, self._epsilon)
        return layer.proj(layer.fc(x, gelu=True), onto=h)

    def _logits(self, h: torch.Tensor) -> torch.Tensor:
        x = layer_norm(h, (self._width,), *self._ln_f, self._epsilon)
        logits = kernels.multiply(x, *self._head)
        kernels.add_products(*map(as_array, (x, self._mean, logits)))
        return logits


def _zeros(shape: tuple[int, ...], *, rounded: bool) -> torch.Tensor:
    """In bf16 or fp32. Unlike PyTorch's, NumPy's take memory only where something is written."""
    if rounded:
        return torch.from_numpy(np.zeros(shape, np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(np.zeros(shape, np.float32))


def _scaled(tensors: Mapping[str, torch.Tensor], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix and its rows' scales: ones, if it is not in int8."""
    weight = tensors[name]
    return weight, tensors.get(f"{name}.scale", torch.ones(len(weight)))
