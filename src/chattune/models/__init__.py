"""Loading a base, alone or with a run's adapter."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chattune.base import DEFAULT_POSITIONS, STARTER, Base, find_base
from chattune.device import Device
from chattune.errors import BaseError, RunError, first_line
from chattune.run import Run, is_run
from chattune.template import Template

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["Loaded", "find", "load", "load_adapted", "load_base", "positions", "shape_of"]


@dataclass(frozen=True)
class Loaded:
    """A model ready to write replies, with the template it was tuned on.

    `positions` is the number of tokens that prompt and reply may have together.
    """

    name: str
    model: "PreTrainedModel | PeftModel"
    template: Template
    positions: int


def find(run_or_model: str | Path) -> tuple[Base, Run | None]:
    """Find a finished run and its base, or a base alone by its folder, Hub id or `starter`.

    Raises RunError or BaseError for what is missing, damaged or refused.
    """
    name = str(run_or_model)
    if name == STARTER or not is_run(name):
        return find_base(name), None
    run = Run.open(name)
    base = find_base(run.recipe.base)
    _refuse_other_base(run, base)
    return base, run


def load(run_or_model: str | Path, device: Device) -> Loaded:
    """Load a run or a model, looked up by `find`, as transformers modules in fp32.

    Raises what `find`, `load_adapted` and `load_base` raise.
    """
    base, run = find(run_or_model)
    model = load_adapted(run.folder, base, device) if run else load_base(base, device)
    template = Template.load(run.folder if run else base.folder)
    return Loaded(str(run_or_model), model, template, positions(base))


def load_base(base: Base, device: Device, dtype: "torch.dtype | None" = None) -> "PreTrainedModel":
    """Load a base onto the device, in evaluation mode, in fp32 or the given dtype.

    Raises BaseError if its weights cannot be read or do not fill the architecture.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()  # a failure is raised as an error, which is enough
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            base.folder,
            dtype=dtype or torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # safetensors and transformers raise many kinds
        raise BaseError(
            f"base {base.name}: its weights cannot be loaded ({first_line(error)}); "
            "save or download them again"
        ) from error
    # transformers would initialise these at random, with no more than a warning.
    if absent := sorted({*loaded["missing_keys"], *map(str, loaded["mismatched_keys"])}):
        raise BaseError(
            f"base {base.name}: its weights lack {len(absent)} tensors, such as {absent[0]}; "
            "save or download them again"
        )
    # peft and Trainer write this name into their files as the base's.
    model.name_or_path = model.config._name_or_path = base.portable_name
    on_device: PreTrainedModel = model.to(device.torch).eval()
    return on_device


def load_adapted(
    folder: Path, base: Base, device: Device, dtype: "torch.dtype | None" = None
) -> "PeftModel":
    """Load a base with the adapter that is stored in `folder`.

    Raises RunError if the adapter does not belong to this base.
    """
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(load_base(base, device, dtype), folder).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise RunError(
            f"run {folder}: its adapter does not fit {base.name} ({str(error)[:200]}); "
            "copy or tune the run again"
        ) from error


def shape_of(base: Base) -> "PreTrainedModel":
    """Return the base's modules without weights, on PyTorch's meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base.folder, trust_remote_code=False)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def positions(base: Base) -> int:
    """Return how many tokens a base can see at once, or a default if its config does not say."""
    return base.positions or DEFAULT_POSITIONS


def _refuse_other_base(run: Run, base: Base) -> None:
    expected: dict[str, Any] = run.facts["base"]
    if base.fingerprint() != expected["fingerprint"]:
        raise RunError(
            f"run {run.folder}: was tuned on other weights of {base.name} than those in "
            f"{base.folder}, on which its adapter would compute nonsense; restore those weights, "
            "or tune the run again"
        )
