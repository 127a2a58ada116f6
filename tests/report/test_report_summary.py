"""The summary in words says what the figures support, in correct English."""

from dataclasses import replace

import pytest
from made_evaluations import evaluation, judged, realistic

from chattune.evaluate import Evaluation
from chattune.evaluate.intervals import Figure
from chattune.report.figures import change, interval, meaning, number, value
from chattune.report.summary import CAVEAT, sentences
from chattune.report.wording import share

FINE = "A comet is a ball of ice and dust."


def of(replies: list[tuple[str, dict]], **options: object) -> list[str]:
    """Return the sentences on replies, each to a prompt of its own."""
    made = [
        judged(reply, failures, prompt=f"general/{n}")
        for n, (reply, failures) in enumerate(replies)
    ]
    return sentences(evaluation("made", made, **options))  # type: ignore[arg-type]


def with_figures(**sections: dict) -> list[str]:
    """Return the sentences on one fine reply whose figures are replaced."""
    made = evaluation("made", [judged(FINE)])
    return sentences(replace(made, scores=made.scores | sections))


def test_a_run_without_failures() -> None:
    said = of([(FINE, {})] * 80)
    assert said[0] == "80 replies to 80 prompts were judged; in brackets are 95 % intervals."
    assert said[1] == "It stops by itself in all 80 replies (76 to 80)."
    assert said[2].startswith("Seen in none of 80 replies (0 to 4): ")
    assert "“Repeats itself”" in said[2]


def test_failures_that_occur_come_one_by_one_with_the_most_frequent_first() -> None:
    repeated = ("no no no no", {"repetition": [(0, 11)]})
    cut = ("And the", {"not_stopping": [(0, 7)]})
    echoed = ("What is a comet?", {"echo": [(0, 16)]})
    said = of([(FINE, {})] * 90 + [repeated] * 6 + [cut] * 3 + [echoed])
    assert said[1] == "It stops by itself in 97 of 100 replies (92 to 99)."
    assert said[2] == "It repeats itself in 6 of 100 replies (3 to 12)."
    assert said[3] == "It gives back the prompt in 1 of 100 replies (0 to 5)."


def test_a_single_reply_is_singular() -> None:
    said = of([(FINE, {"repetition": [(0, 5)]})])
    assert said[0].startswith("1 reply to 1 prompt was judged")
    assert said[2].startswith("It repeats itself in the only reply (")


def test_percentages_are_for_many_samples_only() -> None:
    assert share(Figure(0.031, 0.02, 0.05, 1000)) == "3.1 % of 1,000 replies"
    assert share(Figure(0.5, 0.3, 0.7, 20)) == "10 of 20 replies"
    assert share(Figure(0.0, 0.0, 0.001, 1000)) == "none of 1,000 replies"
    assert value("repetition", Figure(0.031, 0.02, 0.05, 1000)) == "3.1 %"
    assert interval("repetition", Figure(0.031, 0.02, 0.05, 1000)) == "2.0 to 5.0 %"
    assert interval("distinct_1", Figure(0.3, float("nan"), float("nan"), 80)) == "–"


def test_most_template_answers_begin_alike() -> None:
    sorry = ("I'm sorry, but I cannot say.", {"template": [(0, 9)]})
    other = ("That is a good question.", {"template": [(0, 9)]})
    said = of([(FINE, {})] * 5 + [sorry] * 3 + [other])
    assert "3 of the 4 replies that answer with a template begin with “I'm sorry, but I …”." in said
    assert not any("begin with" in s for s in of([sorry, other, (FINE, {})]))
    assert not any("begin with" in s for s in of([sorry]))


def test_what_was_not_measured_is_said_with_the_reason() -> None:
    said = of(
        [(FINE, {})],
        not_measured={"language": "no prompt is long enough", "echo": "no prompt is long enough"},
        left_out={"general/9": "it does not fit.", "general/10": "it does not fit."},
    )
    assert (
        "Not measured: “Changes the language” and “Gives back the prompt”, because no prompt is "
        "long enough." in said
    )
    assert "Left out: general/9 and 1 more, because it does not fit." in said


def test_a_failure_that_grows_with_the_turns_is_named() -> None:
    few = {"value": 0.05, "low": 0.01, "high": 0.12, "n": 60}
    many = {"value": 0.5, "low": 0.38, "high": 0.62, "n": 60}
    turns = {"1": {"repetition": few}, "2": {"repetition": many}}
    assert (
        "It repeats itself more often in turn 2 (30 of 60) than in turn 1 (3 of 60)."
        in with_figures(by_turn=turns)
    )
    overlapping = {"1": {"repetition": few}, "2": {"repetition": few | {"value": 0.06}}}
    assert not any("more often" in s for s in with_figures(by_turn=overlapping))
    kinds = {"": {"right": many}, "creative": {"right": few}}
    assert (
        "It gives the right answer more often on prompts without a kind (30 of 60) than on prompts "
        "of the kind “creative” (3 of 60)." in with_figures(by_kind=kinds)
    )


def test_what_is_remembered_is_said_for_both_kinds_of_recall() -> None:
    figures = [{"right": {"value": v, "low": 0.0, "high": 1.0, "n": 10}} for v in (0.7, 0.2)]
    said = with_figures(by_kind=dict(zip(["recall", "recall-after-change"], figures, strict=True)))
    assert (
        "It remembers what it was told two turns before in 7 of 10 conversations (0 to 10)." in said
    )
    assert (
        "It remembers what it was told two turns before, after a change of subject, in 2 of 10 "
        "conversations (0 to 10)." in said
    )


def test_quality_is_kept_apart_from_failures() -> None:
    said = " ".join(sentences(realistic("made", {"repetition": 0.1})))
    assert "It gives the right answer in " in said
    assert "replies that can be checked" in said
    assert "fits its own prompt better than nine other prompts" in said
    assert "perplexity" in said
    assert "do not say which model is better" in CAVEAT


def test_sections_that_could_not_be_measured_are_passed_over() -> None:
    made = evaluation("made", [judged(FINE)])
    left = {name: made.scores[name] for name in ("label", "model", "decoding")}
    assert len(sentences(Evaluation(made.folder, left, made.judged))) == 1


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Figure(0.179, 0.0958, 0.271, 80), "+17.9 (+9.6 to +27.1)"),
        (Figure(-0.033, -0.112, 0.038, 80), "−3.3 (−11.2 to +3.8)"),
        (Figure(0.0, -0.0, 0.0, 80), "0.0 (0.0 to 0.0)"),
    ],
)
def test_differences_of_rates_are_of_100_replies(figure: Figure, text: str) -> None:
    assert change("repetition", figure) == text


def test_numbers_have_about_three_digits() -> None:
    assert [number(x) for x in (1234.5, 123.4, 53.04, 2.345, 0.0617, -0.5, -0.0001)] == [
        "1,234", "123", "53.0", "2.35", "0.062", "−0.500", "0.000",
    ]  # fmt: skip
    assert change("words", Figure(11.6, 4.85, 18.3, 80)) == "+11.6 (+4.85 to +18.3)"


def test_a_definition_describes_replies() -> None:
    definition = meaning("repetition").definition
    assert definition
    assert not definition.startswith("Find")
    assert meaning("never_heard_of").title == "Never heard of"
