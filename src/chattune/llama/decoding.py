"""The forward pass of Llama's family with a cache of keys and values, for decoding on a CPU.

The residual stream and attention are in fp32, the matrices in the precision that the weights were
rounded to, and the cache is in bf16 if they were rounded at all. Prompts are computed in chunks by
PyTorch's operations, with matrix products by whichever code is faster (`products.Linear`). Single
tokens are computed by compiled loops, in one call per layer (`block`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding

from chattune.kernels.cache import attend_prompt, zeros_on_demand
from chattune.kernels.jit import as_array, run_kernel
from chattune.kernels.products import Linear, OutputLayer, padded
from chattune.kernels.rms_norm import rms_norm
from chattune.kernels.rotary import rotate
from chattune.kernels.swiglu import swiglu
from chattune.llama.block import transformer_block
from chattune.llama.weights import LlamaWeights

_CHUNK = 512  # tokens of a prompt that are computed at once


@dataclass(frozen=True)
class _Layer:
    """One layer: its norms and linear layers, and its cache for every slot.

    `q_norm` and `k_norm` are empty where the model has none. `keys` and `values` are (slots, key
    heads, positions, head size). `arrays` holds norms, linear layers and cache as NumPy arrays over
    the same memory, in the order in which `transformer_block` takes them.
    """

    ln_1: torch.Tensor
    qkv: Linear
    q_norm: torch.Tensor
    k_norm: torch.Tensor
    out: Linear
    ln_2: torch.Tensor
    gate_up: Linear
    down: Linear
    is_rotary: bool
    keys: torch.Tensor
    values: torch.Tensor
    arrays: tuple[NDArray[Any], ...]


class LlamaDecoder:
    """A model of Llama's family with a cache that has one row per slot; see `families.Decoder`."""

    def __init__(self, weights: LlamaWeights, slots: int, *, bf16: bool) -> None:
        tensors = weights.tensors
        self.slots = slots
        self.positions = weights.positions
        self._weights, self._bf16 = weights, bf16
        self._embedding, self._ln_f = tensors["embedding"], tensors["ln_f"]
        self._head = OutputLayer.of(tensors)
        self._layers = [self._layer(i) for i in range(len(weights.is_rotary))]

    def _layer(self, i: int) -> _Layer:
        weights, tensors = self._weights, self._weights.tensors
        shape = self.slots, weights.key_heads, self.positions, weights.head_size
        rounded = self._embedding.dtype != torch.float32
        keys, values = (zeros_on_demand(shape, bf16=rounded) for _ in "kv")
        ln_1, ln_2 = tensors[f"{i}.ln_1"], tensors[f"{i}.ln_2"]
        q_norm, k_norm = (tensors.get(f"{i}.{x}_norm", torch.empty(0)) for x in "qk")
        qkv, out, gate_up, down = (
            Linear.of(tensors, f"{i}.{name}", bf16=self._bf16)
            for name in ("qkv", "out", "gate_up", "down")
        )
        in_order = [
            *(ln_1, *qkv.tensors, q_norm, k_norm, *out.tensors),
            *(ln_2, *gate_up.tensors, *down.tensors, keys, values),
        ]
        arrays = tuple(as_array(tensor) for tensor in in_order)
        is_rotary = weights.is_rotary[i]
        return _Layer(
            ln_1, qkv, q_norm, k_norm, out, ln_2, gate_up, down, is_rotary, keys, values, arrays
        )

    def rewind(self, slot: int, length: int) -> int:
        """Return `length`: a slot can continue after any of the tokens that it holds."""
        return length

    def prefill(self, slot: int, tokens: Sequence[int], start: int) -> torch.Tensor:
        """Compute tokens from position `start` on; return the last one's logits (vocabulary)."""
        for i in range(0, len(tokens), _CHUNK):
            h = self._prefill_chunk(slot, tokens[i : i + _CHUNK], start + i)
        return self._logits(h)[0]

    def decode(
        self, slots: Sequence[int], tokens: Sequence[int], lengths: Sequence[int]
    ) -> torch.Tensor:
        """Compute one more token in each slot; return their logits (slots, vocabulary), fp32."""
        h = padded(self._embed(tokens))
        places = np.array(lengths)
        visible = np.array(slots), np.zeros_like(places), places
        turns = {
            is_rotary: tuple(map(as_array, self._turns(lengths, is_rotary=is_rotary)))
            for is_rotary in set(self._weights.is_rotary)
        }
        rows, epsilon = as_array(h), self._weights.epsilon  # the memory of h, changed by each layer
        for layer in self._layers:
            turn = turns[layer.is_rotary]
            run_kernel(transformer_block, rows, *layer.arrays, *visible, *turn, epsilon)
        return self._logits(h[: len(slots)])

    def _prefill_chunk(self, slot: int, tokens: Sequence[int], start: int) -> torch.Tensor:
        """Return the last token's hidden state (1, width) after all layers.

        The last layer needs every token's key and value, but only the last token's query.
        """
        stop = start + len(tokens)
        h = self._embed(tokens)
        turns = {
            is_rotary: self._turns(range(start, stop), is_rotary=is_rotary)
            for is_rotary in set(self._weights.is_rotary)
        }
        for layer in self._layers:
            q, k, v = self._project(layer, h, *turns[layer.is_rotary])
            layer.keys[slot, :, start:stop] = k.transpose(0, 1)
            layer.values[slot, :, start:stop] = v.transpose(0, 1)
            if layer is self._layers[-1]:
                q, h = q[-1:], h[-1:]
            mixed = attend_prompt(q, layer.keys[slot], layer.values[slot], start=stop - len(q))
            h = layer.out(mixed.reshape(len(h), -1), add_to=h)
            gate, up = layer.gate_up(self._norm(h, layer.ln_2)).chunk(2, dim=1)
            h = layer.down(swiglu(gate, up), add_to=h)
        return h

    def _project(self, layer: _Layer, h: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        """Return query, key and value, each (tokens, its heads, head size) in fp32.

        Queries and keys are turned by their rotary angles; queries are scaled as well.
        """
        weights, size = self._weights, self._weights.head_size
        widths = [heads * size for heads in (weights.heads, weights.key_heads, weights.key_heads)]
        q, k, v = torch.split(layer.qkv(self._norm(h, layer.ln_1)), widths, dim=1)
        if len(layer.q_norm):
            q, k = (
                self._norm(x.reshape(-1, size), norm).view_as(x)
                for x, norm in ((q, layer.q_norm), (k, layer.k_norm))
            )
        q, k = rotate(q, cos, sin, 1 / math.sqrt(size)), rotate(k, cos, sin)
        return tuple(x.view(len(h), -1, size) for x in (q, k, v))

    def _turns(
        self, positions: Sequence[int], *, is_rotary: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosine and sine (positions, head size) of the rotary angles at positions.

        Both halves of a row have the same angles, as rotate() takes them. A layer without rotary
        positions turns nothing: its angles are zero.
        """
        frequencies, scale = self._weights.frequencies, self._weights.rotary_scale
        if not is_rotary:
            frequencies, scale = torch.zeros_like(frequencies), 1.0
        angles = torch.tensor(list(positions), dtype=torch.float32)[:, None] * frequencies
        angles = torch.cat((angles, angles), dim=1)
        return angles.cos() * scale, angles.sin() * scale

    def _embed(self, tokens: Sequence[int]) -> torch.Tensor:
        return embedding(torch.tensor(tokens), self._embedding).float()

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, weight, self._weights.epsilon)

    def _logits(self, h: torch.Tensor) -> torch.Tensor:
        """Return the logits (tokens, vocabulary) of hidden states (tokens, width)."""
        return self._head(self._norm(h, self._ln_f))
