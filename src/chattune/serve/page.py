"""The Gradio chat page: streamed replies, a stop button, and the decoding parameters."""

import errno
import logging
import socket
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import gradio as gr
import httpx

from chattune.chat import Chatbot
from chattune.conversation import Message
from chattune.errors import ChatError, UserError

if TYPE_CHECKING:
    from gradio import ChatInterface

_MAX_MESSAGE = 20_000  # characters; the model sees far fewer tokens than that
_PORTS = range(7860, 7960)
_FONT = ("system-ui", "sans-serif")  # the font that comes with Gradio's theme has no bold
_MONO = ("ui-monospace", "monospace")
_EMPTY_REPLY = "(the model ended its reply at once)"

log = logging.getLogger(__name__)


def chat_page(bot: Chatbot, title: str) -> "ChatInterface":
    """Return a page for chatting with `bot`'s model; each visitor has their own history."""
    recommended, longest = bot.decoding, bot.positions // 2

    def answer(
        text: str,
        history: list[dict[str, Any]],
        system: str,
        temperature: float,
        top_k: float,
        top_p: float,
        max_new_tokens: float,
        repetition_penalty: float,
    ) -> Iterator[str]:
        visitor = bot.fresh(system=system, messages=_messages(history))
        try:
            if len(text) > _MAX_MESSAGE:  # the text box has this limit, but other clients do not
                raise ChatError(f"the message is over {_MAX_MESSAGE:,} characters; shorten it")
            decoding = recommended.but(
                do_sample=True,
                temperature=temperature,
                top_k=int(top_k),
                top_p=top_p,
                max_new_tokens=int(max_new_tokens),
                repetition_penalty=repetition_penalty,
            )
            reply = ""
            for piece in visitor.stream(text, decoding):
                reply += piece
                yield reply
            if not reply:
                yield _EMPTY_REPLY
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    temperature = 0 if recommended.greedy else recommended.temperature
    max_new_tokens = min(recommended.max_new_tokens, longest)
    return gr.ChatInterface(
        answer,
        title=title,
        textbox=gr.Textbox(
            placeholder="Type a message", max_length=_MAX_MESSAGE, submit_btn=True, stop_btn=True
        ),
        chatbot=gr.Chatbot(
            show_label=False,
            placeholder="Say something to begin.",
            height=300,  # the least height; `scale` adds the rest of the window
            scale=1,
            buttons=["copy", "copy_all"],  # no "share", which posts to a public forum
            sanitize_html=True,
        ),
        additional_inputs_accordion=gr.Accordion("Settings", open=False),
        additional_inputs=[
            gr.Textbox(bot.system or "", label="System prompt", max_length=_MAX_MESSAGE),
            _slider(0, 2, temperature, 0.05, "Temperature (0: greedy)"),
            _slider(0, 200, recommended.top_k, 1, "Top-k (0: off)"),
            _slider(0.05, 1, recommended.top_p, 0.05, "Top-p"),
            _slider(8, longest, max_new_tokens, 8, "Maximum length (tokens)"),
            _slider(1, 2, recommended.repetition_penalty, 0.05, "Repetition penalty"),
        ],
        save_history=False,
        analytics_enabled=False,
        flagging_mode="never",
        concurrency_limit=bot.engine.at_once,
        api_name="chat",
    )


def _slider(low: float, high: float, value: float, step: float, label: str) -> gr.Slider:
    """Return a slider whose range is widened if the recommended value lies outside it."""
    return gr.Slider(min(low, value), max(high, value), value, step=step, label=label)


def serve_page(
    bot: Chatbot, *, title: str, host: str = "127.0.0.1", port: int | None = None
) -> None:
    """Serve a chat page until Ctrl-C, without sharing it on the internet.

    Without `port`, the first free one from 7860 is used. Raises UserError if the page cannot listen
    on the host and port.
    """
    page = chat_page(bot, title).queue(max_size=32)
    url = open_page(page, host, port)
    log.info("chat page: %s (stop it with Ctrl-C)", url)
    page.block_thread()


def open_page(page: "ChatInterface", host: str, port: int | None) -> str:
    """Start serving and return the URL; Gradio's sharing, monitoring and history are switched off.

    Raises UserError if the page cannot listen on the host and port.
    """
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=_free_port(host, port),
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            mcp_server=False,
            ssr_mode=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            theme=gr.themes.Default(font=_FONT, font_mono=_MONO),
            max_file_size="1mb",
        )
    except (OSError, ValueError, httpx.HTTPError) as error:  # Gradio first requests its own page
        raise UserError(
            f"--host {host}: the page cannot be reached ({error}); if a proxy is set, add this "
            "address to NO_PROXY"
        ) from None
    return str(url)


def _free_port(host: str, port: int | None) -> int:
    """Return `port` if it is free, or the first free port from 7860 if it is None.

    Gradio's own search would try every port of an address that this machine does not have.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in _PORTS if port is None else [port]:
        try:
            with socket.create_server((host, candidate), family=family) as server:
                return int(server.getsockname()[1])
        except OverflowError as error:
            raise UserError(f"--port {port}: not a port number ({error})") from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(
                    f"--host {host}: cannot listen on its port {candidate} ({error}); the default "
                    "is 127.0.0.1"
                ) from None
    tried = port or f"{_PORTS[0]} to {_PORTS[-1]}"
    raise UserError(f"--port {tried}: taken by another program; choose another")


def _messages(history: list[dict[str, Any]]) -> list[Message]:
    """Return Gradio's history as messages, without questions that have no answer."""
    messages = [Message(entry["role"], _text(entry["content"])) for entry in history]
    return [
        message
        for first, second in pairwise(messages)
        if (first.role, second.role) == ("user", "assistant") and second.content != _EMPTY_REPLY
        for message in (first, second)
    ]


def _text(content: Any) -> str:
    """Return the text of a message's content, which is a string or a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))
