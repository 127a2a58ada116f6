"""Tests for cleaning: each dropped conversation is counted, and the others are unchanged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chattune.conversation import Conversation, alternates
from chattune.data.clean import clean
from chattune.data.report import Tally


def cleaned(
    *conversations: Conversation, near_duplicates: bool = False, max_per_opening: int | None = None
) -> tuple[list[Conversation], dict[str, int]]:
    tally = Tally()
    kept = clean(
        conversations, tally, near_duplicates=near_duplicates, max_per_opening=max_per_opening
    )
    return list(kept), dict(tally.dropped)


def talk(*contents: str) -> Conversation:
    """Return a conversation whose turns alternate, from the user's on."""
    return Conversation.of(
        *(("assistant" if i % 2 else "user", c) for i, c in enumerate(contents))  # type: ignore[misc]
    )


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        (Conversation(()), "no_turns"),
        (talk("Hi"), "no_assistant_turn"),
        (Conversation.of(("system", "Be."), ("user", "Hi")), "no_assistant_turn"),
        (talk("Hi", " \n "), "empty_turn"),
        (talk("", "Hello"), "empty_turn"),
        (talk("Hi", "Hello", "", "Yes"), "empty_turn"),
        (Conversation.of(("assistant", "Hello")), "role_order"),
        (Conversation.of(("user", "a"), ("user", "b"), ("assistant", "c")), "role_order"),
        (Conversation.of(("user", "a"), ("assistant", "b"), ("assistant", "c")), "role_order"),
        (
            Conversation.of(
                ("user", "a"),
                ("assistant", "b"),
                ("system", "c"),
                ("user", "d"),
                ("assistant", "e"),
            ),
            "role_order",
        ),
        (Conversation.of(("system", "a"), ("assistant", "b")), "role_order"),
    ],
)
def test_what_cannot_be_used_is_dropped_under_its_reason(
    conversation: Conversation, reason: str
) -> None:
    assert cleaned(conversation) == ([], {reason: 1})


def test_the_second_of_two_equal_conversations_is_a_duplicate() -> None:
    kept, dropped = cleaned(talk("Hi", "Hello"), talk(" Hi ", "Hello\n"), talk("Hi", "Good day"))
    assert kept == [talk("Hi", "Hello"), talk("Hi", "Good day")]
    assert dropped == {"duplicate": 1}


def test_the_same_words_under_other_roles_are_no_duplicate() -> None:
    kept, _ = cleaned(
        Conversation.of(("system", "a"), ("user", "b"), ("assistant", "c")),
        talk("a\nb", "c"),
        talk("a", "b\nc"),
    )
    assert len(kept) == 3


def test_white_space_around_words_goes_and_within_them_stays() -> None:
    assert cleaned(talk("  Hi \n", "\tOne\n\n  two ")) == ([talk("Hi", "One\n\n  two")], {})


def test_a_last_turn_that_nobody_answered_is_cut_off() -> None:
    assert cleaned(talk("Hi", "Hello", "Bye")) == ([talk("Hi", "Hello")], {})


def test_a_last_turn_is_cut_off_even_if_it_is_empty() -> None:
    assert cleaned(talk("Hi", "Hello", " ")) == ([talk("Hi", "Hello")], {})


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_system_prompt_is_none(empty: str) -> None:
    with_system = Conversation.of(("system", empty), ("user", "Hi"), ("assistant", "Hello"))
    assert cleaned(with_system) == ([talk("Hi", "Hello")], {})


LONG = " ".join(f"word{i}" for i in range(60))


def test_near_duplicates_are_dropped_if_the_recipe_says_so() -> None:
    near = talk("Tell me.", LONG.replace("word59", "other"))
    assert cleaned(talk("Tell me.", LONG), near, near_duplicates=True) == (
        [talk("Tell me.", LONG)],
        {"near_duplicate": 1},
    )


def test_near_duplicates_are_kept_if_the_recipe_says_so() -> None:
    both = talk("Tell me.", LONG), talk("Tell me.", LONG.replace("word59", "other"))
    assert cleaned(*both, near_duplicates=False) == (list(both), {})


def test_case_and_punctuation_make_no_difference_to_near_duplicates() -> None:
    _, dropped = cleaned(
        talk("Who are you?", "I."), talk("who are YOU", "I!"), near_duplicates=True
    )
    assert dropped == {"near_duplicate": 1}


def test_conversations_that_share_half_their_words_are_both_kept() -> None:
    half = " ".join(f"{'other' if i > 30 else 'word'}{i}" for i in range(60))
    kept, _ = cleaned(talk("Tell me.", LONG), talk("Tell me.", half), near_duplicates=True)
    assert len(kept) == 2


def test_short_questions_with_different_answers_are_both_kept() -> None:
    kept, _ = cleaned(talk("2 + 2?", "4"), talk("2 + 3?", "5"), near_duplicates=True)
    assert len(kept) == 2


def test_conversations_in_pictures_are_told_apart() -> None:
    kept, _ = cleaned(talk("😀", "👍"), talk("🎉", "🥳"), talk("👻", "🎃"), near_duplicates=True)
    assert len(kept) == 3


def test_an_exact_duplicate_is_not_called_a_near_one() -> None:
    _, dropped = cleaned(talk("Hi", LONG), talk("Hi", LONG), near_duplicates=True)
    assert dropped == {"duplicate": 1}


def openings_kept(limit: int | None, *replies: str) -> list[str]:
    """Return the replies that are kept under a limit for each opening."""
    talks = [talk(f"Question {i}?", reply) for i, reply in enumerate(replies)]
    kept, dropped = cleaned(*talks, max_per_opening=limit)
    assert dropped == ({"same_opening": len(talks) - len(kept)} if len(kept) < len(talks) else {})
    return [c.messages[1].content for c in kept]


def test_the_first_conversations_of_an_opening_are_kept() -> None:
    replies = [f"As an AI language model number {i}" for i in range(5)]
    assert openings_kept(2, *replies, "Yes, it is so.") == [*replies[:2], "Yes, it is so."]
    assert openings_kept(None, *replies) == replies


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        ("I'm sorry, but I cannot.", "i'm SORRY - but no!", True),
        ("**Sure!** Here is a list", "Sure, here is my list", False),
        ("**Sure!** Here is a list", "Sure, here is A table", True),
        ("One two three four", "One two three five", False),
        ("Yes.", "Yes!!", True),
        ("Yes.", "Yes, it is.", False),
        ("👍 👍", "👍 👎", False),
        ("Ça va très bien", "ça VA TRÈS bien aussi", True),
    ],
)
def test_openings_are_four_words_without_case_and_punctuation(
    first: str, second: str, alike: bool
) -> None:
    assert openings_kept(1, first, second) == ([first] if alike else [first, second])


def test_only_the_first_reply_has_an_opening() -> None:
    talks = [talk(f"Who are {i}?", f"I am {i}.", "Again?", "I have no idea at all.") for i in "ab"]
    assert cleaned(*talks, max_per_opening=1) == (talks, {})


def test_a_duplicate_takes_no_place_of_its_opening() -> None:
    first, second = talk("a?", "It is a letter."), talk("b?", "It is a letter.")
    assert cleaned(first, first, second, max_per_opening=2) == ([first, second], {"duplicate": 1})


def test_conversations_are_handed_on_as_they_come() -> None:
    endless = (talk(f"Question {i}?", f"Answer {i}.") for i in iter(int, 1))
    first = next(iter(clean(endless, Tally(), near_duplicates=True)))
    assert first == talk("Question 0?", "Answer 0.")


turns = st.tuples(st.sampled_from(["system", "user", "assistant"]), st.sampled_from("abc "))
many_talks = st.lists(st.lists(turns, max_size=5).map(lambda t: Conversation.of(*t)), max_size=20)


@given(many_talks)
def test_each_conversation_is_kept_once_in_order_or_counted(talks: list[Conversation]) -> None:
    kept, dropped = cleaned(*talks)
    assert len(kept) + sum(dropped.values()) == len(talks)
    assert len(set(kept)) == len(kept)
    for conversation in kept:
        assert alternates(conversation.roles)
        assert conversation.roles[-1] == "assistant"
        assert all(m.content.strip() for m in conversation.messages)
    # Each kept conversation is one of the given ones, and their order is the same.
    positions = [next(i for i, raw in enumerate(talks) if cleaned(raw)[0] == [c]) for c in kept]
    assert positions == sorted(positions)
