"""NEFTune: noise on the embeddings in training (Jain et al. 2023, arxiv.org/abs/2310.05914).

transformers' own hook takes the length from the shape of the embeddings, which in a pack is that of
all conversations together: the noise of each would be too small.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def noisy_embeddings(embeddings: nn.Module, alpha: float, lengths: Sequence[int]) -> Iterator[None]:
    """Add noise to what `embeddings` returns while the block runs; with alpha 0 it adds none.

    `embeddings` is a model's input embedding, which is given a pack of conversations of `lengths`
    tokens and returns (1, tokens, width). The noise is uniform within alpha / sqrt(length * width)
    of 0, where `length` is that of the token's own conversation.
    """
    if not alpha:
        yield
        return

    def add_noise(_: nn.Module, __: Any, embedded: torch.Tensor) -> torch.Tensor:
        return embedded + _noise(embedded, alpha, lengths)

    handle = embeddings.register_forward_hook(add_noise)
    try:
        yield
    finally:
        handle.remove()


def _noise(embedded: torch.Tensor, alpha: float, lengths: Sequence[int]) -> torch.Tensor:
    """Return noise of the shape and dtype of `embedded` (1, tokens, width).

    It follows from PyTorch's CPU generator, so that its state alone has to be restored to repeat a
    step, on whatever device it is.
    """
    seed, device = int(torch.randint(2**62, ())), embedded.device
    generator = torch.Generator(device).manual_seed(seed)
    # Drawn in fp32, because bf16 has too few numbers for a uniform distribution.
    uniform = torch.empty(embedded.shape, device=device).uniform_(-1, 1, generator=generator)
    bounds = [alpha / math.sqrt(length * embedded.shape[-1]) for length in lengths]
    repeats = torch.tensor(lengths, device=device)
    bound = torch.tensor(bounds, device=device).repeat_interleave(repeats)
    return (uniform * bound[None, :, None]).to(embedded.dtype)
