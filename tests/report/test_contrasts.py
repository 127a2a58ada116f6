"""What differs between evaluations is said only where the figures support it."""

from dataclasses import replace
from pathlib import Path

from made_evaluations import evaluation, judged, sweep

from chattune.evaluate import Evaluation
from chattune.evaluate.comparing import Comparison, Difference, compare
from chattune.evaluate.intervals import Figure
from chattune.evaluate.verdicts import Verdicts
from chattune.report.contrasts import (
    comparison_sentences,
    contrasts,
    sweep_sentences,
    verdict_sentences,
)
from chattune.report.labels import labels, pair

FINE = "A comet is a ball of ice and dust."


def with_failures(label: str, count: int, of: int = 60, **options: object) -> Evaluation:
    """Return an evaluation in which the first `count` replies repeat themselves."""
    replies = [
        judged(FINE, {"repetition": [(0, 7)]} if n < count else {}, prompt=f"general/{n}")
        for n in range(of)
    ]
    return evaluation(label, replies, **options)  # type: ignore[arg-type]


def test_disjoint_intervals_are_said_and_overlapping_ones_are_not() -> None:
    assert contrasts([with_failures("cold", 30), with_failures("warm", 2)]) == [
        "cold repeats itself more often than warm: in 30 of 60 replies against 2 of 60 replies."
    ]
    overlapping = contrasts([with_failures("cold", 5), with_failures("warm", 4)])
    assert overlapping == [
        "The 95 % intervals of every rate overlap, so these samples do not tell cold and warm "
        "apart."
    ]
    assert contrasts([with_failures("cold", 5)]) == []


def test_of_many_evaluations_the_two_extremes_are_named() -> None:
    many = [with_failures(f"at {count}, x", count) for count in (20, 2, 40)]
    assert contrasts(many) == [
        "“at 40, x” repeats itself most often, in 40 of 60 replies, and “at 2, x” least often, "
        "in 2 of 60 replies."
    ]


def test_a_comparison_names_what_differs_beyond_chance() -> None:
    said = comparison_sentences(compare(with_failures("cold", 30), with_failures("warm", 2)))
    assert said[0].startswith(
        "warm repeats itself less often than cold: in 2 of 60 replies against 30 of 60 replies (p "
    )
    assert any("other figures may differ by chance alone" in s for s in said)


def test_a_comparison_without_differences_says_so() -> None:
    said = comparison_sentences(compare(with_failures("cold", 3), with_failures("warm", 3)))
    assert said[0] == "On the 60 prompts that both answered, no figure differs beyond chance."


def test_one_setting_that_differs_is_named_and_several_are_counted() -> None:
    figure = Figure(5.0, 4.0, 6.0, 60)
    words = Difference("measures", "words", figure, Figure(9.0, 8.0, 10.0, 60), figure, 0.0001)
    one = Comparison(("a", "b"), [words], {"training.steps": (100, 500)}, 60)
    assert comparison_sentences(one) == [
        "Length, words: 9.00 with b against 5.00 with a (p < 0.001).",
        "Only one setting differs between them: training.steps, 100 and 500.",
    ]
    several = Comparison(("a", "b"), [words], {"x": (1, 2), "y": (1, 2)}, 60)
    assert comparison_sentences(several)[-1].startswith("2 settings differ between them")


def test_a_judge_is_quoted_apart_from_the_failures() -> None:
    made = compare(with_failures("cold", 3), with_failures("warm", 3))
    assert verdict_sentences(made) == []
    verdicts = Verdicts(
        {f"general/{n}": 1.0 for n in range(50)},
        flipped=1,
        unclear=2,
        win_rate=Figure(0.61, 0.5, 0.72, 50),
        length_controlled=0.55,
        agreement=Figure(0.8, 0.6, 0.95, 20),
    )
    assert verdict_sentences(replace(made, verdicts=verdicts)) == [
        "From 50 prompts: the judge prefers the reply of warm on 61 of 100 (95 % interval 50 to "
        "72); a tie counts half.",
        "For replies of equal length it would be 55 of 100.",
        "Counted as ties are 1 verdict that changed with the order of the replies, and 2 answers "
        "without a verdict.",
        "It agrees with 16 of 20 votes of a person.",
    ]
    assert comparison_sentences(replace(made, verdicts=verdicts)) == comparison_sentences(made)


def test_a_sweep_tells_the_figure_of_the_prompts_that_did_not_choose() -> None:
    found = sweep()
    chosen, reported = sweep_sentences(found)
    assert "Of 9 combinations of settings, temperature 0.5, top_p 0.95 was chosen" in chosen
    figure = found.cells[found.chosen].reporting["any_failure"]
    assert f"it was {round(figure.value * 40)} of 40 replies" in reported


def test_labels_tell_evaluations_apart() -> None:
    made = [
        with_failures("run", 1, temperature=0.2),
        with_failures("run", 1, temperature=0.9),
        with_failures("base", 1),
        with_failures("same", 1, folder=Path("runs/a")),
        with_failures("same", 1, folder=Path("runs/b")),
    ]
    assert labels(made) == [
        "run (temperature 0.2)", "run (temperature 0.9)", "base", "same (1)", "same (2)",
    ]  # fmt: skip
    assert pair(compare(made[0], made[1])) == ("run (temperature 0.2)", "run (temperature 0.9)")
    assert pair(compare(made[3], made[3])) == ("same (1)", "same (2)")
