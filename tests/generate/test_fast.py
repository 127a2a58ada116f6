"""The fast engine beside transformers: the same tokens, alone and together, at every length."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
)
from transformers.pytorch_utils import Conv1D

from chattune.base import find_base, starter_folder
from chattune.device import find_device
from chattune.errors import BaseError, ChatError
from chattune.generate import Decoding, gpt_neo
from chattune.generate.fast import FastEngine
from chattune.generate.int8_linear import quantized
from chattune.generate.load import load_engine
from chattune.models import load
from chattune.models.gpt_neo_weights import Precision, read_gpt_neo
from chattune.models.verify import relative_difference
from chattune.run import Run
from conftest import SHARED

NEVER = (-1,)
GREEDY = Decoding(temperature=0, max_new_tokens=200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-Neo with the real window (256) whose greedy text does not repeat itself at once."""
    torch.manual_seed(1)
    model = GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=211, hidden_size=64, num_layers=4, num_heads=4, window_size=256,
            attention_types=[[["global", "local"], 2]], max_position_embeddings=1024,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(6.0 if "wpe" in name or "mlp" in name else 4.0)
            elif "bias" in name:
                weight.normal_(std=0.1)
    path = tmp_path_factory.mktemp("neo")
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(starter_folder()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def engine(
    folder: Path, precision: Precision = "fp32", *, slots: int = 8, bf16: bool = True
) -> FastEngine:
    weights = read_gpt_neo(find_base(str(folder)), None, precision)
    return FastEngine(weights, NEVER, slots=slots, bf16=bf16)


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 211, (length,), generator=generator).tolist()


def written(fast: FastEngine, ids: list[int], decoding: Decoding) -> list[int]:
    return [token for _, token in fast.generate([ids], decoding)]


def by_transformers(model: Any, ids: list[int], count: int) -> list[int]:
    whole = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False,
        max_new_tokens=count, eos_token_id=-1, pad_token_id=0,
    )  # fmt: skip
    tokens: list[int] = whole[0, len(ids) :].tolist()
    return tokens


# --- exactness ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7, 150, 255, 256, 257, 600])
def test_greedy_equals_transformers_across_the_window(
    folder: Path, model: Any, length: int
) -> None:
    ids = prompt(length)
    ours = written(engine(folder), ids, GREEDY)
    assert ours == by_transformers(model, ids, 200)
    assert len(set(ours)) > 10


def test_local_layers_make_room_many_times(folder: Path, model: Any) -> None:
    """900 tokens on: the window's ring is moved to the front again and again."""
    ours = written(engine(folder), prompt(20), GREEDY.but(max_new_tokens=950))
    assert ours == by_transformers(model, prompt(20), 950)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_alone_and_among_eight_give_the_same_tokens(folder: Path, precision: Precision) -> None:
    prompts = [prompt(n, seed=n) for n in (3, 40, 300, 9, 256, 120, 77, 500)]
    short = GREEDY.but(max_new_tokens=60)
    alone = [written(engine(folder, precision), p, short) for p in prompts]
    together: list[list[int]] = [[] for _ in prompts]
    for index, token in engine(folder, precision).generate(prompts, short):
        together[index].append(token)
    assert together == alone


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "no bf16"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_logits_are_the_same_bits_again_and_among_others(
    folder: Path, precision: Precision, bf16: bool
) -> None:
    """However many rows a step has, and wherever its arrays lie in memory."""
    model = engine(folder, precision, bf16=bf16)._model
    slots, tokens = list(range(8)), list(range(3, 11))
    prompts = [prompt(20 + 7 * slot, seed=slot) for slot in slots]
    lengths = [len(ids) for ids in prompts]
    with torch.inference_mode():
        first = [model.prefill(slot, prompts[slot], 0) for slot in slots]
        whole = model.decode(slots, tokens, lengths)
        in_the_way = []
        for count in 6 * (1, 2, 3, 5, 8):
            in_the_way.append(torch.empty(1 + 37 * len(in_the_way)))
            rows = model.decode(slots[:count], tokens[:count], lengths[:count])
            assert torch.equal(rows, whole[:count])
            again = model.prefill(count - 1, prompts[count - 1], 0)
            assert torch.equal(again, first[count - 1])


def test_more_prompts_than_slots_with_settings_of_their_own(folder: Path) -> None:
    """They join as others leave; the slots in use are then not neighbours either."""
    prompts = [prompt(5 + 3 * n, seed=n) for n in range(7)]
    each = [
        Decoding(seed=n, max_new_tokens=4 + 11 * (n % 3), temperature=float(n % 2))
        for n in range(7)
    ]
    alone = [written(engine(folder), p, d) for p, d in zip(prompts, each, strict=True)]
    together: list[list[int]] = [[] for _ in prompts]
    for index, token in engine(folder, slots=3).generate(prompts, each):
        together[index].append(token)
    assert together == alone


def text_of(kind: str) -> str:
    """Held-out text of the kind that the starter's base was trained on, or conversations."""
    if kind == "held-out text":
        path = SHARED.parent / "corpus/heldout.json"
        if not path.exists():
            pytest.skip("no ../shared/corpus here")
        return " ".join(json.loads(path.read_text("utf-8"))[:12])
    lines = (starter_folder() / "conversations.jsonl").read_text("utf-8").splitlines()[::100]
    return " ".join(m["content"] for line in lines for m in json.loads(line)["messages"])


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize(
    ("kind", "bound", "nats_bound"),
    [("held-out text", 1e-3, 0.005), ("conversations", 2e-3, 0.01)],
    ids=["held-out", "conversations"],
)
def test_rounded_weights_keep_the_distribution(
    kind: str, bound: float, nats_bound: float, precision: Precision
) -> None:
    """On the starter, a trained model: KL from fp32 in nats a token, and the mean's difference.

    Conversations are short texts that have nothing to do with each other: rounding tells more.
    """
    base = find_base("starter")
    ids = AutoTokenizer.from_pretrained(base.folder)(text_of(kind)).input_ids[:400]
    odds = {}
    for rounding in ("fp32", precision):
        fast = FastEngine(read_gpt_neo(base, None, rounding), NEVER)
        with torch.inference_mode():
            rows = [fast._model.prefill(0, ids[:1], 0)]
            rows += [fast._model.decode([0], [t], [i])[0] for i, t in enumerate(ids[1:-1], 1)]
        odds[rounding] = torch.stack(rows).log_softmax(-1).double()
    exact, rounded = odds["fp32"], odds[precision]
    kl = (exact.exp() * (exact - rounded)).sum(-1).mean()
    assert 0 < float(kl) < bound
    targets = torch.tensor(ids[1:])[:, None]
    nats = [float(-o.gather(1, targets).mean()) for o in (exact, rounded)]
    assert nats[1] - nats[0] == pytest.approx(0, abs=nats_bound)


@pytest.mark.parametrize(
    ("precision", "bf16"), [("bf16", True), ("int8", True), ("int8", False)], ids=str
)
def test_a_prompt_beside_rounded_weights_is_nearly_that_of_fp32(
    precision: Precision, bf16: bool
) -> None:
    """With and without a machine that multiplies bf16 fast."""
    base = find_base("starter")
    ids = AutoTokenizer.from_pretrained(base.folder)(text_of("conversations")).input_ids
    exact = FastEngine(read_gpt_neo(base, None, "fp32"), NEVER)._model
    rounded = FastEngine(read_gpt_neo(base, None, precision), NEVER, bf16=bf16)._model
    apart = []
    with torch.inference_mode():
        for length in (20, 40, 60, 80):
            p, q = (m.prefill(0, ids[:length], 0).log_softmax(-1) for m in (exact, rounded))
            apart.append(float((p.exp() * (p - q)).sum()))
    assert 0 < max(apart) < 1e-2


# --- slots and prefixes ------------------------------------------------------------------------


def test_a_second_turn_computes_only_what_is_new(
    folder: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = engine(folder)
    prefilled: list[int] = []
    prefill = fast._model.prefill

    def watched(slot: int, tokens: list[int], start: int) -> torch.Tensor:
        prefilled.append(len(tokens))
        return prefill(slot, tokens, start)

    monkeypatch.setattr(fast._model, "prefill", watched)
    first = prompt(280)
    reply = written(fast, first, GREEDY.but(max_new_tokens=30))
    second = first + reply + prompt(12, seed=3)
    other = written(fast, prompt(50, seed=9), GREEDY.but(max_new_tokens=5))  # takes another slot
    ours = written(fast, second, GREEDY.but(max_new_tokens=30))
    assert prefilled == [280, 50, 13]  # the reply's last token was never computed
    assert ours == by_transformers(model, second, 30)
    assert other == by_transformers(model, prompt(50, seed=9), 5)


@pytest.mark.parametrize("back", [3, 200, 500])
def test_a_prompt_that_turns_off_earlier_is_right_too(folder: Path, model: Any, back: int) -> None:
    """A retry or an edited message: the cache goes back, or is made anew where it cannot."""
    fast = engine(folder, slots=1)
    first = prompt(560)
    written(fast, first, GREEDY.but(max_new_tokens=300))
    second = first[: len(first) - back] + prompt(20, seed=5)
    assert written(fast, second, GREEDY.but(max_new_tokens=40)) == by_transformers(
        model, second, 40
    )


def test_the_same_seed_gives_the_same_reply_in_int8(folder: Path) -> None:
    fast = engine(folder, "int8")
    sampled = Decoding(seed=4, max_new_tokens=40)
    first = written(fast, prompt(30), sampled)
    assert written(fast, prompt(30), sampled) == first
    assert written(fast, prompt(30), sampled.but(seed=5)) != first


def test_closing_the_iterator_frees_the_slot(folder: Path) -> None:
    fast = engine(folder, slots=1)
    tokens = fast.generate([prompt(5)], GREEDY)
    next(tokens)
    tokens.close()
    assert len(written(fast, prompt(6), GREEDY.but(max_new_tokens=3))) == 3


def test_two_chats_with_the_same_beginning_keep_a_slot_each(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every prompt begins with the template's header, which is no reason to share a slot."""
    fast = engine(folder, slots=2)
    prefilled: list[int] = []
    prefill = fast._model.prefill

    def watched(slot: int, tokens: list[int], start: int) -> torch.Tensor:
        prefilled.append(len(tokens))
        return prefill(slot, tokens, start)

    monkeypatch.setattr(fast._model, "prefill", watched)
    settings = GREEDY.but(max_new_tokens=4)
    chats = [prompt(7) + prompt(40, seed=s) for s in (1, 2)]
    for _ in range(2):
        for i, ids in enumerate(chats):
            chats[i] = ids + written(fast, ids, settings) + [9, 9]
    assert prefilled == [47, 47, 3, 3]


def test_a_step_that_breaks_off_leaves_no_trace(
    folder: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a prefill, and in the middle of a step that serves another too."""
    fast = engine(folder)
    other = fast.generate([prompt(20, seed=8)], GREEDY.but(max_new_tokens=30))
    begun = [next(other)[1] for _ in range(5)]
    for broken in ("prefill", "decode"):
        with monkeypatch.context() as patch:
            if broken == "prefill":
                patch.setattr(fast._model, "_finish", interrupted(fast._model._finish, after=2))
            else:
                patch.setattr(gpt_neo, "call", interrupted(gpt_neo.call, after=2))
            with pytest.raises(KeyboardInterrupt):
                written(fast, prompt(300), GREEDY)
    settings = GREEDY.but(max_new_tokens=20)
    assert written(fast, prompt(300), settings) == by_transformers(model, prompt(300), 20)
    rest = [token for _, token in other]
    assert begun + rest == by_transformers(model, prompt(20, seed=8), 30)


def interrupted(function: Any, after: int) -> Any:
    calls = iter(range(after))

    def call(*given: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return function(*given)

    return call


@pytest.mark.parametrize("length", [0, 1025])
def test_a_prompt_that_cannot_be_is_refused(folder: Path, length: int) -> None:
    with pytest.raises(ChatError, match=f"a prompt of {length} tokens; the model takes 1 to 1024"):
        written(engine(folder), [1] * length, GREEDY)


def test_several_threads_are_answered_together(folder: Path) -> None:
    prompts = [prompt(20 + n, seed=n) for n in range(6)]
    settings = GREEDY.but(max_new_tokens=40)
    alone = [written(engine(folder), p, settings) for p in prompts]
    fast = engine(folder, slots=4)
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


def test_a_reply_ends_with_the_end_token_or_the_last_position(folder: Path) -> None:
    first = written(engine(folder), prompt(9), GREEDY)
    weights = read_gpt_neo(find_base(str(folder)), None, "fp32")
    ends = FastEngine(weights, {first[5]})
    assert written(ends, prompt(9), GREEDY) == first[: first.index(first[5]) + 1]
    assert len(written(engine(folder), prompt(1020), GREEDY)) == 4


# --- loading -----------------------------------------------------------------------------------


def test_gpt_neo_gets_the_fast_engine_and_others_the_reference(
    folder: Path, tmp_path: Path
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    assert load_engine(folder).kind == "fast, int8"
    assert load_engine(folder, engine="reference").kind == "reference, fp32"
    other = tmp_path / "gpt2"
    tokenizer = AutoTokenizer.from_pretrained(starter_folder())
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2)
    ).save_pretrained(other)
    tokenizer.save_pretrained(other)
    assert load_engine(other).kind == "reference, fp32"
    with pytest.raises(ChatError, match=r"engine fast: it is for GPT-Neo, and .* is gpt2"):
        load_engine(other, engine="fast")


@pytest.mark.parametrize("choice", [{"engine": "faster"}, {"quantize": "int4"}])
def test_an_unknown_choice_lists_those_there_are(folder: Path, choice: dict[str, str]) -> None:
    with pytest.raises(ChatError, match=r"no such choice '.*'; there are auto"):
        load_engine(folder, **choice)


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        # Wide enough that some matrices are multiplied another way than others.
        LlamaConfig(vocab_size=99, hidden_size=64, intermediate_size=1 << 16, num_hidden_layers=2,
                    num_attention_heads=4),
        GPT2Config(vocab_size=99, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0),
    ],
    ids=["llama", "gpt2"],
)  # fmt: skip
def test_the_reference_engine_in_int8_is_near_its_fp32(config: Any, bf16: bool) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert sum(type(m) in (nn.Linear, Conv1D) for m in model.modules()) >= 9
    ids = torch.randint(0, 99, (1, 30))
    with torch.no_grad():
        exact = model(ids).logits
        rounded = quantized(model, bf16=bf16)(ids).logits.float()
    assert 0 < float((exact - rounded).abs().max() / exact.abs().max()) < 0.05
    assert not any(type(m) in (nn.Linear, Conv1D) for m in model.modules())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", b"\x08", "model.safetensors cannot be read"),
        ("config.json", b'{"model_type": "gpt_neo"}', "its config.json lacks attention_types"),
    ],
)
def test_a_damaged_base_is_named(
    name: str, content: bytes, said: str, folder: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(folder, tmp_path / "base"))
    (base / name).write_bytes(content)
    with pytest.raises(BaseError, match=said):
        load_engine(base)


def test_an_adapter_is_merged(tiny_run: Run) -> None:
    """It moves the fast engine as it moves peft's own layers."""
    reference = load(tiny_run.folder, find_device())
    ids = reference.template.words("How are you today?")
    weights = read_gpt_neo(find_base(tiny_run.recipe.base), tiny_run.folder, "fp32")
    with torch.inference_mode():
        theirs = reference.model(torch.tensor([ids])).logits[0, -1]
        ours = FastEngine(weights, NEVER)._model.prefill(0, ids, 0)
        with reference.model.disable_adapter():
            base = reference.model(torch.tensor([ids])).logits[0, -1]
    assert relative_difference(theirs, ours) < 1e-5 < relative_difference(theirs, base)


def test_a_run_in_int8_is_saved_once_and_read_again(tiny_run: Run, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run.folder, tmp_path / "run")
    first = load_engine(run, quantize="int8")
    saved = run / "int8.safetensors"
    stamp = saved.stat().st_mtime_ns
    second = load_engine(run, quantize="int8")
    assert saved.stat().st_mtime_ns == stamp
    settings = Decoding(seed=1, max_new_tokens=12)
    reply = list(first.engine.generate([[5, 6, 7]], settings))
    assert list(second.engine.generate([[5, 6, 7]], settings)) == reply
    saved.write_bytes(saved.read_bytes()[:100])  # damaged, so it is made anew
    third = load_engine(run, quantize="int8")
    assert list(third.engine.generate([[5, 6, 7]], settings)) == reply
    assert load_file(saved)
    assert saved.stat().st_mode & 0o777 == 0o644  # others may talk to it too
    assert not list(run.glob(".*"))
    Run.open(run)


def test_a_run_in_int8_that_cannot_be_saved_is_talked_to(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("No space left on device")

    run = shutil.copytree(tiny_run.folder, tmp_path / "run")
    monkeypatch.setattr("chattune.models.gpt_neo_weights.save_file", full)
    chat = load_engine(run, quantize="int8")
    assert len(list(chat.engine.generate([[5]], GREEDY.but(max_new_tokens=3)))) == 3
    assert not list(run.glob("int8*"))
