"""load_engine(): the fastest engine there is for a run or a model, or the one that is asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from chattune.base import Base
from chattune.device import Device, find_device
from chattune.errors import ChatError
from chattune.generate import Decoding, Engine
from chattune.models import find, load_adapted, load_base, positions
from chattune.models.gpt_neo_weights import Precision, read_gpt_neo
from chattune.template import Template

EngineName = Literal["auto", "fast", "reference"]
Quantize = Literal["auto", "none", "int8"]


@dataclass(frozen=True)
class LoadedEngine:
    """An engine with the template it was tuned on; `kind` says what it is, for people.

    `positions` is the number of tokens that prompt and reply may have together, `decoding` what
    the run or the model recommends.
    """

    engine: Engine
    template: Template
    positions: int
    kind: str
    decoding: Decoding


def load_engine(
    run_or_model: str | Path, *, engine: str = "auto", quantize: str = "auto"
) -> LoadedEngine:
    """Load a run folder, a model folder, a Hub id or `starter`.

    `engine` auto is fast for GPT-Neo, else reference: transformers' own modules. `quantize` auto is
    int8 for the fast engine on a CPU, else none: bf16 or fp32 for the fast engine, by the machine,
    and fp32 for the reference. Raises ChatError for a choice that cannot be had, and what `find`
    raises.
    """
    _refuse_unknown("engine", engine, get_args(EngineName))
    _refuse_unknown("quantize", quantize, get_args(Quantize))
    base, run = find(run_or_model)
    device = find_device()
    unfit = _unfit_for_fast(base, device)
    if engine == "fast" and unfit:
        raise ChatError(f"engine fast: {unfit}; use reference, or auto")
    if quantize == "int8" and device.kind != "cpu":
        raise ChatError(f"quantize int8: is for CPUs, and this machine has a {device.kind} device")
    folder = run.folder if run else base.folder
    template, decoding = Template.load(folder), Decoding.of(folder)
    if engine == "reference" or unfit:
        from chattune.generate.reference import ReferenceEngine

        model = load_adapted(run.folder, base, device) if run else load_base(base, device)
        if quantize == "int8":
            from chattune.generate.int8_linear import quantized

            model = quantized(model, bf16=device.bf16)
        kind = f"reference, {quantize if quantize == 'int8' else 'fp32'}"
        engine_: Engine = ReferenceEngine(model, template.end_ids)
        return LoadedEngine(engine_, template, positions(base), kind, decoding)

    from chattune.generate.fast import FastEngine

    precision: Precision = "bf16" if device.bf16 else "fp32"
    if quantize == "int8" or quantize == "auto":
        precision = "int8"
    weights = read_gpt_neo(base, run.folder if run else None, precision)
    fast = FastEngine(weights, template.end_ids, bf16=device.bf16)
    return LoadedEngine(fast, template, positions(base), f"fast, {precision}", decoding)


def _unfit_for_fast(base: Base, device: Device) -> str | None:
    """Why the fast engine cannot run a base here, if it cannot."""
    if base.config["model_type"] != "gpt_neo":
        return f"it is for GPT-Neo, and {base.name} is {base.config['model_type']}"
    if base.config.get("activation_function", "gelu_new") != "gelu_new":
        return f"{base.name} has another activation than GPT-Neo's"
    if device.kind != "cpu":
        return f"it runs on a CPU, and this machine has a {device.kind} device"
    return None


def _refuse_unknown(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ChatError(f"{name}: no such choice {value!r}; there are {', '.join(known)}")
