"""Which shape rows have, told by their fields, and how each becomes conversations."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from chattune.conversation import Conversation, Message, Role
from chattune.data.rows import Fields
from chattune.errors import BadRow, DataError
from chattune.recipe import DataRecipe


@dataclass(frozen=True)
class Format:
    """A shape of rows: how to know it, and how to read a row of it."""

    name: str
    fields: str
    matches: Callable[[Fields], bool]
    read: Callable[[Fields, DataRecipe], list[Conversation]]


def recognise(row: Fields, recipe: DataRecipe) -> Format | None:
    """The format that the recipe names, its own column mapping, or the first that matches."""
    if recipe.columns is not None:
        return _mapped(recipe.columns)
    if recipe.format != "auto":
        named = [f for f in FORMATS if f.name == recipe.format]
        if not named:
            raise DataError(
                f"data.format: {recipe.format!r} is not known; known: auto, "
                + ", ".join(f.name for f in FORMATS)
            )
        return named[0]
    return next((f for f in FORMATS if f.matches(row)), None)


def known_fields() -> str:
    """The formats and their fields, for an error message."""
    return "; ".join(f"{f.name} ({f.fields})" for f in FORMATS)


_GUANACO = re.compile(r"\s*(?<!#)### (Human|Assistant|System):[ \t]*")
_GUANACO_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant", "System": "system"}
_SPEAKERS: dict[str, Role] = {
    "system": "system",
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model", "bing", "bard"), "assistant"),
}


def _guanaco(row: Fields, _: DataRecipe) -> list[Conversation]:
    """`### Human: Hi### Assistant: Hello`: only these two markers (and System) begin a turn.

    A reply's own Markdown headings (`### Steps`) stay words.
    """
    before, *rest = _GUANACO.split(_text(row, "text"))
    if before.strip():
        raise BadRow("text before the first ### Human:")
    turns = zip(rest[::2], rest[1::2], strict=True)
    return [Conversation.of(*((_GUANACO_ROLES[marker], words) for marker, words in turns))]


def _columns(system: str | None, user: tuple[str, ...], assistant: str) -> Callable[..., Any]:
    """A reader for one question and one answer a row; `user` columns are joined."""

    def read(row: Fields, _: DataRecipe) -> list[Conversation]:
        question = "\n\n".join(filter(str.strip, (_text(row, name) for name in user)))
        turns: list[tuple[Role, str]] = [("user", question), ("assistant", _text(row, assistant))]
        if system is not None and _text(row, system).strip():
            turns.insert(0, ("system", _text(row, system)))
        return [Conversation.of(*turns)]

    return read


def _mapped(columns: Any) -> Format:
    missing = {"user", "assistant"} - set(columns)
    if missing:
        raise DataError(f"data.columns: {', '.join(sorted(missing))} missing; name their columns")
    read = _columns(columns.get("system"), (columns["user"],), columns["assistant"])

    def checked(row: Fields, recipe: DataRecipe) -> list[Conversation]:
        absent = [c for c in columns.values() if c not in row]
        if absent:
            raise BadRow(f"no column {absent[0]!r}; it has {', '.join(map(str, row))}")
        conversations: list[Conversation] = read(row, recipe)
        return conversations

    return Format("columns", ", ".join(columns.values()), lambda row: True, checked)


def _messages(field: str, role_key: str, words_key: str) -> Callable[..., Any]:
    def read(row: Fields, _: DataRecipe) -> list[Conversation]:
        return [Conversation(tuple(_turns(row.get(field), role_key, words_key)))]

    return read


def _prompt_completion(row: Fields, recipe: DataRecipe) -> list[Conversation]:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return [Conversation(tuple(_turns([*prompt, *completion], "role", "content")))]
    read = _columns(None, ("prompt",), "completion")
    conversations: list[Conversation] = read(row, recipe)
    return conversations


def _turns(turns: Any, role_key: str, words_key: str) -> Iterator[Message]:
    if not isinstance(turns, list):
        raise BadRow(f"expected a list of turns, not {type(turns).__name__}")
    for turn in turns:
        if not isinstance(turn, dict) or role_key not in turn or words_key not in turn:
            raise BadRow(f"a turn without {role_key!r} and {words_key!r}")
        role = _SPEAKERS.get(str(turn[role_key]).lower())
        if role is None:
            raise BadRow(f"unknown role {turn[role_key]!r:.80}")
        yield Message(role, _words(turn[words_key], words_key))


def _oasst_tree(row: Fields, recipe: DataRecipe) -> list[Conversation]:
    """Paths from the root question down an Open-Assistant tree, each ending in a reply.

    Best: at every turn the child of the lowest rank (0 is best), then the first. All: every leaf.
    """
    paths = _paths(row.get("prompt"), best=recipe.tree_paths == "best")
    # Leaves that are questions leave the path that ends before them, which siblings share.
    trimmed = {tuple(p[:-1] if p[-1].role == "user" else p): None for p in paths}
    return [Conversation(path) for path in trimmed if path]


def _paths(node: Any, *, best: bool) -> Iterator[list[Message]]:
    if not isinstance(node, dict) or "text" not in node or "role" not in node:
        raise BadRow("a tree node without text and role")
    role = _SPEAKERS.get(str(node["role"]).lower())
    if role is None:
        raise BadRow(f"unknown role {node['role']!r:.80}")
    here = Message(role, _words(node["text"], "text"))
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(r, dict) for r in replies):
        raise BadRow("a tree node whose replies are no list of nodes")
    if not all(isinstance(r.get("rank"), int | float | None) for r in replies):
        raise BadRow("a tree node whose rank is no number")
    replies = [r for r in replies if not r.get("deleted")]
    if not replies:
        yield [here]
    if best:
        replies = sorted(replies, key=lambda r: (r.get("rank") is None, r.get("rank") or 0))[:1]
    for reply in replies:
        for path in _paths(reply, best=best):
            yield [here, *path]


def _text(row: Fields, name: str) -> str:
    return _words(row.get(name), name)


def _words(value: Any, name: str) -> str:
    """Text of a field: strings, numbers, and lists of text parts; null is empty."""
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
