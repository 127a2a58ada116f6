"""After a save, prove it: what lies on disk is what was trained.

`python -m chattune.models.verify RUN PROBE` is the fresh process that reloads a run.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from chattune.base import find_base
from chattune.device import find_device
from chattune.errors import VerificationError
from chattune.models import load_adapted
from chattune.run import ADAPTER, read_recipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TOLERANCE = 1e-5  # largest difference between logits, relative to the largest logit


def logits_of(model: "PreTrainedModel", ids: list[int]) -> "torch.Tensor":
    """Logits in fp32 of one prompt, (tokens, vocabulary), on the CPU."""
    import torch

    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids], device=model.device)).logits[0]
    return logits.float().cpu()


def relative_difference(a: "torch.Tensor", b: "torch.Tensor") -> float:
    """Largest difference of two tensors over the largest value in the first."""
    return float((a - b).abs().max() / a.abs().max())


def verify_run(
    folder: Path, ids: list[int], in_memory: "torch.Tensor", base_dtype: "torch.dtype"
) -> float:
    """Reload the run in a fresh process and compare; the difference found.

    `base_dtype` is what the base was rounded to in training; both sides compute in fp32.
    Raises VerificationError if the adapter misses keys, is not finite, has a B that is zero (it
    learned nothing), or computes other logits than the model in memory.
    """
    import tempfile

    import torch
    from safetensors.torch import save_file

    check_adapter(folder)
    with tempfile.TemporaryDirectory() as aside:
        probe = Path(aside) / "probe.safetensors"
        tensors = {
            "ids": torch.tensor(ids),
            "logits": in_memory.contiguous(),
            "base_dtype": torch.empty(0, dtype=base_dtype),
        }
        save_file(tensors, probe)
        done = subprocess.run(
            [sys.executable, "-m", "chattune.models.verify", str(folder), str(probe)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise VerificationError(f"run {folder}: cannot be loaded again:\n{done.stderr[-2000:]}")
    difference = float(json.loads(done.stdout)["difference"])
    if not difference <= TOLERANCE:
        raise VerificationError(
            f"run {folder}: loaded again, its logits differ by {difference:.2g} of their size from "
            f"those in memory (at most {TOLERANCE:g} is allowed)"
        )
    return difference


def check_adapter(folder: Path) -> None:
    """Look at the saved tensors: pairs complete, finite, and B moved away from zero."""
    from safetensors.torch import load_file

    tensors = load_file(folder / ADAPTER[1])
    targets = {k.replace("lora_B", "lora_A") for k in tensors if "lora_B" in k}
    if not targets or targets != {k for k in tensors if "lora_A" in k}:
        raise VerificationError(f"run {folder}: {ADAPTER[1]} has lost some of its A or B matrices")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise VerificationError(f"run {folder}: {name} is not finite; training diverged")
        if "lora_B" in name and not tensor.any():
            raise VerificationError(f"run {folder}: {name} is zero; training did not reach it")


def main(folder: str, probe: str) -> None:
    """Load the run as anybody would, and report how far its logits are from the probe's."""
    from safetensors.torch import load_file

    tensors = load_file(probe)
    path = Path(folder)
    base, dtype = find_base(read_recipe(path).base), tensors["base_dtype"].dtype
    model = load_adapted(path, base, find_device(), dtype).float()
    logits = logits_of(model, tensors["ids"].tolist())
    sys.stdout.write(json.dumps({"difference": relative_difference(tensors["logits"], logits)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
