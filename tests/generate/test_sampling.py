"""Sampling gives the probabilities of transformers' logits processors, value by value."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from chattune.generate import Decoding
from chattune.generate.sampling import candidates, next_token, penalised

OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def expected(logits: torch.Tensor, history: list[int], d: Decoding) -> torch.Tensor:
    """Return the distribution that transformers' generate() draws from."""
    processors = LogitsProcessorList()
    if d.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(d.repetition_penalty))
    if d.no_repeat_ngram:
        processors.append(NoRepeatNGramLogitsProcessor(d.no_repeat_ngram))
    processors.append(TemperatureLogitsWarper(d.temperature))
    if d.top_k:
        processors.append(TopKLogitsWarper(d.top_k))
    if d.top_p < 1:
        processors.append(TopPLogitsWarper(d.top_p))
    if d.min_p:
        processors.append(MinPLogitsWarper(d.min_p))
    scores = processors(torch.tensor([history]), logits[None].clone())[0]
    return scores.double().softmax(0)


def ours(logits: torch.Tensor, history: list[int], d: Decoding) -> torch.Tensor:
    ids, probabilities = candidates(penalised(logits.numpy(), d, history), d)
    distribution = torch.zeros(len(logits), dtype=torch.float64)
    distribution[torch.from_numpy(ids)] = torch.from_numpy(probabilities)
    return distribution


CASES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"top_k": 1},
    {"top_k": 30},
    {"top_k": 5000},
    {"top_p": 0.1},
    {"top_p": 0.95},
    {"top_p": 0.999, "temperature": 3.0},
    {"min_p": 0.05},
    {"min_p": 0.9},
    {"min_p": 0.0001, "temperature": 4.0},
    {"repetition_penalty": 1.4},
    {"no_repeat_ngram": 2},
    {"temperature": 0.9, "top_k": 30, "top_p": 0.95},
    {"temperature": 1.7, "top_k": 50, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.2,
     "no_repeat_ngram": 3},
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("size", [20, 3000, 50_000])
@pytest.mark.parametrize("rounded", [False, True], ids=["fp32", "bf16"])
def test_probabilities_equal_transformers(case: dict[str, Any], size: int, rounded: bool) -> None:
    """Logits that are rounded to bf16 have many ties, which transformers' top-k keeps."""
    generator = torch.Generator().manual_seed(size)
    logits = 3 * torch.randn(size, generator=generator) - 8
    logits = logits.bfloat16().float() if rounded else logits
    history = torch.randint(0, size, (40,), generator=generator).tolist()
    history[-3:] = history[:3]
    d = Decoding(**OFF | case)
    theirs = expected(logits, history, d)
    mine = ours(logits, history, d)
    if rounded and d.top_p < 1:  # either of two tied tokens may be the last one kept
        mine, theirs = mine.sort().values, theirs.sort().values
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-9)


@given(uniform=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_a_token_is_drawn_by_its_probability(uniform: float, seed: int) -> None:
    """The drawn token is the one where the cumulative probability passes the uniform number."""
    logits = torch.randn(50, generator=torch.Generator().manual_seed(seed))
    d = Decoding(top_k=10)
    ids, probabilities = candidates(logits.numpy(), d)
    token = next_token(logits.numpy(), d, [], uniform)
    place = ids.tolist().index(token)
    assert float(probabilities[:place].sum()) <= uniform + 1e-9
    assert uniform <= float(probabilities[: place + 1].sum()) + 1e-9


def test_greedy_takes_the_likeliest_after_the_penalties() -> None:
    logits = np.array([3.0, 2.9, -1.0], np.float32)
    greedy = Decoding(temperature=0)
    assert next_token(logits, greedy, [0], 0.99) == 0
    assert next_token(logits, greedy.but(repetition_penalty=1.2), [0], 0.0) == 1
    assert next_token(logits, greedy.but(no_repeat_ngram=1), [0, 1], 0.0) == 2
    assert logits.tolist() == pytest.approx([3.0, 2.9, -1.0])
