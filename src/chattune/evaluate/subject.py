"""The subject of an evaluation: a run or a model, its folder of results, and its data."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from chattune.base import Base, load_template
from chattune.conversation import Conversation
from chattune.data import Prepared, prepare, read_conversations
from chattune.errors import ChattuneError, DataError
from chattune.evaluate.failures.copying import TrainingReplies
from chattune.evaluate.prompts import Prompt, from_conversations, load_prompts, shipped_sets
from chattune.folders import check_output_folder
from chattune.models import find
from chattune.run import ADAPTER_WEIGHTS, EVALUATION, Run, size_and_hash
from chattune.template import Template

GENERAL, HELD_OUT = "general", "heldout"
_MOST_HELD_OUT = 200  # held-out conversations that are prompts of an evaluation


@dataclass(frozen=True)
class Subject:
    """A run or a model that is evaluated, and the folder that its evaluation is written to."""

    name: str
    base: Base
    run: Run | None
    folder: Path

    @classmethod
    def find(
        cls, run_or_model: str | Path, output: str | Path | None, base: str | None
    ) -> "Subject":
        """Find a run or a model; its evaluation goes to `output`.

        Without one it goes to the run's own folder, or for a model to `evaluations/NAME`. Raises
        what `models.find` raises, and OutputError for a folder that holds something else.
        """
        found, run = find(run_or_model, base=base)
        name = str(run_or_model)
        if output is not None:
            folder = Path(output)
        else:
            folder = run.folder if run else Path("evaluations") / Path(name).name
        # An evaluation that was stopped has left hidden files with its replies.
        hidden = folder.is_dir() and any(folder.glob(".s*"))
        holds_evaluation = hidden or any((folder / file).is_file() for file in EVALUATION)
        if (run is None or folder != run.folder) and not holds_evaluation:
            check_output_folder(folder, "output")
        return cls(name, found, run, folder)

    def facts(self) -> dict[str, Any]:
        """Return the names and hashes that tell which weights were evaluated."""
        adapter = self.run and size_and_hash(self.run.folder / ADAPTER_WEIGHTS)["sha256"]
        return {
            "name": self.name,
            "kind": "run" if self.run else "model",
            "base": {"name": self.base.name, "fingerprint": self.base.fingerprint()},
            "adapter": adapter,
        }

    @cached_property
    def template(self) -> Template:
        """The template that the run or model answers with."""
        return load_template(self.base, self.run.folder if self.run else None)

    @cached_property
    def prepared(self) -> Prepared | str:
        """The tokens that the run was tuned on, or why they cannot be had."""
        if self.run is None:
            return f"{self.name} is not a run, so its training data is not known"
        try:
            prepared = prepare(self.run.recipe, base=self.base)
        except ChattuneError as error:
            return f"the run's conversations cannot be read again: {error}"
        if prepared.report.fingerprint != self.run.facts["data"]["fingerprint"]:
            return f"the run's conversations ({prepared.report.source}) have changed since"
        return prepared

    @cached_property
    def conversations(self) -> "Conversations | str":
        """The text of the conversations that the run was tuned on, or why it cannot be had."""
        if isinstance(self.prepared, str):
            return self.prepared
        assert self.run is not None
        try:
            trained, held_out = read_conversations(self.run.recipe, self.template)
        except ChattuneError as error:
            return f"the text of the run's conversations cannot be read again: {error}"
        return Conversations(trained, held_out)

    def prompt_sets(self, names: Sequence[str] | None) -> dict[str, list[Prompt]]:
        """Load prompt sets by name; by default the general one and the run's held-out ones.

        Raises DataError for a set that cannot be had, and for one that is named twice.
        """
        if names is None:
            held_out = self._held_out()
            return {GENERAL: load_prompts(GENERAL)} | (
                {} if isinstance(held_out, str) else {HELD_OUT: held_out}
            )
        sets = {}
        for name in names:
            found = self._held_out() if name == HELD_OUT else load_prompts(name)
            if isinstance(found, str):
                raise DataError(f"prompts {HELD_OUT}: {found}; choose {', '.join(shipped_sets())}")
            if name in sets:
                raise DataError(f"prompts {name}: given twice; give it once")
            sets[name] = found
        return sets

    def training_replies(self) -> TrainingReplies | str:
        """Return an index of the replies that the run was trained on, or why there is none."""
        if isinstance(self.conversations, str):
            return self.conversations
        return TrainingReplies(
            message.content
            for conversation in self.conversations.trained
            for message in conversation.messages
            if message.role == "assistant"
        )

    def _held_out(self) -> list[Prompt] | str:
        if isinstance(self.conversations, str):
            return self.conversations
        if not self.conversations.held_out:
            return "no conversation of the run was held out (data.validation is 0)"
        step = -(-len(self.conversations.held_out) // _MOST_HELD_OUT)
        return from_conversations(self.conversations.held_out[::step], HELD_OUT)


@dataclass(frozen=True)
class Conversations:
    """The conversations that a run was trained on, and those that were held out from training."""

    trained: list[Conversation]
    held_out: list[Conversation]
