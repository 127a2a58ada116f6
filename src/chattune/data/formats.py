"""The formats of rows: each is recognised by its fields and turned into conversations."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from chattune.conversation import Conversation, Message, Role
from chattune.data.report import Tally
from chattune.errors import BadRow, DataError
from chattune.recipe import Source

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a data source, or the problem that kept it from being read."""

    location: str  # such as `talk.jsonl:3`
    fields: Fields
    problem: str | None = None


@dataclass(frozen=True)
class Format:
    """A format of rows: a test that recognises it and a reader of its rows.

    `fields` describes the columns in error messages; `read` raises BadRow.
    """

    name: str
    fields: str
    matches: Callable[[Fields], bool]
    read: Callable[[Fields, Source], list[Conversation]]


def read_conversations(
    rows: Iterator[Row], source: Source, tally: Tally, *, skip_bad_rows: bool = False
) -> Iterator[Conversation]:
    """Yield the conversations of rows that all have one format; update `tally`.

    A row that cannot be used is counted as bad_row with `skip_bad_rows`, else it raises DataError
    with its location.
    """
    first: tuple[Row, Format] | None = None
    for row in rows:
        try:
            row_format = _format_of(row, source)
            first = first or (row, row_format)
            tally.format = first[1].name
            _refuse_mixed(row, row_format, *first)
            conversations = row_format.read(row.fields, source)
        except BadRow as problem:
            if not skip_bad_rows:
                raise DataError(
                    f"{row.location}: {problem}; mend it, or pass --skip-bad-rows to count and "
                    "leave out such rows"
                ) from None
            tally.rows += 1
            tally.dropped["bad_row"] += 1
            continue
        tally.rows += max(1, len(conversations))
        if not conversations:
            tally.dropped["no_assistant_turn"] += 1
        yield from conversations


def _format_of(row: Row, source: Source) -> Format:
    if row.problem:
        raise BadRow(row.problem)
    row_format = recognise(row.fields, source)
    if row_format is None:
        known = "; ".join(f"{f.name} ({f.fields})" for f in FORMATS)
        raise BadRow(
            f"unknown fields ({_excerpt(row)}); known formats: {known}; or name your columns with "
            "--set data.columns='{user: ..., assistant: ...}'"
        )
    return row_format


def _refuse_mixed(row: Row, row_format: Format, first: Row, first_format: Format) -> None:
    if row_format.name != first_format.name:
        raise BadRow(
            f"mixed shapes: this row is {row_format.name} ({_excerpt(row)}), but {first.location} "
            f"is {first_format.name} ({_excerpt(first)}); convert them to one format"
        )


def _excerpt(row: Row) -> str:
    """Return the start of a row as JSON on one line, for an error message."""
    text = json.dumps(row.fields, ensure_ascii=False, default=str)
    # JSON does not escape characters such as U+2028, at which terminals break a line.
    text = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return text if len(text) <= 120 else text[:117] + "..."


def recognise(fields: Fields, source: Source) -> Format | None:
    """Return the format of a row, or None if no known format has its fields.

    `source.columns` wins over `source.format`, and both over what the fields look like. Raises
    DataError if the recipe names an unknown format or an incomplete mapping of columns.
    """
    if source.columns is not None:
        return _mapped(source.columns)
    if source.format != "auto":
        named = [f for f in FORMATS if f.name == source.format]
        if not named:
            raise DataError(
                f"data.format: {source.format!r} is not known; known: auto, "
                + ", ".join(f.name for f in FORMATS)
            )
        return named[0]
    return next((f for f in FORMATS if f.matches(fields)), None)


_GUANACO = re.compile(r"\s*(?<!#)### (Human|Assistant|System):[ \t]*")
_GUANACO_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant", "System": "system"}
_SPEAKERS: dict[str, Role] = {
    "system": "system",
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model", "bing", "bard"), "assistant"),
}


def _guanaco(row: Fields, _: Source) -> list[Conversation]:
    """Read `### Human: Hi### Assistant: Hello` (and `### System:`).

    Other Markdown headings in a reply, such as `### Steps`, stay part of the reply.
    """
    before, *rest = _GUANACO.split(_text(row, "text"))
    if before.strip():
        raise BadRow("text before the first ### Human:")
    turns = zip(rest[::2], rest[1::2], strict=True)
    return [Conversation.of(*((_GUANACO_ROLES[marker], text) for marker, text in turns))]


def _columns(system: str | None, user: tuple[str, ...], assistant: str) -> Callable[..., Any]:
    """Make a reader of rows with one question and one answer; `user` columns are joined."""

    def read(row: Fields, _: Source) -> list[Conversation]:
        question = "\n\n".join(filter(str.strip, (_text(row, name) for name in user)))
        turns: list[tuple[Role, str]] = [("user", question), ("assistant", _text(row, assistant))]
        if system is not None and _text(row, system).strip():
            turns.insert(0, ("system", _text(row, system)))
        return [Conversation.of(*turns)]

    return read


def _mapped(columns: Any) -> Format:
    """Return a format that reads the columns which the recipe names for the roles."""
    missing = {"user", "assistant"} - set(columns)
    if missing:
        raise DataError(
            f"data.columns: {', '.join(sorted(missing))} missing; name the column of each"
        )
    read = _columns(columns.get("system"), (columns["user"],), columns["assistant"])

    def checked(row: Fields, source: Source) -> list[Conversation]:
        absent = [c for c in columns.values() if c not in row]
        if absent:
            raise BadRow(f"no column {absent[0]!r}; the row has {', '.join(map(str, row))}")
        conversations: list[Conversation] = read(row, source)
        return conversations

    return Format("columns", ", ".join(columns.values()), lambda row: True, checked)


def _messages(field: str, role_key: str, text_key: str) -> Callable[..., Any]:
    """Make a reader of rows whose `field` is a list of turns."""

    def read(row: Fields, _: Source) -> list[Conversation]:
        return [Conversation(tuple(_turns(row.get(field), role_key, text_key)))]

    return read


def _prompt_completion(row: Fields, source: Source) -> list[Conversation]:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return [Conversation(tuple(_turns([*prompt, *completion], "role", "content")))]
    read = _columns(None, ("prompt",), "completion")
    conversations: list[Conversation] = read(row, source)
    return conversations


def _turns(turns: Any, role_key: str, text_key: str) -> Iterator[Message]:
    if not isinstance(turns, list):
        raise BadRow(f"expected a list of turns, not {type(turns).__name__}")
    for turn in turns:
        if not isinstance(turn, dict) or role_key not in turn or text_key not in turn:
            raise BadRow(f"a turn without {role_key!r} and {text_key!r}")
        role = _SPEAKERS.get(str(turn[role_key]).lower())
        if role is None:
            raise BadRow(f"unknown role {turn[role_key]!r:.80}")
        yield Message(role, _as_text(turn[text_key], text_key))


def _oasst_tree(row: Fields, source: Source) -> list[Conversation]:
    """Read the paths of an Open-Assistant tree from its root question to a reply.

    With `tree_paths: best` this is one path, which follows the child of the lowest rank (0 is
    best; the first child if none has a rank); with `all` it is one path per leaf.
    """
    paths = _paths(row.get("prompt"), best=source.tree_paths == "best")
    # A path that ends in a question is cut before it; siblings then give the same path once.
    trimmed = {tuple(p[:-1] if p[-1].role == "user" else p): None for p in paths}
    return [Conversation(path) for path in trimmed if path]


def _paths(node: Any, *, best: bool) -> Iterator[list[Message]]:
    """Yield the paths from a tree's node to its leaves, or only the best-ranked one."""
    if not isinstance(node, dict) or "text" not in node or "role" not in node:
        raise BadRow("a tree node without text and role")
    role = _SPEAKERS.get(str(node["role"]).lower())
    if role is None:
        raise BadRow(f"unknown role {node['role']!r:.80}")
    message = Message(role, _as_text(node["text"], "text"))
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(r, dict) for r in replies):
        raise BadRow("a tree node whose replies are not a list of nodes")
    if not all(isinstance(r.get("rank"), int | float | None) for r in replies):
        raise BadRow("a tree node whose rank is not a number")
    replies = [r for r in replies if not r.get("deleted")]
    if not replies:
        yield [message]
    if best:
        replies = sorted(replies, key=lambda r: (r.get("rank") is None, r.get("rank") or 0))[:1]
    for reply in replies:
        for path in _paths(reply, best=best):
            yield [message, *path]


def _text(row: Fields, name: str) -> str:
    return _as_text(row.get(name), name)


def _as_text(value: Any, name: str) -> str:
    """Return a field's value as text: a string, a number or a list of text parts; null is empty.

    Raises BadRow for other types and for text that is not valid Unicode.
    """
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and all(
        isinstance(p, dict) and p.get("type") == "text" for p in value
    ):
        value = "".join(str(part.get("text") or "") for part in value)
    if not isinstance(value, str):
        raise BadRow(f"{name} is not text but {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"{name} holds half a character (a lone surrogate)") from error
    return value


def _has(*names: str) -> Callable[[Fields], bool]:
    return lambda row: all(name in row for name in names)


FORMATS = [
    Format(
        "messages",
        "messages: [{role, content}]",
        lambda row: isinstance(row.get("messages"), list),
        _messages("messages", "role", "content"),
    ),
    Format(
        "sharegpt",
        "conversations: [{from, value}]",
        lambda row: isinstance(row.get("conversations"), list),
        _messages("conversations", "from", "value"),
    ),
    Format(
        "oasst-tree",
        "prompt: {text, role, replies}",
        lambda row: isinstance(row.get("prompt"), dict),
        _oasst_tree,
    ),
    Format(
        "guanaco",
        "text with ### Human: and ### Assistant:",
        lambda row: isinstance(row.get("text"), str) and "### Human:" in row["text"],
        _guanaco,
    ),
    Format(
        "openorca",
        "system_prompt, question, response",
        _has("question", "response"),
        _columns("system_prompt", ("question",), "response"),
    ),
    Format(
        "dolly",
        "instruction, context, response",
        _has("instruction", "response"),
        _columns(None, ("instruction", "context"), "response"),
    ),
    Format(
        "alpaca",
        "instruction, input, output",
        _has("instruction", "output"),
        _columns("system", ("instruction", "input"), "output"),
    ),
    Format(
        "prompt-completion", "prompt, completion", _has("prompt", "completion"), _prompt_completion
    ),
    Format(
        "question-answer",
        "question, answer",
        _has("question", "answer"),
        _columns(None, ("question",), "answer"),
    ),
]
