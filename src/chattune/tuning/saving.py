"""The files of a run: the origin before step 1, the trained model, and the facts at the end."""

import errno
import importlib.metadata
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from chattune import run as runs
from chattune.conversation import Conversation, Message
from chattune.errors import OutputError
from chattune.folders import write_bytes, write_json
from chattune.models.card import model_card
from chattune.run import Run
from chattune.tuning.planning import Plan
from chattune.tuning.plot import loss_plot

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import GenerationConfig

    from chattune.tuning.trainer import Result

_SAMPLES = 4
# How torch.save, and libraries written in Rust, report a write that found no space. Only they do
# not raise an OSError.
_FULL_DISK_TEXTS = ("PytorchStreamWriter failed", "unexpected pos", "os error 28", "os error 122")
_PACKAGES = ("chattune", "torch", "transformers", "trl", "peft", "datasets", "tokenizers")


def open_folder(folder: Path, plan: Plan) -> None:
    """Create the run folder, or reopen it, with the recipe and the origin of the run.

    Raises OutputError if it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        runs.unseal(folder)
        _remove_leftovers(folder)
        write_bytes(folder / runs.RECIPE, plan.recipe.to_yaml().encode())  # from here on resumable
        (folder / runs.CHECKPOINTS).mkdir(exist_ok=True)
        write_json(folder / runs.FACTS, plan.origin)
    except OSError as error:
        if _is_full_disk(error):
            raise
        raise OutputError(
            f"output {folder}: cannot be written to ({error.strerror}); choose another"
        ) from error


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders of a process that was killed while it saved."""
    for path in folder.glob(".saving-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".*." + 16 * "[0-9a-f]"):  # those of write_bytes
        path.unlink()


@contextmanager
def reporting_full_disk(folder: Path, plan: Plan) -> Iterator[None]:
    """Raise OutputError if a write in the block finds no space, with the space that a run needs."""
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error):
            raise
        path = (isinstance(error, OSError) and error.filename) or folder
        temporary = tempfile.gettempdir()  # the proof writes there
        free, free_temporary = (shutil.disk_usage(f).free / 1e6 for f in (folder, temporary))
        raise OutputError(
            f"output {path}: the disk is full: {free:,.1f} MB are free, and {free_temporary:,.1f} "
            f"MB in {temporary}; this run needs about {_bytes_on_disk(plan) / 1e6:,.1f} MB in all; "
            "make room, and go on with --resume"
        ) from error


def _is_full_disk(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(text in str(error) for text in _FULL_DISK_TEXTS)


def _bytes_on_disk(plan: Plan) -> int:
    """Return about how many bytes a run takes: three checkpoints, and the adapter.

    Two checkpoints are kept while a third is written. Each has the adapter and AdamW's two moments
    of it, in fp32, and the tokenizer.
    """
    patterns = ("tokenizer*", "vocab*", "merges.txt")
    files = [file for pattern in patterns for file in plan.base.folder.glob(pattern)]
    tokenizer, adapter = sum(f.stat().st_size for f in files), 4 * plan.estimate.trainable
    return 3 * (3 * adapter + tokenizer) + adapter + tokenizer


def save_model(folder: Path, plan: Plan, model: "PeftModel") -> None:
    """Write adapter, tokenizer, sampling settings, sample replies, data report and loss plot."""
    from chattune.tuning.samples import sample_replies

    prepared = plan.prepared
    model.eval()
    runs.save_into(folder, model.save_pretrained)
    runs.save_into(folder, prepared.template.tokenizer.save_pretrained)
    runs.save_into(folder, _generation_config(plan).save_pretrained)
    questions = [_question(conversation) for conversation in prepared.examples[:_SAMPLES]]
    samples = sample_replies(plan.base, folder, prepared.template, questions, plan.decoding, model)
    write_json(folder / runs.SAMPLES, samples)
    write_json(folder / runs.DATA, prepared.report.to_json())
    write_bytes(folder / runs.LOSS_PLOT, loss_plot(folder))


def probe_prompt(plan: Plan) -> list[int]:
    """Return the token ids of the prompt that the saved run is verified with."""
    return plan.prepared.template.prompt(_question(plan.prepared.examples[0]))


def save_facts(
    folder: Path, plan: Plan, result: "Result", probe: list[int], difference: float
) -> None:
    """Write run.json and the model card, once the saved run has been verified.

    `difference` is that of the logits for the prompt `probe` after loading the run again.
    """
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    facts = {
        **plan.origin,
        "versions": versions | {"python": platform.python_version()},
        "result": asdict(result),
        "decoding": plan.decoding.model_dump(exclude={"seed"}),
        "probe_ids": probe,
        "reload_difference": difference,
    }
    write_json(folder / runs.FACTS, facts)
    write_bytes(folder / runs.CARD, model_card(Run(folder)).encode())


def _question(conversation: Conversation) -> tuple[Message, ...]:
    """Return the messages before the first reply."""
    return conversation.messages[: conversation.roles.index("assistant")]


def _generation_config(plan: Plan) -> "GenerationConfig":
    """Return settings with which transformers' generate() samples and stops as chattune does."""
    from transformers import GenerationConfig

    template, decoding = plan.prepared.template, plan.decoding
    sampling = {
        "temperature": decoding.temperature,
        "top_k": decoding.top_k,
        "top_p": decoding.top_p,
        "min_p": decoding.min_p or None,
    }
    return GenerationConfig(
        do_sample=not decoding.greedy,
        **({} if decoding.greedy else sampling),  # transformers refuses them for greedy decoding
        repetition_penalty=decoding.repetition_penalty,
        eos_token_id=sorted(template.end_ids),
        bos_token_id=template.tokenizer.bos_token_id,
    )
