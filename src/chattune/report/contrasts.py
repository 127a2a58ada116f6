"""What differs between evaluations, what a sweep has chosen: in words."""

from collections.abc import Iterator, Mapping, Sequence

from chattune.evaluate import Evaluation
from chattune.evaluate.comparing import Comparison, Difference
from chattune.evaluate.intervals import Figure
from chattune.evaluate.sweeping import Sweep
from chattune.report.figures import interval, meaning, probability, read, title, value
from chattune.report.labels import decoding_text, labels, pair, quoted
from chattune.report.wording import count, does, extremes, listed, share

SIGNIFICANT = 0.05  # p-values below it are named in words
_SECTIONS = ("failures", "agreement", "dependence")  # those with rates


def contrasts(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return a sentence for each rate by which the intervals of two evaluations do not overlap.

    It names the two that are furthest apart.
    """
    if len(evaluations) < 2:
        return []
    names = [quoted(label) for label in labels(evaluations)]
    figures = [_rates(evaluation) for evaluation in evaluations]
    found = [
        sentence
        for figure in dict.fromkeys(name for each in figures for name in each)
        for sentence in _furthest_apart(
            figure, {n: f[figure] for n, f in zip(names, figures, strict=True) if figure in f}
        )
    ]
    return found or [
        f"The 95 % intervals of every rate overlap, so these samples do not tell {listed(names)} "
        "apart."
    ]


def comparison_sentences(comparison: Comparison) -> list[str]:
    """Return a sentence for each figure that differs by more than chance, and on the settings."""
    a, b = map(quoted, pair(comparison))
    prompts = count(comparison.shared_prompts, "prompt")
    differing = [d for d in comparison.differences if d.p < SIGNIFICANT]
    others = len(comparison.differences) - len(differing)
    found = [_differing(d, a, b) for d in differing]
    if not differing:
        found.append(f"On the {prompts} that both answered, no figure differs beyond chance.")
    elif others:
        rest = count(others, "other figure")
        found.append(f"On the {prompts} that both answered, {rest} may differ by chance alone.")
    return found + _settings(comparison)


def verdict_sentences(comparison: Comparison) -> list[str]:
    """Return which replies a judge model prefers, if one was asked; failures do not say that."""
    verdicts = comparison.verdicts
    if verdicts is None:
        return []
    _, b = map(quoted, pair(comparison))
    rate = verdicts.win_rate
    found = [
        f"From {count(rate.n, 'prompt')}: the judge prefers the reply of {b} on "
        f"{rate.value * 100:.0f} of 100 (95 % interval {rate.low * 100:.0f} to "
        f"{rate.high * 100:.0f}); a tie counts half.",
        f"For replies of equal length it would be {verdicts.length_controlled * 100:.0f} of 100.",
    ]
    if verdicts.flipped or verdicts.unclear:
        found.append(
            f"Counted as ties are {count(verdicts.flipped, 'verdict')} that changed with the order "
            f"of the replies, and {count(verdicts.unclear, 'answer')} without a verdict."
        )
    if verdicts.agreement is not None:
        found.append(f"It agrees with {share(verdicts.agreement, 'vote', 'votes')} of a person.")
    return found


def sweep_sentences(sweep: Sweep) -> list[str]:
    """Return what a sweep has chosen, and what the prompts say that did not choose it."""
    cell = sweep.cells[sweep.chosen]
    name = "any_failure"
    reported = cell.reporting[name]
    return [
        f"Of {count(len(sweep.cells), 'combination')} of settings, {decoding_text(cell.decoding)} "
        f"was chosen. With it, {share(cell.choosing[name])} showed a failure on the half of the "
        "prompts that chose.",
        "On the other half, which had no part in the choice, it was "
        f"{share(reported)} (95 % interval {interval(name, reported)}). This is the figure to "
        "believe.",
    ]


def _rates(evaluation: Evaluation) -> dict[str, Figure]:
    sections = (read(evaluation.scores.get(section, {})) for section in _SECTIONS)
    return {n: f for section in sections for n, f in section.items() if meaning(n).is_rate}


def _furthest_apart(name: str, having: Mapping[str, Figure]) -> Iterator[str]:
    if (found := extremes(having)) is None:
        return
    low, high = found
    often, seldom = (share(having[key]) for key in (high, low))
    if len(having) == 2:
        yield f"{high} {does(name)} more often than {low}: in {often} against {seldom}."
    else:
        yield (f"{high} {does(name)} most often, in {often}, and {low} least often, in {seldom}.")


def _differing(difference: Difference, a: str, b: str) -> str:
    name = difference.name
    p = f"p = {probability(difference.p)}".replace("= <", "<")
    if not meaning(name).is_rate:
        ours, theirs = value(name, difference.a), value(name, difference.b)
        return f"{title(name)}: {theirs} with {b} against {ours} with {a} ({p})."
    how = "more" if difference.difference.value > 0 else "less"
    ours, theirs = share(difference.a), share(difference.b)
    return f"{b} {does(name)} {how} often than {a}: in {theirs} against {ours} ({p})."


def _settings(comparison: Comparison) -> list[str]:
    settings = comparison.settings
    if len(settings) == 1:
        name, (first, second) = next(iter(settings.items()))
        return [f"Only one setting differs between them: {name}, {first} and {second}."]
    if settings:
        return [
            f"{len(settings)} settings differ between them, and the figures do not tell which of "
            "them matters."
        ]
    return []
