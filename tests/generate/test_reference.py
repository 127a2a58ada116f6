"""Tests of the reference engine against transformers' generate: same tokens, same probabilities."""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from chattune.base import DEFAULT_POSITIONS
from chattune.errors import ChatError
from chattune.generate import Decoding
from chattune.generate.reference import ReferenceEngine

PROMPT = [11, 502, 77, 31, 900, 42]
OTHER = [7, 7, 2040, 5]
NEVER = (-1,)
GREEDY = Decoding(temperature=0, max_new_tokens=40)


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    """The tiny model with larger weights; with its own it repeats one token for ever."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(8.0 if "wpe" in name or "mlp" in name else 4.0)
    return model.eval()


@pytest.fixture
def engine(model: Any) -> ReferenceEngine:
    return ReferenceEngine(model, NEVER)


def reply(engine: ReferenceEngine, prompt: list[int], decoding: Decoding) -> list[int]:
    return [token for _, token in engine.generate([prompt], decoding)]


def by_transformers(model: Any, prompt: list[int], **options: Any) -> Any:
    """Run transformers' generate without an end token."""
    from transformers import GenerationConfig

    ids = torch.tensor([prompt])
    config = GenerationConfig(
        eos_token_id=NEVER[0], pad_token_id=0, return_dict_in_generate=True, **options
    )
    return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)


@contextmanager
def forwards_counted(model: Any) -> Iterator[list[int]]:
    """Record the number of tokens that each forward pass receives."""
    lengths: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    try:
        yield lengths
    finally:
        hook.remove()


# --- greedy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [PROMPT, OTHER, [3], list(range(100, 170))])
def test_greedy_equals_transformers_beyond_the_local_window(
    engine: ReferenceEngine, model: Any, prompt: list[int]
) -> None:
    """The reply of 40 tokens exceeds the local layer's window of 16."""
    ours = reply(engine, prompt, GREEDY)
    theirs = by_transformers(model, prompt, do_sample=False, max_new_tokens=40)
    assert ours == theirs.sequences[0, len(prompt) :].tolist()
    assert len(ours) == 40


def test_greedy_replies_have_varied_tokens(engine: ReferenceEngine) -> None:
    assert len(set(reply(engine, PROMPT, GREEDY))) > 10


def test_greedy_ignores_seed_and_filters(engine: ReferenceEngine) -> None:
    plain = reply(engine, PROMPT, GREEDY)
    assert reply(engine, PROMPT, GREEDY.but(seed=1, top_k=5, top_p=0.5)) == plain
    assert reply(engine, PROMPT, GREEDY.but(seed=2)) == plain


def test_greedy_with_a_repetition_penalty_equals_transformers(
    engine: ReferenceEngine, model: Any
) -> None:
    ours = reply(engine, PROMPT, GREEDY.but(repetition_penalty=1.5))
    theirs = by_transformers(
        model, PROMPT, do_sample=False, max_new_tokens=40, repetition_penalty=1.5
    )
    assert ours == theirs.sequences[0, len(PROMPT) :].tolist()


def test_a_strong_repetition_penalty_repeats_nothing(engine: ReferenceEngine) -> None:
    ours = reply(engine, [5], GREEDY.but(repetition_penalty=5, max_new_tokens=30))
    assert len(set(ours)) == 30


# --- sampling ----------------------------------------------------------------------------------

FILTERS: list[dict[str, float]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.0},
    {"top_k": 1},
    {"top_k": 5},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"repetition_penalty": 1.3},
    {"temperature": 0.9, "top_k": 30, "top_p": 0.95},
    {"temperature": 1.4, "top_k": 12, "top_p": 0.8, "repetition_penalty": 1.7},
]


@pytest.mark.parametrize("filters", FILTERS, ids=lambda f: " ".join(f) or "none")
def test_tokens_have_the_probabilities_of_transformers(
    engine: ReferenceEngine,
    model: Any,
    filters: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded: list[torch.Tensor] = []
    multinomial = torch.multinomial

    def recording(probabilities: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        recorded.append(probabilities.clone())
        return multinomial(probabilities, *args, **more)

    kwargs = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0} | filters
    with monkeypatch.context() as patch:
        patch.setattr(torch, "multinomial", recording)
        ours = reply(engine, PROMPT, Decoding(max_new_tokens=6, seed=3, **kwargs))
    for i, mine in enumerate(recorded):
        theirs = by_transformers(
            model, PROMPT + ours[:i], do_sample=True, max_new_tokens=1, output_scores=True, **kwargs
        )
        torch.testing.assert_close(mine, theirs.scores[0].softmax(-1), rtol=1e-3, atol=1e-6)
        assert mine[0, ours[i]] > 0


def test_one_candidate_is_greedy(engine: ReferenceEngine) -> None:
    greedy = reply(engine, PROMPT, GREEDY)
    assert reply(engine, PROMPT, GREEDY.but(temperature=1, top_k=1)) == greedy
    assert reply(engine, PROMPT, GREEDY.but(temperature=1, top_p=1e-9)) == greedy


def test_a_tiny_temperature_is_almost_greedy(engine: ReferenceEngine) -> None:
    greedy = reply(engine, PROMPT, GREEDY)
    for temperature in (1e-3, 1e-6, 1e-40):
        assert reply(engine, PROMPT, GREEDY.but(temperature=temperature, top_k=0)) == greedy


def test_a_top_k_above_the_vocabulary_keeps_all(engine: ReferenceEngine) -> None:
    unfiltered = Decoding(max_new_tokens=5, seed=1, top_k=0)
    assert reply(engine, PROMPT, unfiltered.but(top_k=10**9)) == reply(engine, PROMPT, unfiltered)


SAMPLED = Decoding(max_new_tokens=20, temperature=1.5, top_k=0, top_p=1)


def test_a_seed_gives_the_same_reply(engine: ReferenceEngine) -> None:
    first = reply(engine, PROMPT, SAMPLED.but(seed=5))
    torch.rand(3)  # the global generator must have no effect
    assert reply(engine, PROMPT, SAMPLED.but(seed=5)) == first
    assert reply(engine, PROMPT, SAMPLED.but(seed=6)) != first


def test_a_seed_leaves_the_global_generator_alone(engine: ReferenceEngine) -> None:
    before = torch.get_rng_state()
    reply(engine, PROMPT, SAMPLED.but(seed=5))
    reply(engine, PROMPT, SAMPLED)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_replies_differ(engine: ReferenceEngine) -> None:
    assert reply(engine, PROMPT, SAMPLED) != reply(engine, PROMPT, SAMPLED)


def test_the_largest_seed_is_taken(engine: ReferenceEngine) -> None:
    seeded = SAMPLED.but(seed=2**63 - 1)
    assert reply(engine, PROMPT, seeded) == reply(engine, PROMPT, seeded)


# --- ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 40])
def test_a_reply_without_an_end_has_all_its_tokens(engine: ReferenceEngine, length: int) -> None:
    greedy = reply(engine, PROMPT, GREEDY)
    assert reply(engine, PROMPT, GREEDY.but(max_new_tokens=length)) == greedy[:length]


def test_a_reply_ends_with_and_includes_an_end_token(engine: ReferenceEngine, model: Any) -> None:
    greedy = reply(engine, PROMPT, GREEDY)
    end = greedy[12]
    first = greedy.index(end)
    assert reply(ReferenceEngine(model, {end}), PROMPT, GREEDY) == greedy[: first + 1]


def test_any_of_several_end_tokens_stops(engine: ReferenceEngine, model: Any) -> None:
    greedy = reply(engine, PROMPT, GREEDY)
    ends = {greedy[5], greedy[20]}
    first = min(map(greedy.index, ends))
    assert reply(ReferenceEngine(model, ends), PROMPT, GREEDY) == greedy[: first + 1]


def test_prompt_and_reply_may_fill_every_position(engine: ReferenceEngine) -> None:
    prompt = list(range(300, 400))
    assert len(reply(engine, prompt, GREEDY.but(max_new_tokens=28))) == 28


def test_a_reply_ends_at_the_last_position(engine: ReferenceEngine) -> None:
    prompt = list(range(300, 400))
    assert len(reply(engine, prompt, GREEDY)) == 28
    assert len(reply(engine, list(range(300, 428)), GREEDY)) == 1  # as with the fast engine


def test_several_replies_each_end_at_the_last_position(engine: ReferenceEngine) -> None:
    prompts = [list(range(100)), PROMPT, list(range(120))]
    tokens = list(engine.generate(prompts, GREEDY))
    assert [sum(i == index for i, _ in tokens) for index in range(3)] == [28, 40, 8]


@pytest.mark.parametrize("length", [0, 129])
def test_a_prompt_of_no_or_too_many_tokens_is_refused(engine: ReferenceEngine, length: int) -> None:
    with pytest.raises(ChatError, match=f"a prompt of {length} tokens; the model takes 1 to 128"):
        reply(engine, [7] * length, GREEDY)


def test_a_model_that_names_no_last_position_has_the_default(tiny_base: Path) -> None:
    """BLOOM's positions have no end; chattune counts on the same number everywhere."""
    from transformers import BloomConfig, BloomForCausalLM

    bloom = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=8, n_layer=1, n_head=1))
    prompt = [1] * (DEFAULT_POSITIONS - 3)
    assert len(reply(ReferenceEngine(bloom, NEVER), prompt, GREEDY)) == 3


def test_nan_is_refused_instead_of_drawn_from(tiny_base: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(torch.nan)
    for decoding in (GREEDY, SAMPLED):
        with pytest.raises(ChatError, match="computes NaN"):
            reply(ReferenceEngine(model, NEVER), PROMPT, decoding)


def test_an_end_token_in_the_prompt_stops_nothing(engine: ReferenceEngine, model: Any) -> None:
    greedy = reply(engine, PROMPT, GREEDY)
    end = next(token for token in PROMPT if token not in greedy)
    assert reply(ReferenceEngine(model, {end}), PROMPT, GREEDY) == greedy


# --- several prompts, and closing --------------------------------------------------------------


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED.but(seed=4)], ids=["greedy", "sampled"])
def test_several_prompts_get_the_replies_they_get_alone(
    engine: ReferenceEngine, decoding: Decoding
) -> None:
    prompts = [PROMPT, OTHER, [3], PROMPT]
    replies: list[list[int]] = [[] for _ in prompts]
    for index, token in engine.generate(prompts, decoding):
        replies[index].append(token)
    assert replies == [reply(engine, prompt, decoding) for prompt in prompts]


def test_no_prompts_get_no_replies(engine: ReferenceEngine) -> None:
    assert list(engine.generate([], GREEDY)) == []


def test_nothing_is_computed_before_or_beyond_what_is_read(
    engine: ReferenceEngine, model: Any
) -> None:
    with forwards_counted(model) as passes:
        tokens = engine.generate([PROMPT], GREEDY)
        assert passes == []
        for _ in range(3):
            next(tokens)
        assert len(passes) == 3
        tokens.close()  # type: ignore[attr-defined]
        assert list(tokens) == []
        assert len(passes) == 3


def test_each_token_is_computed_once(engine: ReferenceEngine, model: Any) -> None:
    with forwards_counted(model) as passes:
        reply(engine, PROMPT, GREEDY.but(max_new_tokens=5))
    assert passes == [len(PROMPT), 1, 1, 1, 1]


def test_the_engine_switches_dropout_off(tiny_base: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    model.train()
    ReferenceEngine(model, NEVER)
    assert not model.training


# --- the cache ---------------------------------------------------------------------------------


def test_the_cache_is_passed_without_a_deprecation(engine: ReferenceEngine) -> None:
    expected = reply(engine, PROMPT, GREEDY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reply(engine, PROMPT, GREEDY) == expected


class Renamed:
    """A model whose cache has another name, as in another release of transformers."""

    class Output(dict[str, Any]):
        @property
        def logits(self) -> Any:
            return self["logits"]

    def __init__(self, model: Any, name: str) -> None:
        self.device, self.config, self._model = model.device, model.config, model
        named = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        self._name, self._signature = name, inspect.Signature([named])

    def eval(self) -> "Renamed":
        return self

    @property
    def forward(self) -> Any:
        def forward(ids: torch.Tensor, **arguments: Any) -> Any:
            assert set(arguments) == {self._name, "use_cache", "logits_to_keep"}
            installed = next(n for n in ("cache", "past_key_values") if n in self._installed())
            arguments[installed] = arguments.pop(self._name)
            out = self._model(ids, **arguments)
            return self.Output(logits=out.logits, **{self._name: out[installed]})

        forward.__signature__ = self._signature  # type: ignore[attr-defined]
        return forward

    def _installed(self) -> Any:
        return inspect.signature(self._model.forward).parameters

    def __call__(self, ids: torch.Tensor, **arguments: Any) -> Any:
        return self.forward(ids, **arguments)


@pytest.mark.parametrize("name", ["cache", "past_key_values", "cache_params"])
def test_the_cache_has_the_name_that_the_model_uses(
    engine: ReferenceEngine, model: Any, name: str
) -> None:
    other: Any = ReferenceEngine(Renamed(model, name), NEVER)  # type: ignore[arg-type]
    assert reply(other, PROMPT, GREEDY) == reply(engine, PROMPT, GREEDY)


def test_a_state_space_model_answers_as_by_transformers(tiny_base: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)
    mamba = MambaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in mamba.parameters():
            weight.normal_()  # with its own it repeats one token for ever
    theirs = by_transformers(mamba, [5, 6, 7], do_sample=False, max_new_tokens=12)
    ours = reply(ReferenceEngine(mamba, NEVER), [5, 6, 7], GREEDY.but(max_new_tokens=12))
    assert ours == theirs.sequences[0, 3:].tolist()
