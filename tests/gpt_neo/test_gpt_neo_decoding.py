"""GPT-Neo's decoder computes the same bits again, and nearly the same logits in every precision."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from chattune.base import find_base, starter_folder
from chattune.device import find_device
from chattune.gpt_neo.decoding import GptNeoDecoder
from chattune.gpt_neo.weights import read_gpt_neo
from chattune.models import load
from chattune.models.verify import relative_difference
from chattune.run import Run
from chattune.weights import Precision
from conftest import SHARED


def decoder(
    base: str | Path, precision: Precision, *, run: Path | None = None, bf16: bool = True
) -> GptNeoDecoder:
    """Return a decoder with eight slots."""
    return GptNeoDecoder(read_gpt_neo(find_base(str(base)), run, precision), 8, bf16=bf16)


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "no bf16"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_logits_are_the_same_bits_again_and_among_others(
    neo_base: Path, precision: Precision, bf16: bool
) -> None:
    """They do not depend on the number of rows in a step, nor on where arrays lie in memory."""
    model = decoder(neo_base, precision, bf16=bf16)
    slots, tokens = list(range(8)), list(range(3, 11))
    prompts = [[1 + (slot + 7 * i) % 210 for i in range(20 + 7 * slot)] for slot in slots]
    lengths = [len(ids) for ids in prompts]
    with torch.inference_mode():
        first = [model.prefill(slot, prompts[slot], 0) for slot in slots]
        expected = model.decode(slots, tokens, lengths)
        obstacles = []
        for count in 6 * (1, 2, 3, 5, 8):
            obstacles.append(torch.empty(1 + 37 * len(obstacles)))
            rows = model.decode(slots[:count], tokens[:count], lengths[:count])
            assert torch.equal(rows, expected[:count])
            again = model.prefill(count - 1, prompts[count - 1], 0)
            assert torch.equal(again, first[count - 1])


def text_of(kind: str) -> str:
    """Return held-out text of the kind that the starter's base was trained on, or conversations."""
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
    """Compared on the starter: KL divergence from fp32 in nats per token, and the mean loss.

    Conversations are short texts without a common subject, in which rounding shows more.
    """
    ids = AutoTokenizer.from_pretrained(starter_folder())(text_of(kind)).input_ids[:400]
    log_probabilities = {}
    for rounding in ("fp32", precision):
        model = decoder("starter", rounding)
        with torch.inference_mode():
            rows = [model.prefill(0, ids[:1], 0)]
            rows += [model.decode([0], [t], [i])[0] for i, t in enumerate(ids[1:-1], 1)]
        log_probabilities[rounding] = torch.stack(rows).log_softmax(-1).double()
    exact, rounded = log_probabilities["fp32"], log_probabilities[precision]
    kl = (exact.exp() * (exact - rounded)).sum(-1).mean()
    assert 0 < float(kl) < bound
    targets = torch.tensor(ids[1:])[:, None]
    nats = [float(-p.gather(1, targets).mean()) for p in (exact, rounded)]
    assert nats[1] - nats[0] == pytest.approx(0, abs=nats_bound)


@pytest.mark.parametrize(
    ("precision", "bf16"), [("bf16", True), ("int8", True), ("int8", False)], ids=str
)
def test_a_prompt_keeps_the_distribution_with_rounded_weights(
    precision: Precision, bf16: bool
) -> None:
    """It does on a machine that multiplies bf16 fast, and on one that does not."""
    ids = AutoTokenizer.from_pretrained(starter_folder())(text_of("conversations")).input_ids
    exact = decoder("starter", "fp32")
    rounded = decoder("starter", precision, bf16=bf16)
    divergences = []
    with torch.inference_mode():
        for length in (20, 40, 60, 80):
            p, q = (m.prefill(0, ids[:length], 0).log_softmax(-1) for m in (exact, rounded))
            divergences.append(float((p.exp() * (p - q)).sum()))
    assert 0 < max(divergences) < 1e-2


def test_an_adapter_is_merged(tiny_run: Run) -> None:
    """It changes the decoder's logits as it changes those of peft's own layers."""
    reference = load(tiny_run.folder, find_device())
    ids = reference.template.encode("How are you today?")
    model = decoder(tiny_run.recipe.base, "fp32", run=tiny_run.folder)
    with torch.inference_mode():
        theirs = reference.model(torch.tensor([ids])).logits[0, -1]
        ours = model.prefill(0, ids, 0)
        with reference.model.disable_adapter():
            base = reference.model(torch.tensor([ids])).logits[0, -1]
    assert relative_difference(theirs, ours) < 1e-5 < relative_difference(theirs, base)
