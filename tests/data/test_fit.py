"""Tests for fitting: a long conversation is cut after a turn or a sentence and keeps its end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chattune.base import starter_folder
from chattune.conversation import Conversation
from chattune.data.fit import fit
from chattune.data.report import Tally
from chattune.recipe import DataRecipe
from chattune.template import Rendered, Template
from rows import load_once, template

CONCATENATED = load_once(starter_folder(), "concatenated")
Fitted = tuple[list[tuple[Conversation, Rendered]], dict[str, int], dict[str, int]]


def fitted(
    *conversations: Conversation,
    max_length: int,
    overlong: str = "cut",
    rendered_by: Template | None = None,
) -> Fitted:
    recipe = DataRecipe(source="talk.jsonl", max_length=max_length, overlong=overlong)  # type: ignore[arg-type]
    tally = Tally()
    kept = list(fit(conversations, rendered_by or template(), recipe, tally))
    return kept, dict(tally.dropped), tally.cut


def length(conversation: Conversation) -> int:
    """Return the number of tokens of a conversation."""
    return len(template().render(conversation).ids)


def talk(*contents: str) -> Conversation:
    """Return a conversation whose turns alternate, from the user's on."""
    return Conversation.of(
        *(("assistant" if i % 2 else "user", c) for i, c in enumerate(contents))  # type: ignore[misc]
    )


def cut_reply(reply: str, fits: str) -> str:
    """Return what is kept of a reply if `fits` and one more token fit."""
    max_length = length(talk("Tell me.", fits)) + 1
    assert length(talk("Tell me.", reply)) > max_length
    ((conversation, _),), dropped, _ = fitted(talk("Tell me.", reply), max_length=max_length)
    assert not dropped
    return conversation.messages[-1].content


def assert_ends_supervised(rendered: Rendered) -> None:
    assert rendered.ids[-1] in template().end_ids
    assert rendered.supervised[-1]


TALK = talk("One?", "First answer.", "Two?", "Second answer.", "Three?", "Third answer.")


def test_a_conversation_of_exactly_the_length_is_left_alone() -> None:
    ((conversation, rendered),), dropped, cuts = fitted(TALK, max_length=length(TALK))
    assert conversation == TALK
    assert rendered == template().render(TALK)
    assert not dropped
    assert not any(cuts.values())


@pytest.mark.parametrize("kept_turns", [2, 4])
def test_whole_turns_are_left_out_first(kept_turns: int) -> None:
    shorter = Conversation(TALK.messages[:kept_turns])
    ((conversation, rendered),), _, cuts = fitted(TALK, max_length=length(shorter))
    assert conversation == shorter
    assert rendered == template().render(shorter)
    assert_ends_supervised(rendered)
    assert cuts == {
        "conversations": 1,
        "tokens": length(TALK) - length(shorter),
        "replies": 3 - kept_turns // 2,
    }


def test_turns_far_behind_the_cut_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = 0
    render = Template.render

    def counted(self: Template, conversation: Conversation) -> Rendered:
        nonlocal rendered
        rendered += 1
        return render(self, conversation)

    monkeypatch.setattr(Template, "render", counted)
    contents = ["Go on.", "One more sentence stands here."] * 300
    ((kept, _),), _, _ = fitted(talk(*contents), max_length=64)
    assert 2 <= len(kept.messages) < 20
    assert rendered < 10


def test_a_system_message_stays_with_the_turns_that_fit() -> None:
    with_system = Conversation.of(
        ("system", "Be."), ("user", "a?"), ("assistant", "b."), ("user", "c?"), ("assistant", "d.")
    )
    first = Conversation(with_system.messages[:3])
    ((conversation, _),), _, _ = fitted(with_system, max_length=length(first) + 2)
    assert conversation == first


SENTENCES = ["The cat sat down.", "It was tired!", "Was it hungry?", "It ate a fish and slept."]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_reply_is_cut_at_the_last_sentence_that_fits(count: int) -> None:
    shorter = talk("Tell me.", " ".join(SENTENCES[:count]))
    whole = talk("Tell me.", " ".join(SENTENCES))
    ((conversation, rendered),), _, cuts = fitted(whole, max_length=length(shorter))
    assert conversation == shorter
    assert rendered == template().render(shorter)
    assert_ends_supervised(rendered)
    assert cuts == {"conversations": 1, "tokens": length(whole) - length(shorter), "replies": 0}


def test_a_first_reply_that_is_too_long_is_cut_and_the_turns_after_it_counted() -> None:
    whole = talk("Tell me.", " ".join(SENTENCES), "More?", "Yes.", "More?", "No.")
    shorter = talk("Tell me.", " ".join(SENTENCES[:2]))
    ((conversation, _),), _, cuts = fitted(whole, max_length=length(shorter))
    assert conversation == shorter
    assert cuts["replies"] == 2


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        ("A heading\nand a line that goes on and on without an end", "A heading"),
        ('He said "no." Then he went away and never came back', 'He said "no."'),
        ("(Yes, it was.) But that is a long story to tell you now", "(Yes, it was.)"),
        ("这是第一句话。这是第二句话,它比第一句话长得多,也没有结尾", "这是第一句话。"),
        ("Well… that is another story that nobody wants to hear", "Well…"),
        ("Up it goes! 🚀🚀🚀🚀🚀🚀🚀🚀🚀🚀🚀🚀", "Up it goes!"),
    ],
    ids=["line", "quote", "bracket", "Chinese", "ellipsis", "pictures"],
)
def test_where_a_sentence_ends(reply: str, kept: str) -> None:
    assert cut_reply(reply, kept) == kept


@pytest.mark.parametrize(
    ("reply", "fits", "kept"),
    [
        ("It is so. Pi is 3.14159265358979 or nearly that", "It is so. Pi is 3.", "It is so."),
        ("It is so. See example.com/a/b/c/d/e for it", "It is so. See example.", "It is so."),
    ],
    ids=["decimal point", "address"],
)
def test_where_no_sentence_ends(reply: str, fits: str, kept: str) -> None:
    assert cut_reply(reply, fits) == kept


@pytest.mark.parametrize("marker", ["2.", "   2.", "b."])
def test_the_marker_of_a_list_item_is_no_sentence(marker: str) -> None:
    reply = f"Do this:\n1. Boil the water.\n{marker} Pour it over the leaves and wait for a while."
    assert cut_reply(reply, f"Do this:\n1. Boil the water.\n{marker}") == (
        "Do this:\n1. Boil the water."
    )


def test_too_long_is_dropped_if_the_recipe_says_so() -> None:
    short = talk("Hi", "Hello.")
    kept, dropped, cuts = fitted(TALK, short, max_length=length(short), overlong="drop")
    assert [conversation for conversation, _ in kept] == [short]
    assert dropped == {"too_long": 1}
    assert not any(cuts.values())


def test_a_question_that_leaves_no_room_for_an_answer_is_dropped() -> None:
    kept, dropped, _ = fitted(talk("very " * 60 + "long?", "Yes. No."), max_length=40)
    assert (kept, dropped) == ([], {"prompt_too_long": 1})


def test_an_answer_without_a_sentence_that_fits_is_dropped() -> None:
    kept, dropped, cuts = fitted(talk("Tell me.", "and so on " * 60), max_length=40)
    assert (kept, dropped) == ([], {"no_sentence_fits": 1})
    assert not any(cuts.values())


def test_cuts_are_added_up_and_order_is_kept() -> None:
    short = talk("Hi", "Hello.")
    max_length = length(Conversation(TALK.messages[:2]))
    assert length(short) <= max_length
    kept, _, cuts = fitted(TALK, short, TALK, max_length=max_length)
    assert [c.messages[0].content for c, _ in kept] == ["One?", "Hi", "One?"]
    assert cuts["conversations"] == 2
    assert cuts["replies"] == 4
    assert cuts["tokens"] == 2 * (length(TALK) - max_length)


def test_conversations_pass_through_without_being_kept() -> None:
    many = (talk(f"Question {i}?", "Answer.") for i in range(3000))
    recipe = DataRecipe(source="x")
    next(iter(fit(many, template(), recipe, Tally())))
    assert sum(1 for _ in many) >= 1000  # only the batch that is tokenised at once was consumed


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_concatenated_reply_is_cut_at_the_last_sentence_that_fits(count: int) -> None:
    shorter = talk("Tell me.", " ".join(SENTENCES[:count]))
    whole = talk("Tell me.", " ".join(SENTENCES))
    expected = CONCATENATED.render(shorter)
    ((conversation, rendered),), _, _ = fitted(
        whole, max_length=len(expected.ids), rendered_by=CONCATENATED
    )
    assert (conversation, rendered) == (shorter, expected)
    ((turns, _),), _, _ = fitted(
        talk("Tell me.", SENTENCES[0], *SENTENCES), max_length=32, rendered_by=CONCATENATED
    )
    assert turns == talk("Tell me.", SENTENCES[0])


sentences = st.lists(
    st.text(st.sampled_from("abc 是🚀é\n"), min_size=1, max_size=12).map(lambda t: f"x{t}y."),
    min_size=1,
    max_size=8,
).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(sentences, min_size=2, max_size=6), st.integers(16, 120))
def test_nothing_is_longer_than_allowed_nor_ends_amid_a_sentence(
    contents: list[str], max_length: int
) -> None:
    whole = talk(*contents[: len(contents) // 2 * 2])
    kept, dropped, cuts = fitted(whole, max_length=max_length)
    assert len(kept) + sum(dropped.values()) == 1
    for conversation, rendered in kept:
        assert len(rendered.ids) <= max_length
        assert_ends_supervised(rendered)
        assert rendered == template().render(conversation)
        count = len(conversation.messages)
        assert conversation.messages[:-1] == whole.messages[: count - 1]
        before, after = conversation.messages[-1].content, whole.messages[count - 1].content
        assert after.startswith(before)
        assert before == after or before[-1] in ".\u3002" or after[len(before)] == "\n"
        assert cuts["tokens"] == length(whole) - length(conversation)
