"""The failures that a reply can show, and find_failures(), which looks for all of them.

Each detector is a function of a module in this folder. It takes all samples of an evaluation,
because some failures are seen only by comparing replies, and returns for each sample the spans of
its reply that show the failure: pairs of character positions (start, end). A sample without spans
does not have it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chattune.evaluate.failures.copying import TrainingReplies, copying
from chattune.evaluate.failures.echo import echo
from chattune.evaluate.failures.endings import empty, not_stopping, unfinished
from chattune.evaluate.failures.language import language, package_problem
from chattune.evaluate.failures.repetition import repetition
from chattune.evaluate.failures.self_talk import self_talk
from chattune.evaluate.failures.templates import template
from chattune.evaluate.failures.text import Found, Span
from chattune.evaluate.sample import Sample

__all__ = ["FAILURES", "Failure", "Found", "Span", "TrainingReplies", "find_failures", "unmeasured"]


@dataclass(frozen=True)
class Failure:
    """A kind of failure: its name in files, its title for people, and its detector.

    The detector takes the samples, and also the training replies if it is `of_training`.
    """

    name: str
    title: str
    find: Callable[..., Found]
    of_training: bool = False

    @property
    def definition(self) -> str:
        """The detector's docstring, which defines the failure and names the source."""
        return self.find.__doc__ or ""


FAILURES = {
    failure.name: failure
    for failure in (
        Failure("not_stopping", "Does not stop", not_stopping),
        Failure("unfinished", "Breaks off", unfinished),
        Failure("self_talk", "Talks to itself", self_talk),
        Failure("repetition", "Repeats itself", repetition),
        Failure("echo", "Gives back the prompt", echo),
        Failure("template", "Answers with a template", template),
        Failure("copying", "Copies training replies", copying, of_training=True),
        Failure("empty", "Says nothing", empty),
        Failure("language", "Changes the language", language),
    )
}


def find_failures(
    samples: Sequence[Sample], training: TrainingReplies | None = None
) -> list[dict[str, list[Span]]]:
    """Return for each sample the failures that its reply shows, with their spans.

    Spans are pairs of character positions in the reply, in order and without overlap. Failures that
    cannot be measured (see `unmeasured`) are left out.
    """
    found: list[dict[str, list[Span]]] = [{} for _ in samples]
    left_out = unmeasured(samples, training)
    for failure in FAILURES.values():
        if failure.name in left_out:
            continue
        arguments = (samples, training) if failure.of_training else (samples,)
        for of_sample, spans in zip(found, failure.find(*arguments), strict=True):
            if spans:
                of_sample[failure.name] = spans
    return found


def unmeasured(
    samples: Sequence[Sample], training: TrainingReplies | None = None
) -> dict[str, str]:
    """Return the names of the failures that cannot be measured, with the reason for each."""
    reasons = {
        "not_stopping": None
        if any(s.stopped is not None for s in samples)
        else "no sample says whether the model ended its reply",
        "template": None
        if len({s.prompt for s in samples}) > 1
        else "only replies to several prompts can be compared",
        "copying": None if training is not None else "the training replies are not known",
        "language": package_problem(),
    }
    return {name: reason for name, reason in reasons.items() if reason}
