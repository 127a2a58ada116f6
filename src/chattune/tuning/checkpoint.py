"""Which checkpoint a run goes on from."""

from pathlib import Path

from chattune.run import CHECKPOINTS

# transformers writes straight into checkpoint-N and finds it by name; a kill in the middle leaves
# one that looks whole. This file is made when the save is over.
COMPLETE = "complete"


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run whose saving was finished, or None."""
    whole = [p.parent for p in (folder / CHECKPOINTS).glob(f"checkpoint-*/{COMPLETE}")]
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The optimiser step after which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])
