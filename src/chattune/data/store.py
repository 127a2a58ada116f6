"""The folder of a preparation: two Arrow tables and three JSON files, written and read back."""

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa

from chattune.base import Base
from chattune.conversation import Conversation, Message
from chattune.data.files import EMBEDDED
from chattune.data.report import DataReport
from chattune.errors import DataError
from chattune.folders import atomic_folder
from chattune.recipe import DataRecipe, Recipe, Section
from chattune.template import IGNORED_LABEL, Rendered, Template

if TYPE_CHECKING:
    from datasets import Dataset

TRAIN, VALIDATION = "train.arrow", "validation.arrow"
EXAMPLES, REPORT, ORIGIN = "examples.json", "report.json", "prepared.json"
CONTENT = (TRAIN, VALIDATION, EXAMPLES, REPORT)
FILES = (*CONTENT, ORIGIN)

_SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
_ROWS_PER_BATCH = 1000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """Tokenised conversations that are ready to train on.

    `train` and `validation` hold one conversation per row, in the columns input_ids and labels
    (-100 where the loss ignores the token). `examples` are a few held-out conversations as text,
    or training conversations if nothing is held out.
    """

    train: "Dataset"
    validation: "Dataset"
    examples: list[Conversation]
    report: DataReport
    template: Template
    folder: Path

    def rendered(self, count: int) -> list[Rendered]:
        """Return the first `count` training rows with the mask of supervised tokens."""
        rows = self.train.select(range(min(count, len(self.train))))
        return [
            Rendered(row["input_ids"], [label != IGNORED_LABEL for label in row["labels"]])
            for row in rows
        ]


class Origin(Section):
    """The content of prepared.json: what the conversations were prepared with.

    `base` is the base's name, `tokenizer` the hash of its tokenizer and chat template, `data` and
    `seed` come from the recipe, and `files` holds the SHA-256 of each other file in the folder.
    """

    base: str
    tokenizer: str
    data: DataRecipe
    seed: int
    files: dict[str, str]


class TableWriter:
    """A context manager that writes rendered conversations to an Arrow stream, in batches."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[Rendered] = []
        self._digest = hashlib.sha256()

    def write(self, rendered: Rendered) -> None:
        """Append one conversation."""
        self._rows.append(rendered)
        # Ids and labels are equally many, so the number of ids tells where a conversation ends.
        numbers = [len(rendered.ids), *rendered.ids, *rendered.labels]
        self._digest.update(np.array(numbers, "<i4").tobytes())
        if len(self._rows) == _ROWS_PER_BATCH:
            self._flush()

    def sha256(self) -> str:
        """Return a hash of the ids and labels written so far, in their order.

        Unlike one of the file, it does not depend on the version of the Arrow library.
        """
        return self._digest.hexdigest()

    def _flush(self) -> None:
        ids = [r.ids for r in self._rows]
        labels = [r.labels for r in self._rows]
        columns = {"input_ids": ids, "labels": labels}
        self._file.write_batch(pa.RecordBatch.from_pydict(columns, schema=_SCHEMA))
        self._rows = []

    def __enter__(self) -> Self:
        self._file = pa.ipc.new_stream(self._path, _SCHEMA)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._rows and kind is None:
            self._flush()
        self._file.close()


def read_folder(folder: Path, template: Template) -> Prepared:
    """Load the folder of a preparation; the tables are mapped into memory, not read."""
    from datasets import Dataset

    report = DataReport.from_json(json.loads((folder / REPORT).read_text("utf-8")))
    examples = [
        Conversation(tuple(Message(**message) for message in messages))
        for messages in json.loads((folder / EXAMPLES).read_text("utf-8"))
    ]
    train, validation = (Dataset.from_file(str(folder / name)) for name in (TRAIN, VALIDATION))
    return Prepared(train, validation, examples, report, template, folder)


def is_complete(folder: Path) -> bool:
    """Return whether a folder holds every file of a preparation; their content is not checked."""
    return all((folder / name).is_file() for name in FILES)


def is_prepared(source: str) -> bool:
    """Return whether a data source is the folder of a preparation, complete or not.

    Three of its five files are enough to recognise it, so that an incomplete one is reported
    rather than read as a folder of JSON files.
    """
    return source not in EMBEDDED and sum((Path(source) / name).is_file() for name in FILES) >= 3


def open_prepared(recipe: Recipe, base: Base, template: Template, output: Path | None) -> Prepared:
    """Load the folder of an earlier preparation, after copying it to `output` if that is given.

    Raises DataError if it is damaged, or was prepared for a base with another tokenizer or fewer
    positions than it needs.
    """
    folder = Path(recipe.data.source)
    origin = read_origin(folder)
    if origin.tokenizer != tokenizer_hash(template):
        raise DataError(
            f"{folder}: prepared for base {origin.base}, whose tokenizer or chat template is not "
            f"that of {base.name}; prepare the conversations again with --base {base.name}"
        )
    if base.positions is not None and origin.data.max_length > base.positions:
        raise DataError(
            f"{folder}: prepared with data.max_length {origin.data.max_length}, above the "
            f"{base.positions} positions of {base.name}; prepare the conversations again with "
            f"--set data.max_length={base.positions}"
        )
    unused = "".join(f"; {setting}" for setting in _unused_settings(recipe, origin))
    log.info("%s: prepared before, loaded as it is%s", folder, unused)
    if output is not None:
        with atomic_folder(output, "output") as temporary:
            for name in FILES:
                shutil.copyfile(folder / name, temporary / name)
    return read_folder(output or folder, template)


def read_origin(folder: Path) -> Origin:
    """Read prepared.json and compare the other files with the hashes in it.

    Raises DataError that names the first file that is missing, damaged or changed.
    """
    remedy = "run `chattune prepare` again with a new --output folder"
    for name in FILES:
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: missing from the prepared conversations; {remedy}")
    try:
        origin = Origin.model_validate_json((folder / ORIGIN).read_bytes())
        hashes = file_hashes(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error}); {remedy}") from error
    except ValueError as error:
        raise DataError(f"{folder / ORIGIN}: damaged; {remedy}") from error
    for name, sha256 in hashes.items():
        if sha256 != origin.files.get(name):
            raise DataError(
                f"{folder / name}: damaged or changed since it was prepared (its SHA-256 is not "
                f"the one in {ORIGIN}); {remedy}"
            )
    return origin


def _unused_settings(recipe: Recipe, origin: Origin) -> list[str]:
    """Name the data settings of the recipe that differ from those of the preparation."""
    prepared, current = (data.model_dump(exclude={"source"}) for data in (origin.data, recipe.data))
    unused = [
        f"data.{name}: prepared with {prepared[name]}, the recipe's {value} is not used"
        for name, value in current.items()
        if value != prepared[name]
    ]
    sampled = origin.data.mix or origin.data.rows is not None
    if sampled and origin.seed != recipe.seed:
        unused.append(
            f"seed: conversations sampled with {origin.seed}, the recipe's {recipe.seed} is used "
            "for the training only"
        )
    return unused


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in the folder of a preparation, except prepared.json."""
    hashes = {}
    for name in CONTENT:
        with (folder / name).open("rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def tokenizer_hash(template: Template) -> str:
    """Return a hash of all that decides the ids of a text: tokenizer and chat template."""
    tokenizer = template.tokenizer
    settings = [tokenizer.chat_template, tokenizer.special_tokens_map]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    return digest.hexdigest()
