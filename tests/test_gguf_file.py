"""Tests of GGUF files as bases: what they are turned into, and which are refused."""

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from chattune.base import Base, find_base, load_template
from chattune.device import Device
from chattune.errors import BaseError
from chattune.generate import Decoding
from chattune.gguf_file.header import read_header
from chattune.models import load_base
from made_gguf import (
    FEED,
    HEAD,
    HEADS,
    KEY_VALUE_HEADS,
    LAYERS,
    WHOLE,
    WIDTH,
    vocabulary,
    write_gguf,
)

CPU = Device("cpu", "test", bf16=False, threads=1, memory=1 << 30)
ROTARY_BASE = 500000.0  # of Llama 3
SMALLEST_BLOCK = gguf.GGMLQuantizationType.Q4_1


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the path of a GGUF file that a test writes."""
    return tmp_path / "tiny.gguf"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache."""
    monkeypatch.setenv("CHATTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def complaint(path: Path) -> str:
    """Return the error for a file, which must come soon and be one clean line."""
    begin = time.monotonic()
    with pytest.raises(BaseError) as caught:
        find_base(str(path))
    message = str(caught.value)
    assert time.monotonic() - begin < 5
    assert message.startswith(f"base {path}: ")
    assert message.isprintable()
    return message


# --- what it is turned into --------------------------------------------------------------------


def in_transformers_order(name: str, weight: np.ndarray, architecture: str) -> np.ndarray:
    """Undo the order of rows that llama.cpp gives to the queries and keys of Llama."""
    heads = {"attn_q.weight": HEADS, "attn_k.weight": KEY_VALUE_HEADS}.get(name.split(".", 2)[-1])
    if architecture != "llama" or heads is None:
        return weight
    rows = [
        head * HEAD + 2 * i + half
        for head in range(heads)
        for half in range(2)
        for i in range(HEAD // 2)
    ]
    return weight[rows]


NAMES = {
    **{"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"},
    **{f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"},
    **{"attn_output": "self_attn.o_proj", "attn_norm": "input_layernorm"},
    **{"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"},
    **{f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
    "ffn_norm": "post_attention_layernorm",
}


def transformers_name(name: str) -> str:
    *block, part, kind = name.split(".")
    layer = f"model.layers.{block[1]}." if block else ""
    return f"{layer}{NAMES[part]}.{kind}"


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_every_weight_is_where_transformers_has_it(architecture: str, file: Path) -> None:
    tensors = write_gguf(file, architecture)
    base = find_base(str(file))
    model = load_base(base, CPU)
    assert base.config["model_type"] == architecture
    assert model.config.tie_word_embeddings
    state = dict(model.named_parameters())
    assert len(state) == len(tensors)
    for name, weight in tensors.items():
        expected = torch.from_numpy(in_transformers_order(name, weight, architecture))
        assert torch.equal(state[transformers_name(name)], expected), name


def test_an_output_layer_of_its_own_stays_one(file: Path) -> None:
    output = np.full((len(vocabulary()), WIDTH), 0.5, np.float32)
    write_gguf(file, tensors={"output.weight": output})
    model = load_base(find_base(str(file)), CPU)
    assert torch.equal(model.lm_head.weight, torch.from_numpy(output))
    assert not model.config.tie_word_embeddings


def test_the_configuration_is_that_of_the_file_and_of_no_version(file: Path) -> None:
    write_gguf(file)
    config = find_base(str(file)).config
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": WIDTH,
        "intermediate_size": FEED,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "head_dim": HEAD,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "max_position_embeddings": 128,
        "vocab_size": len(vocabulary()),
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "float32",
        "model_type": "llama",
    }
    assert config == expected


def test_quantised_weights_are_kept_in_bf16(file: Path) -> None:
    tensors = write_gguf(file, kind=SMALLEST_BLOCK)
    base = find_base(str(file))
    kept = AutoModelForCausalLM.from_pretrained(base.folder, dtype="auto").state_dict()
    name = "blk.1.ffn_down.weight"
    stored = gguf.dequantize(gguf.quantize(tensors[name], SMALLEST_BLOCK), SMALLEST_BLOCK)
    weight = kept["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(weight, torch.from_numpy(stored).bfloat16())
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_rotary_scaling_of_llama_3_is_found_in_its_factors(factor: float, file: Path) -> None:
    factors = llama_3_factors(factor)
    settings = {"llama.rope.freq_base": ROTARY_BASE}
    write_gguf(file, metadata=settings, tensors={"rope_freqs.weight": factors})
    model = load_base(find_base(str(file)), CPU)
    expected = ROTARY_BASE ** (-np.arange(0, HEAD, 2) / HEAD) / factors
    assert np.allclose(model.model.rotary_emb.inv_freq.numpy(), expected)


def llama_3_factors(factor: float) -> np.ndarray:
    """Return the divisors of the rotary frequencies, as llama.cpp's converter computes them."""
    factors = []
    for frequency in ROTARY_BASE ** (-np.arange(0, HEAD, 2) / HEAD):
        turns = 8192 * frequency / (2 * np.pi)
        smooth = (turns - 1) / 3
        between = 1 / ((1 - smooth) / factor + smooth)
        factors.append(1 if turns > 4 else factor if turns < 1 else between)
    return np.array(factors, np.float32)


def test_other_factors_of_the_rotary_embedding_are_refused(file: Path) -> None:
    write_gguf(file, tensors={"rope_freqs.weight": np.array([1, 2, 2, 8], np.float32)})
    assert "rope_freqs.weight is no rotary scaling of Llama 3" in complaint(file)


def test_every_process_makes_the_same_folder(file: Path, cache: Path, tmp_path: Path) -> None:
    write_gguf(file, kind=SMALLEST_BLOCK)
    code = "import sys; from chattune.base import find_base; print(find_base(sys.argv[1]).folder)"
    done = subprocess.run(
        [sys.executable, "-c", code, file],
        env=os.environ | {"CHATTUNE_CACHE": str(tmp_path / "other"), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    ours, theirs = find_base(str(file)).folder, Path(done.stdout.strip())
    names = sorted(f.name for f in ours.iterdir())
    assert names == sorted(f.name for f in theirs.iterdir())
    assert [n for n in names if (ours / n).read_bytes() != (theirs / n).read_bytes()] == []


def test_it_is_made_once_and_again_when_damaged(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "chattune")
    write_gguf(file)
    before = find_base(str(file))
    fingerprint, made = before.fingerprint(), len(caplog.records)
    assert find_base(str(file)).folder == before.folder
    assert len(caplog.records) == made
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        (before.folder / name).write_bytes(b"damaged")
        assert find_base(str(file)).fingerprint() == fingerprint
    assert len(caplog.records) > made
    assert before.origin.startswith("GGUF file, SHA-256 ")


def test_a_recipe_may_name_it_in_any_case(file: Path) -> None:
    write_gguf(file)
    capital = file.rename(file.with_name("TINY.GGUF"))
    assert find_base(str(capital)).positions == 128


def test_without_a_chat_template_chattunes_own_is_used(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "chattune")
    write_gguf(file, template=None)
    template = load_template(find_base(str(file)))
    assert "### Human" in template.tokenizer.chat_template
    assert "has no chat template; chattune's own is used" in caplog.text


def test_the_file_says_nothing_of_decoding(file: Path) -> None:
    write_gguf(file)
    assert Decoding.of(find_base(str(file)).folder) == Decoding()


# --- its tokenizer -----------------------------------------------------------------------------


def pieces(base: Base, text: str) -> list[str]:
    """Return a text's tokens as chattune encodes them."""
    template = load_template(base)
    ids = template.tokenizer(text, add_special_tokens=False).input_ids
    return list(template.tokenizer.convert_ids_to_tokens(ids))


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        # digits: one by one, all together, or three at a time
        ("smollm", "1234", ["1", "2", "3", "4"]),
        ("starcoder", "1234", ["1", "2", "3", "4"]),
        ("gpt-2", "1234", ["123", "4"]),
        ("llama-bpe", "1212 123", ["12", "1", "2", "Ġ", "123"]),
        ("gpt-2", "1212 123", ["12", "12", "Ġ1", "2", "3"]),
        ("qwen2", "1234", ["1", "2", "3", "4"]),
        ("tekken", "123", ["1", "2", "3"]),
        # a space before digits is a word of its own for all but GPT-2
        ("smollm", " 12", ["Ġ", "1", "2"]),
        ("gpt-2", " 12", ["Ġ1", "2"]),
        ("qwen2", " 12", ["Ġ", "1", "2"]),
        # several spaces: the last one belongs to the word after them
        ("smollm", "x   ca", ["x", "ĠĠ", "Ġca"]),
        ("qwen2", "x   ca", ["x", "ĠĠ", "Ġca"]),
        ("smollm", "x    ", ["x", "ĠĠ", "ĠĠ"]),
        # code: GPT-2 keeps a line break and the tab after it together
        ("smollm", "{\n\tx", ["{", "Ċ", "ĉ", "x"]),
        # accents: only Qwen composes them
        ("smollm", "fé", ["fÃ©"]),
        ("smollm", "fe\u0301", ["f", "e", "Ì", "ģ"]),
        ("qwen2", "fe\u0301", ["fÃ©"]),
        ("llama-bpe", "fe\u0301", ["f", "e", "Ì", "ģ"]),
        # emoji are four bytes
        ("smollm", "🙂", ["ð", "Ł", "Ļ", "Ĥ"]),
        # a word of the vocabulary that no merges lead to
        ("llama-bpe", WHOLE, [WHOLE]),
        ("tekken", WHOLE, [WHOLE]),
        ("gpt-2", WHOLE, ["Z", "z", "z"]),
        ("qwen2", WHOLE, ["Z", "z", "z"]),
        # contractions in capitals
        ("gpt-2", "x'LL", ["x", "'", "L", "L"]),
    ],
)
def test_text_is_cut_as_the_named_rules_say(
    pre: str, text: str, expected: list[str], file: Path
) -> None:
    write_gguf(file, pre=pre)
    assert pieces(find_base(str(file)), text) == expected


def test_special_tokens_are_those_of_the_file(file: Path) -> None:
    kinds = [3, 3, 3] + [1] * (len(vocabulary()) - 4) + [4]
    write_gguf(file, metadata={"tokenizer.ggml.token_type": kinds})
    template = load_template(find_base(str(file)))
    tokenizer = template.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.pad_token is None
    assert tokenizer("a<|im_end|>").input_ids[-1] == 2
    assert template.encode("<|im_end|>") != [2]
    assert tokenizer.convert_ids_to_tokens(tokenizer("xZzz").input_ids) == ["x", "Zzz"]
    assert tokenizer.decode([2, 300], skip_special_tokens=True) == tokenizer.decode([300])


@pytest.mark.parametrize(
    ("pre", "asked", "begins"),
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("smollm", None, False)],
)
def test_a_text_begins_with_the_first_token_where_the_file_says_so(
    pre: str, asked: bool | None, begins: bool, file: Path
) -> None:
    write_gguf(file, pre=pre, metadata={"tokenizer.ggml.add_bos_token": asked})
    tokenizer = AutoTokenizer.from_pretrained(find_base(str(file)).folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert (tokenizer("x").input_ids[0] == 1) == begins


# --- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pre": "mystery\x1b[31m"}, r"pre-tokenizer is 'mystery\x1b[31m' (tokenizer.ggml.pre)"),
        ({"pre": None}, "pre-tokenizer is None"),
        ({"pre": "default"}, "pre-tokenizer is 'default'"),
        ({"metadata": {"tokenizer.ggml.model": "llama"}}, "of the kind 'llama'"),
        ({"metadata": {"tokenizer.ggml.model": None}}, "of the kind None"),
        ({"metadata": {"tokenizer.ggml.tokens": None}}, "holds no tokenizer"),
        ({"metadata": {"tokenizer.ggml.token_type": None}}, "the kind of each token"),
        ({"metadata": {"tokenizer.ggml.token_type": [1, 2]}}, "the kind of each token"),
        ({"metadata": {"tokenizer.ggml.merges": ["1 2", "no such"]}}, "its merges are refused"),
        ({"metadata": {"tokenizer.ggml.merges": ["12"]}}, "its merges are refused"),
        ({"metadata": {"tokenizer.ggml.merges": [1, 2]}}, "tokens or merges are no texts"),
        ({"metadata": {"tokenizer.ggml.eos_token_id": 5000}}, "its eos token is 5000"),
        ({"metadata": {"tokenizer.ggml.eos_token_id": None}}, "no end token"),
        ({"architecture": "dragon"}, "its architecture is 'dragon'"),
        ({"metadata": {"llama.block_count": 1 << 31}}, "and claims 2147483648"),
        ({"metadata": {"llama.block_count": None}}, "and claims None"),
        ({"metadata": {"llama.embedding_length": 1 << 31}}, "transformers"),
        ({"metadata": {"llama.rope.dimension_count": 1 << 31}}, "transformers"),
        ({"metadata": {"llama.attention.head_count": 0}}, "transformers cannot read it"),
        ({"metadata": {"llama.rope.scaling.type": "yarn"}}, "'llama.rope.scaling.type'"),
        ({"metadata": {"llama.expert_count": 8}}, "'llama.expert_count'"),
        ({"metadata": {"llama.attention.sliding_window": 8}}, "'llama.attention.sliding_window'"),
        ({"metadata": {"split.count": 2}}, "one of the 2 files of a split model"),
        ({"tensors": {"blk.0.attn_q.bias": np.ones(32, np.float32)}}, "would leave out weights"),
        ({"tensors": {"blk.1.ffn_up.weight": None}}, "would leave out weights"),
        ({"tensors": {"output_norm.weight": np.full(32, np.nan, np.float32)}}, "not finite"),
    ],
    ids=str,
)
def test_what_would_become_another_model_is_refused(
    changes: dict[str, Any], reason: str, file: Path, cache: Path
) -> None:
    write_gguf(file, **changes)
    if "no end token" in reason:  # found where every tokenizer is checked
        with pytest.raises(BaseError, match=reason):
            load_template(find_base(str(file)))
        return
    assert reason in complaint(file)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_a_doubled_token_is_refused(file: Path) -> None:
    tokens = vocabulary()
    write_gguf(file, metadata={"tokenizer.ggml.tokens": [*tokens[:-1], tokens[0]]})
    assert "a token is twice in its vocabulary" in complaint(file)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "took"),
        ("{{ 'a' * 999999999999 }}", "failed: 'MemoryError"),
        ("{{ raise_exception('no\x1b[31m\nway') }}", r"failed: 'TemplateError: no\x1b[31m\nway'"),
        ("{{ messages[0].__class__.__mro__ }}", "SecurityError: access to attribute"),
        ("{% if %}", "TemplateSyntaxError: Expected an expression"),
    ],
)
def test_a_chat_template_that_cannot_be_rendered_is_refused(
    template: str, reason: str, file: Path
) -> None:
    write_gguf(file, template=template)
    assert reason in complaint(file)


def test_a_chat_template_may_mark_replies(file: Path) -> None:
    """The markers are transformers' own extension of Jinja."""
    marked = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}"
        "{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    write_gguf(file, template=marked)
    assert load_template(find_base(str(file))).tokenizer.chat_template == marked


# --- damaged and hostile -----------------------------------------------------------------------


def header_length(content: bytes) -> int:
    """Return where the list of tensors ends, at most 32 bytes too late."""
    return content.rindex(b"ffn_norm.weight") + 64


def test_a_truncated_file_is_refused_wherever_it_ends(file: Path) -> None:
    write_gguf(file)
    content = file.read_bytes()
    inside = range(0, header_length(content), 101)
    for length in [*inside, len(content) // 2, len(content) - 1]:
        file.write_bytes(content[:length])
        complaint(file)


def test_a_damaged_header_is_refused_or_read_in_no_time(file: Path) -> None:
    write_gguf(file)
    content = file.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for place in random.integers(4, header_length(content), 300):
        damaged = bytearray(content)
        damaged[place] ^= 1 << random.integers(8)
        file.write_bytes(damaged)
        begin = time.monotonic()
        problem = ""
        try:
            read_header(file, "x")
        except BaseError as error:
            problem = str(error)
        assert problem.isprintable()
        assert time.monotonic() - begin < 2
        refused += bool(problem)
    assert refused > 10


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def hostile(tensors: int = 0, entries: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + rest


KEY = text(b"general.name")
TENSOR = text(b"token_embd.weight") + struct.pack("<I", 2)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "does not begin as a GGUF file does"),
        (b"GGUF", "truncated"),
        (b"PK\x03\x04 and more", "does not begin as a GGUF file does"),
        (hostile(version=1), "its version is 1"),
        (hostile(version=3 << 24), "its version is 50331648"),
        (hostile(tensors=2**63), "claims 9,223,372,036,854,775,808 tensors"),
        (hostile(entries=2**63), "claims 0 tensors and 9,223,372,036,854,775,808"),
        (hostile(entries=1, rest=struct.pack("<Q", 2**64 - 1)), "announces 18,446,744,073"),
        (hostile(entries=1, rest=text(b"\xff\xfe")), "is not UTF-8"),
        (hostile(entries=1, rest=KEY + struct.pack("<I", 99)), "names a type 99"),
        (hostile(entries=1, rest=KEY + struct.pack("<IIQ", 9, 9, 1)), "an array of type 9"),
        (hostile(entries=1, rest=KEY + struct.pack("<IIQ", 9, 8, 2**60)), "claims arrays of 1,152"),
        (hostile(entries=1, rest=KEY + struct.pack("<IIQ", 9, 0, 2**20)), "truncated"),
        (hostile(entries=2, rest=2 * (KEY + struct.pack("<IB", 0, 0))), "'general.name' twice"),
        (hostile(tensors=1, rest=text(b"x") + struct.pack("<I", 2**31)), "2147483648 dimensions"),
        (hostile(tensors=1, rest=TENSOR + struct.pack("<QQIQ", 2**40, 2**40, 0, 0)), "truncated"),
        (hostile(tensors=1, rest=TENSOR + struct.pack("<QQIQ", 0, 1, 0, 0)), "the shape"),
        (hostile(tensors=1, rest=TENSOR + struct.pack("<QQIQ", 31, 1, 3, 0)), "the shape"),
        (hostile(tensors=1, rest=TENSOR + struct.pack("<QQIQ", 1, 1, 77, 0)), "a type 77"),
        (hostile(tensors=1, rest=TENSOR + struct.pack("<QQIQ", 1, 1, 0, 2**63)), "truncated"),
    ],
    ids=range(20),
)
def test_a_header_that_lies_is_refused(content: bytes, reason: str, file: Path) -> None:
    file.write_bytes(content)
    assert reason in complaint(file)


def test_tensors_that_share_their_bytes_are_refused(file: Path) -> None:
    """A small file could otherwise become a model of any size."""
    entry = struct.pack("<QQIQ", 8, 8, 0, 0)
    names = [text(f"blk.{i}.ffn_up.weight".encode()) + struct.pack("<I", 2) for i in range(9)]
    file.write_bytes(hostile(9, 0, b"".join(n + entry for n in names)) + bytes(2000))
    assert "truncated or damaged: 'blk.1.ffn_up.weight'" in complaint(file)


# --- as a user sees it -------------------------------------------------------------------------


def test_the_command_line_prepares_for_it_and_says_what_it_did(
    file: Path, talk_file: Path, cli: Any
) -> None:
    write_gguf(file)
    command = ("prepare", "--base", file, "--data", talk_file, "--set", "data.max_length=64")
    done, again = cli(*command), cli(*command)
    assert (done.code, done.err.count("\n")) == (again.code, again.err.count("\n")) == (0, 1)
    assert "turned into a model folder in the cache, once" in done.err
    assert "turned into" not in again.err


@pytest.mark.parametrize("name", ["gone.gguf", "folder/gone.gguf", "./gone.gguf"])
def test_a_wrong_path_is_no_hub_id(name: str, cli: Any) -> None:
    done = cli("chat", name, "--prompt", "Hi")
    assert (done.code, done.err) == (2, f"chattune: base {name}: no such file; check the path\n")


def test_a_truncated_file_is_one_line(file: Path, cli: Any) -> None:
    write_gguf(file)
    file.write_bytes(file.read_bytes()[:-1000])
    done = cli("chat", file, "--prompt", "Hi")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "truncated" in done.err
    assert json.dumps(done.out) == '""'
