"""The export of a run, its model card, and the verification after a save."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chattune.errors import OutputError, VerificationError
from chattune.models.card import model_card
from chattune.models.export import export
from chattune.models.verify import check_adapter, logits_of, verify_run
from chattune.run import Run
from conftest import TALK


@pytest.fixture
def run(tiny_run: Run) -> Run:
    return tiny_run


def test_the_merged_model_needs_no_chattune(run: Run, tmp_path: Path) -> None:
    """A process that cannot import chattune loads the model, renders a prompt and generates."""
    export(run.folder, tmp_path / "merged")
    script = """
import json, sys
sys.modules["chattune"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": "What is your name?"}],
    add_generation_prompt=True, return_tensors="pt", return_dict=True)
out = model.generate(**inputs, max_new_tokens=5)
print(json.dumps([inputs["input_ids"][0].tolist(), model(**inputs).logits[0, -1].tolist()]))
"""
    process = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "merged")],
        capture_output=True,
        text=True,
        check=True,
    )
    ids, logits = json.loads(process.stdout)
    from chattune.conversation import Message
    from chattune.device import find_device
    from chattune.models import load

    loaded = load(run.folder, find_device())
    assert ids == loaded.template.prompt([Message("user", TALK[0][0])])
    expected = logits_of(loaded.model, ids)[-1]
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=0, atol=1e-5)


def test_the_card_tells_base_data_and_numbers(run: Run, tmp_path: Path) -> None:
    [folder] = export(run.folder, tmp_path / "merged")
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers")
    for part in ("| base |", "| conversations |", "validation loss", "## Limits", TALK[0][0]):
        assert part in card


def test_a_folder_in_use_is_refused_and_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="not an empty folder"):
        export(run.folder, tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]


def damaged(run: Run, folder: Path, change: float | None) -> Path:
    """Return a copy of the run whose first B matrix is multiplied by `change`, or removed."""
    shutil.copytree(run.folder, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(k for k in tensors if "lora_B" in k)
    if change is None:
        del tensors[name]
    else:
        tensors[name] = tensors[name] * change
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("change", "message"), [(None, "lost some"), (0.0, "is zero"), (float("inf"), "not finite")]
)
def test_a_spoilt_adapter_does_not_pass(
    run: Run, tmp_path: Path, change: float | None, message: str
) -> None:
    with pytest.raises(VerificationError, match=message):
        check_adapter(damaged(run, tmp_path / "copy", change))


def test_a_fresh_process_notices_other_logits(run: Run, tmp_path: Path) -> None:
    from chattune.device import find_device
    from chattune.models import load

    ids = run.facts["probe_ids"]
    in_memory = logits_of(load(run.folder, find_device()).model, ids)
    assert verify_run(run.folder, ids, in_memory, torch.float32) <= 1e-5
    with pytest.raises(VerificationError, match="its logits differ"):
        verify_run(damaged(run, tmp_path / "copy", 50.0), ids, in_memory, torch.float32)


@pytest.mark.parametrize(("validation", "questions"), [(3, "held-out"), (0, "training")])
def test_the_card_says_whether_the_questions_were_held_out(
    run: Run, tmp_path: Path, validation: int, questions: str
) -> None:
    copy = Run(Path(shutil.copytree(run.folder, tmp_path / "run")))
    facts = copy.facts
    facts["data"]["validation"] = validation
    (copy.folder / "run.json").write_text(json.dumps(facts))
    samples = model_card(copy).partition("## Samples")[2].partition("**")[0]
    assert f"The first questions of the {questions} conversations" in samples
    assert ("held" in samples.replace("held-out", "")) == (validation == 0)
