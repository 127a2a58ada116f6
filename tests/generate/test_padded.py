"""Tests of the reference engine with many prompts: padding, rows that leave, little memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers

from chattune.errors import ChatError
from chattune.generate import Decoding
from chattune.generate.padded import padding_problem
from chattune.generate.reference import ReferenceEngine

VOCABULARY = 97
ENDS = (5, 6, 7)
GREEDY = Decoding(temperature=0, max_new_tokens=20)
SAMPLED = Decoding(max_new_tokens=20, temperature=1.5, top_k=0, top_p=1)

_LLAMA = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
_MAMBA = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
# What is special, the name of transformers' config class, and the config.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "learned positions, local attention": ("GPTNeo", {
        "hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 1]], "window_size": 16}),
    "learned positions": ("GPT2", _GPT2),
    "learned positions from the mask": ("OPT", {
        "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 256, "word_embed_proj_dim": 32}),
    "rotary": ("Llama", _LLAMA),
    "rotary, a cache of a window": ("Mistral", _LLAMA | {"sliding_window": 12}),
    "linear biases": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 2}),
    "convolutions between attention": ("Lfm2", _LLAMA | {
        "block_ff_dim": 64, "layer_types": ["conv", "full_attention"]}),
}  # fmt: skip


def tiny(name: str, config: dict[str, Any]) -> Any:
    """Return a model with random weights whose greedy text does not repeat itself at once."""
    torch.manual_seed(1)
    made = getattr(transformers, f"{name}Config")(vocab_size=VOCABULARY, **config)
    model = transformers.AutoModelForCausalLM.from_config(made).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(5.0)
    return model


def random_prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


MANY = random_prompts(*(3, 40, 9, 25, 9, 17, 5, 30, 1, 13) * 2)


def replies(
    engine: ReferenceEngine,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding | Sequence[Decoding],
) -> list[list[int]]:
    tokens: list[list[int]] = [[] for _ in prompts]
    for index, token in engine.generate(prompts, decoding):
        tokens[index].append(token)
    return tokens


@contextmanager
def shapes_of_passes(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Record the rows and columns of each forward pass."""
    shapes: list[tuple[int, int]] = []
    hook = model.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    try:
        yield shapes
    finally:
        hook.remove()


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return tiny("GPT2", _GPT2)


# --- the same replies as alone -----------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_replies_are_those_of_each_prompt_alone(shape: str) -> None:
    """More prompts than fit into a batch, so that some take the places of those that ended."""
    model = tiny(*SHAPES[shape])
    assert padding_problem(model) is None
    endless = ReferenceEngine(model, ())
    alone = [replies(endless, [prompt], GREEDY)[0] for prompt in MANY]
    assert len({token for reply in alone for token in reply}) > 10
    ends = {reply[n] for reply, n in zip(alone, (2, 9, 15, 4, 12), strict=False)}
    with shapes_of_passes(model) as passes:
        assert replies(ReferenceEngine(model, ends), MANY, GREEDY) == [
            reply[: next((n for n, t in enumerate(reply, 1) if t in ends), len(reply))]
            for reply in alone
        ]
    assert max(rows for rows, _ in passes) == 16


def test_an_adapted_model_answers_many_as_each_alone(gpt2: Any) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    options = LoraConfig(target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    engine = ReferenceEngine(get_peft_model(tiny("GPT2", _GPT2), options), ENDS)
    tuned = replies(engine, MANY, GREEDY)
    assert tuned == [replies(engine, [prompt], GREEDY)[0] for prompt in MANY]
    assert tuned != replies(ReferenceEngine(gpt2, ENDS), MANY, GREEDY)


def test_each_prompt_has_its_own_settings(gpt2: Any) -> None:
    engine = ReferenceEngine(gpt2, ENDS)
    settings = [
        GREEDY,
        GREEDY.but(repetition_penalty=1.5),
        GREEDY.but(no_repeat_ngram=2, max_new_tokens=33),
        SAMPLED.but(seed=1),
        SAMPLED.but(seed=2, top_k=5, max_new_tokens=1),
        SAMPLED.but(seed=1, temperature=0.7, top_p=0.8, repetition_penalty=1.2),
    ]
    prompts = MANY[: len(settings)]
    alone = [replies(engine, [p], [d])[0] for p, d in zip(prompts, settings, strict=True)]
    assert replies(engine, prompts, settings) == alone


def test_a_seeded_reply_is_the_same_among_other_prompts(gpt2: Any) -> None:
    engine = ReferenceEngine(gpt2, ENDS)
    prompt, *others = MANY
    seeded = SAMPLED.but(seed=3)
    alone = replies(engine, [prompt], seeded)[0]
    for neighbours in (others[:3], others[4:]):
        unseeded = [SAMPLED] * len(neighbours)
        assert replies(engine, [*neighbours, prompt], [*unseeded, seeded])[-1] == alone


# --- what is computed --------------------------------------------------------------------------


def test_a_pass_computes_one_token_of_every_prompt(gpt2: Any) -> None:
    engine = ReferenceEngine(gpt2, ())
    replies(engine, MANY[:2], GREEDY)  # the probe
    with shapes_of_passes(gpt2) as passes:
        replies(engine, MANY[:8], GREEDY)
    assert passes == [(8, 40), *[(8, 1)] * 19]


def test_what_has_ended_is_computed_no_further(gpt2: Any) -> None:
    engine = ReferenceEngine(gpt2, ())
    replies(engine, MANY[:2], GREEDY)
    settings = [GREEDY.but(max_new_tokens=n) for n in (1, 4, 2)]
    with shapes_of_passes(gpt2) as passes:
        replies(engine, random_prompts(5, 9, 7), settings)
    assert passes == [(3, 9), (2, 1), (1, 1), (1, 1)]


def test_waiting_prompts_take_the_places_of_half_a_batch(gpt2: Any) -> None:
    engine = ReferenceEngine(gpt2, ())
    replies(engine, MANY[:2], GREEDY)
    settings = [GREEDY.but(max_new_tokens=2 if n < 8 else 3) for n in range(20)]
    with shapes_of_passes(gpt2) as passes:
        replies(engine, [[1]] * 20, settings)
    assert [rows for rows, _ in passes] == [16, 16, 12, 4, 4]


def test_the_places_of_a_batch_end_where_the_models_positions_do() -> None:
    """The padding of the short prompts counts there until the long one has ended."""
    model = tiny(*SHAPES["learned positions, local attention"])
    engine = ReferenceEngine(model, ())
    tokens = replies(engine, random_prompts(60, 2, 30), GREEDY.but(max_new_tokens=100))
    assert [len(reply) for reply in tokens] == [4, 62, 34]


def test_closing_ends_all_replies(gpt2: Any) -> None:
    engine = ReferenceEngine(gpt2, ())
    replies(engine, MANY[:2], GREEDY)
    with shapes_of_passes(gpt2) as passes:
        tokens = engine.generate(MANY[:4], GREEDY)
        assert passes == []
        read = [next(tokens) for _ in range(6)]
        assert [index for index, _ in read] == [1, 3, 2, 0, 1, 3]  # the longest prompt comes first
        tokens.close()  # type: ignore[attr-defined]
        assert list(tokens) == []
    assert len(passes) == 2


# --- models that take no padding ---------------------------------------------------------------


def test_a_recurrent_model_answers_one_after_the_other(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("Mamba", _MAMBA)
    engine = ReferenceEngine(model, ENDS)
    alone = [replies(engine, [prompt], GREEDY)[0] for prompt in MANY[:6]]
    assert caplog.messages == []  # a single prompt needs no probe
    assert [replies(engine, MANY[:6], GREEDY) for _ in range(2)] == [alone, alone]
    assert [m for m in caplog.messages if "one after the other" in m] == [
        "prompts are answered one after the other: this model computes a padded prompt differently "
        "from the same prompt alone"
    ]


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
def test_a_model_that_ignores_an_argument_is_found(
    ignored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("GPT2", _GPT2)
    forward = model.transformer.forward

    def ignoring(*args: Any, **arguments: Any) -> Any:
        return forward(*args, **arguments | {ignored: None})

    monkeypatch.setattr(model.transformer, "forward", ignoring)
    assert padding_problem(model) == (
        "computes a padded prompt differently from the same prompt alone"
    )
    engine = ReferenceEngine(model, ENDS)
    alone = [replies(engine, [prompt], GREEDY)[0] for prompt in MANY[:4]]
    assert replies(engine, MANY[:4], GREEDY) == alone


def test_an_error_of_the_probe_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("GPT2", _GPT2)
    forward = model.transformer.forward

    def refusing(*args: Any, attention_mask: Any = None, **arguments: Any) -> Any:
        if attention_mask is not None:
            raise ValueError("no masks, please\nat all")
        return forward(*args, **arguments)

    monkeypatch.setattr(model.transformer, "forward", refusing)
    assert padding_problem(model) == "cannot compute padded prompts (no masks, please)"


# --- little memory -----------------------------------------------------------------------------


def with_memory_for(rows: int, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a forward pass of more rows than that run out of memory."""
    forward = model.transformer.forward

    def limited(ids: torch.Tensor, **arguments: Any) -> Any:
        if len(ids) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(ids, **arguments)

    monkeypatch.setattr(model.transformer, "forward", limited)


def test_a_batch_that_needs_too_much_memory_is_halved(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny("GPT2", _GPT2)
    engine = ReferenceEngine(model, ENDS)
    greedy, seeded = replies(engine, MANY, GREEDY), replies(engine, MANY, SAMPLED.but(seed=1))
    with_memory_for(5, model, monkeypatch)
    assert replies(engine, MANY, GREEDY) == greedy
    assert caplog.messages == [
        "out of memory: going on with 8 prompts together",
        "out of memory: going on with 4 prompts together",
    ]
    assert replies(engine, MANY, SAMPLED.but(seed=1)) == seeded
    assert len(caplog.messages) == 2  # the engine remembers what fitted


def test_memory_that_runs_out_later_loses_and_repeats_no_token(
    gpt2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ReferenceEngine(gpt2, ENDS)
    expected = replies(engine, MANY, SAMPLED.but(seed=1))
    forward, passes = gpt2.transformer.forward, 0

    def failing_once(ids: torch.Tensor, **arguments: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(ids, **arguments)

    monkeypatch.setattr(gpt2.transformer, "forward", failing_once)
    assert replies(engine, MANY, SAMPLED.but(seed=1)) == expected


def test_a_prompt_that_needs_too_much_memory_alone_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("GPT2", _GPT2)
    with_memory_for(0, model, monkeypatch)
    with pytest.raises(ChatError, match="too little memory for this prompt; shorten it"):
        replies(ReferenceEngine(model, ENDS), MANY[:1], GREEDY)
