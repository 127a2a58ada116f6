"""The fast engine writes the same tokens as transformers, alone and together, at every length."""

import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from chattune.base import find_base
from chattune.errors import ChatError
from chattune.generate import Decoding
from chattune.generate.fast import FastEngine
from chattune.gpt_neo import decoding
from chattune.gpt_neo.decoding import GptNeoDecoder
from chattune.gpt_neo.weights import read_gpt_neo
from chattune.weights import Precision

NEVER = (-1,)
GREEDY = Decoding(temperature=0, max_new_tokens=200)


@pytest.fixture(scope="module")
def model(neo_base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(neo_base, dtype=torch.float32).eval()


def engine(
    base: Path, precision: Precision = "fp32", *, slots: int = 8, end_ids: Collection[int] = NEVER
) -> FastEngine:
    weights = read_gpt_neo(find_base(str(base)), None, precision)
    return FastEngine(GptNeoDecoder(weights, slots, bf16=True), end_ids)


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 211, (length,), generator=generator).tolist()


def written(fast: FastEngine, ids: list[int], decoding: Decoding) -> list[int]:
    return [token for _, token in fast.generate([ids], decoding)]


def by_transformers(model: Any, ids: list[int], count: int) -> list[int]:
    output = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False,
        max_new_tokens=count, eos_token_id=-1, pad_token_id=0,
    )  # fmt: skip
    tokens: list[int] = output[0, len(ids) :].tolist()
    return tokens


# --- exactness ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7, 150, 255, 256, 257, 600])
def test_greedy_equals_transformers_across_the_window(
    neo_base: Path, model: Any, length: int
) -> None:
    ids = prompt(length)
    ours = written(engine(neo_base), ids, GREEDY)
    assert ours == by_transformers(model, ids, 200)
    assert len(set(ours)) > 10


def test_local_caches_are_moved_many_times(neo_base: Path, model: Any) -> None:
    """In 950 tokens the window is moved to the front of its cache again and again."""
    ours = written(engine(neo_base), prompt(20), GREEDY.but(max_new_tokens=950))
    assert ours == by_transformers(model, prompt(20), 950)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_alone_and_among_eight_give_the_same_tokens(neo_base: Path, precision: Precision) -> None:
    prompts = [prompt(n, seed=n) for n in (3, 40, 300, 9, 256, 120, 77, 500)]
    short = GREEDY.but(max_new_tokens=60)
    alone = [written(engine(neo_base, precision), p, short) for p in prompts]
    together: list[list[int]] = [[] for _ in prompts]
    for index, token in engine(neo_base, precision).generate(prompts, short):
        together[index].append(token)
    assert together == alone


def test_more_prompts_than_slots_with_settings_of_their_own(neo_base: Path) -> None:
    """Prompts join as others leave, so that the slots in use are not neighbours."""
    prompts = [prompt(5 + 3 * n, seed=n) for n in range(7)]
    decodings = [
        Decoding(seed=n, max_new_tokens=4 + 11 * (n % 3), temperature=float(n % 2))
        for n in range(7)
    ]
    alone = [written(engine(neo_base), p, d) for p, d in zip(prompts, decodings, strict=True)]
    together: list[list[int]] = [[] for _ in prompts]
    for index, token in engine(neo_base, slots=3).generate(prompts, decodings):
        together[index].append(token)
    assert together == alone


# --- slots and prefixes ------------------------------------------------------------------------


def test_a_second_turn_computes_only_what_is_new(
    neo_base: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = engine(neo_base)
    prefilled: list[int] = []
    prefill = fast._decoder.prefill

    def watched(slot: int, tokens: list[int], start: int) -> torch.Tensor:
        prefilled.append(len(tokens))
        return prefill(slot, tokens, start)

    monkeypatch.setattr(fast._decoder, "prefill", watched)
    first = prompt(280)
    reply = written(fast, first, GREEDY.but(max_new_tokens=30))
    second = first + reply + prompt(12, seed=3)
    other = written(fast, prompt(50, seed=9), GREEDY.but(max_new_tokens=5))  # takes another slot
    ours = written(fast, second, GREEDY.but(max_new_tokens=30))
    assert prefilled == [280, 50, 13]  # the reply's last token was never computed
    assert ours == by_transformers(model, second, 30)
    assert other == by_transformers(model, prompt(50, seed=9), 5)


@pytest.mark.parametrize("back", [3, 200, 500])
def test_a_prompt_that_differs_earlier_is_right_too(neo_base: Path, model: Any, back: int) -> None:
    """After a retry or an edited message the cache is cut back, or computed anew."""
    fast = engine(neo_base, slots=1)
    first = prompt(560)
    written(fast, first, GREEDY.but(max_new_tokens=300))
    second = first[: len(first) - back] + prompt(20, seed=5)
    assert written(fast, second, GREEDY.but(max_new_tokens=40)) == by_transformers(
        model, second, 40
    )


def test_the_same_seed_gives_the_same_reply_in_int8(neo_base: Path) -> None:
    fast = engine(neo_base, "int8")
    sampled = Decoding(seed=4, max_new_tokens=40)
    first = written(fast, prompt(30), sampled)
    assert written(fast, prompt(30), sampled) == first
    assert written(fast, prompt(30), sampled.but(seed=5)) != first


def test_closing_the_iterator_frees_the_slot(neo_base: Path) -> None:
    fast = engine(neo_base, slots=1)
    tokens = fast.generate([prompt(5)], GREEDY)
    next(tokens)
    tokens.close()
    assert len(written(fast, prompt(6), GREEDY.but(max_new_tokens=3))) == 3


def test_two_chats_with_the_same_beginning_keep_a_slot_each(
    neo_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All prompts begin with the template's header, which is no reason to share a slot."""
    fast = engine(neo_base, slots=2)
    prefilled: list[int] = []
    prefill = fast._decoder.prefill

    def watched(slot: int, tokens: list[int], start: int) -> torch.Tensor:
        prefilled.append(len(tokens))
        return prefill(slot, tokens, start)

    monkeypatch.setattr(fast._decoder, "prefill", watched)
    settings = GREEDY.but(max_new_tokens=4)
    chats = [prompt(7) + prompt(40, seed=s) for s in (1, 2)]
    for _ in range(2):
        for i, ids in enumerate(chats):
            chats[i] = ids + written(fast, ids, settings) + [9, 9]
    assert prefilled == [47, 47, 3, 3]


def test_an_interrupted_step_leaves_no_trace(
    neo_base: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes in the middle of a prefill, and of a step that serves another request too."""
    fast = engine(neo_base)
    other = fast.generate([prompt(20, seed=8)], GREEDY.but(max_new_tokens=30))
    begun = [next(other)[1] for _ in range(5)]
    for broken in ("prefill", "decode"):
        with monkeypatch.context() as patch:
            if broken == "prefill":
                patch.setattr(
                    fast._decoder,
                    "_after_attention",
                    interrupted(fast._decoder._after_attention, after=2),
                )
            else:
                patch.setattr(decoding, "run_kernel", interrupted(decoding.run_kernel, after=2))
            with pytest.raises(KeyboardInterrupt):
                written(fast, prompt(300), GREEDY)
    settings = GREEDY.but(max_new_tokens=20)
    assert written(fast, prompt(300), settings) == by_transformers(model, prompt(300), 20)
    rest = [token for _, token in other]
    assert begun + rest == by_transformers(model, prompt(20, seed=8), 30)


def interrupted(function: Any, after: int) -> Any:
    calls = iter(range(after))

    def call(*arguments: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return function(*arguments)

    return call


@pytest.mark.parametrize("length", [0, 1025])
def test_a_prompt_of_no_or_too_many_tokens_is_refused(neo_base: Path, length: int) -> None:
    with pytest.raises(ChatError, match=f"a prompt of {length} tokens; the model takes 1 to 1024"):
        written(engine(neo_base), [1] * length, GREEDY)


def test_several_threads_are_answered_together(neo_base: Path) -> None:
    prompts = [prompt(20 + n, seed=n) for n in range(6)]
    settings = GREEDY.but(max_new_tokens=40)
    alone = [written(engine(neo_base), p, settings) for p in prompts]
    fast = engine(neo_base, slots=4)
    got: dict[int, list[int]] = {}
    threads = [
        threading.Thread(target=lambda i=i: got.update({i: written(fast, prompts[i], settings)}))
        for i in range(len(prompts))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [got[i] for i in range(len(prompts))] == alone


def test_a_reply_ends_with_the_end_token_or_the_last_position(neo_base: Path) -> None:
    first = written(engine(neo_base), prompt(9), GREEDY)
    ends = engine(neo_base, end_ids={first[5]})
    assert written(ends, prompt(9), GREEDY) == first[: first.index(first[5]) + 1]
    assert len(written(engine(neo_base), prompt(1020), GREEDY)) == 4
