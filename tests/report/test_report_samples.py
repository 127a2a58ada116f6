"""Replies are cut where failures begin and end, and grouped by what they answer."""

from made_evaluations import evaluation, judged, realistic

from chattune.conversation import Message
from chattune.report.samples import Part, failing, parts, talks, within


def test_a_reply_is_cut_at_the_ends_of_every_span() -> None:
    overlapping = judged("abcdefgh", {"echo": [(0, 2), (5, 7)], "repetition": [(1, 6)]})
    assert parts(overlapping) == [
        Part("a", ("echo",)),
        Part("b", ("echo", "repetition")),
        Part("cde", ("repetition",)),
        Part("f", ("echo", "repetition")),
        Part("g", ("echo",)),
        Part("h", ()),
    ]


def test_spans_that_leave_the_reply_or_are_empty_lose_nothing() -> None:
    for failures in ({}, {"echo": [(-3, 2)]}, {"echo": [(1, 99)]}, {"empty": [(2, 2)]}):
        assert "".join(part.text for part in parts(judged("abc", failures))) == "abc"
    assert parts(judged("", {"empty": [(0, 0)]})) == []


def test_replies_of_all_evaluations_to_a_prompt_lie_together() -> None:
    both = [realistic("a", {}), realistic("b", {"echo": 0.5})]
    found = talks(both)
    assert len(found) == 80
    for talk in found:
        for number, turn in talk.turns.items():
            assert [answer.label for answer in turn.answers] == ["a", "b"]
            samples = [answer.judged.sample for answer in turn.answers]
            assert {(s.prompt, s.turn, s.question) for s in samples} == {
                (talk.prompt, number, turn.question)
            }
    assert max(len(talk.turns) for talk in found) == 3


def test_prompts_of_one_name_and_different_text_are_kept_apart() -> None:
    ours = evaluation("a", [judged("Yes.", prompt="heldout/3", question="Is it red?")])
    theirs = evaluation("b", [judged("No.", prompt="heldout/3", question="Is it blue?")])
    assert [len(talk.turns[1].answers) for talk in talks([ours, theirs])] == [1, 1]


def test_what_was_said_before_and_what_is_required_belong_to_the_talk() -> None:
    before = (Message("user", "I am Ben."), Message("assistant", "Hello Ben!"))
    sample = judged(
        "Ben.",
        question="Who am I?",
        before=before,
        required=(("ben", "benjamin"),),
        reference="Ben",
    )
    (talk,) = talks([evaluation("a", [sample])])
    assert (talk.before, talk.required, talk.reference) == (before, ["ben or benjamin"], "Ben")


def test_talks_with_failures_are_kept_first_and_in_order() -> None:
    replies = [
        judged("x" * 1000, {"echo": [(0, 9)]} if n in (2, 5) else {}, prompt=f"general/{n}")
        for n in range(7)
    ]
    every = talks([evaluation("a", replies)])
    assert [talk.prompt for talk in within(every, every[0].size * 3)] == [
        "general/0", "general/2", "general/5",
    ]  # fmt: skip
    assert within(every, 10**6) == every
    assert [talk.prompt for talk, _, _ in failing(every)] == ["general/2", "general/5"]
