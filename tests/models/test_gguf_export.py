"""GGUF files: llama.cpp computes and tokenises them as chattune does, or the export is refused."""

import errno
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from chattune.base import load_template
from chattune.device import find_device
from chattune.errors import BaseError, OutputError, VerificationError
from chattune.generate import Decoding
from chattune.generate.load import load_engine
from chattune.models import base_of, load
from chattune.models.export import export, plan_export
from chattune.models.gguf_tensors import rounding, stored
from chattune.models.gguf_tokenizer import pre_tokenizer_name
from chattune.models.verify import logits_of
from chattune.run import Run
from chattune.tuning import tune
from conftest import TALK, write_talk
from llamas import random_model
from tuned import recipe

MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "What's 12345 + 6.78?"},
    {"role": "assistant", "content": "It's 12351.78, naturally."},
    {"role": "user", "content": "Écris-le: “déjà vu” 🙂"},
]
TEXTS = [
    "In 1999, 20 million people; 3.14159 and   42  7",
    "Déjà vu, señor! Größe, naïve, 東京, Привет",
    "🙂👩‍👩‍👧 emoji 🎉🎉",
    "def f(x):\n    return  {'a': x**2}  # it's\n\n\n\tend\r\n",
    "   several   spaces   ",
    "I'm you're HE'LL we'VE don'T",
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_CPP = """
import json, sys, urllib.request, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = sys.argv[1], 256, 1, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.endpoint_props = True
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(params)
answers = []
for path, body in json.load(sys.stdin):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        server.listening_address + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        answers.append(json.load(response))
print("\\nANSWERS" + json.dumps(answers), flush=True)
"""


def ask_llama_cpp(file: Path, *requests: tuple[str, Any]) -> list[Any]:
    """Load a GGUF file with llama.cpp's server in another process; return its answers."""
    pytest.importorskip("xllamacpp", reason="xllamacpp, which runs llama.cpp, is not installed")
    process = subprocess.run(
        [sys.executable, "-c", LLAMA_CPP, str(file)],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "ANSWERS" in process.stdout, process.stderr[-3000:]
    answers: list[Any] = json.loads(process.stdout.rpartition("ANSWERS")[2])
    return answers


@pytest.fixture
def tuned(
    tmp_path: Path, quick_tuning: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], Run]:
    """Return a function that tunes a base for two steps, and writes no sample replies."""
    monkeypatch.setattr("chattune.tuning.samples.sample_replies", lambda *_: [])
    data = write_talk(tmp_path / "talk.jsonl", TALK)

    def run(base: Path) -> Run:
        return tune(recipe(base, data, training__steps=2), tmp_path / "run")

    return run


@pytest.fixture
def llama_run(tuned: Callable[[Path], Run], tmp_path: Path) -> Run:
    return tuned(random_model("llama", tmp_path / "base"))


def fields(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}


# --- what llama.cpp makes of it ----------------------------------------------------------------

FULL_SMOLLM3 = {"num_hidden_layers": 4, "no_rope_layers": None}  # llama.cpp's own pattern


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ("llama", {}),
        ("llama-3", {}),
        ("llama-biases", {}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("smollm3", FULL_SMOLLM3),
    ],
)
def test_llama_cpp_writes_the_tokens_that_our_engine_writes(
    tuned: Callable[[Path], Run], tmp_path: Path, shape: str, changes: dict[str, Any]
) -> None:
    """In f16; q8_0 changes the weights more, so that only its first token's logits are compared."""
    run = tuned(random_model(shape, tmp_path / "base", **changes))
    prompt, expected = clearest_reply(run)
    greedy = {"n_predict": 40, "temperature": 0, "repeat_penalty": 1, "return_tokens": True}
    answers = {}
    for quantization in ("f16", "q8_0"):
        file = tmp_path / f"{quantization}.gguf"
        export(run.folder, gguf=file, quantize=quantization)
        request = ("/completion", greedy | {"prompt": prompt, "n_probs": 5})
        [answers[quantization]] = ask_llama_cpp(file, request)
    assert answers["f16"]["tokens"] == expected
    before, after = (a["completion_probabilities"][0]["top_logprobs"] for a in answers.values())
    likeliest = {token["id"]: token["logprob"] for token in after}
    assert likeliest[expected[0]] == pytest.approx(before[0]["logprob"], abs=0.5)


def clearest_reply(run: Run) -> tuple[list[int], list[int]]:
    """Return the random prompt, and our engine's 40 greedy tokens, that rounding changes least.

    The replies of a random model have near ties, which f16 decides otherwise; this one has the
    largest margin, at every step, between the two likeliest tokens.
    """
    loaded = load_engine(run.folder, engine="reference")
    model = load(run.folder, find_device()).model
    random.seed(0)
    prompts = [random.choices(range(1, 8192), k=20) for _ in range(8)]
    replies: list[list[int]] = [[] for _ in prompts]
    for index, token in loaded.engine.generate(prompts, Decoding(temperature=0, max_new_tokens=40)):
        replies[index].append(token)

    def margin(pair: tuple[list[int], list[int]]) -> float:
        prompt, reply = pair
        two = logits_of(model, prompt + reply)[len(prompt) - 1 : -1].topk(2).values
        return float((two[:, 0] - two[:, 1]).min()) if len(set(reply)) > 10 else 0.0

    best = max(zip(prompts, replies, strict=True), key=margin)
    assert margin(best) > 0.01
    return best


# --- tokenizers --------------------------------------------------------------------------------


def split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def in_steps(*steps: Any) -> Any:
    return pre_tokenizers.Sequence(list(steps))


def gpt_pattern(digits: str) -> str:
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


WITH_REGEX = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES_ONLY = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
PRE_TOKENIZERS = {
    "smollm": in_steps(pre_tokenizers.Digits(individual_digits=True), WITH_REGEX),
    "gpt-2": WITH_REGEX,
    "llama-bpe": in_steps(split(gpt_pattern(r"\p{N}{1,3}")), BYTES_ONLY),
    "qwen2": in_steps(split(gpt_pattern(r"\p{N}")), BYTES_ONLY),
}


def tokenizer(pre_tokenizer: Any, *, ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    """Train a small byte-level BPE tokenizer with two special tokens and a ChatML template."""
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = Path(__file__).read_text("utf-8")
    backend.train_from_iterator([text, *TEXTS * 3, "1999 20 42 314 159 " * 5], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", chat_template=CHATML
    )


def base_with(tokenizer: PreTrainedTokenizerFast, folder: Path, **changes: Any) -> Path:
    """Return a random Llama that has this tokenizer and rows for eight more tokens."""
    end = tokenizer.eos_token_id
    random_model(
        "llama",
        folder,
        vocab_size=len(tokenizer) + 8,
        bos_token_id=end,
        eos_token_id=end,
        **changes,
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", list(PRE_TOKENIZERS))
def test_llama_cpp_tokenises_as_we_do(
    tuned: Callable[[Path], Run], tmp_path: Path, name: str
) -> None:
    own = tokenizer(PRE_TOKENIZERS[name], ignore_merges=name == "llama-bpe")
    own.add_tokens(["<think>"])  # an added token that is not special
    run = tuned(base_with(own, tmp_path / "base"))
    file = tmp_path / "model.gguf"
    export(run.folder, gguf=file)
    template = load_template(base_of(run), run.folder)
    rendered = template.tokenizer.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True
    )

    texts = [*TEXTS, "<think>well</think>", rendered]
    answers = ask_llama_cpp(
        file,
        *(
            ("/tokenize", {"content": text, "add_special": True, "parse_special": True})
            for text in texts
        ),
        ("/apply-template", {"messages": MESSAGES}),
    )
    for text, answer in zip(texts, answers, strict=False):
        assert answer["tokens"] == own(text, add_special_tokens=False).input_ids, text
    assert answers[-1]["prompt"] == rendered
    assert fields(file)["tokenizer.ggml.pre"] == name


def test_the_template_of_chattune_itself_is_rendered_alike(llama_run: Run, tmp_path: Path) -> None:
    """Its markers of the reply, which only transformers knows, are replaced."""
    file = tmp_path / "model.gguf"
    export(llama_run.folder, gguf=file)
    template = load_template(base_of(llama_run), llama_run.folder)
    rendered = template.tokenizer.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True
    )
    assert "{%- generation -%}" in template.tokenizer.chat_template
    assert "generation -%}" not in fields(file)["tokenizer.chat_template"]
    [answer] = ask_llama_cpp(file, ("/apply-template", {"messages": MESSAGES}))
    assert answer["prompt"] == rendered


def refused(own: PreTrainedTokenizerFast) -> str:
    from chattune.template import Template

    with pytest.raises(BaseError) as caught:
        pre_tokenizer_name(Template(own))
    message = str(caught.value)
    assert message.endswith("export the model with --merged instead")
    return message


def test_a_tokenizer_that_llama_cpp_cannot_reproduce_is_refused() -> None:
    digits = in_steps(pre_tokenizers.Digits(individual_digits=False), WITH_REGEX)
    assert "'individual_digits': False" in refused(tokenizer(digits)).replace('"', "'").replace(
        "false", "False", 1
    )
    assert "ignore_merges true" in refused(tokenizer(WITH_REGEX, ignore_merges=True))
    assert "ignore_merges false" in refused(tokenizer(PRE_TOKENIZERS["llama-bpe"]))

    lowered = tokenizer(WITH_REGEX)
    lowered.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert "normalises texts by Lowercase" in refused(lowered)

    from tokenizers import AddedToken

    greedy = tokenizer(WITH_REGEX)
    greedy.add_tokens([AddedToken("<x>", lstrip=True)])
    assert "'<x>' has the rule lstrip" in refused(greedy)


def test_a_sentencepiece_tokenizer_is_refused() -> None:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((c, -1.0) for c in "▁HowfaristmlesTw.Andbck?\n:")]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.add_special_tokens(["</s>"])
    unigram = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    assert "of the kind Unigram, and not byte-level BPE" in refused(unigram)


def test_unicode_normalisation_that_is_lost_is_named(caplog: pytest.LogCaptureFixture) -> None:
    from gguf import GGUFWriter

    from chattune.models.gguf_tokenizer import add_tokenizer
    from chattune.template import Template

    own = tokenizer(PRE_TOKENIZERS["qwen2"])
    own.backend_tokenizer.normalizer = normalizers.NFC()
    caplog.set_level("INFO", "chattune")
    add_tokenizer(GGUFWriter(None, "qwen2"), Template(own), len(own))
    assert "not in the GGUF file: the tokenizer's Unicode normalisation (NFC)" in caplog.text


# --- what else the file says -------------------------------------------------------------------


def test_the_file_describes_itself(
    llama_run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (Path(llama_run.recipe.base) / "README.md").write_text("---\nlicense: mit\n---\n# A base\n")
    file = tmp_path / "my-bot.gguf"
    caplog.set_level("INFO", "chattune")
    export(llama_run.folder, gguf=file)
    said = fields(file)
    assert said["general.name"] == "my-bot"
    assert said["general.license"] == "mit"
    assert said["general.base_model.0.name"] == "base"
    assert "tuned with chattune" in said["general.description"]
    assert str(tmp_path) not in str(said)
    assert said["general.file_type"] == 7  # mostly q8_0
    assert (said["llama.context_length"], said["llama.attention.head_count_kv"]) == (512, 2)
    assert said["tokenizer.ggml.eos_token_id"] == said["tokenizer.ggml.eot_token_id"] == 0
    assert said["tokenizer.ggml.add_bos_token"] is False
    assert "give Ollama and LM Studio temperature 0.9, top-k 30, top-p 0.95" in caplog.text


def test_llama_cpp_samples_as_the_run_says(llama_run: Run, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    export(llama_run.folder, gguf=file)
    [props] = ask_llama_cpp(file, ("/props", None))
    sampling = props["default_generation_settings"]["params"]
    found = [sampling[n] for n in ("temperature", "top_k", "top_p", "min_p", "repeat_penalty")]
    assert found == pytest.approx([0.9, 30, 0.95, 0, 1])


def test_a_sliding_window_limits_the_context(
    tuned: Callable[[Path], Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tuned(random_model("mistral", tmp_path / "base", sliding_window=128))
    caplog.set_level("INFO", "chattune")
    export(run.folder, gguf=tmp_path / "m.gguf")
    assert fields(tmp_path / "m.gguf")["llama.context_length"] == 128
    assert "not in the GGUF file: the sliding window of 128 tokens" in caplog.text


def test_rows_that_q8_0_cannot_divide_are_in_f16(
    tuned: Callable[[Path], Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tuned(random_model("llama", tmp_path / "base", intermediate_size=48))
    caplog.set_level("INFO", "chattune")
    export(run.folder, gguf=tmp_path / "m.gguf")
    types = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "m.gguf").tensors}
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == "Q8_0"
    assert "3 matrices are in f16" in caplog.text


# --- the command -------------------------------------------------------------------------------


def test_folder_and_file_come_from_one_merge(cli, llama_run: Run, tmp_path: Path) -> None:
    merged, file = tmp_path / "new" / "merged", tmp_path / "new" / "merged" / "bot.gguf"
    outputs = ("--merged", merged, "--gguf", file, "--quantize", "f16")
    planned = cli("export", llama_run.folder, *outputs, "--dry-run")
    assert planned.code == 0, planned.err
    assert not (tmp_path / "new").exists()

    assert cli("export", llama_run.folder, *outputs).code == 0
    plan = plan_export(llama_run.folder, tmp_path / "a", gguf=tmp_path / "b", quantize="f16")
    weights, gguf = plan.sizes().values()
    assert 0 < (merged / "model.safetensors").stat().st_size - weights < 10_000
    assert 0 < file.stat().st_size - gguf < 500_000  # the tokenizer
    for path, size in ((merged, weights), (file, gguf)):
        assert f"write {path} (" in planned.err
        assert f"about {size / 1e6:.1f} MB)" in planned.err
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["merged"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--merged, --gguf: neither is given"),
        (("--merged", "m", "--quantize", "f16"), "--quantize f16: is for --gguf"),
        (("--gguf", "m", "--quantize", "q4"), "--quantize q4: no such quantization; there are q8"),
        (("--gguf", "m", "--merged", "m"), "--gguf m: is the folder of --merged too"),
        (("--gguf", "taken"), "--gguf taken: exists"),
    ],
)
def test_a_command_that_cannot_be_done_is_refused_at_once(
    cli,
    llama_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("taken").write_text("mine")
    for dry_run in ((), ("--dry-run",)):
        shown = cli("export", llama_run.folder, *arguments, *dry_run)
        assert shown.code == 2
        assert message in shown.err
        assert shown.err.count("\n") == 1
    assert [p.name for p in Path().iterdir()] == ["taken"]
    assert Path("taken").read_text() == "mine"


def test_a_model_without_an_architecture_in_gguf_is_refused(
    cli, tiny_run: Run, tmp_path: Path
) -> None:
    shown = cli("export", tiny_run.folder, "--gguf", tmp_path / "m.gguf", "--dry-run")
    assert shown.code == 2
    assert "this model is of the type gpt_neo; export it with --merged instead" in shown.err


@pytest.mark.parametrize(
    ("shape", "changes", "problem"),
    [
        ("yarn", {}, "does not write the rotary scaling yarn for the model type llama"),
        ("smollm3", {}, "every fourth layer"),
        ("qwen3", {"attention_bias": True}, "no biases for the model type qwen3"),
        ("llama", {"hidden_act": "gelu"}, "knows only the activation silu"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tuned: Callable[[Path], Run], tmp_path: Path, shape: str, changes: dict[str, Any], problem: str
) -> None:
    run = tuned(random_model(shape, tmp_path / "base", **changes))
    with pytest.raises(BaseError, match=problem):
        export(run.folder, gguf=tmp_path / "m.gguf")


# --- what goes wrong while it is written -------------------------------------------------------


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """A file in folders that do not exist yet; after the test they must not exist either."""
    yield tmp_path / "some" / "where" / "m.gguf"
    assert not (tmp_path / "some").exists()


def test_a_full_disk_leaves_nothing_behind(
    llama_run: Run, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        assert len(list(target.parent.iterdir())) == 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", full)
    with pytest.raises(OutputError, match=r"m\.gguf: cannot be written \(No space left on device"):
        export(llama_run.folder, gguf=target)


@pytest.mark.parametrize("quantization", ["f16", "q8_0"])
def test_a_file_with_other_weights_gets_no_name(
    llama_run: Run, target: Path, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    def spoilt(tensor: torch.Tensor, kind: GGMLQuantizationType) -> Any:
        tensor = tensor.detach().clone()
        if tensor.dim() == 2 and tensor.shape[1] == 160:
            tensor[3, 7] += 0.02 * tensor[3].abs().max()
        return stored(tensor, kind)

    monkeypatch.setattr("chattune.models.gguf_export.stored", spoilt)
    with pytest.raises(VerificationError, match=r"blk\.0\.ffn_down\.weight, read back, differs"):
        export(llama_run.folder, gguf=target, quantize=quantization)


def test_a_weight_beyond_the_range_of_f16_is_noticed(
    tuned: Callable[[Path], Run], tmp_path: Path, target: Path
) -> None:
    from safetensors.torch import load_file, save_file

    base = random_model("llama", tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    weights["model.layers.0.mlp.down_proj.weight"][:, 0] = 0  # so that nothing else notices it
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    run = tuned(base)
    with pytest.raises(VerificationError, match=r"ffn_up\.weight, read back, differs"):
        export(run.folder, gguf=target, quantize="f16")


@pytest.mark.parametrize("kind", [GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0])
def test_the_allowed_rounding_is_what_rounding_needs(kind: GGMLQuantizationType) -> None:
    """Every size of numbers passes, and the bound is not much wider than the error."""
    torch.manual_seed(0)
    for exponent in range(-9, 4):
        values = torch.randn(64, 96) * 10.0**exponent
        error = np.abs(dequantize(stored(values, kind), kind) - values.numpy())
        allowed = rounding(values.numpy(), kind)
        assert (error <= allowed).all()
        assert (error / allowed).max() > 0.7 or exponent < -6
