"""Where a run's base is looked for, how its weights are told from others, and --base."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from chattune.base import STARTER
from chattune.device import find_device
from chattune.errors import BaseError, RunError
from chattune.generate.load import load_engine
from chattune.models import base_of, find, load
from chattune.models.card import model_card
from chattune.models.export import export
from chattune.recipe import load_recipe
from chattune.run import Run, seal
from chattune.tuning import plan

Door = Callable[..., Any]


def find_only(run: Path, **options: Any) -> Any:
    return find(run, **options)


def load_modules(run: Path, **options: Any) -> Any:
    return load(run, find_device(), **options)


def load_to_chat(run: Path, **options: Any) -> Any:
    return load_engine(run, **options)


def export_beside(run: Path, **options: Any) -> Any:
    return export(run, run.parent / "merged", **options)


every_door = pytest.mark.parametrize(
    "door", [find_only, load_modules, load_to_chat, export_beside], ids=lambda door: door.__name__
)


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny base that a test may move or change."""
    return Path(shutil.copytree(tiny_base, tmp_path / "bases" / "tiny"))


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("chattune.hub.fetch", refuse)


def run_on(run: Run, folder: Path, named: str | Path, tuned: str | Path | None) -> Run:
    """Copy a run as if its recipe had named its base `named`, and it had been found at `tuned`."""
    shutil.copytree(run.folder, folder)
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(run.recipe.base, str(named)))
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = tuned and str(tuned)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    copy = seal(folder)
    assert copy.recipe.base == str(named)
    return copy


def change_weights(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    weights = {name: tensor * 1.5 for name, tensor in weights.items()}
    save_file(weights, base / "model.safetensors", {"format": "pt"})


@every_door
def test_other_weights_are_refused(door: Door, tiny_run: Run, base: Path, tmp_path: Path) -> None:
    run = run_on(tiny_run, tmp_path / "run", base, base)
    change_weights(base)
    with pytest.raises(RunError, match=rf"{base}: holds other weights.*with --base"):
        door(run.folder)
    assert not (tmp_path / "merged").exists()


@every_door
@pytest.mark.parametrize("name", ["tiny", "bases/tiny"])
def test_a_base_named_by_a_relative_path_is_found_from_elsewhere(
    name: str, door: Door, tiny_run: Run, base: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Both names look like a Hub id where no such folder is."""
    run = run_on(tiny_run, tmp_path / "run", name, base)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    door(run.folder)


def test_a_folder_of_the_same_name_with_other_weights_is_passed_over(
    tiny_run: Run, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_on(tiny_run, tmp_path / "run", "tiny", base)
    other = tmp_path / "elsewhere" / "tiny"
    shutil.copytree(base, other)
    monkeypatch.chdir(other.parent)
    assert find(run.folder)[0].folder == other
    change_weights(other)
    assert find(run.folder)[0].folder == base
    (other / "config.json").write_text("{")
    assert find(run.folder)[0].folder == base


def test_a_base_that_moved_with_its_run_is_found_from_the_same_place(
    tiny_run: Run, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_on(tiny_run, tmp_path / "run", "bases/tiny", "/gone/bases/tiny")
    monkeypatch.chdir(tmp_path)
    assert find(run.folder)[0].folder == base


@every_door
def test_a_base_that_moved_is_given_by_its_place(
    door: Door, tiny_run: Run, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_on(tiny_run, tmp_path / "run", "tiny", "/gone/tiny")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError) as caught:
        door(run.folder)
    message = str(caught.value)
    assert f"base {tmp_path / 'tiny'}: no such folder" in message
    assert "base /gone/tiny: no such folder" in message
    assert message.endswith("give that base's folder or Hub id with --base")
    door(run.folder, base="bases/tiny")


@pytest.mark.parametrize("place", [None, "bases/tiny"])
def test_why_a_place_does_not_hold_the_base_is_said(
    place: str | None, tiny_run: Run, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_on(tiny_run, tmp_path / "run", base, None)
    monkeypatch.chdir(tmp_path)
    (base / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(RunError, match=r"tiny: model.safetensors is a Git LFS .*`git lfs pull`"):
        find(run.folder, base=place)


def test_a_place_that_is_given_must_hold_the_base_of_the_run(
    tiny_run: Run, base: Path, tmp_path: Path
) -> None:
    change_weights(base)
    with pytest.raises(RunError, match=f"{base}: holds other weights"):
        find(tiny_run.folder, base=str(base))
    with pytest.raises(RunError, match=rf"{STARTER}: holds other weights"):
        find(tiny_run.folder, base=STARTER)
    with pytest.raises(RunError, match=f"{tiny_run.folder}: is a run, not a model"):
        find(tiny_run.folder, base=str(tiny_run.folder))


@pytest.mark.parametrize("name", [STARTER, "tiny", "nowhere", "runs/nowhere"])
@pytest.mark.parametrize("door", [find_only, load_modules, load_to_chat])
def test_a_base_is_refused_for_what_is_not_a_run(
    name: str, door: Door, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    with pytest.raises(
        RunError, match=f"--base tiny: {name} is not a run folder.*leave --base out"
    ):
        door(Path(name), base="tiny")


def test_an_unfinished_run_has_a_base_too(tiny_run: Run, base: Path, tmp_path: Path) -> None:
    """It has no adapter yet, so only the recipe names the place of its base."""
    run = run_on(tiny_run, tmp_path / "run", base, base)
    for name in ("manifest.json", "adapter_config.json", "adapter_model.safetensors"):
        (run.folder / name).unlink()
    assert base_of(run).folder == base
    assert base_of(run, str(base)).folder == base


@pytest.mark.parametrize(
    ("named", "tuned", "metadata"),
    [
        ("org/model", "org/model", "base_model: org/model\n"),
        ("models/mine", "/gone/models/mine", None),
    ],
)
def test_the_card_names_a_base_on_the_hub_and_no_folder_as_its_base(
    named: str, tuned: str, metadata: str | None, tiny_run: Run, tmp_path: Path
) -> None:
    card = model_card(run_on(tiny_run, tmp_path / "run", named, tuned))
    assert f"`{named}`" in card
    assert (metadata in card) if metadata else ("base_model" not in card)


# --- sizes -------------------------------------------------------------------------------------


def plan_to_tune(base: Path) -> Any:
    changes = {"base": str(base), "data.max_length": 64, "training.steps": 1}
    return plan(load_recipe("starter", changes))


@pytest.mark.parametrize("door", [load_modules, load_to_chat, plan_to_tune])
def test_a_tokenizer_too_large_for_the_model_is_refused(
    door: Door, tiny_base: Path, tmp_path: Path
) -> None:
    """The model would take some conversations, and end with an index error after others."""
    from transformers import AutoTokenizer, GPTNeoConfig, GPTNeoForCausalLM

    small = tmp_path / "small"
    config = GPTNeoConfig.from_pretrained(tiny_base)
    config.vocab_size = 100
    GPTNeoForCausalLM(config).save_pretrained(small)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(small)
    with pytest.raises(BaseError, match=r"ids up to 8191 \(.*has only 100 rows of embeddings"):
        door(small)
