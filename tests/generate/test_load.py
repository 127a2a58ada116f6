"""load_engine(): which engine a model gets, int8 weights kept beside a run, and damaged bases."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer

from chattune.base import starter_folder
from chattune.errors import BaseError, ChatError
from chattune.generate import Decoding
from chattune.generate.load import load_engine
from chattune.run import Run


def test_gpt_neo_gets_the_fast_engine_and_others_the_reference(
    tiny_base: Path, tmp_path: Path
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    assert load_engine(tiny_base).kind == "fast, int8"
    assert load_engine(tiny_base, engine="reference").kind == "reference, fp32"
    other = tmp_path / "gpt2"
    tokenizer = AutoTokenizer.from_pretrained(starter_folder())
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2)
    ).save_pretrained(other)
    tokenizer.save_pretrained(other)
    assert load_engine(other).kind == "reference, fp32"
    with pytest.raises(ChatError, match=r"engine fast: it is for gpt_neo, .* and .* is gpt2"):
        load_engine(other, engine="fast")


@pytest.mark.parametrize("choice", [{"engine": "faster"}, {"quantize": "int4"}])
def test_an_unknown_choice_lists_those_there_are(tiny_base: Path, choice: dict[str, str]) -> None:
    with pytest.raises(ChatError, match=r"no such choice '.*'; there are auto"):
        load_engine(tiny_base, **choice)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"\x08", "model.safetensors cannot be read"),
        ("config.json", b'{"model_type": "gpt_neo"}', "its config.json lacks attention_types"),
    ],
)
def test_a_damaged_base_is_named(
    name: str, content: bytes, message: str, tiny_base: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (base / name).write_bytes(content)
    with pytest.raises(BaseError, match=message):
        load_engine(base)


def without_int8(run: Run, folder: Path) -> Path:
    """Copy a run's folder, without the int8 weights that another test may have left there."""
    ignored = shutil.ignore_patterns("int8*")
    return Path(shutil.copytree(run.folder, folder, ignore=ignored))


def test_a_run_in_int8_is_saved_once_and_read_again(tiny_run: Run, tmp_path: Path) -> None:
    run = without_int8(tiny_run, tmp_path / "run")
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

    run = without_int8(tiny_run, tmp_path / "run")
    monkeypatch.setattr("chattune.weights.save_file", full)
    chat = load_engine(run, quantize="int8")
    assert len(list(chat.engine.generate([[5]], Decoding(max_new_tokens=3)))) == 3
    assert not list(run.glob("int8*"))
