"""The export of a run as a stand-alone model: adapter merged into the base, verified, described."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chattune.base import Base, find_base, load_template
from chattune.device import find_device
from chattune.errors import UserError, VerificationError
from chattune.folders import atomic_folder, check_output_folder, write_bytes
from chattune.models import base_of, load_adapted, load_base, shape_of
from chattune.models.card import model_card
from chattune.models.verify import TOLERANCE, logits_of, relative_difference
from chattune.run import CARD, Run
from chattune.template import Template

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportPlan:
    """An export that was checked as far as that is possible without the weights."""

    run: Run
    base: Base
    template: Template
    merged: Path | None
    gguf: Path | None
    quantization: str

    def sizes(self) -> dict[Path, int]:
        """Return the number of bytes that the weights take in each output."""
        model, sizes = shape_of(self.base), {}
        if self.merged:
            sizes[self.merged] = 4 * sum(p.numel() for p in model.parameters())
        if self.gguf:
            from chattune.models.gguf_export import gguf_bytes

            sizes[self.gguf] = gguf_bytes(model, self.quantization)
        return sizes


def plan_export(
    run_folder: str | Path,
    merged: str | Path | None = None,
    *,
    gguf: str | Path | None = None,
    quantize: str | None = None,
    base: str | None = None,
) -> ExportPlan:
    """Check what `export` needs, and raise its errors, without loading the weights."""
    if merged is None and gguf is None:
        raise UserError("--merged, --gguf: neither is given; name a folder, a file, or both")
    if gguf is None and quantize is not None:
        raise UserError(f"--quantize {quantize}: is for --gguf, which is not given; leave it out")
    folder = None if merged is None else Path(merged)
    file = None if gguf is None else Path(gguf)
    if folder and folder == file:
        raise UserError(f"--gguf {gguf}: is the folder of --merged too; choose another name")
    run = Run.open(run_folder)
    if folder:
        check_output_folder(folder, "--merged")
    if file:
        from chattune.models.gguf_export import check_new_file

        check_new_file(file)
    tuned = base_of(run, base)
    template = load_template(tuned, run.folder)
    if file:
        from chattune.models.gguf_export import check_gguf

        check_gguf(tuned, template, quantize or "q8_0")
    return ExportPlan(run, tuned, template, folder, file, quantize or "q8_0")


def export(
    run_folder: str | Path,
    merged: str | Path | None = None,
    *,
    gguf: str | Path | None = None,
    quantize: str | None = None,
    base: str | None = None,
) -> list[Path]:
    """Write a run as a model that needs no chattune; return the folder, the file, or both.

    The folder `merged` holds fp32 safetensors, the tokenizer with the chat template, the sampling
    settings and a model card, for transformers. The file `gguf` is for llama.cpp, Ollama and LM
    Studio; its matrices are in `quantize`, which is "q8_0" (the default) or "f16". `base` is the
    place of the run's base, if it is no longer where the run knows of it.

    Raises UserError if neither is given; OutputError if `merged` exists and is not an empty folder
    or `gguf` exists; RunError or BaseError if the run or its base is missing, damaged or another,
    or cannot be expressed in GGUF; and VerificationError if what was written does not compute what
    base and adapter do. An output that raised an error is not written.
    """
    plan = plan_export(run_folder, merged, gguf=gguf, quantize=quantize, base=base)
    ids: list[int] = plan.run.facts["probe_ids"]
    adapted = load_adapted(plan.run.folder, plan.base, find_device())
    expected = logits_of(adapted, ids)
    model: PreTrainedModel = adapted.merge_and_unload()
    _verify("merged model", model, ids, expected)
    if plan.merged:
        _write_folder(plan, model, plan.merged, ids, expected)
    if plan.gguf:
        from chattune.models.gguf_export import write_gguf

        write_gguf(model, plan.run, plan.template, plan.base, plan.gguf, plan.quantization)
    return [path for path in (plan.merged, plan.gguf) if path]


def _write_folder(
    plan: ExportPlan,
    model: "PreTrainedModel",
    target: Path,
    ids: list[int],
    expected: "torch.Tensor",
) -> None:
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig.from_pretrained(plan.run.folder)
    with atomic_folder(target, "--merged") as folder:
        model.save_pretrained(folder)
        plan.template.tokenizer.save_pretrained(folder)
        write_bytes(folder / CARD, model_card(plan.run, merged=True).encode())
        saved = load_base(find_base(str(folder)), find_device())
        difference = _verify("saved model", saved, ids, expected)
    log.info("the merged model's logits differ from the adapter's by %.1g", difference)


def _verify(name: str, model: "PreTrainedModel", ids: list[int], expected: "torch.Tensor") -> float:
    """Return the relative difference of a model's logits from those of base and adapter.

    Raises VerificationError if it is above TOLERANCE.
    """
    difference = relative_difference(expected, logits_of(model, ids))
    if not difference <= TOLERANCE:  # also true of NaN
        raise VerificationError(
            f"{name}: its logits differ by {difference:.2g} of the largest from the adapter's "
            f"(at most {TOLERANCE:g} is allowed); nothing was written"
        )
    return difference
