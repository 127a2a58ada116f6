"""Tests of the starter's pre-training, in runs of seconds."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from corpus import clean, documents, windows
from pretrain import interleave, positions

SCRIPT = Path(__file__).parents[2] / "training/starter/pretrain.py"
ANIMALS = ["cat", "dog", "horse", "bird", "mouse", "cow", "fox", "bee"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    texts = [
        f"The {a} number {i} saw a {b} and was glad. They played ( ; ) in the garden until night."
        for i in range(20)
        for a in ANIMALS
        for b in ANIMALS
    ]
    pq.write_table(pa.table({"text": texts[:-1]}), folder / "a.parquet")
    (folder / "heldout.json").write_text(json.dumps(texts[-1:]))
    (folder / "mix").mkdir()
    pq.write_table(
        pa.table({"text": [f"Red is colour {i}, and no other." for i in range(3000)]}),
        folder / "mix/b.parquet",
    )
    return folder


def command(corpus: Path, out: Path, *more: str) -> list[str]:
    files = {"corpus": corpus, "heldout": corpus / "heldout.json", "out": out}
    sizes = {"tokens": 60_000, "hidden": 64, "layers": 2, "vocabulary": 400, "batch": 1024}
    options = [f"--{name}={value}" for name, value in {**files, **sizes}.items()]
    return [sys.executable, str(SCRIPT), *options, *more]


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_with_the_same_base(corpus: Path, tmp_path: Path) -> None:
    whole = subprocess.run(command(corpus, tmp_path / "whole"), capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    log = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert log[-1]["tokens"] == 60_416  # a multiple of the batch
    assert log[-1]["loss"] < 3  # it begins at ln 400 = 6.0 nats
    assert 0 < log[-1]["bits_per_byte"] < 3

    broken = command(corpus, tmp_path / "killed", "--save-every=0")
    with subprocess.Popen(broken, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if "'step': 50" in line:  # already in windows of 512 tokens
                process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed/model").exists()
    again = subprocess.run(broken, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "resumed after" in again.stdout

    one, two = (
        load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "killed")
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)

    # A base that is trained further begins with the loss that it had.
    start = f"--start={tmp_path / 'whole/model'}"
    further = command(corpus, tmp_path / "more", start, "--lr=1e-4")
    more = subprocess.run(further, capture_output=True, text=True)
    assert more.returncode == 0, more.stderr
    first = json.loads((tmp_path / "more/log.jsonl").read_text().splitlines()[0])
    assert first["loss"] < log[-1]["loss"] + 0.2
    vocabularies = [
        json.loads((tmp_path / name / "tokenizer.json").read_text())["model"]["vocab"]
        for name in ("whole", "more")
    ]
    assert vocabularies[0] == vocabularies[1]

    # transformers computes the same bits per byte from the saved model.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole/model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole/model")
    (text,) = json.loads((corpus / "heldout.json").read_text())
    ids = tokenizer(f"<|endoftext|>{text}<|endoftext|>", return_tensors="pt").input_ids
    nats = model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    assert nats / math.log(2) / len(text) == pytest.approx(log[-1]["bits_per_byte"], rel=0.02)


@pytest.mark.slow
def test_the_mix_is_learned_as_well_as_the_corpus(corpus: Path, tmp_path: Path) -> None:
    mix = command(corpus, tmp_path / "out", f"--mix={corpus / 'mix'}", "--save-every=0")
    wrong = [*mix[:-2], f"--mix={tmp_path}"]
    refused = subprocess.run(wrong, capture_output=True, text=True)
    assert "holds no .parquet file" in refused.stderr
    with subprocess.Popen(mix, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if "'step': 50" in line:
                process.send_signal(signal.SIGKILL)
    again = subprocess.run(mix, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    log = [json.loads(x) for x in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert log[-1]["bits_per_byte"] < 3  # the corpus is learned as well
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/model")
    ids = tokenizer("<|endoftext|>Red is colour", return_tensors="pt").input_ids
    assert model(ids, labels=ids).loss < 3


def test_each_text_is_half_of_a_batch_in_both_halves_of_the_positions() -> None:
    first, second = (iter(np.full((20, 257), number)) for number in (1, 2))
    batch = interleave([first, second], 8)
    starts = positions(8, 256)[0].view(8, 256)[:, 0].tolist()
    placed = sorted(zip(starts, batch[:, 0].tolist(), strict=True))
    assert placed == [(0, 1), (0, 1), (0, 2), (0, 2), (256, 1), (256, 1), (256, 2), (256, 2)]
    assert int(next(first)[0]) == 1
    assert len(list(first)) == 20 - 4 - 1


def test_held_out_texts_are_left_out_and_documents_are_cleaned(corpus: Path) -> None:
    heldout = json.loads((corpus / "heldout.json").read_text())
    texts = documents([corpus], heldout, seed=0)
    assert len(texts) == 20 * 64 - 1
    assert heldout[0] not in texts
    assert not any("(" in text for text in texts)
    cut = clean("One sentence stands here. " * 100)
    assert len(cut) <= 1500
    assert cut.endswith("here.")


def test_a_pass_has_every_window_once_and_can_be_resumed() -> None:
    stream = torch.arange(1001).numpy()
    one_pass = windows(stream, 100, seed=0, first=0)
    starts = [int(next(one_pass)[0]) for _ in range(9)]
    assert sorted(starts) == list(range(0, 900, 100))
    assert next(windows(stream, 100, seed=0, first=4))[0] == starts[4]


@pytest.mark.parametrize("count", [1, 2, 8])
def test_short_windows_cover_every_position_and_long_ones_begin_at_zero(count: int) -> None:
    short = positions(count, 256)[0].view(count, 256)
    assert (short.diff() == 1).all()
    assert set(short[:, 0].tolist()) == ({0, 256} if count > 1 else {0})
    assert ((short[1:, 0] - short[:-1, -1]) != 1).all()  # no window continues the one before
    assert (positions(count, 512).view(count, 512)[:, 0] == 0).all()
