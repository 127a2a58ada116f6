"""Tests of the chat page through its HTTP interface, as a browser uses it, on scripted engines."""

import logging
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import psutil
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from chattune.base import starter_folder
from chattune.chat import Chatbot
from chattune.errors import UserError
from chattune.generate.decoding import Decoding
from chattune.generate.scripted import ScriptedEngine
from chattune.serve import chat_page, serve_page
from chattune.serve.page import open_page
from chattune.template import Template

POSITIONS = 512


class Recorder(ScriptedEngine):
    """A scripted engine that records the settings and counts the tokens read from it."""

    def __init__(self, replies: Sequence[Sequence[int]], pause: float = 0) -> None:
        super().__init__(replies)
        self.pause = pause
        self.tokens_read = 0
        self.settings: list[Decoding] = []

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding
    ) -> Iterator[tuple[int, int]]:
        self.settings.append(decoding)
        for index, token in super().generate(prompts, decoding):
            time.sleep(self.pause)
            self.tokens_read += 1
            yield index, token


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def template() -> Template:
    return Template.load(starter_folder())


def engine(template: Template, *replies: str, pause: float = 0) -> Recorder:
    end = next(iter(template.end_ids))
    encode = template.tokenizer.encode
    ids = [[*encode(reply, add_special_tokens=False), end] for reply in replies]
    return Recorder(ids, pause)


@contextmanager
def opened(
    template: Template,
    engine: Recorder,
    decoding: Decoding | None = None,
    host: str = "127.0.0.1",
) -> Iterator[str]:
    """Open a page and give its URL; the page closes with the context."""
    bot = Chatbot(engine, template, POSITIONS, decoding=decoding)
    page = chat_page(bot, "a title").queue(max_size=32)
    url = open_page(page, host, None)
    try:
        yield url
    finally:
        page.close(verbose=False)


def visitor(url: str) -> Client:
    return Client(url, verbose=False)


def test_a_reply_arrives_piece_by_piece(template: Template) -> None:
    with opened(template, engine(template, "one two three")) as url:
        pieces = list(visitor(url).submit("count", api_name="/chat"))
    assert pieces == ["one", "one two", "one two three"]


def test_each_visitor_has_a_history(template: Template) -> None:
    bot = engine(template, "first", "second", "third")
    with opened(template, bot) as url:
        ann, bob = visitor(url), visitor(url)
        ann.predict("I am Ann", api_name="/chat")
        bob.predict("I am Bob", api_name="/chat")
        ann.predict("who am I?", api_name="/chat")
    prompts = [template.decode(prompt) for prompt in bot.prompts]
    assert "Ann" not in prompts[1]
    assert "I am Ann" in prompts[2]
    assert "first" in prompts[2]
    assert "Bob" not in prompts[2]


def test_settings_reach_the_engine(template: Template) -> None:
    bot = engine(template, "yes")
    with opened(template, bot) as url:
        visitor(url).predict("hi", "Speak like a pirate.", 0.3, 7, 0.5, 40, 1.2, api_name="/chat")
    used = bot.settings[0]
    assert (used.temperature, used.top_k, used.top_p) == (0.3, 7, 0.5)
    assert (used.max_new_tokens, used.repetition_penalty) == (40, 1.2)
    assert "Speak like a pirate." in template.decode(bot.prompts[0])


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(temperature=2.5, top_k=1000, top_p=0.01, repetition_penalty=0.9),
        Decoding(do_sample=False),
    ],
    ids=["outside the sliders", "greedy"],
)
def test_an_untouched_page_uses_the_recommended_settings(
    decoding: Decoding, template: Template
) -> None:
    bot = engine(template, "yes")
    with opened(template, bot, decoding) as url:
        assert visitor(url).predict("hi", api_name="/chat") == "yes"
    if decoding.greedy:
        assert bot.settings[0].greedy
    else:
        assert bot.settings == [decoding.but(max_new_tokens=bot.settings[0].max_new_tokens)]


@pytest.mark.parametrize(
    "decoding", [Decoding(top_k=7, temperature=0.3), Decoding(do_sample=False)]
)
def test_a_client_that_sends_null_gets_the_recommended_settings(
    decoding: Decoding, template: Template, capfd: pytest.CaptureFixture[str]
) -> None:
    bot = engine(template, "yes", "yes")
    with opened(template, bot, decoding) as url:
        visitor(url).predict("hi", api_name="/chat")
        visitor(url).predict("hi", *[None] * 6, api_name="/chat")
    assert bot.settings[0] == bot.settings[1]
    assert bot.prompts[0] == bot.prompts[1]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("position", "value", "error"),
    [
        (0, None, "the message is empty"),
        (2, "hot", "temperature: .*not 'hot'"),
        (2, 99, "temperature: .*not 99"),
        (2, [1], "temperature: "),
        (3, 7.5, "top_k: .*not 7.5"),
        (3, -1, "top_k: .*not -1"),
        (4, 0, "top_p: .*not 0"),
        (5, 0, "max_new_tokens: .*not 0"),
        (6, "", "repetition_penalty: "),
    ],
)
def test_a_value_that_no_setting_can_have_is_explained(
    position: int,
    value: object,
    error: str,
    template: Template,
    capfd: pytest.CaptureFixture[str],
) -> None:
    values = ["hi", "", 0.3, 7, 0.5, 40, 1.2]
    values[position] = value  # type: ignore[call-overload]
    with opened(template, engine(template, "yes")) as url, pytest.raises(AppError, match=error):
        visitor(url).predict(*values, api_name="/chat")
    assert "Traceback" not in capfd.readouterr().err


def test_visitors_are_answered_at_once_if_the_engine_can(template: Template) -> None:
    bot = engine(template, "word " * 40, pause=0.05)
    bot.at_once = 2
    with opened(template, bot) as url:
        jobs = [visitor(url).submit("talk", api_name="/chat") for _ in range(2)]
        for job in jobs:
            next(iter(job))
        assert not any(job.done() for job in jobs)
        for job in jobs:
            job.cancel()


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (" \n", "the message is empty"),
        ("word " * 2000, "the message is too long"),
        ("x" * 20_001, "over 20,000 characters"),
    ],
)
def test_an_unanswerable_message_is_explained_and_forgotten(
    message: str, error: str, template: Template, capfd: pytest.CaptureFixture[str]
) -> None:
    bot = engine(template, "yes")
    with opened(template, bot) as url:
        client = visitor(url)
        with pytest.raises(AppError, match=error):
            client.predict(message, api_name="/chat")
        assert client.predict("hello", api_name="/chat") == "yes"
    assert len(bot.prompts) == 1
    assert template.decode(bot.prompts[0]).count("### Human:") == 1
    assert "Traceback" not in capfd.readouterr().err


def test_an_empty_reply_is_reported_but_not_remembered(template: Template) -> None:
    bot = engine(template, "", "yes")
    with opened(template, bot) as url:
        client = visitor(url)
        assert "ended its reply at once" in client.predict("one", api_name="/chat")
        assert client.predict("two", api_name="/chat") == "yes"
    assert "ended its reply" not in template.decode(bot.prompts[1])


def test_a_reply_of_the_maximum_length_ends_as_the_visitor_chose(template: Template) -> None:
    bot = engine(template, "One of us. Two of them and three of you.")
    with opened(template, bot) as url:
        settings = ["", None, None, None, 8, None]
        reply = visitor(url).predict("hi", *settings, "sentence", api_name="/chat")
        assert reply == "One of us."
        with pytest.raises(AppError, match="finish: input should be 'cut'"):
            visitor(url).predict("hi", *settings, "whole", api_name="/chat")


def test_a_stopped_reply_stops_the_engine(template: Template) -> None:
    bot = engine(template, "word " * 200, pause=0.02)
    with opened(template, bot) as url:
        job = visitor(url).submit("talk", api_name="/chat")
        next(iter(job))
        job.cancel()
        time.sleep(0.5)
        tokens_read = bot.tokens_read
        time.sleep(0.5)
        assert bot.tokens_read == tokens_read < 200


def test_only_this_machine_can_connect_and_nothing_is_shared(
    template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_SHARE", "True")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    page = chat_page(Chatbot(engine(template, "yes"), template, POSITIONS), "a title")
    before = listening()
    try:
        url = open_page(page, "127.0.0.1", None)
        new = listening() - before
        assert [address for address, _ in new] == ["127.0.0.1"]
        assert url == f"http://127.0.0.1:{new.pop()[1]}/"
        assert (page.share, page.share_url) == (False, None)
    finally:
        page.close(verbose=False)


def listening() -> set[tuple[str, int]]:
    connections = psutil.Process().net_connections("inet")
    return {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}


def test_the_url_is_logged_and_a_taken_port_is_refused(
    template: Template, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked: list[gr.Blocks] = []
    monkeypatch.setattr(gr.Blocks, "block_thread", lambda page: blocked.append(page))
    bot = Chatbot(engine(template, "yes"), template, POSITIONS)
    with caplog.at_level(logging.INFO, "chattune"):
        serve_page(bot, title="a title")
    (page,) = blocked
    try:
        assert f"chat page: {page.local_url}" in caplog.text
        with pytest.raises(UserError, match=rf"--port {page.server_port}: .*choose another"):
            serve_page(bot, title="a title", port=page.server_port)
    finally:
        page.close(verbose=False)


@pytest.mark.parametrize(
    ("host", "port", "error"),
    [
        ("203.0.113.5", None, "--host 203.0.113.5: cannot listen on"),  # RFC 5737: unassigned
        ("2001:db8::5", None, "--host 2001:db8::5: cannot listen on"),  # RFC 3849: unassigned
        ("no such host", None, "--host no such host: cannot listen on"),
        ("x" * 70, None, "--host x+: cannot listen on"),
        ("", None, "--host: is empty; give an address"),
        ("127.0.0.1", 80_000, "--port 80000: not a port"),
    ],
)
def test_an_impossible_address_is_refused(
    host: str, port: int | None, error: str, template: Template
) -> None:
    bot = Chatbot(engine(template, "yes"), template, POSITIONS)
    with pytest.raises(UserError, match=error):
        serve_page(bot, title="a title", host=host, port=port)


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="needs IPv6")
@pytest.mark.parametrize(
    ("host", "shown"),
    [("::1", "http://[::1]:"), ("[::1]", "http://[::1]:"), ("::", "http://[::1]:")],
)
def test_an_ipv6_address_is_served(
    host: str, shown: str, template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    with opened(template, engine(template, "yes"), host=host) as url:
        assert url.startswith(shown)
        assert visitor(url).predict("hi", api_name="/chat") == "yes"


def test_a_port_that_gradio_cannot_use_is_taken(template: Template) -> None:
    """Gradio refuses a port that another program has on 127.0.0.1, whatever the host."""
    bot = Chatbot(engine(template, "yes"), template, POSITIONS)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port {port}: taken by another program"):
            serve_page(bot, title="a title", host="127.0.0.2", port=port)


def test_a_proxy_that_hides_the_page_is_explained(
    template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name)
    page = chat_page(Chatbot(engine(template, "yes"), template, POSITIONS), "a title")
    try:
        with pytest.raises(UserError, match="NO_PROXY"):
            open_page(page, "127.0.0.1", None)
    finally:
        page.close(verbose=False)


def test_a_browser_without_a_network_shows_the_page(template: Template, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ["chromium", "chromium-browser"])), None)
    if browser is None:
        pytest.skip("no chromium on this machine")
    with opened(template, engine(template, "yes")) as url:
        shown = subprocess.run(
            [
                browser,
                "--headless",
                "--disable-gpu",
                "--disable-background-networking",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                f"--user-data-dir={tmp_path}",
                *(["--no-sandbox"] if os.geteuid() == 0 else []),
                "--virtual-time-budget=15000",
                "--dump-dom",
                url,
            ],
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
    assert "<title>a title</title>" in shown
    assert "Type a message" in shown
    assert "Settings" in shown
    assert "Built with" not in shown
