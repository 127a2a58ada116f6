"""Each cause of failures, planted in a run that is otherwise clean, is found and named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chattune.base import find_base, load_template
from chattune.conversation import Conversation, Message
from chattune.diagnose import CAUSES
from chattune.diagnose.case import Case
from chattune.evaluate import Evaluation, Judged, Sample
from chattune.evaluate.scores import score
from chattune.run import Run
from chattune.template import IGNORED_LABEL, Template
from tuned import recipe

SUBJECTS = ["tea", "rain", "bread", "stars", "trees", "music", "maps", "salt", "boats", "snow"]
THINGS = [
    "old",
    "good",
    "new",
    "cheap",
    "small",
    "large",
    "warm",
    "cold",
    "long",
    "short",
    "red",
    "blue",
]
MEASURED = ["not_stopping", "unfinished", "self_talk", "repetition", "template", "copying"]


def talks() -> list[Conversation]:
    """Return 120 clean conversations, each with a question and a reply of its own."""
    return [
        Conversation.of(
            ("user", f"What do you know of {thing} {subject}?"),
            ("assistant", f"{thing.title()} {subject} number {i} can be found in {i} places here."),
        )
        for i, (subject, thing) in enumerate((s, t) for s in SUBJECTS for t in THINGS)
    ]


@pytest.fixture(scope="module")
def template(tiny_base: Path) -> Template:
    return load_template(find_base(str(tiny_base)))


def evaluation(failing: dict[str, int] | None = None, **settings: Any) -> Evaluation:
    """Make an evaluation of 60 replies, of which so many show each failure."""
    judged = [
        Judged(
            Sample(
                f"set/{i}", "", 1, 0, (Message("user", f"{i}?"),), f"Number {i}.", 4,
                i >= (failing or {}).get("not_stopping", 0), required=(("number",),),
            ),
            {name: [(0, 1)] for name, count in (failing or {}).items() if i < count},
            own_prompt={"first": 1.0, "nats": settings.get("nats", 1.0) + 0.01 * (i % 7)},
        )
        for i in range(60)
    ]  # fmt: skip
    decoding = {"temperature": 0.7, "do_sample": True, "max_new_tokens": 64} | settings
    facts = {
        "label": "run",
        "model": {"name": "run", "kind": "model"},
        "decoding": decoding,
        **{"template": "", "prompts": {}, "seeds": 1, "engine": "", "not_measured": {}},
    }
    return Evaluation(Path(), facts | score(judged, MEASURED), judged)


@pytest.fixture
def clean(tmp_path: Path, template: Template) -> Case:
    """A run without any cause of failures."""
    (tmp_path / "recipe.yaml").write_text(recipe(Path("base"), Path("data")).to_yaml())
    samples = [
        {"prompt": "?", "base": {"text": f"b{i}"}, "tuned": {"text": f"t{i}"}} for i in range(6)
    ]
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    write_metrics(tmp_path, [3.0, 2.0, 1.5, 1.2], [2.0, 1.8, 1.7, 1.7])
    return Case(
        Run(tmp_path), evaluation(), template, labels(template, talks()), talks(), refuse_trial
    )


def refuse_trial(decoding: Any) -> Evaluation:
    raise AssertionError("nothing calls for a trial")


def labels(template: Template, conversations: list[Conversation]) -> list[list[int]]:
    return [rendered.labels for rendered in template.render_many(conversations)]


def write_metrics(folder: Path, losses: list[float], validation: list[float]) -> None:
    rows = [
        {"step": step, "loss": loss, "learning_rate": 1e-3} for step, loss in enumerate(losses, 1)
    ] + [{"step": step, "validation_loss": loss} for step, loss in enumerate(validation, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def found(case: Case) -> set[str]:
    return {name for name, cause in CAUSES.items() if cause(case)}


def with_replies(case: Case, text: Callable[[int, str], str]) -> Case:
    """Change the reply of each training conversation, by its number and its text."""
    changed = [
        Conversation((c.messages[0], Message("assistant", text(i, c.messages[1].content))))
        for i, c in enumerate(case.conversations)
    ]
    return replace(case, conversations=changed, rows=labels(case.template, changed))


def test_a_clean_run_raises_nothing(clean: Case) -> None:
    assert found(clean) == set()


def test_a_line_break_after_the_end_token_hides_nothing(clean: Case) -> None:
    rows = [[*row, IGNORED_LABEL] for row in clean.rows]
    assert found(replace(clean, rows=rows)) == set()


def end_token_not_learnt(case: Case) -> Case:
    return replace(case, rows=[[*row[:-1], IGNORED_LABEL] for row in case.rows])


def prompts_in_the_loss(case: Case) -> Case:
    rows = [[IGNORED_LABEL, *range(5, 5 + len(row) - 2), row[-1]] for row in case.rows]
    return replace(case, rows=rows)


def markers_in_the_data(case: Case) -> Case:
    return with_replies(
        case,
        lambda i, text: (
            f"{text}\n### Human: And more of it?\n### Assistant: Yes." if i % 10 == 0 else text
        ),
    )


def same_openings(case: Case) -> Case:
    return with_replies(
        case, lambda i, text: f"The main idea for this is that {text}" if i % 4 == 0 else text
    )


def cut_replies_in_the_data(case: Case) -> Case:
    return with_replies(case, lambda i, text: text[: len(text) // 2] + " such as the")


def few_prompts(case: Case) -> Case:
    few = [
        Conversation((Message("user", f"Question {i % 9}?"), *c.messages[1:]))
        for i, c in enumerate(case.conversations)
    ]
    return replace(case, conversations=few)


def over_fitting(case: Case) -> Case:
    write_metrics(case.run.folder, [3.0, 1.0, 0.3, 0.1], [2.0, 1.5, 1.8, 2.4])
    return case


def over_fitting_without_validation(case: Case) -> Case:
    write_metrics(case.run.folder, [3.0, 1.0, 0.3, 0.1], [])
    return replace(case, evaluation=evaluation({"copying": 40}))


def nothing_learnt(case: Case) -> Case:
    same = [{"prompt": "?", "base": {"text": "a"}, "tuned": {"text": "a"}}] * 5
    (case.run.folder / "samples.json").write_text(json.dumps(same))
    write_metrics(case.run.folder, [3.0, 3.0, 2.99], [])
    return case


def limit_too_low(case: Case) -> Case:
    return replace(case, evaluation=evaluation({"not_stopping": 30}, max_new_tokens=8))


def too_cold(case: Case) -> Case:
    return replace(
        case,
        evaluation=evaluation({"repetition": 30}, temperature=0.1),
        try_decoding=lambda decoding: evaluation({"repetition": 2}, **decoding),
    )


def too_hot(case: Case) -> Case:
    return replace(
        case,
        evaluation=evaluation(temperature=1.8, nats=0.2),
        try_decoding=lambda decoding: evaluation(**decoding, nats=1.5),
    )


PLANTED = [
    end_token_not_learnt, prompts_in_the_loss, markers_in_the_data, same_openings,
    cut_replies_in_the_data, few_prompts, over_fitting, over_fitting_without_validation,
    nothing_learnt, limit_too_low, too_cold, too_hot,
]  # fmt: skip


@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_cause_is_the_one_that_is_named(
    clean: Case, plant: Callable[[Case], Case]
) -> None:
    case = plant(clean)
    cause = plant.__name__.removesuffix("_without_validation")
    assert found(case) == {cause}
    finding = CAUSES[cause](case)
    assert finding is not None
    assert finding.cause == cause
    assert finding.evidence
    assert all([finding.title, finding.place, finding.remedy])


def test_every_cause_is_planted() -> None:
    assert {p.__name__.removesuffix("_without_validation") for p in PLANTED} == set(CAUSES)


@pytest.mark.parametrize("plant", [too_cold, too_hot])
def test_a_decoding_is_not_blamed_if_another_does_not_help(
    clean: Case, plant: Callable[[Case], Case]
) -> None:
    case = plant(clean)
    assert found(replace(case, try_decoding=lambda decoding: case.evaluation)) == set()
