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
    defaults: dict[str, Any] = {
        "temperature": 0.0 if recommended.greedy else recommended.temperature,
        "top_k": recommended.top_k,
        "top_p": recommended.top_p,
        "max_new_tokens": min(recommended.max_new_tokens, longest),
        "repetition_penalty": recommended.repetition_penalty,
        "finish": recommended.finish,
    }

    def answer(
        text: str,
        history: list[dict[str, Any]],
        system: str,
        temperature: float | None,
        top_k: float | None,
        top_p: float | None,
        max_new_tokens: float | None,
        repetition_penalty: float | None,
        finish: str | None,
    ) -> Iterator[str]:
        chosen = (temperature, top_k, top_p, max_new_tokens, repetition_penalty, finish)
        settings = {
            name: default if value is None else value
            for (name, default), value in zip(defaults.items(), chosen, strict=True)
        }
        visitor = bot.fresh(system=system, messages=_messages(history))
        try:
            if len(text) > _MAX_MESSAGE:
                raise ChatError(f"the message is over {_MAX_MESSAGE:,} characters; shorten it")
            reply = ""
            for piece in visitor.stream(text, recommended.but(do_sample=True, **settings)):
                reply += piece
                yield reply
            if not reply:
                yield _EMPTY_REPLY
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return gr.ChatInterface(
        answer,
        title=title,
        textbox=_textbox(placeholder="Type a message", submit_btn=True, stop_btn=True),
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
            _textbox(bot.system or "", label="System prompt"),
            _slider(0, 2, defaults["temperature"], 0.05, "Temperature (0: greedy)"),
            _slider(0, 200, defaults["top_k"], 1, "Top-k (0: off)"),
            _slider(0.05, 1, defaults["top_p"], 0.05, "Top-p"),
            _slider(8, longest, defaults["max_new_tokens"], 8, "Maximum length (tokens)"),
            _slider(1, 2, defaults["repetition_penalty"], 0.05, "Repetition penalty"),
            _finish_choice(defaults["finish"]),
        ],
        save_history=False,
        analytics_enabled=False,
        flagging_mode="never",
        concurrency_limit=bot.engine.at_once,
        api_name="chat",
    )


def _textbox(value: str = "", **options: Any) -> gr.Textbox:
    """Return a text box that takes null, which another client may send, for an empty text."""
    box = gr.Textbox(value, max_length=_MAX_MESSAGE, **options)
    box.preprocess = lambda payload: "" if payload is None else str(payload)
    return box


def _slider(low: float, high: float, value: float, step: float, label: str) -> gr.Slider:
    """Return a slider whose range is widened if the recommended value lies outside it.

    What another client sends is passed on as it is: Decoding checks it and names the setting, while
    Gradio's own check fails on null and on text.
    """
    slider = gr.Slider(min(low, value), max(high, value), value, step=step, label=label)
    slider.preprocess = lambda payload: payload
    return slider


def _finish_choice(value: str) -> gr.Radio:
    """Return the choice of Decoding's `finish`; Decoding checks it, as it does a slider's value."""
    choices = [
        ("is cut off", "cut"),
        ("ends with its last whole sentence", "sentence"),
        ("goes on to the end of its sentence", "continue"),
        ("loses its least important sentences, and is shown when it is complete", "summary"),
    ]
    radio = gr.Radio(choices, value=value, label="A reply of the maximum length")
    radio.preprocess = lambda payload: payload
    return radio


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
    address = host.strip("[]")
    try:
        _, url, _ = page.launch(
            server_name=f"[{address}]" if ":" in address else address,
            server_port=_free_port(address, port),
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
    return str(url).replace("//[::]", "//[::1]")  # no browser connects to the former


def _free_port(host: str, port: int | None) -> int:
    """Return `port` if it is free, or the first free port from 7860 if it is None.

    Gradio's own search would try every port of an address that this machine does not have. Gradio
    wants the port to be free on 127.0.0.1 too, whatever the host.
    """
    if not host:
        raise UserError("--host: is empty; give an address, such as 127.0.0.1")
    for candidate in _PORTS if port is None else [port]:
        free = candidate
        try:
            for address in (host, "127.0.0.1"):
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                with socket.create_server((address, free), family=family) as server:
                    free = int(server.getsockname()[1])
            return free
        except OverflowError as error:
            raise UserError(f"--port {port}: not a port number ({error})") from None
        except (OSError, UnicodeError) as error:  # UnicodeError: too long for a host's name
            if getattr(error, "errno", None) != errno.EADDRINUSE:
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
