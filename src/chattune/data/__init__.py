"""prepare(): rows -> conversations -> kept ones -> token ids and labels, split and counted."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chattune import __version__
from chattune.base import find_base
from chattune.conversation import Conversation, Message
from chattune.data.clean import clean
from chattune.data.fit import Cuts, fit
from chattune.data.formats import BadRow, Format, known_fields, recognise
from chattune.data.report import DataReport, languages, length_quantiles
from chattune.data.sources import Row, fingerprint, read_rows
from chattune.data.store import IGNORED, TableWriter, read_table
from chattune.errors import DataError, RecipeError
from chattune.recipe import DataRecipe, Recipe
from chattune.template import Rendered, Template

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["DataReport", "Prepared", "prepare"]

log = logging.getLogger(__name__)

_REPORT, _EXAMPLES = "report.json", "examples.json"
_MAX_EXAMPLES = 16
_LANGUAGE_SAMPLE = 500


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
        return [Rendered(r["input_ids"], [x != IGNORED for x in r["labels"]]) for r in rows]


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
    if output is None and source is not None and (folder / _REPORT).is_file():
        log.info("prepared before, read from the cache")
        return _load(folder, template)
    if output is not None and output.exists() and any(output.iterdir()):
        raise DataError(f"output {output}: not empty; choose another folder")
    _write(recipe, template, key, folder)
    return _load(folder, template)


def cache_folder() -> Path:
    """Where prepared data is kept: $CHATTUNE_CACHE, or chattune in the user's cache."""
    if named := os.environ.get("CHATTUNE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "chattune"


def conversations(rows: Iterator[Row], recipe: DataRecipe, dropped: Counter[str]) -> "Reading":
    """Turn rows into conversations; the reading knows its format and counts as it goes."""
    return Reading(rows, recipe, dropped)


class Reading:
    """An iterator over the conversations of rows of one format.

    `rows` counts conversations read and rows that gave none (so that rows = kept + dropped also
    for trees, which hold several).
    """

    def __init__(self, rows: Iterator[Row], recipe: DataRecipe, dropped: Counter[str]) -> None:
        self._source, self._recipe, self._dropped = rows, recipe, dropped
        self._first: tuple[Row, Format] | None = None
        self.rows = 0

    @property
    def format(self) -> str:
        """Name of the format, once a row has been read."""
        return self._first[1].name if self._first else "none"

    def __iter__(self) -> Iterator[Conversation]:
        for row in self._source:
            try:
                found = self._read(row)
            except BadRow as problem:
                if not self._recipe.skip_bad_rows:
                    raise DataError(
                        f"{row.where}: {problem}; mend it, or pass --skip-bad-rows to count and "
                        "leave out such rows"
                    ) from None
                self.rows += 1
                self._dropped["bad_row"] += 1
                continue
            self.rows += max(1, len(found))
            self._dropped["no_assistant_turn"] += not found
            yield from found

    def _read(self, row: Row) -> list[Conversation]:
        if row.problem:
            raise BadRow(row.problem)
        shape = recognise(row.fields, self._recipe)
        if shape is None:
            raise BadRow(
                f"unknown fields ({_shown(row)}); known formats: {known_fields()}; or name your "
                "columns with --set data.columns='{user: ..., assistant: ...}'"
            )
        if self._first is None:
            self._first = row, shape
        first, expected = self._first
        if shape.name != expected.name:
            raise BadRow(
                f"mixed shapes: this row is {shape.name} ({_shown(row)}), but {first.where} is "
                f"{expected.name} ({_shown(first)}); give one file a shape"
            )
        return shape.read(row.fields, self._recipe)


def in_validation(conversation: Conversation, share: float) -> bool:
    """By a hash of the opening question: a conversation, and every other that opens alike, never
    changes sides, whatever else the data set holds.
    """
    digest = hashlib.sha256(" ".join(conversation.opening.lower().split()).encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def _write(recipe: Recipe, template: Template, key: str, folder: Path) -> None:
    dropped: Counter[str] = Counter()
    cuts = Cuts()
    reading = conversations(read_rows(recipe.data, recipe.seed), recipe.data, dropped)
    usable = clean(reading, dropped, near_duplicates=recipe.data.near_duplicates == "drop")
    aside = _aside(folder)
    try:
        tally = Tally()
        with ExitStack() as files:
            tables = {
                side: files.enter_context(TableWriter(aside / f"{side}.arrow"))
                for side in ("train", "validation")
            }
            for conversation, rendered in fit(usable, template, recipe.data, dropped, cuts):
                _must_teach_to_stop(rendered, template)
                held_out = in_validation(conversation, recipe.data.validation)
                tables["validation" if held_out else "train"].write(rendered)
                tally.add(conversation, rendered, held_out)
        report = tally.report(recipe.data.source, reading, dropped, cuts, key)
        _refuse_too_few(report)
        (aside / _REPORT).write_text(json.dumps(report.to_json(), indent=2), "utf-8")
        examples = [[asdict(m) for m in c.messages] for c in tally.examples]
        (aside / _EXAMPLES).write_text(json.dumps(examples), "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class Tally:
    """What the report needs, counted while conversations pass by."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.supervised = 0
        self.turns: Counter[int] = Counter()
        self.held_out: list[Conversation] = []
        self.trained: list[Conversation] = []
        self.validation = 0

    def add(self, conversation: Conversation, rendered: Rendered, held_out: bool) -> None:
        """Count one kept conversation."""
        self.lengths.append(len(rendered.ids))
        self.supervised += sum(rendered.supervised)
        self.turns[conversation.roles.count("assistant")] += 1
        self.validation += held_out
        if held_out and len(self.held_out) < _MAX_EXAMPLES:
            self.held_out.append(conversation)
        elif not held_out and len(self.trained) < _LANGUAGE_SAMPLE:
            self.trained.append(conversation)

    @property
    def examples(self) -> list[Conversation]:
        """Held-out conversations, or training ones where nothing is held out."""
        return self.held_out or self.trained[:_MAX_EXAMPLES]

    def report(
        self, source: str, reading: Reading, dropped: Counter[str], cuts: Cuts, key: str
    ) -> DataReport:
        """The report of all that was added."""
        kept = len(self.lengths)
        return DataReport(
            source=source,
            format=reading.format,
            rows=reading.rows,
            kept=kept,
            dropped={reason: n for reason, n in sorted(dropped.items()) if n},
            train=kept - self.validation,
            validation=self.validation,
            tokens=sum(self.lengths),
            supervised_tokens=self.supervised,
            cut=asdict(cuts),
            turns=dict(sorted(self.turns.items())),
            length_quantiles=length_quantiles(self.lengths) if self.lengths else {},
            languages=languages(self.trained + self.held_out),
            fingerprint=key,
        )


def _load(folder: Path, template: Template) -> Prepared:
    report = DataReport.from_json(json.loads((folder / _REPORT).read_text("utf-8")))
    examples = [
        Conversation(tuple(Message(**turn) for turn in turns))
        for turns in json.loads((folder / _EXAMPLES).read_text("utf-8"))
    ]
    train, validation = (read_table(folder / f"{side}.arrow") for side in ("train", "validation"))
    return Prepared(train, validation, examples, report, template, folder)


def _aside(folder: Path) -> Path:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        aside.chmod(0o755)
        return aside
    except OSError as error:
        raise DataError(
            f"output {folder}: cannot be written to ({error.strerror}); choose another"
        ) from error


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
    why = f" (dropped: {report.dropped})" if report.dropped else ""
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


def _shown(row: Row) -> str:
    text = json.dumps(row.fields, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else text[:117] + "..."
