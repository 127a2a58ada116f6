"""load_engine(): the fastest engine for a run or a model on this machine, or the one asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from chattune.base import Base, load_template
from chattune.device import Device, find_device
from chattune.errors import ChatError
from chattune.families import WINGS, find_wing
from chattune.generate import Decoding, Engine
from chattune.kernels import numba_problem
from chattune.models import find, load_adapted, load_base, positions
from chattune.run import Run
from chattune.template import Template
from chattune.weights import Precision

EngineName = Literal["auto", "fast", "reference"]
Quantize = Literal["auto", "none", "int8"]
_SLOTS = 8  # replies that the fast engine decodes together


@dataclass(frozen=True)
class LoadedEngine:
    """An engine, with the template that its model was tuned on.

    `positions` is the number of tokens that prompt and reply may have together, `kind` describes
    the engine to people, and `decoding` is what the run or the model recommends.
    """

    engine: Engine
    template: Template
    positions: int
    kind: str
    decoding: Decoding


def load_engine(
    run_or_model: str | Path,
    *,
    engine: str = "auto",
    quantize: str = "auto",
    base: str | None = None,
) -> LoadedEngine:
    """Load a run folder, a model folder, a Hub id or `starter`.

    `engine` "auto" is "fast" where that engine can run (on a CPU, with Numba, for a family that has
    a decoder), else "reference", which is transformers' own modules. `quantize` "auto" is int8 for
    the fast engine and none (fp32) for the reference engine. With "none" the fast engine's weights
    are in bf16 where the machine multiplies that fast, else in fp32. `base` is the place of a run's
    base, if it is no longer where the run knows of it. Raises ChatError for a choice that cannot be
    had, and what `find` and `load_template` raise.
    """
    _refuse_unknown("engine", engine, get_args(EngineName))
    _refuse_unknown("quantize", quantize, get_args(Quantize))
    base_model, run = find(run_or_model, base=base)
    device = find_device()
    problem = fast_engine_problem(base_model, device)
    if engine == "fast" and problem:
        raise ChatError(f"engine fast: {problem}; use reference, or auto")
    if quantize == "int8" and (why := _int8_problem(device)):
        raise ChatError(f"quantize int8: {why}")
    folder = run.folder if run else base_model.folder
    template, decoding = load_template(base_model, folder), Decoding.of(folder)
    if engine == "reference" or problem:
        precision: Precision = "int8" if quantize == "int8" else "fp32"
        chosen = _reference(base_model, run, device, precision, template)
        kind = f"reference, {precision}"
    else:
        unrounded: Precision = "bf16" if device.bf16 else "fp32"
        precision = unrounded if quantize == "none" else "int8"
        run_folder = run.folder if run else None
        chosen = fast_engine(base_model, run_folder, device, template, precision)
        kind = f"fast, {precision}"
    return LoadedEngine(chosen, template, positions(base_model), kind, decoding)


def fast_engine_problem(base: Base, device: Device) -> str | None:
    """Return why the fast engine cannot answer with a base on this machine, or None if it can."""
    model_type = base.config["model_type"]
    wing = find_wing(model_type)
    if wing is None:
        return f"it is for {', '.join(WINGS)}, and {base.name} is {model_type}"
    if why := wing.decoding_problem(base):
        return f"it cannot compute {base.name}: {why}"
    if device.kind != "cpu":
        return f"it runs on a CPU, and this machine has a {device.kind} device"
    return _numba_missing()


def fast_engine(
    base: Base,
    run_folder: Path | None,
    device: Device,
    template: Template,
    precision: Precision = "int8",
) -> Engine:
    """Load a base for the fast engine, with the adapter in `run_folder` merged if one is given.

    The caller has made sure that there is no `fast_engine_problem`.
    """
    from chattune.generate.fast import FastEngine

    wing = find_wing(base.config["model_type"])
    assert wing is not None  # else there is a problem
    decoder = wing.load_decoder(base, run_folder, precision, slots=_SLOTS, bf16=device.bf16)
    return FastEngine(decoder, template.end_ids)


def _reference(
    base: Base, run: Run | None, device: Device, precision: Precision, template: Template
) -> Engine:
    from chattune.generate.reference import ReferenceEngine

    model = load_adapted(run.folder, base, device) if run else load_base(base, device)
    if precision == "int8":
        from chattune.generate.int8_linear import to_int8_linear

        model = to_int8_linear(model, bf16=device.bf16)
    return ReferenceEngine(model, template.end_ids)


def _int8_problem(device: Device) -> str | None:
    if device.kind != "cpu":
        return f"it is for CPUs, and this machine has a {device.kind} device"
    return _numba_missing()


def _numba_missing() -> str | None:
    problem = numba_problem()
    return problem and f"it needs Numba, which cannot be used here ({problem})"


def _refuse_unknown(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ChatError(f"{name}: no such choice {value!r}; there are {', '.join(known)}")
