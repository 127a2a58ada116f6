"""A run as a stand-alone model: the adapter folded into the base's weights, checked, described."""

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from chattune.base import find_base
from chattune.device import find_device
from chattune.errors import RunError, VerificationError
from chattune.models import load_adapted, load_base
from chattune.models.card import model_card
from chattune.models.verify import TOLERANCE, logits_of, relative_difference
from chattune.run import CARD, Run
from chattune.template import Template

log = logging.getLogger(__name__)


def export(run_folder: str | Path, merged: str | Path) -> Path:
    """Write the run as a model that transformers loads without chattune.

    Weights are fp32 safetensors; the tokenizer carries the chat template; a model card comes with
    them. Raises RunError for a target that is not an empty folder, VerificationError if the merged
    model, loaded again, computes other logits than base and adapter (1e-5 of the largest).
    """
    from transformers import GenerationConfig

    run, target = Run.open(run_folder), Path(merged)
    refuse_target(target)
    base, device = find_base(run.recipe.base), find_device()
    template = Template.load(run.folder)
    model = load_adapted(run.folder, base, device)
    ids: list[int] = run.facts["probe_ids"]
    expected = logits_of(model, ids)
    whole = model.merge_and_unload()
    whole.generation_config = GenerationConfig.from_pretrained(run.folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    except OSError as error:
        raise RunError(f"--merged {target}: cannot be written to ({error.strerror})") from error
    try:
        whole.save_pretrained(aside)
        template.tokenizer.save_pretrained(aside)
        (aside / CARD).write_text(model_card(run, merged=True), "utf-8")
        difference = _difference(aside, ids, expected)
        if not difference <= TOLERANCE:
            raise VerificationError(
                f"merged model: its logits differ by {difference:.2g} of their size from the "
                f"adapter's (at most {TOLERANCE:g} is allowed); nothing was written"
            )
        aside.chmod(0o755)
        if target.exists():
            target.rmdir()
        aside.replace(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    log.info("logits equal the adapter's to %.1g of their size", difference)
    return target


def refuse_target(target: Path) -> None:
    """Raise RunError unless the target is absent or an empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunError(f"--merged {target}: exists and is not an empty folder; choose another")


def _difference(folder: Path, ids: list[int], expected: Any) -> float:
    model = load_base(find_base(str(folder)), find_device())
    return relative_difference(expected, logits_of(model, ids))
