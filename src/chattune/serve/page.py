"""The Gradio chat page: streaming, stop, and the decoding parameters."""

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
_FONT = ("system-ui", "sans-serif")  # of the machine: the theme's own font has no bold
_MONO = ("ui-monospace", "monospace")
_SILENCE = "(the model ended its reply at once)"

log = logging.getLogger(__name__)


def chat_page(bot: Chatbot, title: str) -> "ChatInterface":
    """A page on which anybody talks to `bot`'s model; each visitor has a history of their own."""
    start, longest = bot.decoding, bot.positions // 2
    warmth = 0 if start.greedy else start.temperature

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
            if len(text) > _MAX_MESSAGE:  # the page holds this limit, other clients may not
                raise ChatError(f"the message is over {_MAX_MESSAGE:,} characters; shorten it")
            decoding = start.but(
                do_sample=True,
                temperature=temperature,
                top_k=int(top_k),
                top_p=top_p,
                max_new_tokens=int(max_new_tokens),
                repetition_penalty=repetition_penalty,
            )
            said = ""
            for piece in visitor.stream(text, decoding):
                said += piece
                yield said
            if not said:
                yield _SILENCE
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return gr.ChatInterface(
        answer,
        title=title,
        textbox=gr.Textbox(
            placeholder="Type a message", max_length=_MAX_MESSAGE, submit_btn=True, stop_btn=True
        ),
        chatbot=gr.Chatbot(
            show_label=False,
            placeholder="Say something to begin.",
            height=300,  # at least; `scale` gives it the rest of the window
            scale=1,
            buttons=["copy", "copy_all"],  # not "share", which posts on a public forum
            sanitize_html=True,
        ),
        additional_inputs_accordion=gr.Accordion("Settings", open=False),
        additional_inputs=[
            gr.Textbox(bot.system or "", label="System prompt", max_length=_MAX_MESSAGE),
            _slider(0, 2, warmth, 0.05, "Temperature (0: greedy)"),
            _slider(0, 200, start.top_k, 1, "Top-k (0: off)"),
            _slider(0.05, 1, start.top_p, 0.05, "Top-p"),
            _slider(8, longest, min(start.max_new_tokens, longest), 8, "Maximum length (tokens)"),
            _slider(1, 2, start.repetition_penalty, 0.05, "Repetition penalty"),
        ],
        save_history=False,
        analytics_enabled=False,
        flagging_mode="never",
        concurrency_limit=bot.engine.at_once,
        api_name="chat",
    )


def _slider(low: float, high: float, value: float, step: float, label: str) -> gr.Slider:
    """Its range holds the value in any case: a model may recommend one that is out of the way."""
    return gr.Slider(min(low, value), max(high, value), value, step=step, label=label)


def serve_page(
    bot: Chatbot, *, title: str, host: str = "127.0.0.1", port: int | None = None
) -> None:
    """Serve the page until Ctrl-C; never shared.

    Raises UserError if host or port cannot be listened on.
    """
    page = chat_page(bot, title).queue(max_size=32)
    url = open_page(page, host, port)
    log.info("chat page: %s (Ctrl-C ends it)", url)
    page.block_thread()


def open_page(page: "ChatInterface", host: str, port: int | None) -> str:
    """Start serving and return the address. What Gradio would publish or keep is switched off."""
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
    except (OSError, ValueError, httpx.HTTPError) as error:  # Gradio asks its own page at first
        raise UserError(
            f"--host {host}: the page cannot be reached ({error}); where a proxy is set, "
            "NO_PROXY has to name this address"
        ) from None
    return str(url)


def _free_port(host: str, port: int | None) -> int:
    """The port, or the first free one; of an address that is not ours Gradio would try them all."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in _PORTS if port is None else [port]:
        try:
            with socket.create_server((host, candidate), family=family) as server:
                return int(server.getsockname()[1])
        except OverflowError as error:
            raise UserError(f"--port {port}: not a port ({error})") from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(
                    f"--host {host}: cannot be listened on, port {candidate} ({error}); the "
                    "default is 127.0.0.1"
                ) from None
    raise UserError(f"--port {port or _PORTS}: taken by another program; choose another")


def _messages(history: list[dict[str, Any]]) -> list[Message]:
    """Gradio's history as messages, without what was asked and never answered."""
    turns = [Message(turn["role"], _words(turn["content"])) for turn in history]
    return [
        message
        for asked, answered in pairwise(turns)
        if (asked.role, answered.role) == ("user", "assistant") and answered.content != _SILENCE
        for message in (asked, answered)
    ]


def _words(content: Any) -> str:
    """A message's content is a text, or a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))
