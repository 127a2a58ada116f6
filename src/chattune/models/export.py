"""The export of a run as a stand-alone model: adapter merged into the base, verified, described."""

import logging
from pathlib import Path

from chattune.base import find_base, load_template
from chattune.device import find_device
from chattune.errors import VerificationError
from chattune.folders import atomic_folder, check_output_folder, write_bytes
from chattune.models import base_of, load_adapted, load_base
from chattune.models.card import model_card
from chattune.models.verify import TOLERANCE, logits_of, relative_difference
from chattune.run import CARD, Run

log = logging.getLogger(__name__)


def export(run_folder: str | Path, merged: str | Path, *, base: str | None = None) -> Path:
    """Write a run as a model that transformers loads without chattune; return its folder.

    The folder holds fp32 safetensors, the tokenizer with the chat template, the sampling settings
    and a model card. `base` is the place of the run's base, if it is no longer where the run knows
    of it. Raises OutputError if `merged` exists and is not an empty folder, RunError or BaseError
    if the run or its base is missing, damaged or another, and VerificationError if the merged
    model, loaded again, computes other logits than base and adapter did; then nothing is written.
    """
    from transformers import GenerationConfig

    run, target = Run.open(run_folder), Path(merged)
    check_output_folder(target, "--merged")
    tuned, device = base_of(run, base), find_device()
    template = load_template(tuned, run.folder)
    adapted = load_adapted(run.folder, tuned, device)
    ids: list[int] = run.facts["probe_ids"]
    expected = logits_of(adapted, ids)
    model = adapted.merge_and_unload()
    model.generation_config = GenerationConfig.from_pretrained(run.folder)
    with atomic_folder(target, "--merged") as folder:
        model.save_pretrained(folder)
        template.tokenizer.save_pretrained(folder)
        write_bytes(folder / CARD, model_card(run, merged=True).encode())
        saved = load_base(find_base(str(folder)), device)
        difference = relative_difference(expected, logits_of(saved, ids))
        if not difference <= TOLERANCE:  # also true of NaN
            raise VerificationError(
                f"merged model: its logits differ by {difference:.2g} of the largest from the "
                f"adapter's (at most {TOLERANCE:g} is allowed); nothing was written"
            )
    log.info("the merged model's logits differ from the adapter's by %.1g", difference)
    return target
