"""Tests of the terminal chat: streamed replies, slash commands, saving, and leaving."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from chattune.base import starter_folder
from chattune.chat import Chatbot
from chattune.chat.terminal import HELP, command, talk
from chattune.conversation import Message
from chattune.data.formats import recognise
from chattune.data.sources import read_rows
from chattune.errors import ChatError, UserError
from chattune.generate import Decoding
from chattune.generate.scripted import ScriptedEngine
from chattune.recipe import DataRecipe
from chattune.template import Template

END = 0  # the starter's end token


@pytest.fixture(scope="module")
def template() -> Template:
    return Template.load(starter_folder())


@pytest.fixture
def bot(template: Template) -> Chatbot:
    return scripted(template, "Hello there.")


def scripted(template: Template, *replies: str) -> Chatbot:
    engine = ScriptedEngine([[*template.encode(reply), END] for reply in replies])
    return Chatbot(engine, template, 512)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that types lines, or raises exceptions, and returns the screen's text."""

    def run(bot: Chatbot, *typed: str | type[BaseException]) -> str:
        lines = iter(typed)

        def read(_: object = None) -> str:
            line = next(lines, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("builtins.input", read)
        console = Console(file=io.StringIO(), width=200)
        talk(bot, console)
        shown: str = console.file.getvalue()  # type: ignore[attr-defined]
        return shown

    return run


# --- talking -----------------------------------------------------------------------------------


def test_a_message_is_answered(bot: Chatbot, screen: Callable[..., str]) -> None:
    assert "bot Hello there.\n" in screen(bot, "Hi!")
    assert [m.content for m in bot.messages] == ["Hi!", "Hello there."]


@pytest.mark.parametrize("leave", ["/quit", "/exit", EOFError, KeyboardInterrupt])
def test_leaving_ends_the_chat(
    bot: Chatbot, screen: Callable[..., str], leave: str | type[BaseException]
) -> None:
    assert "Hello" not in screen(bot, leave, "Hi!")


def test_empty_lines_are_ignored(bot: Chatbot, screen: Callable[..., str]) -> None:
    screen(bot, "", "   ", "Hi!")
    assert len(bot.messages) == 2


@pytest.mark.parametrize(
    "reply",
    ["[bold]no markup[/bold]", "a list: [1, 2]", ":smile: and :warning:", "x[1:heart:2]", "\\[a]"],
)
def test_replies_are_shown_as_they_are(
    template: Template, screen: Callable[..., str], reply: str
) -> None:
    """Markup that rich would decorate is printed as it is, in one token or in several."""
    assert f"bot {reply}\n" in screen(scripted(template, reply), "Hi!")


def test_long_replies_are_not_wrapped(template: Template, screen: Callable[..., str]) -> None:
    reply = "word " * 100 + "end."
    assert reply in screen(scripted(template, reply), "Hi!")


def test_an_error_is_one_line_and_the_chat_goes_on(
    bot: Chatbot, screen: Callable[..., str]
) -> None:
    shown = screen(bot, "why " * 800, "/set top_p 7", "/set nothing 1", "Hi!")
    assert "the message is too long" in shown
    assert "top_p: input should be less than or equal to 1, not '7'" in shown
    assert "nothing: no such setting" in shown
    assert "Hello there." in shown
    assert "Traceback" not in shown


class Interrupted:
    """An engine whose reply is stopped with Ctrl-C after its last token."""

    def __init__(self, ids: list[int]) -> None:
        self._ids = ids

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding
    ) -> Iterator[tuple[int, int]]:
        yield from ((0, token) for token in self._ids)
        raise KeyboardInterrupt


def test_ctrl_c_in_a_reply_stops_that_reply_only(
    template: Template, screen: Callable[..., str]
) -> None:
    bot = Chatbot(Interrupted(template.encode("Hello")), template, 512)
    shown = screen(bot, "Hi!", "Hi again!", "/quit")
    assert shown.count("Hello (stopped)") == 2
    assert [m.content for m in bot.messages] == ["Hi!", "Hello", "Hi again!", "Hello"]


# --- commands ----------------------------------------------------------------------------------


def test_reset_forgets_the_conversation(bot: Chatbot, screen: Callable[..., str]) -> None:
    assert "forgotten" in screen(bot, "Hi!", "/reset")
    assert bot.messages == []


@pytest.mark.parametrize(
    ("typed", "system", "message"),
    [
        ("/system Be kind.", "Be kind.", "system prompt: Be kind."),
        ("/system   Be  kind. ", "Be  kind.", "system prompt: Be  kind."),
        ("/system", None, "system prompt: none"),
    ],
)
def test_the_system_prompt_can_be_set(
    bot: Chatbot, typed: str, system: str | None, message: str
) -> None:
    bot.system = "before"
    assert command(bot, typed) == message
    assert bot.system == system


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("/set temperature 0", "temperature", 0.0),
        ("/set temperature  1.5 ", "temperature", 1.5),
        ("/set top_k 5", "top_k", 5),
        ("/set top_p 0.5", "top_p", 0.5),
        ("/set max_new_tokens 9", "max_new_tokens", 9),
        ("/set repetition_penalty 1.2", "repetition_penalty", 1.2),
        ("/set finish sentence", "finish", "sentence"),
        ("/set finish_tokens 9", "finish_tokens", 9),
        ("/set seed 3", "seed", 3),
        ("/set seed none", "seed", None),
    ],
)
def test_each_setting_can_be_set(bot: Chatbot, typed: str, name: str, value: object) -> None:
    assert command(bot, typed) == f"{name} = {value}"
    assert getattr(bot.decoding, name) == value


@pytest.mark.parametrize(
    "typed",
    [
        *("/set", "/set temperature", "/set temperature hot", "/set temperature none"),
        *("/set finish", "/set finish none", "/set finish_tokens -1"),
        *("/set top_k 1.5", "/set seed -1", "/set speed 3", "/set self 1", "/set = 3"),
    ],
)
def test_a_wrong_setting_is_answered_in_one_line(bot: Chatbot, typed: str) -> None:
    before = bot.decoding
    with pytest.raises(UserError) as caught:
        command(bot, typed)
    assert "\n" not in str(caught.value)
    assert bot.decoding == before


@pytest.mark.parametrize("typed", ["/help", "/nonsense", "/", "/resett"])
def test_help_and_unknown_commands_list_the_commands(bot: Chatbot, typed: str) -> None:
    assert command(bot, typed) == HELP


def test_help_names_every_setting_and_command() -> None:
    assert all(name in HELP for name in Decoding.model_fields)
    assert all(f"/{name}" in HELP for name in ("reset", "system", "set", "save", "quit"))


# --- saving ------------------------------------------------------------------------------------


def test_a_saved_conversation_can_be_trained_on(bot: Chatbot, tmp_path: Path) -> None:
    bot.system = "Be kind, Größe 答."
    bot.reply("Hi!\nHow are you?")
    file = tmp_path / "chat.jsonl"
    assert command(bot, f"/save {file}") == f"saved 2 messages to {file}"
    bot.reset()
    bot.system = None
    bot.reply("Bye!")
    command(bot, f"/save {file}")
    assert saved(file) == [
        [
            Message("system", "Be kind, Größe 答."),
            Message("user", "Hi!\nHow are you?"),
            Message("assistant", "Hello there."),
        ],
        [Message("user", "Bye!"), Message("assistant", "Hello there.")],
    ]


def saved(file: Path) -> list[list[Message]]:
    """Return the conversations of a file as the data stage reads them."""
    recipe = DataRecipe(source=str(file))
    conversations = []
    for row in read_rows(recipe, 0):
        form = recognise(row.fields, recipe)
        assert form is not None, row
        conversations += [list(c.messages) for c in form.read(row.fields, recipe)]
    return conversations


def test_saving_needs_a_file(bot: Chatbot) -> None:
    assert command(bot, "/save") == "/save FILE: name a file, such as chat.jsonl"


@pytest.mark.parametrize("name", ["", "missing/chat.jsonl", "nul\0l.jsonl"])
def test_a_file_that_cannot_be_written_is_named(bot: Chatbot, tmp_path: Path, name: str) -> None:
    bot.reply("Hi!")
    try:
        message = command(bot, f"/save {tmp_path / name}")
    except ChatError as error:
        message = str(error)
    assert "cannot be written" in message
    assert "\n" not in message


def test_an_empty_conversation_adds_no_line(bot: Chatbot, tmp_path: Path) -> None:
    """Training on a line without messages would refuse or drop it."""
    file = tmp_path / "chat.jsonl"
    command(bot, f"/save {file}")
    assert not file.exists() or all(
        json.loads(line)["messages"] for line in file.read_text("utf-8").splitlines()
    )


def line_of(*messages: tuple[str, str]) -> str:
    row = {"messages": [{"role": role, "content": content} for role, content in messages]}
    return json.dumps(row, ensure_ascii=False)


OLD = line_of(("user", "Größe?"), ("assistant", "One."))
NEW = line_of(("user", "Hi!"), ("assistant", "Hello there."))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", f"{NEW}\n"),
        (f"{OLD}\n", f"{OLD}\n{NEW}\n"),
        (OLD, f"{OLD}\n{NEW}\n"),
        (f"{OLD}\n{OLD}", f"{OLD}\n{OLD}\n{NEW}\n"),
        (f"{OLD}\r\n", f"{OLD}\r\n{NEW}\n"),
        (f"{OLD}\n\n", f"{OLD}\n\n{NEW}\n"),
    ],
    ids=["empty", "line", "no final newline", "two lines", "CRLF", "blank line"],
)
def test_a_conversation_gets_a_line_of_its_own(
    bot: Chatbot, tmp_path: Path, before: str, after: str
) -> None:
    file = tmp_path / "chat.jsonl"
    file.write_bytes(before.encode())
    bot.reply("Hi!")
    assert command(bot, f"/save {file}") == f"saved 2 messages to {file}"
    assert file.read_bytes().decode() == after


@pytest.mark.parametrize(
    "content",
    [
        "Dear diary,\n",
        "\n",
        '{"messages"',
        '{"instruction": "a", "output": "b"}\n',
        '["messages"]\n',
        f"question,answer\n{OLD}\n",
        f"{OLD}\nDear diary,\n",
        f'{OLD}\n{{"messages": [',
        f"[\n{OLD}\n]\n",
        "[" * 100_000,
    ],
    ids=lambda content: content[:12],
)
def test_a_file_of_something_else_is_left_as_it_is(
    bot: Chatbot, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text(content, "utf-8")
    bot.reply("Hi!")
    with pytest.raises(ChatError, match="holds something other than conversations"):
        command(bot, f"/save {file}")
    assert file.read_text("utf-8") == content


def test_a_tilde_is_the_home_folder(
    bot: Chatbot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    bot.reply("Hi!")
    command(bot, "/save ~/chat.jsonl")
    assert (tmp_path / "chat.jsonl").read_text("utf-8") == f"{NEW}\n"


def test_half_a_character_leaves_no_file(template: Template, tmp_path: Path) -> None:
    history = [Message("user", "caf\udce9"), Message("assistant", "One.")]
    bot = Chatbot(ScriptedEngine([]), template, 512, messages=history)
    assert "cannot be written" in command(bot, f"/save {tmp_path / 'chat.jsonl'}")
    assert list(tmp_path.iterdir()) == []
