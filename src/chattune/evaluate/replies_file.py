"""Replies that were written elsewhere: a JSONL file of prompts and replies, read as samples."""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, ValidationError

from chattune.conversation import Message, alternates
from chattune.errors import DataError
from chattune.evaluate.prompts import Asked
from chattune.evaluate.sample import Sample

log = logging.getLogger(__name__)


class _Row(Asked):
    """A line of a file of replies; see read_replies()."""

    model_config = ConfigDict(extra="ignore")

    seed: int = 0
    reply: str
    stopped: bool | None = None
    finish: Literal["stop", "length"] | None = None
    tokens: int | None = None


def read_replies(path: Path) -> list[Sample]:
    """Read replies from a JSONL file.

    A line has `reply`, and `prompt` (the user's message) or `messages` (everything before the
    reply). It may have `id` (of the prompt), `kind`, `seed`, `stopped` or `finish` ("stop" or
    "length"), `tokens`, `reference`, `required` and `forbidden`. Other fields are not read, and are
    named in the log. Raises DataError that names the line.
    """
    samples: list[Sample] = []
    unread: Counter[str] = Counter()
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"replies {path}: cannot be read as UTF-8 text ({error})") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = _Row.model_validate_json(line)
            samples.append(_sample(row, path, number))
        except ValidationError as error:
            detail = error.errors()[0]
            field = ".".join(map(str, detail["loc"])) or "the line"
            raise DataError(f"{path.name}:{number}: {field}: {detail['msg'].lower()}") from error
        except ValueError as error:
            raise DataError(f"{path.name}:{number}: {error}") from error
        unread.update(json.loads(line).keys() - _Row.model_fields.keys())
    if not samples:
        raise DataError(f"replies {path}: holds no reply; write lines with `prompt` and `reply`")
    if unread:
        names = ", ".join(f"{name} (in {count} lines)" for name, count in unread.items())
        log.warning("%s: not read: %s", path.name, names)
    return samples


def _sample(row: _Row, path: Path, number: int) -> Sample:
    messages = [Message(m.role, m.content) for m in row.messages]
    if row.prompt is not None:
        messages.append(Message("user", row.prompt))
    roles = tuple(m.role for m in messages)
    if not roles or roles[-1] != "user" or not alternates(roles):
        raise ValueError(
            "no message of the user before the reply; add `prompt`, or `messages` in which user "
            "and assistant take turns"
        )
    stopped = row.stopped
    if stopped is None and row.finish is not None:
        stopped = row.finish == "stop"
    return Sample(
        prompt=f"{path.stem}/{number if row.id is None else row.id}",
        kind=row.kind,
        turn=1 + roles.count("assistant"),
        seed=row.seed,
        messages=tuple(messages),
        reply=row.reply.strip(),
        tokens=row.tokens,
        stopped=stopped,
        reference=row.reference,
        required=row.groups(),
        forbidden=tuple(row.forbidden),
    )
