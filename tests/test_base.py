"""Tests of bases on this machine: which are found, and why others are refused."""

import json
import shutil
from pathlib import Path

import pytest

from chattune.base import (
    NAMED,
    STARTER,
    Base,
    find_base,
    is_on_hub,
    load_template,
    starter_folder,
)
from chattune.device import Device
from chattune.errors import BaseError, HubNotFound, HubUnreachable
from chattune.models import load_base, shape_of

CPU = Device("cpu", "test", bf16=False, threads=1, memory=1 << 30)
WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny base that a test may damage."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def complaint(name: str | Path, **options: bool) -> str:
    with pytest.raises(BaseError) as caught:
        find_base(str(name), **options)
    return str(caught.value)


# --- found -------------------------------------------------------------------------------------


def test_a_folder_is_a_base(tiny_base: Path) -> None:
    base = find_base(str(tiny_base))
    assert base.folder == tiny_base.resolve()
    assert base.config["model_type"] == "gpt_neo"
    assert base.origin == "folder"
    assert base.portable_name == str(tiny_base.resolve())
    assert base.positions == 128


def test_the_starter_is_embedded() -> None:
    base = find_base(STARTER)
    assert base.folder == starter_folder()
    assert base.portable_name == str(starter_folder())
    assert base.origin == "embedded in chattune"


def test_weights_can_be_left_out(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    assert find_base(str(copy), weights=False).positions == 128


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),
        ({"n_ctx": 512}, 512),
        ({"max_position_embeddings": None, "n_ctx": 512}, 512),
        ({}, None),
    ],
)
def test_positions_are_read_under_each_name(config: dict, positions: int | None) -> None:
    assert Base("x", Path(), config).positions == positions


# --- refused -----------------------------------------------------------------------------------


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "no such folder" in complaint(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "a/b/c", "Not A Base!"])
def test_a_missing_path_is_not_taken_for_a_hub_id(name: str) -> None:
    assert "no such folder" in complaint(name)


def test_a_file_is_refused(tiny_base: Path) -> None:
    message = complaint(tiny_base / WEIGHTS)
    assert "a file; give the folder that holds config.json, or a GGUF file" in message


@pytest.mark.parametrize("name", [*NAMED, "models/tiny.gguf", "tiny.GGUF", "runs/x"])
def test_names_and_files_are_no_hub_ids(name: str) -> None:
    assert not is_on_hub(name)
    assert is_on_hub("models/tiny-GGUF")


def test_a_folder_without_config_is_refused(copy: Path) -> None:
    (copy / "config.json").unlink()
    assert "holds no config.json" in complaint(copy)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"5", b"null", b'"gpt_neo"', b"\xff\xfe", b'{"model_type": []}']
)
def test_a_damaged_config_is_refused(copy: Path, content: bytes) -> None:
    (copy / "config.json").write_bytes(content)
    assert f"base {copy}: " in complaint(copy)


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / WEIGHTS).rename(copy / "pytorch_model.bin")
    message = complaint(copy)
    assert "only pickled weights (pytorch_model.bin)" in message
    assert "safetensors" in message


def test_a_folder_without_weights_is_refused(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    assert "holds no *.safetensors weights" in complaint(copy)


def test_a_base_that_wants_its_own_code_is_refused(copy: Path) -> None:
    ran = copy / "ran"
    (copy / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    auto_map = {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
    write_config(copy, model_type="own_model", auto_map=auto_map)
    message = complaint(copy)
    assert "wants to run code of its own" in message
    assert "'own_model'" in message
    assert not ran.exists()


def test_an_unknown_model_type_is_refused(copy: Path) -> None:
    write_config(copy, model_type="gpt_neoo")
    message = complaint(copy)
    assert "the installed transformers does not know its model_type 'gpt_neoo'" in message
    assert "code of its own" not in message


def test_code_of_a_known_model_type_is_not_run(copy: Path) -> None:
    ran = copy / "ran"
    (copy / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    write_config(copy, auto_map={"AutoModelForCausalLM": "modeling_own.Model"})
    load_base(find_base(str(copy)), CPU)
    assert not ran.exists()


def test_without_a_network_the_error_says_how_to_get_the_base(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = complaint("some-org/some-model-not-here")
    for remedy in ("hf download some-org/some-model-not-here", "folder", "--base starter"):
        assert remedy in message


@pytest.mark.parametrize("name", ["runs/nothing-here", "runs/org/none"])
def test_a_missing_run_is_not_looked_up_on_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chattune.hub.fetch", refuse_to_download)
    assert complaint(name) == f"base {name}: no such folder; check the path"


@pytest.mark.parametrize("error", [HubNotFound("404"), HubUnreachable("offline")])
def test_a_missing_folder_beside_others_is_called_so(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name may be that of a Hub model all the same, so the Hub is asked first."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("chattune.hub.fetch", fail)
    monkeypatch.chdir(tmp_path)
    assert "no such folder" in complaint("outputs/tiny")
    (tmp_path / "outputs").mkdir()
    message = complaint("outputs/tiny")
    assert "no such folder in outputs, and not found on the Hub either; check the path" in message
    assert "hf download" not in message


def test_a_run_is_not_a_base(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "adapter_config.json").write_text("{}")
    assert "holds an adapter (adapter_config.json), not a model; merge it" in complaint(run)
    (run / "manifest.json").write_text("{}")
    message = complaint(run)
    assert "is a run, not a model" in message
    assert f"`chattune export {run} --merged FOLDER`" in message


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_named(copy: Path, name: str) -> None:
    write_lfs_pointer(copy / name)
    message = complaint(copy)
    assert f"base {copy}: {name} is a Git LFS pointer" in message
    assert f"run `git lfs pull` in {copy}" in message


def test_pointers_in_place_of_weights_that_are_not_needed_are_allowed(copy: Path) -> None:
    write_lfs_pointer(copy / WEIGHTS)
    (copy / "tokenizer").mkdir()  # a folder whose name begins like a tokenizer's files
    assert find_base(str(copy), weights=False).positions == 128


def refuse_to_download(*_: object) -> None:
    raise AssertionError("the Hub was asked")


def write_lfs_pointer(path: Path) -> None:
    path.write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 495000000\n"
    )


def write_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes))


# --- loaded ------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 4, 5000])
def test_truncated_weights_are_refused_when_loaded(copy: Path, keep: int) -> None:
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:keep])
    with pytest.raises(BaseError, match="its weights cannot be loaded"):
        load_base(find_base(str(copy)), CPU)


def test_weights_of_another_shape_are_refused_when_loaded(copy: Path) -> None:
    write_config(copy, hidden_size=64)
    with pytest.raises(BaseError, match="its weights cannot be loaded"):
        load_base(find_base(str(copy)), CPU)


def test_weights_that_lack_a_tensor_are_refused_when_loaded(copy: Path) -> None:
    """transformers would fill in random numbers for the missing tensor."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / WEIGHTS)
    del tensors["transformer.h.0.mlp.c_fc.weight"]
    save_file(tensors, copy / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(BaseError, match="weights"):
        load_base(find_base(str(copy)), CPU)


@pytest.mark.parametrize("changes", [{"num_heads": 3}, {"hidden_size": "wide"}])
def test_a_config_that_transformers_refuses_is_refused(copy: Path, changes: dict) -> None:
    write_config(copy, **changes)
    with pytest.raises(BaseError, match=r"its config.json cannot be used \(.*\); save or download"):
        shape_of(find_base(str(copy)))


# --- tokenizer ---------------------------------------------------------------------------------


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused(copy: Path) -> None:
    write_config(copy, vocab_size=200)
    message = refused_tokenizer(copy)
    assert "its tokenizer has ids up to 8191 (" in message
    assert f"base {copy} has only 200 rows of embeddings" in message
    assert "resize_token_embeddings(8192)" in message


def test_added_tokens_count(copy: Path) -> None:
    add_tokens(copy, additional_special_tokens=["<|end of turn|>"])
    assert "ids up to 8192 ('<|end of turn|>')" in refused_tokenizer(copy)
    write_config(copy, vocab_size=8193)
    load_template(find_base(str(copy)))


def test_a_padding_token_needs_no_row(copy: Path) -> None:
    """chattune never pads, and many models have such a token."""
    add_tokens(copy, pad_token="[PAD]")
    load_template(find_base(str(copy)))
    add_tokens(copy, pad_token="[PAD]", eos_token="[PAD]")
    assert "('[PAD]')" in refused_tokenizer(copy)


def test_the_size_of_the_vocabulary_may_be_transformers_default(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text("utf-8"))
    del config["vocab_size"]
    (copy / "config.json").write_text(json.dumps(config))
    assert load_template(find_base(str(copy))).end_ids == {0}


def test_the_tokenizer_of_a_run_is_compared_too(tiny_base: Path, copy: Path) -> None:
    add_tokens(copy, additional_special_tokens=["<|end of turn|>"])
    with pytest.raises(BaseError, match=rf"{copy}: its tokenizer .* but base {tiny_base} has only"):
        load_template(find_base(str(tiny_base)), copy)


def refused_tokenizer(folder: Path) -> str:
    with pytest.raises(BaseError) as caught:
        load_template(find_base(str(folder)))
    return str(caught.value)


def add_tokens(folder: Path, **special_tokens: object) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(special_tokens)
    tokenizer.save_pretrained(folder)


# --- fingerprint -------------------------------------------------------------------------------


def test_the_fingerprint_does_not_depend_on_the_folder(tiny_base: Path, copy: Path) -> None:
    assert find_base(str(copy)).fingerprint() == find_base(str(tiny_base)).fingerprint()


@pytest.mark.parametrize("at", [-1, 100], ids=["last byte", "header"])
def test_the_fingerprint_changes_with_the_weights(copy: Path, at: int) -> None:
    before = find_base(str(copy)).fingerprint()
    content = bytearray((copy / WEIGHTS).read_bytes())
    content[at] ^= 1
    (copy / WEIGHTS).write_bytes(content)
    assert find_base(str(copy)).fingerprint() != before


def test_the_fingerprint_changes_with_the_config(copy: Path) -> None:
    before = find_base(str(copy)).fingerprint()
    write_config(copy, window_size=8)
    assert find_base(str(copy)).fingerprint() != before
