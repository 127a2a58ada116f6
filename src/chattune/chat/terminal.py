"""The terminal chat: streamed replies and a few slash commands."""

import json
import mmap
from pathlib import Path

from rich.console import Console

from chattune.chat import Chatbot
from chattune.conversation import Message
from chattune.errors import ChatError, UserError
from chattune.recipe import expand_home

HELP = """\
/reset            forget the conversation
/system TEXT      set the system prompt; without TEXT, remove it
/set NAME VALUE   set do_sample, temperature, top_k, top_p, min_p, max_new_tokens,
                  repetition_penalty, no_repeat_ngram, stop, finish, finish_tokens or seed;
                  finish is cut, sentence, continue or summary: what becomes of a reply that
                  reaches max_new_tokens
/save FILE        append the conversation to FILE as a JSON line that chattune can train on
/quit             leave (Ctrl-D and Ctrl-C leave too)"""


def talk(bot: Chatbot, console: Console) -> None:
    """Read and answer messages until the user leaves; Ctrl-C during a reply stops only the reply.

    A UserError is printed, and the conversation goes on.
    """
    console.print("Type a message, or /help. Ctrl-D leaves.", style="dim")
    while True:
        try:
            text = console.input("[bold cyan]you[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if text in ("/quit", "/exit"):
            return
        if not text:
            continue
        try:
            if text.startswith("/"):
                console.print(command(bot, text), style="dim", markup=False)
            else:
                _answer(bot, text, console)
        except UserError as error:
            console.print(str(error), style="red", markup=False)


def _answer(bot: Chatbot, text: str, console: Console) -> None:
    """Print the reply to a message as it is generated, until it ends or Ctrl-C stops it."""
    console.print("[bold green]bot[/]", end=" ")
    try:
        for piece in bot.stream(text):
            console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
        console.print()
    except KeyboardInterrupt:
        console.print(" (stopped)", style="dim")


def command(bot: Chatbot, text: str) -> str:
    """Carry out a slash command and return the message to show.

    An unknown command returns HELP. Raises UserError for an unknown setting, an invalid value, or a
    file that holds something else.
    """
    name, _, argument = text.partition(" ")
    argument = argument.strip()
    if name == "/reset":
        bot.reset()
        return "the conversation is forgotten"
    if name == "/system":
        bot.system = argument or None
        return f"system prompt: {argument or 'none'}"
    if name == "/set":
        setting, _, value = argument.partition(" ")
        bot.decoding = bot.decoding.but(**{setting: None if value == "none" else value.strip()})
        return f"{setting} = {getattr(bot.decoding, setting)}"
    if name == "/save":
        return _save(bot, argument)
    return HELP


def _save(bot: Chatbot, file: str) -> str:
    """Append the conversation to a JSONL file and return the message to show."""
    if not file:
        return "/save FILE: name a file, such as chat.jsonl"
    if not bot.messages:
        return "there is nothing to save yet"
    head = [Message("system", bot.system)] if bot.system else []
    messages = [{"role": m.role, "content": m.content} for m in [*head, *bot.messages]]
    try:
        line = json.dumps({"messages": messages}, ensure_ascii=False).encode() + b"\n"
        path = Path(expand_home(file))
        if path.is_file() and path.stat().st_size:
            line = _line_break(path) + line
        with path.open("ab") as out:
            out.write(line)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, or half a character
        return f"/save {file}: cannot be written ({error})"
    return f"saved {len(bot.messages)} messages to {file}"


def _line_break(path: Path) -> bytes:
    """Return what a file of conversations lacks before another line: a line break or nothing.

    Raises ChatError unless the file's first and last line are JSON objects with `messages`.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        first = content.readline()
        end = content.rfind(b"}") + 1
        last = content[content.rfind(b"\n", 0, end) + 1 :]
    if not (_is_conversation(first) and _is_conversation(last)):
        raise ChatError(
            f"/save {path}: holds something other than conversations as JSON lines; name a new "
            "file, or one that /save wrote"
        )
    return b"" if last.endswith(b"\n") else b"\n"


def _is_conversation(line: bytes) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and "messages" in row
