"""Loading a base, alone or with a run's adapter."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chattune.base import (
    DEFAULT_POSITIONS,
    NAMED,
    Base,
    find_base,
    load_template,
    model_config,
    unusable_config,
)
from chattune.device import Device
from chattune.errors import BaseError, RunError, first_line
from chattune.run import Run, is_run
from chattune.template import Template

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = [
    "Loaded",
    "base_of",
    "find",
    "load",
    "load_adapted",
    "load_base",
    "positions",
    "shape_of",
]


@dataclass(frozen=True)
class Loaded:
    """A model ready to write replies, with the template it was tuned on.

    `positions` is the number of tokens that prompt and reply may have together.
    """

    name: str
    model: "PreTrainedModel | PeftModel"
    template: Template
    positions: int


def find(run_or_model: str | Path, *, base: str | None = None) -> tuple[Base, Run | None]:
    """Find a finished run and its base, or a base alone by any of its names, as `find_base` does.

    `base` is the place of a run's base; without it `base_of` looks where the run knows of it.
    Raises RunError or BaseError for what is missing, damaged or refused, and RunError if `base` is
    given for anything but a run.
    """
    name = str(run_or_model)
    if name not in NAMED and is_run(name):
        run = Run.open(name)
        return base_of(run, base), run
    if base is not None:
        raise RunError(
            f"--base {base}: {name} is not a run folder, and --base is the place of the model "
            "that a run was tuned on; leave --base out, or check the path of the run"
        )
    return find_base(name), None


def base_of(run: Run, place: str | None = None) -> Base:
    """Find the base that a run was tuned on, by the fingerprint in run.json.

    It is looked up at `place`, or without one where the recipe names it, relative to the current
    folder, and then where it was when the run was tuned. The run need not be finished. Raises
    RunError that tells for each place why it does not hold that base.
    """
    expected = run.facts["base"]["fingerprint"]
    problems = []
    for candidate in [place] if place is not None else _known_places(run):
        try:
            base = find_base(candidate)
        except BaseError as error:
            problems.append(str(error))
            continue
        if base.fingerprint() == expected:
            return base
        problems.append(f"base {candidate}: holds other weights, or another config.json")
    origin = run.facts["base"].get("origin", "folder")
    raise RunError(
        f"run {run.folder}: the base that it was tuned on ({origin}) was not found "
        f"({'; '.join(problems)}); give that base's folder or Hub id with --base"
    )


def load(run_or_model: str | Path, device: Device, *, base: str | None = None) -> Loaded:
    """Load a run or a model, looked up by `find`, as transformers modules in fp32.

    Raises what `find`, `load_template`, `load_adapted` and `load_base` raise.
    """
    base_model, run = find(run_or_model, base=base)
    template = load_template(base_model, run.folder if run else None)
    model = load_adapted(run.folder, base_model, device) if run else load_base(base_model, device)
    return Loaded(str(run_or_model), model, template, positions(base_model))


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
    """Return the base's modules without weights, on PyTorch's meta device.

    Raises BaseError for a config.json with values that transformers refuses.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = model_config(base)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # each model family raises its own types
        raise unusable_config(base, error) from error
    return model


def positions(base: Base) -> int:
    """Return how many tokens a base can see at once, or a default if its config does not say."""
    return base.positions or DEFAULT_POSITIONS


def _known_places(run: Run) -> list[str]:
    """Return where a run's base may be: as the recipe names it, and where it was when tuned."""
    named, tuned = run.recipe.base, run.base_place
    if named not in NAMED and tuned is not None and Path(tuned).is_absolute():
        named = str(Path(named).absolute())  # a folder, even if its name looks like a Hub id
    return list(dict.fromkeys(place for place in (named, tuned) if place is not None))
