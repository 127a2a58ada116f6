"""The proof after a save: a fresh process loads the run and must compute the same logits.

That process is `python -m chattune.models.verify RUN PROBE`.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from chattune.device import find_device
from chattune.errors import VerificationError
from chattune.models import base_of, load_adapted
from chattune.run import ADAPTER_WEIGHTS, Run

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TOLERANCE = 1e-5  # the largest allowed difference between logits, relative to the largest logit


def logits_of(model: "PreTrainedModel", ids: list[int]) -> "torch.Tensor":
    """Return the logits of one prompt, (tokens, vocabulary), in fp32 on the CPU.

    They are computed in fp32 whatever dtype the model's weights have, because results in bf16
    depend on kernels and on the number of threads.
    """
    import torch

    from chattune.models.full_precision import FullPrecision

    model.eval()
    with torch.no_grad(), FullPrecision():
        logits: torch.Tensor = model(torch.tensor([ids], device=model.device)).logits[0]
    return logits.float().cpu()


def relative_difference(a: "torch.Tensor", b: "torch.Tensor") -> float:
    """Return the largest difference between two tensors, divided by the largest value of `a`."""
    return float((a - b).abs().max() / a.abs().max())


def verify_run(
    folder: Path, ids: list[int], in_memory: "torch.Tensor", base_dtype: "torch.dtype"
) -> float:
    """Load a saved run in a fresh process and return the relative difference of its logits.

    `in_memory` are the trained model's logits for `ids`. `base_dtype` is the dtype that the base's
    weights have in training; from these weights both sides compute in fp32. Raises
    VerificationError if `check_adapter` does, if the run cannot be loaded, or if the difference is
    above TOLERANCE.
    """
    import torch
    from safetensors.torch import save_file

    check_adapter(folder)
    with tempfile.TemporaryDirectory() as temporary:
        probe = Path(temporary) / "probe.safetensors"
        tensors = {
            "ids": torch.tensor(ids),
            "logits": in_memory.contiguous(),
            "base_dtype": torch.empty(0, dtype=base_dtype),
        }
        save_file(tensors, probe)
        process = subprocess.run(
            [sys.executable, "-m", "chattune.models.verify", str(folder), str(probe)],
            capture_output=True,
            text=True,
            check=False,
        )
    if process.returncode != 0:
        raise VerificationError(f"run {folder}: cannot be loaded again:\n{process.stderr[-2000:]}")
    difference = float(json.loads(process.stdout)["difference"])
    if not difference <= TOLERANCE:  # also true of NaN
        raise VerificationError(
            f"run {folder}: after loading it again its logits differ by {difference:.2g} of the "
            f"largest from those in memory (at most {TOLERANCE:g} is allowed)"
        )
    return difference


def check_adapter(folder: Path) -> None:
    """Raise VerificationError unless the saved adapter has trained, finite A and B in pairs.

    B starts as zero, so one that still is has learned nothing.
    """
    from safetensors.torch import load_file

    tensors = load_file(folder / ADAPTER_WEIGHTS)
    expected = {name.replace("lora_B", "lora_A") for name in tensors if "lora_B" in name}
    if not expected or expected != {name for name in tensors if "lora_A" in name}:
        raise VerificationError(
            f"run {folder}: {ADAPTER_WEIGHTS} has lost some of its A or B matrices"
        )
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise VerificationError(
                f"run {folder}: {name} is not finite, so training diverged; lower "
                "training.learning_rate"
            )
        if "lora_B" in name and not tensor.any():
            raise VerificationError(f"run {folder}: {name} is zero; training did not reach it")


def main(run_folder: str, probe_file: str) -> None:
    """Load a run as any user would, and print the difference of its logits from the probe's."""
    from safetensors.torch import load_file

    probe = load_file(probe_file)
    folder, dtype = Path(run_folder), probe["base_dtype"].dtype
    model = load_adapted(folder, base_of(Run(folder)), find_device(), dtype)
    logits = logits_of(model, probe["ids"].tolist())
    sys.stdout.write(json.dumps({"difference": relative_difference(probe["logits"], logits)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
