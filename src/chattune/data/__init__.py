"""prepare(): read rows, clean the conversations, cut and tokenise them, split and count them."""

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path

from chattune import __version__
from chattune.base import Base, find_base, load_template
from chattune.conversation import Conversation
from chattune.data import store
from chattune.data.mixing import source_hashes, usable_conversations
from chattune.data.report import DataReport, Tally, named_counts
from chattune.data.store import Origin, Prepared, TableWriter
from chattune.errors import DataError, RecipeError
from chattune.folders import CACHE, atomic_folder, cache_folder, check_output_folder, write_json
from chattune.recipe import Recipe, RecipeLike, as_recipe
from chattune.template import Rendered, Template

__all__ = ["DataReport", "Prepared", "prepare", "read_conversations"]

log = logging.getLogger(__name__)


def prepare(
    recipe: RecipeLike, output: str | Path | None = None, *, base: Base | None = None
) -> Prepared:
    """Read, clean, cut, tokenise and split the recipe's conversations.

    The result is written to `output`. Without one it goes to the cache, under a hash of sources,
    settings, tokenizer and version, and is read from there the next time. A `data.source` that is
    the folder of an earlier preparation is loaded as it is: its own settings count, and those of
    the recipe that differ are logged. `base` is the recipe's base if the caller has found it
    already; otherwise it is looked up without its weights.

    Raises DataError, BaseError, RecipeError or OutputError and then leaves nothing half-written.
    """
    recipe, output = as_recipe(recipe), None if output is None else Path(output)
    base = base or find_base(recipe.base, weights=False)
    if base.positions is not None and recipe.data.max_length > base.positions:
        raise RecipeError(
            f"data.max_length: {recipe.data.max_length} is above the {base.positions} positions "
            f"of {base.name}; use at most that"
        )
    template = load_template(base, kind=recipe.template)
    if template.concatenated:
        log.warning(
            "template concatenated: no end token is learnt and prompts are part of the loss, as "
            "in TRL's SFTTrainer on a column of text; the model will not learn to stop"
        )
    if output is not None:
        check_output_folder(output, "output")
    if store.is_prepared(recipe.data.source):
        return store.open_prepared(recipe, base, template, output)
    hashes = source_hashes(recipe.data)
    if output is not None:
        _write(recipe, base, template, output, "output")
        return store.read_folder(output, template)
    folder = cache_folder() / "prepared" / _cache_key(recipe, template, hashes)
    if None not in hashes and store.is_complete(folder):
        log.info("the conversations were prepared before and are read from the cache")
    else:
        _write(recipe, base, template, folder, CACHE)
    return store.read_folder(folder, template)


def read_conversations(
    recipe: Recipe, template: Template
) -> tuple[list[Conversation], list[Conversation]]:
    """Return the text of the conversations that `prepare` trains on, and of those it holds out.

    Of a `data.source` that was prepared earlier, the source of that preparation is read. Raises
    DataError if it can no longer be read.
    """
    if store.is_prepared(recipe.data.source):
        origin = store.read_origin(Path(recipe.data.source))
        recipe = recipe.model_copy(update={"data": origin.data, "seed": origin.seed})
    sides: tuple[list[Conversation], list[Conversation]] = [], []
    for conversation, _ in usable_conversations(recipe, template, Tally()):
        sides[in_validation(conversation, recipe.data.validation)].append(conversation)
    return sides


def in_validation(conversation: Conversation, share: float) -> bool:
    """Return whether a conversation is held out, decided by a hash of its opening question.

    Conversations with the same opening question are always on the same side, whatever else the
    data set holds.
    """
    digest = hashlib.sha256(" ".join(conversation.opening.lower().split()).encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def _write(recipe: Recipe, base: Base, template: Template, folder: Path, option: str) -> None:
    """Prepare the recipe's conversations and write the folder; errors call it `option`."""
    data, tally = recipe.data, Tally()
    with atomic_folder(folder, option) as temporary:
        with (
            TableWriter(temporary / store.TRAIN) as train,
            TableWriter(temporary / store.VALIDATION) as validation,
        ):
            for conversation, rendered in usable_conversations(recipe, template, tally):
                _check_end_token(rendered, template)
                held_out = in_validation(conversation, data.validation)
                (validation if held_out else train).write(rendered)
                tally.add(conversation, rendered, held_out)
        report = tally.report(_hash_of_tables(train, validation))
        _refuse_too_few(report)
        examples = [[asdict(m) for m in c.messages] for c in tally.examples]
        write_json(temporary / store.EXAMPLES, examples)
        write_json(temporary / store.REPORT, report.to_json())
        origin = Origin(
            base=base.name,
            tokenizer=store.tokenizer_hash(template),
            data=data,
            seed=recipe.seed,
            files=store.file_hashes(temporary),
        )
        write_json(temporary / store.ORIGIN, origin.model_dump(mode="json"))


def _hash_of_tables(*tables: TableWriter) -> str:
    """Return a hash of everything that a training sees of the conversations.

    Two preparations have the same one only if they train and validate on the same tokens in the
    same order, whichever version of chattune made them. `--resume` depends on it.
    """
    return hashlib.sha256("".join(table.sha256() for table in tables).encode()).hexdigest()


def _cache_key(recipe: Recipe, template: Template, hashes: list[str | None]) -> str:
    """Return a hash of everything that decides the result of a preparation.

    The version is part of it, because another version may clean or cut otherwise.
    """
    settings = {
        "version": __version__,
        "data": recipe.data.model_dump(),
        "seed": recipe.seed,
        "sources": hashes,
        "tokenizer": store.tokenizer_hash(template),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def _check_end_token(rendered: Rendered, template: Template) -> None:
    """Raise DataError unless the last supervised token of a conversation ends the reply.

    A concatenated conversation has no such token, of which `prepare` warns.
    """
    if template.concatenated:
        return
    supervised = [
        t for t, covered in zip(rendered.ids, rendered.supervised, strict=True) if covered
    ]
    if not supervised or supervised[-1] not in template.end_ids:
        raise DataError(
            "a conversation has no supervised end token, so nothing teaches the model to stop: "
            f"{template.decode(rendered.ids)[:80]!r}; remove it from the data"
        )


def _refuse_too_few(report: DataReport) -> None:
    reasons = f" (dropped: {named_counts(report.dropped)})" if report.dropped else ""
    if report.kept < 2:
        raise DataError(
            f"{report.source}: {report.kept} usable conversation{'' if report.kept else 's'} of "
            f"{report.rows} row{'s' if report.rows != 1 else ''}{reasons}; at least 2 are needed"
        )
    if not report.train:
        raise DataError(
            f"{report.source}: all {report.kept} conversations are held out for validation; "
            "use a smaller data.validation"
        )
