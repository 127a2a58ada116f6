"""The prompts of an evaluation: sets that are part of chattune, and files of the user's own."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from chattune.conversation import Conversation, Message, Role, alternates
from chattune.errors import DataError
from chattune.recipe import expand_home


@dataclass(frozen=True)
class Prompt:
    """A conversation that the model is to continue.

    `messages` are what has been said before, and `turns` the user's messages that follow: the model
    answers each of them, and sees its own earlier replies. `reference` is somebody's reply to the
    last one. A right last reply has one text of each tuple of `required` and none of `forbidden`.
    """

    name: str
    kind: str
    turns: tuple[str, ...]
    messages: tuple[Message, ...] = ()
    reference: str | None = None
    required: tuple[tuple[str, ...], ...] = ()
    forbidden: tuple[str, ...] = ()


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Role
    content: Text


class Asked(BaseModel):
    """The fields that lines of a file of prompts and of a file of replies have in common."""

    id: str | int | None = None
    kind: str = ""
    messages: list[_Message] = []
    prompt: Text | None = None
    reference: Text | None = None
    required: list[Text | list[Text]] = []
    forbidden: list[Text] = []

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Return the required texts, of each group of which a right reply has one."""
        return tuple((g,) if isinstance(g, str) else tuple(g) for g in self.required)


class _Row(Asked):
    """A line of a file of prompts; see load_prompts()."""

    model_config = ConfigDict(extra="forbid")

    category: str = ""  # another name of `kind`
    system: Text | None = None
    turns: list[Text] = []


def shipped_sets() -> list[str]:
    """Return the names of the prompt sets that are part of chattune."""
    return sorted(path.name.removesuffix(".jsonl") for path in _shipped_folder().iterdir())


def load_prompts(name: str) -> list[Prompt]:
    """Load a shipped set by name, or the prompts of a file.

    A line of a JSONL file has `prompt` (a text), `turns` (texts that are answered one after the
    other) or `messages` (`role` and `content` of each; if the last one is the assistant's, it is
    the reference), and may have `id`, `kind`, `system`, `reference`, `required` (a list of lists of
    texts) and `forbidden` (a list of texts). A line of a .txt file is a prompt. Any other file is
    read as conversations, as `chattune prepare` reads them, and their last reply is the reference.
    Raises DataError for a file that is missing, or that has no prompts.
    """
    if name in shipped_sets():
        return _from_lines(_shipped_folder() / f"{name}.jsonl", name)
    path = Path(expand_home(name))
    if not path.exists():
        raise DataError(
            f"prompts {name!r}: no such file; give a file, or one of {', '.join(shipped_sets())}"
        )
    if path.suffix == ".txt":
        lines = [line for line in _read_text(path).split("\n") if line.strip()]
        found = [Prompt(f"{path.stem}/{i}", "", (line,)) for i, line in enumerate(lines, 1)]
    elif path.suffix == ".jsonl" and _holds_prompts(path):
        found = _from_lines(path, path.stem)
    else:
        found = from_conversations(_read_conversations(path), path.stem)
    if not found:
        raise DataError(f"prompts {name}: holds no prompt; give a file with at least one")
    return found


def from_conversations(conversations: Iterable[Conversation], name: str) -> list[Prompt]:
    """Turn conversations into prompts: all but the last reply, which is the reference."""
    prompts = []
    for number, conversation in enumerate(conversations, 1):
        *before, question, reply = conversation.messages
        prompts.append(
            Prompt(
                f"{name}/{number}", "", (question.content,), tuple(before), reply.content.strip()
            )
        )
    return prompts


def hash_of(prompts: Iterable[Prompt]) -> str:
    """Return a hash of everything that the prompts hold."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps(asdict(prompt), sort_keys=True).encode())
    return digest.hexdigest()


def _shipped_folder() -> Path:
    return Path(str(resources.files("chattune"))) / "evaluate" / "prompt_sets"


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"prompts {path}: cannot be read as UTF-8 text ({error})") from error


def _holds_prompts(path: Path) -> bool:
    """Return whether the first line has a prompt and no reply, unlike rows of training data."""
    first = next((line for line in _read_text(path).split("\n") if line.strip()), "")
    try:
        row = json.loads(first)
    except ValueError:
        return False
    return isinstance(row, dict) and (
        "turns" in row
        or ("prompt" in row and not {"completion", "response", "chosen"} & row.keys())
        or ("messages" in row and bool({"required", "forbidden", "reference"} & row.keys()))
    )


def _from_lines(path: Path, name: str) -> list[Prompt]:
    prompts, seen = [], dict[str, int]()
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path.name}:{number}"
        try:
            row = _Row.model_validate_json(line)
            prompt = _from_row(row, f"{name}/{number if row.id is None else row.id}")
        except ValidationError as error:
            raise DataError(f"{place}: {_problem(error)}") from error
        except ValueError as error:
            raise DataError(f"{place}: {error}") from error
        if prompt.name in seen:
            raise DataError(
                f"{place}: the id {row.id!r} is also that of line {seen[prompt.name]}; give "
                "each prompt an id of its own"
            )
        seen[prompt.name] = number
        prompts.append(prompt)
    return prompts


def _from_row(row: "_Row", name: str) -> Prompt:
    """Build a prompt from a line; raises ValueError if the line does not end with the user."""
    messages = [Message(m.role, m.content) for m in row.messages]
    turns, reference = row.turns, row.reference
    if row.prompt is not None:
        turns = [row.prompt]
    if not turns and messages and messages[-1].role == "assistant":
        reference = reference or messages.pop().content
    if not turns and messages:
        turns = [messages.pop().content]
    if not turns:
        raise ValueError("no message of the user to answer; add `prompt` or `turns`")
    if row.system is not None:
        messages.insert(0, Message("system", row.system))
    if not alternates((*(m.role for m in messages), "user")):
        raise ValueError("messages: user and assistant do not take turns; mend the order")
    return Prompt(
        name=name,
        kind=row.kind or row.category,
        turns=tuple(turns),
        messages=tuple(messages),
        reference=reference,
        required=row.groups(),
        forbidden=tuple(row.forbidden),
    )


def _problem(error: ValidationError) -> str:
    """Describe the first problem of a line, beginning with its field."""
    detail = error.errors()[0]
    field = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{field}: unknown field; the fields are {', '.join(_Row.model_fields)}"
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{field or 'the line'}: {message}, not {detail['input']!r:.80}"


def _read_conversations(path: Path) -> Iterator[Conversation]:
    from chattune.data.clean import clean
    from chattune.data.formats import read_conversations
    from chattune.data.report import Tally
    from chattune.data.sources import read_rows
    from chattune.recipe import DataRecipe

    recipe = DataRecipe(source=str(path))
    tally = Tally()
    rows = read_conversations(read_rows(recipe, seed=0), recipe, tally)
    yield from clean(rows, tally, near_duplicates=False)
