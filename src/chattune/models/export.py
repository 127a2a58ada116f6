"""A run as a stand-alone model: the adapter folded into the base's weights, checked, described."""

import logging
from pathlib import Path
from typing import Any

from chattune.base import find_base
from chattune.device import find_device
from chattune.errors import VerificationError
from chattune.folders import refuse_in_use, whole_folder, write_bytes
from chattune.models import load_adapted, load_base
from chattune.models.card import model_card
from chattune.models.verify import TOLERANCE, logits_of, relative_difference
from chattune.run import CARD, Run
from chattune.template import Template

log = logging.getLogger(__name__)


def export(run_folder: str | Path, merged: str | Path) -> Path:
    """Write the run as a model that transformers loads without chattune.

    Weights are fp32 safetensors; the tokenizer carries the chat template; a model card comes with
    them. Raises OutputError for a target that is not an empty folder, VerificationError if the
    merged model, loaded again, computes other logits than base and adapter (1e-5 of the largest).
    """
    from transformers import GenerationConfig

    run, target = Run.open(run_folder), Path(merged)
    refuse_in_use(target, "--merged")
    base, device = find_base(run.recipe.base), find_device()
    template = Template.load(run.folder)
    model = load_adapted(run.folder, base, device)
    ids: list[int] = run.facts["probe_ids"]
    expected = logits_of(model, ids)
    whole = model.merge_and_unload()
    whole.generation_config = GenerationConfig.from_pretrained(run.folder)
    with whole_folder(target, "--merged") as aside:
        whole.save_pretrained(aside)
        template.tokenizer.save_pretrained(aside)
        write_bytes(aside / CARD, model_card(run, merged=True).encode())
        difference = _difference(aside, ids, expected)
        if not difference <= TOLERANCE:
            raise VerificationError(
                f"merged model: its logits differ by {difference:.2g} of their size from the "
                f"adapter's (at most {TOLERANCE:g} is allowed); nothing was written"
            )
    log.info("logits equal the adapter's to %.1g of their size", difference)
    return target


def _difference(folder: Path, ids: list[int], expected: Any) -> float:
    model = load_base(find_base(str(folder)), find_device())
    return relative_difference(expected, logits_of(model, ids))
