"""The page is one file that asks for nothing, shows hostile text as text, and is complete."""

import base64
import hashlib
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_evaluations import FINDING, MadeFinding, evaluation, judged, realistic, sweep
from made_evaluations import write_metrics as write_losses

from chattune.conversation import Message
from chattune.evaluate.comparing import compare
from chattune.report.figures import meaning
from chattune.report.page import write_page
from chattune.report.summary import CAVEAT

VOID = {"meta", "link", "input", "br", "hr", "img", "rect", "path", "line"}
# Attributes by which a browser loads something.
LOADING = {"src", "href", "xlink:href", "srcset", "poster", "data", "action", "formaction"}

HOSTILE = [
    "<script>alert(1)</script>",
    "</div></article></section><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "' autofocus onfocus='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "<!-- --><style>body{display:none}</style>]]>&lt;b&gt;&amp;",
    "safe \u202egnp.exe\u2066 \x00\x1b[31m\ud800 end",
    "https://example.org/beacon.gif url(https://example.org) @import 'https://example.org'",
]


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parent: "Element | None" = None
    children: list["Element | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def all(self, tag: str | None = None, class_: str | None = None) -> list["Element"]:
        """Return all elements below, in order, with this tag and this class."""
        below = [c for c in self.children if isinstance(c, Element)]
        found = []
        for element in below:
            classes = element.attributes.get("class", "").split()
            if tag in (None, element.tag) and (class_ is None or class_ in classes):
                found.append(element)
            found += element.all(tag, class_)
        return found

    def by_id(self, name: str) -> "Element":
        (found,) = [e for e in self.all() if e.attributes.get("id") == name]
        return found


class Tree(HTMLParser):
    """A parser that builds elements, and refuses a tag that closes another than the last one."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = self.current = Element("", {})
        self.feed(html)
        self.close()
        assert self.current is self.root, f"<{self.current.tag}> is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        element = Element(tag, {k: v or "" for k, v in attrs}, self.current)
        self.current.children.append(element)
        if tag not in VOID:
            self.current = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert tag == self.current.tag, f"</{tag}> closes <{self.current.tag}>"
            assert self.current.parent is not None
            self.current = self.current.parent

    def handle_data(self, data: str) -> None:
        self.current.children.append(data)


def parsed(path: Path) -> Element:
    return Tree(path.read_text("utf-8")).root


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Element:
    """A report with everything in it: two runs, a comparison, a sweep and a finding."""
    folder = tmp_path_factory.mktemp("report")
    write_losses(folder / "run")
    a = realistic("ours", {"repetition": 0.1, "template": 0.1}, folder=folder / "run")
    b = realistic("theirs", {"not_stopping": 0.3, "self_talk": 0.2, "echo": 0.1, "empty": 0.1})
    write_page(
        folder / "new" / "report.html",
        [a, b],
        title="Ours and theirs",
        comparisons=[compare(a, b)],
        sweep=sweep(),
        findings=[FINDING],
    )
    return parsed(folder / "new" / "report.html")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Element:
    """A report in which every text that a user or a model gives is hostile."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    replies = [
        judged(
            text,
            {"repetition": [(0, 5)], text: [(3, 9)]},
            prompt=f"general/{text}",
            kind=text,
            question=text,
            before=(Message("system", text),),
            reference=text,
            required=((text,),),
        )
        for text in HOSTILE
    ]
    replies.append(judged("Fine.", kind="fine"))
    text = "".join(HOSTILE)
    made = [
        evaluation(text, replies, not_measured={text: text}, left_out={text: text}),
        evaluation(f"{text}2", replies),
    ]
    finding = MadeFinding(text, [text], text, text, text)
    write_page(path, made, title=text, comparisons=[compare(*made)], findings=[finding])
    return parsed(path)


# --- security ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["page", "hostile"])
def test_nothing_is_loaded(kind: str, request: pytest.FixtureRequest) -> None:
    root: Element = request.getfixturevalue(kind)
    for element in root.all():
        for name, text in element.attributes.items():
            assert not name.startswith("on"), f"<{element.tag} {name}>"
            if name in LOADING:
                assert text.startswith("#") or text == "data:,", f"<{element.tag} {name}={text!r}>"
            if name in ("style", "fill", "stroke", "clip-path", "filter", "mask"):
                assert "url(" not in text.replace("url(#", "")
    (style,) = root.all("style")
    assert re.search(r"url\(|@import|https?:", style.text) is None
    assert not {"img", "iframe", "object", "embed", "video", "base"} & {e.tag for e in root.all()}


@pytest.mark.parametrize("kind", ["page", "hostile"])
def test_only_the_script_of_the_page_may_run(kind: str, request: pytest.FixtureRequest) -> None:
    root: Element = request.getfixturevalue(kind)
    (script,) = root.all("script")
    assert re.search(r"fetch|XMLHttp|import|https?:|eval|innerHTML", script.text) is None
    (policy,) = [e.attributes["content"] for e in root.all("meta") if "http-equiv" in e.attributes]
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}';" in policy


def test_hostile_texts_are_shown_as_they_are(hostile: Element) -> None:
    shown = [e.text for e in hostile.by_id("samples").all("div", "reply")]
    for text in HOSTILE[:6]:
        assert shown.count(text) == 3  # two replies and a reference
    assert hostile.all("title")[0].text.startswith("<script>alert(1)</script></div>")


def test_hidden_characters_are_shown_by_their_numbers(hostile: Element) -> None:
    assert "safe ‹U+202E›gnp.exe‹U+2066› ‹U+0000›‹U+001B›[31m‹U+D800› end" in hostile.text
    hidden = set("\u202e\u2066\x00\x1b\ud800")
    texts = [hostile.text, *(v for e in hostile.all() for v in e.attributes.values())]
    assert not any(hidden & set(text) for text in texts)


# --- content -------------------------------------------------------------------------------------


def test_it_is_a_document_for_screen_readers_and_phones(page: Element) -> None:
    (html,) = page.all("html")
    assert html.attributes["lang"] == "en"
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("title")) == 1
    viewport = [e for e in page.all("meta") if e.attributes.get("name") == "viewport"]
    assert viewport[0].attributes["content"].startswith("width=device-width")
    ids = [e.attributes["id"] for e in page.all() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    links = {e.attributes["href"][1:] for e in page.all("nav")[0].all("a")}
    assert links == {
        "summary", "findings", "figures", "comparisons", "decoding", "samples", "definitions",
        "settings",
    }  # fmt: skip
    assert links <= set(ids)
    assert all(e.attributes["scope"] for e in page.all("th"))


def test_the_summary_comes_first(page: Element) -> None:
    summary = page.by_id("summary")
    assert page.all("main")[0].all("section")[0] is summary
    assert summary.text.count("120 replies to 80 prompts were judged") == 2
    assert "theirs runs on until it is cut off more often than ours" in summary.text
    assert CAVEAT in summary.text


def test_a_finding_has_evidence_and_remedy(page: Element) -> None:
    text = page.by_id("findings").text
    for part in (*FINDING.evidence, FINDING.remedy, FINDING.place, FINDING.command):
        assert part in text


def test_every_chart_has_a_title_and_a_table(page: Element) -> None:
    figures = page.all("figure")
    assert [f.attributes["id"] for f in figures] == [
        "failures", "turns", "lengths", "loss-1", "differences-1", "sweep",
    ]  # fmt: skip
    for figure in figures:
        (svg,) = figure.all("svg")
        assert svg.attributes["role"] == "img"
        assert svg.attributes["aria-label"] == figure.all("h3")[0].text
        (table,) = figure.all("details")[0].all("table")
        assert len(table.all("tbody")) > 1
    charts = [e for e in page.all("svg") if e.parent and e.parent.tag != "div"]
    assert charts == []


def test_every_prompt_has_the_replies_of_both(page: Element) -> None:
    articles = page.all("article")
    assert len(articles) == 80
    for article in articles:
        for turn in article.all("div", "turn"):
            assert [e.text for e in turn.all("h4")] == ["ours", "theirs"]
            assert len(turn.all("p", "question")) == 1
    assert [len(a.all("div", "turn")) for a in articles].count(3) == 20


def test_exactly_the_spans_are_marked(tmp_path: Path) -> None:
    text = "Tom & Ann <3 you. Tom & Ann <3 you."
    replies = [
        judged(text, {"repetition": [(18, 35)], "unfinished": [(28, 35)]}, prompt="a"),
        judged("", {"empty": [(0, 0)]}, prompt="b"),
    ]
    write_page(tmp_path / "page.html", [evaluation("made", replies)], title="Marks")
    first, second = parsed(tmp_path / "page.html").all("article")
    marks = first.all("mark")
    titles = [meaning(name).title for name in ("repetition", "unfinished")]
    assert [(m.text, m.attributes["class"], m.attributes["title"]) for m in marks] == [
        ("Tom & Ann ", "repetition", titles[0]),
        ("<3 you.", "repetition unfinished", "; ".join(titles)),
    ]
    assert first.all("div", "reply")[0].text == text
    assert [tag.text for tag in first.all("li", "failure")] == titles
    assert first.all("h4") == []
    assert second.all("mark") == []
    assert "The reply is empty" in second.text


def test_samples_can_be_filtered_by_what_the_filter_offers(page: Element) -> None:
    form = page.by_id("filter")
    assert "hidden" in form.attributes  # without its script the page is a plain list
    failures, kinds = (
        [o.attributes["value"] for o in select.all("option")] for select in form.all("select")
    )
    articles = page.all("article")
    occurring = {name for a in articles for name in a.attributes["data-failures"].split()}
    assert set(failures) == {"", "*", "-", *occurring}
    assert set(kinds) == {"", *(a.attributes["data-kind"] for a in articles)}
    assert len(form.all("label")) == 2
    for article in articles:
        marked = {c for m in article.all("mark") for c in m.attributes["class"].split()}
        assert marked <= set(article.attributes["data-failures"].split())


def test_definitions_and_settings_are_complete(page: Element) -> None:
    terms = [e.text for e in page.by_id("definitions").all("dt")]
    for name in ("repetition", "right", "own_prompt_first", "perplexity", "any_failure"):
        assert meaning(name).title in terms
    settings = page.by_id("settings").text
    for text in ("temperature", "5f0c5f0c5f0c5f0c", "77aa77aa77aa77aa", "fast, int8", "general"):
        assert text in settings


def test_a_sweep_alone_makes_a_page(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", [], title="Decoding", sweep=sweep())
    root = parsed(tmp_path / "page.html")
    assert "was chosen" in root.by_id("summary").text
    assert [f.attributes["id"] for f in root.all("figure")] == ["sweep"]
    assert root.all("article") == []


# --- size ----------------------------------------------------------------------------------------


def test_many_long_samples_stay_below_three_megabytes(tmp_path: Path) -> None:
    replies = [
        judged(
            f"{n} " + "word & " * 2000,
            {"repetition": [(0, 3000)]} if n >= 490 else {},
            prompt=f"general/{n}",
        )
        for n in range(500)
    ]
    made = replace(evaluation("made", replies[:1]), judged=replies)
    write_page(tmp_path / "page.html", [made], title="Long")
    assert (tmp_path / "page.html").stat().st_size < 3_000_000
    root = parsed(tmp_path / "page.html")
    shown = len(root.all("article"))
    assert 50 < shown < 500
    assert f"{500 - shown} more are in samples.jsonl" in root.by_id("samples").text
    names = [a.all("h3")[0].text for a in root.all("article")]
    assert names[-10:] == [f"general/{n} knowledge" for n in range(490, 500)]


def test_a_study_of_many_models_keeps_them_apart(tmp_path: Path) -> None:
    made = [
        evaluation(f"model {n}", [judged("Yes.", {"echo": [(0, 3)]} if n == 2 else {})])
        for n in range(5)
    ]
    write_page(tmp_path / "page.html", made, title="Study")
    root = parsed(tmp_path / "page.html")
    labels = [f"model {n}" for n in range(5)]
    assert [e.text for e in root.by_id("summary").all("summary")] == labels
    assert len(root.all("article")) == 1
    assert len(root.all("h4")) == 5
    chart = root.by_id("failure-echo").all("svg")[0].text
    assert all(label in chart for label in labels)
