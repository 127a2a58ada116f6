"""Markdown shows every text literally, and the same report as the page."""

import re
from pathlib import Path

import pytest
from made_evaluations import FINDING, evaluation, judged, realistic, sweep

from chattune.evaluate.comparing import compare
from chattune.report.escaping import fenced, markdown, visible
from chattune.report.figures import meaning
from chattune.report.markdown import write_markdown
from chattune.report.summary import CAVEAT


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain text, 53.0 and 12 of 80", "plain text, 53.0 and 12 of 80"),
        ("*bold* _it_ `code`", r"\*bold\* \_it\_ \`code\`"),
        ("a | b\nc", r"a \| b c"),
        ("<script>", r"\<script\>"),
        ("[link](x) ![img](y)", r"\[link\](x) !\[img\](y)"),
        ("# heading", r"\# heading"),
        ("- item", r"\- item"),
        ("1. item", r"1\. item"),
        ("12) item", r"12\) item"),
        ("--- rule", r"\--- rule"),
        (
            "see https://example.org or www.example.org",
            r"see https\://example.org or www\.example.org",
        ),
        ("&amp; $x$ ~~no~~ @you", r"\&amp; \$x\$ \~\~no\~\~ \@you"),
        ("\\*", r"\\\*"),
        ("\u202e\x1b[0m", r"‹U+202E›‹U+001B›\[0m"),
    ],
)
def test_texts_are_escaped(text: str, escaped: str) -> None:
    assert markdown(text) == escaped


def test_a_fence_is_longer_than_any_in_the_text() -> None:
    assert fenced("a\n````\nb") == "`````text\na\n````\nb\n`````"
    assert fenced("plain").startswith("```text\n")


def test_joiners_and_line_breaks_stay() -> None:
    text = "क्\u200dष 👩\u200d👩\u200d👧 \u200fعربي\n\tnext"
    assert visible(text) == text
    assert visible("a\r\nb") == "a\nb"


def test_the_report_has_every_part(tmp_path: Path) -> None:
    a, b = realistic("ours", {"repetition": 0.2}), realistic("theirs", {"self_talk": 0.4})
    write_markdown(
        tmp_path / "new" / "report.md",
        [a, b],
        title="Ours & theirs",
        comparisons=[compare(a, b)],
        sweep=sweep(),
        findings=[FINDING],
    )
    text = (tmp_path / "new" / "report.md").read_text("utf-8")
    assert text.startswith("# Ours \\& theirs\n\n## Summary\n\n### ours\n\n- 120 replies to 80 ")
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert titles == [
        "Summary", "Causes and remedies", "Figures", "Comparisons", "Decoding", "Samples",
        "Definitions", "Settings",
    ]  # fmt: skip
    assert CAVEAT in text
    assert f"**What helps:** {markdown(FINDING.remedy)}" in text
    assert "The first 10 of " in text
    assert f"**{meaning('self_talk').title}" not in text.split("## Samples")[0]


def test_tables_have_as_many_cells_in_each_row(tmp_path: Path) -> None:
    a, b = realistic("a | b", {"repetition": 0.2}), realistic("c\nd", {"echo": 0.4})
    write_markdown(tmp_path / "a.md", [a, b], title="x", comparisons=[compare(a, b)], sweep=sweep())
    blocks = (tmp_path / "a.md").read_text("utf-8").split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("| ")]
    assert len(tables) > 6
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
        assert set(table[1]) <= set("|- ")


def test_a_failing_reply_is_quoted_with_what_shows_the_failure(tmp_path: Path) -> None:
    reply = "It is ice.\n### Human: And *then*?"
    made = evaluation("made", [judged(reply, {"self_talk": [(11, len(reply))]})])
    write_markdown(tmp_path / "a.md", [made], title="x")
    text = (tmp_path / "a.md").read_text("utf-8")
    assert f"> What is a comet?\n\n```text\n{reply}\n```" in text
    assert r"Seen in: “\#\#\# Human: And \*then\*?”" in text


def test_many_models_get_a_row_each(tmp_path: Path) -> None:
    made = [evaluation(f"model {n}", [judged("Yes.")]) for n in range(5)]
    write_markdown(tmp_path / "a.md", made, title="x")
    text = (tmp_path / "a.md").read_text("utf-8")
    assert "| model 4 | 0 of 1 (0 to 1) |" in text
    assert "## Samples" not in text
