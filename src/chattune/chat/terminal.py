"""The terminal chat: streaming replies and a few slash commands."""

import json
from pathlib import Path

from rich.console import Console

from chattune.chat import Chatbot
from chattune.conversation import Message
from chattune.errors import UserError

HELP = """\
/reset            forget the conversation
/system TEXT      set the system prompt (no text: none)
/set NAME VALUE   do_sample, temperature, top_k, top_p, min_p, max_new_tokens,
                  repetition_penalty, no_repeat_ngram, stop, seed
/save FILE        write the conversation as a JSON line that chattune can train on
/quit             leave (so do Ctrl-D and Ctrl-C)"""


def talk(bot: Chatbot, console: Console) -> None:
    """Read messages until the person leaves; Ctrl-C in a reply stops that reply only."""
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
    console.print("[bold green]bot[/]", end=" ")
    pieces = bot.stream(text)
    try:
        for piece in pieces:
            console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
        console.print()
    except KeyboardInterrupt:
        console.print(" (stopped)", style="dim")


def command(bot: Chatbot, text: str) -> str:
    """Carry out a slash command; what to tell the person. Raises UserError for a wrong value."""
    name, _, rest = text.partition(" ")
    rest = rest.strip()
    if name == "/reset":
        bot.reset()
        return "forgotten"
    if name == "/system":
        bot.system = rest or None
        return f"system prompt: {rest or 'none'}"
    if name == "/set":
        setting, _, value = rest.partition(" ")
        bot.decoding = bot.decoding.but(**{setting: None if value == "none" else value.strip()})
        return f"{setting} = {getattr(bot.decoding, setting)}"
    if name == "/save":
        return _save(bot, rest)
    return HELP


def _save(bot: Chatbot, file: str) -> str:
    if not file:
        return "/save FILE: name a file, such as chat.jsonl"
    if not bot.messages:
        return "nothing to save yet"
    head = [Message("system", bot.system)] if bot.system else []
    messages = [{"role": m.role, "content": m.content} for m in [*head, *bot.messages]]
    try:
        with Path(file).open("a", encoding="utf-8") as out:
            out.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return f"/save {file}: cannot be written ({error})"
    return f"saved {len(bot.messages)} messages to {file}"
