"""Replies to prompts: turns, seeds, and an evaluation that is stopped and goes on."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from chattune.base import find_base, load_template
from chattune.evaluate.prompts import Prompt
from chattune.evaluate.replying import Job, Speaker, write_replies
from chattune.generate import Decoding
from chattune.generate.scripted import ScriptedEngine
from chattune.template import Template


@pytest.fixture(scope="module")
def template(tiny_base: Path) -> Template:
    return load_template(find_base(str(tiny_base)))


class Echo:
    """An engine that answers with the prompt's number of tokens, and records the decodings."""

    at_once = 1

    def __init__(self, template: Template, fail_after: int | None = None) -> None:
        self.template, self.fail_after = template, fail_after
        self.asked: list[tuple[list[int], Decoding]] = []

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding | Sequence[Decoding]
    ) -> Iterator[tuple[int, int]]:
        assert not isinstance(decoding, Decoding)
        for index, prompt in enumerate(prompts):
            if len(self.asked) == self.fail_after:
                raise KeyboardInterrupt
            self.asked.append((list(prompt), decoding[index]))
            for token in self.template.encode(str(len(prompt))):
                yield index, token
            yield index, min(self.template.end_ids)


def ignore(done: int, total: int) -> None:
    pass


PROMPTS = [
    Prompt("set/1", "a", ("Hello", "And you?"), required=(("7",),)),
    Prompt("set/2", "b", ("Bye",), reference="See you"),
]


def test_later_turns_see_the_models_own_replies(template: Template, tmp_path: Path) -> None:
    engine = Echo(template)
    job = Job(PROMPTS, Decoding(), [0], tmp_path / "samples")
    (answers,) = write_replies(Speaker(engine, template, 128), [job], ignore)
    first, second, other = answers.samples
    assert [(s.prompt, s.turn, s.stopped) for s in answers.samples] == [
        ("set/1", 1, True),
        ("set/1", 2, True),
        ("set/2", 1, True),
    ]
    assert first.reply == str(len(template.prompt(first.messages)))
    assert [m.content for m in second.messages] == ["Hello", first.reply, "And you?"]
    assert (first.required, second.required) == ((), (("7",),))
    assert other.reference == "See you"
    assert other.tokens == len(template.encode(other.reply)) + 1


def test_each_prompt_and_seed_is_decoded_with_its_own_seed(
    template: Template, tmp_path: Path
) -> None:
    engine = Echo(template)
    jobs = [Job(PROMPTS, Decoding(), [0, 1, 2], tmp_path / "samples")]
    write_replies(Speaker(engine, template, 128), jobs, ignore)
    seeds = [decoding.seed for _, decoding in engine.asked]
    assert len(set(seeds)) == len(seeds) == 9
    greedy = [Job(PROMPTS, Decoding(temperature=0), [0, 1, 2], tmp_path / "greedy")]
    (answers,) = write_replies(Speaker(Echo(template), template, 128), greedy, ignore)
    assert {s.seed for s in answers.samples} == {0}


def test_a_stopped_evaluation_goes_on_and_gives_the_same(
    template: Template, tmp_path: Path
) -> None:
    job = Job(PROMPTS, Decoding(), [0, 1], tmp_path / "samples")
    with pytest.raises(KeyboardInterrupt):
        write_replies(Speaker(Echo(template, fail_after=3), template, 128), [job], ignore)
    assert len(job.path.read_text().splitlines()) == 3
    with job.path.open("a") as file:
        file.write('{"prompt": "set/1", "ki')  # a line that a kill has cut
    engine = Echo(template)
    (resumed,) = write_replies(Speaker(engine, template, 128), [job], ignore)
    assert len(engine.asked) == 3
    whole = Job(PROMPTS, Decoding(), [0, 1], tmp_path / "whole")
    (expected,) = write_replies(Speaker(Echo(template), template, 128), [whole], ignore)
    assert resumed == expected
    assert all(json.loads(line) for line in job.path.read_text().splitlines())


def test_several_decodings_are_answered_together(template: Template, tmp_path: Path) -> None:
    jobs = [Job(PROMPTS, Decoding(temperature=t), [0], tmp_path / str(t)) for t in (0.1, 0.5, 0.9)]
    engine = Echo(template)
    answers = write_replies(Speaker(engine, template, 128), jobs, ignore)
    assert [len(a.samples) for a in answers] == [3, 3, 3]
    assert [decoding.temperature for _, decoding in engine.asked[:6]] == [
        0.1,
        0.1,
        0.5,
        0.5,
        0.9,
        0.9,
    ]


def test_a_reply_at_the_limit_did_not_stop(template: Template, tmp_path: Path) -> None:
    endless = ScriptedEngine([template.encode("one two three four five six")])
    job = Job(PROMPTS[1:], Decoding(max_new_tokens=3), [0], tmp_path / "samples")
    (answers,) = write_replies(Speaker(endless, template, 128), [job], ignore)
    (sample,) = answers.samples
    assert (sample.stopped, sample.tokens) == (False, 3)


def test_special_tokens_are_seen_and_stop_texts_honoured(
    template: Template, tmp_path: Path
) -> None:
    ids = template.encode("Fine. STOP and more")
    engine = ScriptedEngine([ids])
    decoding = Decoding(max_new_tokens=len(ids), stop="STOP")
    job = Job(PROMPTS[1:], decoding, [0], tmp_path / "samples")
    (answers,) = write_replies(Speaker(engine, template, 128), [job], ignore)
    assert (answers.samples[0].reply, answers.samples[0].stopped) == ("Fine.", True)


def test_a_prompt_that_is_too_long_is_named(template: Template, tmp_path: Path) -> None:
    prompts = [*PROMPTS, Prompt("set/long", "", ("word " * 200,))]
    job = Job(prompts, Decoding(), [0], tmp_path / "samples")
    (answers,) = write_replies(Speaker(Echo(template), template, 128), [job], ignore)
    assert list(answers.left_out) == ["set/long"]
    assert "too long" in answers.left_out["set/long"]
    assert {s.prompt for s in answers.samples} == {"set/1", "set/2"}
