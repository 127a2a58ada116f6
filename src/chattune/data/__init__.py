"""prepare(): rows -> conversations -> kept ones -> token ids and labels, split and counted."""

import hashlib
import json
import logging
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chattune import __version__
from chattune.base import find_base
from chattune.conversation import Conversation, Message
from chattune.data.clean import clean
from chattune.data.fit import Cuts, fit
from chattune.data.reading import Reading
from chattune.data.report import DataReport, named_counts
from chattune.data.sources import fingerprint, read_rows
from chattune.data.store import TableWriter, read_table
from chattune.data.tally import Tally
from chattune.errors import DataError, RecipeError
from chattune.folders import cache_folder, refuse_in_use, whole_folder, write_json
from chattune.recipe import Recipe
from chattune.template import IGNORED_LABEL, Rendered, Template

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["DataReport", "Prepared", "prepare"]

log = logging.getLogger(__name__)

_FILES = _TRAIN, _VALIDATION, _EXAMPLES, _REPORT = (
    "train.arrow",
    "validation.arrow",
    "examples.json",
    "report.json",
)


@dataclass(frozen=True)
class Prepared:
    """Tokenised conversations, ready to train on.

    `train` and `validation` have the columns input_ids and labels (-100 where the loss does not
    look), one conversation a row. `examples` are a few held-out conversations in words, from the
    training side where nothing is held out.
    """

    train: "Dataset"
    validation: "Dataset"
    examples: list[Conversation]
    report: DataReport
    template: Template
    folder: Path

    def rendered(self, count: int) -> list[Rendered]:
        """The first training rows as they reach the model."""
        rows = self.train.select(range(min(count, len(self.train))))
        return [Rendered(r["input_ids"], [x != IGNORED_LABEL for x in r["labels"]]) for r in rows]


def prepare(recipe: Recipe, output: Path | None = None) -> Prepared:
    """Read, clean, cut, tokenise and split the recipe's conversations; once for each content.

    The result is kept in `output`, or in the cache under a hash of source, settings and tokenizer.
    Raises DataError, BaseError or RecipeError; nothing half-written stays behind.
    """
    base = find_base(recipe.base, weights=False)
    if base.positions is not None and recipe.data.max_length > base.positions:
        raise RecipeError(
            f"data.max_length: {recipe.data.max_length} is above the {base.positions} positions "
            f"of {recipe.base}; use at most that"
        )
    template = Template.load(base.folder)
    source = fingerprint(recipe.data)
    key = _content_hash(recipe, template, source or "unknown")
    folder = output or cache_folder() / "prepared" / key
    if output is not None:
        refuse_in_use(output, "output")
    elif source is not None and all((folder / name).is_file() for name in _FILES):
        log.info("prepared before, read from the cache")
        return _load(folder, template)
    _write(recipe, template, key, folder)
    return _load(folder, template)


def in_validation(conversation: Conversation, share: float) -> bool:
    """By a hash of the opening question: a conversation, and every other that opens alike, never
    changes sides, whatever else the data set holds.
    """
    digest = hashlib.sha256(" ".join(conversation.opening.lower().split()).encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def _write(recipe: Recipe, template: Template, key: str, folder: Path) -> None:
    dropped: Counter[str] = Counter()
    cuts = Cuts()
    reading = Reading(read_rows(recipe.data, recipe.seed), recipe.data, dropped)
    usable = clean(reading, dropped, near_duplicates=recipe.data.near_duplicates == "drop")
    tally = Tally()
    with whole_folder(folder, "output") as aside:
        with TableWriter(aside / _TRAIN) as train, TableWriter(aside / _VALIDATION) as validation:
            for conversation, rendered in fit(usable, template, recipe.data, dropped, cuts):
                _must_teach_to_stop(rendered, template)
                held_out = in_validation(conversation, recipe.data.validation)
                (validation if held_out else train).write(rendered)
                tally.add(conversation, rendered, held_out)
        report = tally.report(recipe.data.source, reading, dropped, cuts, key)
        _refuse_too_few(report)
        write_json(aside / _EXAMPLES, [[asdict(m) for m in c.messages] for c in tally.examples])
        write_json(aside / _REPORT, report.to_json())


def _load(folder: Path, template: Template) -> Prepared:
    report = DataReport.from_json(json.loads((folder / _REPORT).read_text("utf-8")))
    examples = [
        Conversation(tuple(Message(**turn) for turn in turns))
        for turns in json.loads((folder / _EXAMPLES).read_text("utf-8"))
    ]
    train, validation = read_table(folder / _TRAIN), read_table(folder / _VALIDATION)
    return Prepared(train, validation, examples, report, template, folder)


def _content_hash(recipe: Recipe, template: Template, source: str) -> str:
    settings: dict[str, Any] = {
        "version": __version__,
        "data": recipe.data.model_dump(),
        "seed": recipe.seed,
        "source": source,
        "chat_template": template.tokenizer.chat_template,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(template.tokenizer.backend_tokenizer.to_str().encode())
    return digest.hexdigest()[:32]


def _must_teach_to_stop(rendered: Rendered, template: Template) -> None:
    taught = [t for t, s in zip(rendered.ids, rendered.supervised, strict=True) if s]
    if not taught or taught[-1] not in template.end_ids:
        raise DataError(
            f"a conversation has no supervised end token, so nothing teaches the model to stop: "
            f"{template.decode(rendered.ids)[:80]!r}"
        )


def _refuse_too_few(report: DataReport) -> None:
    why = f" (dropped: {named_counts(report.dropped)})" if report.dropped else ""
    if report.kept < 2:
        raise DataError(
            f"{report.source}: {report.kept} usable conversation{'' if report.kept else 's'} of "
            f"{report.rows} row{'s' if report.rows != 1 else ''}{why}; at least 2 are needed"
        )
    if not report.train:
        raise DataError(
            f"{report.source}: all {report.kept} conversations fell to validation; "
            "use a smaller --set data.validation"
        )
