"""Likelihoods of replies, against a plain forward pass of each by itself."""

from pathlib import Path

import pytest
import torch

from chattune.conversation import Message
from chattune.device import find_device
from chattune.evaluate.likelihood import likelihoods, nats_of_tokens, own_prompt, own_reply
from chattune.evaluate.sample import Sample
from chattune.models import Loaded, load


@pytest.fixture
def loaded(tiny_base: Path) -> Loaded:
    return load(tiny_base, find_device())


def plain(loaded: Loaded, prompt: list[int], rest: list[int]) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *rest]])
    with torch.no_grad():
        logits = loaded.model(ids).logits[0, len(prompt) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="none")


def sample(question: str, reply: str = "", reference: str | None = None) -> Sample:
    return Sample(question, "", 1, 0, (Message("user", question),), reply, reference=reference)


def test_tokens_have_the_likelihood_of_a_forward_pass_alone(loaded: Loaded) -> None:
    pairs = [([1, 2, 3], [4, 5]), ([7], [8, 9, 10, 11, 12]), ([5] * 60, [6] * 20)]
    expected = [plain(loaded, *pair) for pair in pairs]
    for found, wanted in zip(nats_of_tokens(loaded, pairs), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-4)


def test_a_prompt_that_is_too_long_loses_its_beginning(loaded: Loaded) -> None:
    (found,) = nats_of_tokens(loaded, [([9] * 200, [1, 2, 3])])
    assert torch.allclose(found, plain(loaded, [9] * 125, [1, 2, 3]), atol=1e-4)


def test_a_reference_is_measured_with_its_end_token(loaded: Loaded) -> None:
    asked = sample("Hi", reference=" Hello you ")
    (found,) = likelihoods(loaded, [asked])
    ids = loaded.template.encode("Hello you")
    nats = plain(
        loaded, loaded.template.prompt(asked.messages), [*ids, min(loaded.template.end_ids)]
    )
    assert (found.tokens, found.bytes) == (len(ids) + 1, len("Hello you"))
    assert found.nats == pytest.approx(float(nats.sum()), rel=1e-4)
    assert found.text_nats == pytest.approx(float(nats[:-1].sum()), rel=1e-4)


QUESTIONS = [
    "red",
    "green",
    "blue",
    "black",
    "white",
    "pink",
    "grey",
    "brown",
    "gold",
    "lime",
    "tan",
]


def test_replies_of_a_model_that_ignores_its_prompt_do_not_depend_on_it(loaded: Loaded) -> None:
    samples = [sample(q, reply="Yes, I like that.") for q in QUESTIONS]
    for parameter in loaded.model.parameters():
        torch.nn.init.zeros_(parameter)  # the logits no longer depend on anything
    found = own_prompt(loaded, samples)
    assert list(found) == list(range(len(QUESTIONS)))
    assert all(c.nats == pytest.approx(0, abs=1e-5) for c in found.values())


def test_each_reply_is_compared_under_the_other_nine_prompts(loaded: Loaded) -> None:
    samples = [sample(q, reply=f"I like {q}.", reference=f"So {q}") for q in QUESTIONS[:10]]
    prompts = [loaded.template.prompt(s.messages) for s in samples]
    end = min(loaded.template.end_ids)
    replies = [loaded.template.encode(s.reply) for s in samples]
    references = [[*loaded.template.encode(f"So {q}"), end] for q in QUESTIONS[:10]]
    for found, pairs in (
        (own_prompt(loaded, samples), lambda i, j: (prompts[j], replies[i])),
        (own_reply(loaded, samples), lambda i, j: (prompts[i], references[j])),
    ):
        assert list(found) == list(range(10))
        for i, comparison in found.items():
            nats = [float(plain(loaded, *pairs(i, j)).mean()) for j in range(10)]
            own = nats.pop(i)
            assert comparison.nats == pytest.approx(sum(nats) / 9 - own, abs=1e-4)
            assert comparison.first == (own < min(nats))


def test_too_few_samples_are_not_compared(loaded: Loaded) -> None:
    assert own_prompt(loaded, [sample(q, reply=q) for q in QUESTIONS[:9]]) == {}
    assert own_reply(loaded, [sample(q) for q in QUESTIONS]) == {}
