"""What the terminal shows of evaluations, comparisons, sweeps and findings."""

import io

from made_evaluations import FINDING, MadeFinding, evaluation, judged, realistic, sweep
from rich.console import Console, RenderableType

from chattune.evaluate.comparing import compare
from chattune.report.figures import meaning
from chattune.report.terminal import as_comparison, as_findings, as_sweep, as_table


def shown(renderable: RenderableType, width: int = 100) -> str:
    screen = io.StringIO()
    Console(file=screen, width=width).print(renderable)
    return screen.getvalue()


def test_an_evaluation_is_sentences_and_a_table() -> None:
    made = realistic("ours", {"repetition": 0.2})
    text = shown(as_table(made))
    count = sum("repetition" in j.failures for j in made.judged)
    assert f"• It repeats itself in {count} of 120 replies" in text
    (row,) = [line for line in text.splitlines() if meaning("repetition").title in line]
    assert f"{count} of 120" in row
    assert "do not say which model is better" in text
    assert "95 % interval" in text


def test_a_narrow_terminal_loses_no_figure() -> None:
    made = realistic("ours", {"repetition": 0.2})
    assert all(len(line) <= 60 for line in shown(as_table(made), 60).splitlines())
    assert "of 120" in shown(as_table(made), 60)


def test_a_comparison_shows_both_sides() -> None:
    text = shown(as_comparison(compare(realistic("ours", {}), realistic("theirs", {"echo": 0.4}))))
    assert "theirs gives back the prompt more often than ours" in text
    assert "Settings that differ" not in text  # they were made alike


def test_a_sweep_shows_the_choice() -> None:
    text = shown(as_sweep(sweep()))
    assert "5 ✓" in text
    assert "temperature 0.5, top_p 0.95 was chosen" in text


def test_findings_have_remedies() -> None:
    text = shown(as_findings([FINDING]))
    assert f"What helps: {FINDING.remedy}" in text
    assert FINDING.command is not None
    assert FINDING.command in text
    assert "No cause" in shown(as_findings([]))


def test_texts_are_neither_markup_nor_control_sequences() -> None:
    text = "[red]x[/red] \x1b[2J \u202e"
    made = evaluation(text, [judged("Yes.")], not_measured={"echo": text})
    for output in (
        shown(as_table(made)),
        shown(as_findings([MadeFinding(text, [text], text, text, text)])),
    ):
        assert "[red]x[/red] ‹U+001B›[2J ‹U+202E›" in output
        assert "\x1b" not in output
