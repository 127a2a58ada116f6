"""A user's own checks: what replies must and must not be, in a YAML file, for use in CI."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Self

import yaml
from pydantic import Field, ValidationError, model_validator

from chattune.errors import DataError, UserError
from chattune.evaluate.agreement import contains
from chattune.evaluate.failures import FAILURES
from chattune.evaluate.intervals import Figure, rate
from chattune.evaluate.judge import Judge
from chattune.evaluate.scores import Judged
from chattune.recipe import Section

_JUDGED = """\
A chatbot answered a user. Answer a question about its reply with one word: yes or no.

[The user]
{question}

[The reply]
{reply}

[The question]
{check}"""


class Words(Section):
    """Limits of a reply's number of words."""

    at_least: int = Field(0, ge=0)
    at_most: int | None = Field(None, ge=0)


class Check(Section):
    """One check: a property of a reply, the prompts it is for, and the share that must have it.

    Exactly one of the properties is given. `failure` is the name of a failure that replies should
    not show, so its share has an upper limit, and all others have a lower one.
    """

    name: str | None = None
    prompts: str = Field(
        "*", description="Pattern of the names of prompts, such as general/facts*."
    )
    contains: str | list[str] | None = Field(
        None, description="One of these texts is in the reply."
    )
    excludes: str | list[str] | None = Field(None, description="None of these texts is in it.")
    regex: str | None = Field(None, description="The pattern is found in the reply.")
    words: Words | None = None
    language: str | None = Field(None, description="Two letters, such as en.")
    judge: str | None = Field(None, description="A question that the judge answers with yes.")
    failure: str | None = Field(None, description=f"One of {', '.join(FAILURES)}.")
    at_least: float | None = Field(None, ge=0, le=1)
    at_most: float | None = Field(None, ge=0, le=1)

    @model_validator(mode="after")
    def _require_one_property(self) -> Self:
        if sum(getattr(self, name) is not None for name in _PROPERTIES) != 1:
            raise ValueError(f"give exactly one of {', '.join(_PROPERTIES)}")
        if self.failure is not None and self.failure not in FAILURES:
            raise ValueError(f"failure: no such failure; there are {', '.join(FAILURES)}")
        if self.regex is not None:
            try:
                re.compile(self.regex)
            except re.error as error:
                raise ValueError(f"regex: {error}") from error
        return self

    @property
    def title(self) -> str:
        """The check's name, or else its property."""
        given = next(n for n in _PROPERTIES if getattr(self, n) is not None)
        return self.name or f"{given}: {getattr(self, given)}"

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest share of replies with the property that pass."""
        default = (0.0, 0.0) if self.failure is not None else (1.0, 1.0)
        if self.at_least is None and self.at_most is None:
            return default
        lowest = 0.0 if self.at_least is None else self.at_least
        return lowest, 1.0 if self.at_most is None else self.at_most


_PROPERTIES = ("contains", "excludes", "regex", "words", "language", "judge", "failure")


@dataclass(frozen=True)
class Outcome:
    """The outcome of a check: the share of replies with its property, and those that are wrong."""

    title: str
    share: Figure
    lowest: float
    highest: float
    examples: list[str]

    @property
    def passed(self) -> bool:
        """True if the share is within the limits."""
        return self.lowest <= self.share.value <= self.highest

    def __str__(self) -> str:
        wanted = f"at least {self.lowest:.0%}" if self.lowest else f"at most {self.highest:.0%}"
        line = (
            f"{'passed' if self.passed else 'FAILED'}: {self.title} ({self.share.value:.0%} of "
            f"{self.share.n} replies, {wanted} wanted)"
        )
        return "\n  ".join([line, *([] if self.passed else self.examples)])


def read_checks(path: Path, judge: Judge | None = None) -> list[Check]:
    """Read the checks of a YAML file, which is a list of them.

    Raises DataError that names the check and its field, and UserError for one that needs a judge if
    there is none.
    """
    try:
        tree = yaml.safe_load(path.read_text("utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"checks {path}: cannot be read ({error})") from error
    if not isinstance(tree, list) or not tree:
        raise DataError(f"checks {path}: write a list of checks, such as `- contains: Paris`")
    checks = []
    for number, entry in enumerate(tree, 1):
        try:
            checks.append(Check.model_validate(entry))
        except ValidationError as error:
            detail = error.errors()[0]
            field = ".".join(map(str, detail["loc"]))
            message = detail["msg"].removeprefix("Value error, ")
            raise DataError(
                f"checks {path}: check {number}{field and f', {field}'}: {message}"
            ) from error
    for check in checks:
        _property(check, judge)  # before the replies are generated, which takes long
    return checks


def apply_checks(
    checks: Sequence[Check], judged: Sequence[Judged], judge: Judge | None = None
) -> list[Outcome]:
    """Return the outcome of each check on the samples of an evaluation.

    Raises DataError for a check without a sample, and UserError for one that needs a judge if there
    is none.
    """
    outcomes = []
    for check in checks:
        chosen = [j for j in judged if fnmatch(j.sample.prompt, check.prompts)]
        if not chosen:
            raise DataError(
                f"check {check.title!r}: no prompt is called {check.prompts!r}; the first one is "
                f"{judged[0].sample.prompt!r}"
            )
        has_property = _property(check, judge)
        holds = [has_property(j) for j in chosen]
        by_prompt: dict[str, list[float]] = {}
        for j, value in zip(chosen, holds, strict=True):
            by_prompt.setdefault(j.sample.prompt, []).append(float(value))
        lowest, highest = check.limits
        unwanted = check.limits == (0.0, 0.0)
        wrong = [j for j, value in zip(chosen, holds, strict=True) if value is unwanted]
        outcomes.append(
            Outcome(
                check.title,
                rate(list(by_prompt.values())),
                lowest,
                highest,
                [f"{j.sample.prompt}: {j.sample.reply[:80]!r}" for j in wrong[:3]],
            )
        )
    return outcomes


def _property(check: Check, judge: Judge | None) -> Callable[[Judged], bool]:
    """Return the function that says whether a reply has a check's property."""
    if check.contains is not None:
        wanted = _texts(check.contains)
        return lambda j: any(contains(j.sample.reply, text) for text in wanted)
    if check.excludes is not None:
        unwanted = _texts(check.excludes)
        return lambda j: not any(contains(j.sample.reply, text) for text in unwanted)
    if check.regex is not None:
        pattern = re.compile(check.regex)
        return lambda j: pattern.search(j.sample.reply) is not None
    if check.words is not None:
        limits = check.words
        most = float("inf") if limits.at_most is None else limits.at_most
        return lambda j: limits.at_least <= len(j.sample.reply.split()) <= most
    if check.language is not None:
        import py3langid

        return lambda j: py3langid.classify(j.sample.reply)[0] == check.language
    if check.failure is not None:
        return lambda j: check.failure in j.failures
    if judge is None:
        raise UserError(f"check {check.title!r}: needs a judge; name its endpoint with --judge")
    return lambda j: _says_yes(judge, check.judge or "", j)


def _says_yes(judge: Judge, question: str, judged: Judged) -> bool:
    sample = judged.sample
    asked = _JUDGED.format(question=sample.question, reply=sample.reply, check=question)
    return judge.ask(asked).strip().lower().startswith("yes")


def _texts(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given
