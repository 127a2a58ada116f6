"""Every conversation that is dropped has a reason, and the rest stay as they were."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chattune.conversation import Conversation, alternates
from chattune.data.clean import clean


def cleaned(
    *conversations: Conversation, near_duplicates: bool = False
) -> tuple[list[Conversation], dict[str, int]]:
    dropped: Counter[str] = Counter()
    kept = list(clean(conversations, dropped, near_duplicates=near_duplicates))
    return kept, dict(dropped)


def say(*words: str) -> Conversation:
    """User and assistant in turn."""
    return Conversation.of(
        *(("assistant" if i % 2 else "user", w) for i, w in enumerate(words))  # type: ignore[misc]
    )


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        (Conversation(()), "no_turns"),
        (say("Hi"), "no_assistant_turn"),
        (Conversation.of(("system", "Be."), ("user", "Hi")), "no_assistant_turn"),
        (say("Hi", " \n "), "empty_turn"),
        (say("", "Hello"), "empty_turn"),
        (say("Hi", "Hello", "", "Yes"), "empty_turn"),
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
    kept, dropped = cleaned(say("Hi", "Hello"), say(" Hi ", "Hello\n"), say("Hi", "Good day"))
    assert kept == [say("Hi", "Hello"), say("Hi", "Good day")]
    assert dropped == {"duplicate": 1}


def test_the_same_words_under_other_roles_are_no_duplicate() -> None:
    kept, _ = cleaned(
        Conversation.of(("system", "a"), ("user", "b"), ("assistant", "c")),
        say("a\nb", "c"),
        say("a", "b\nc"),
    )
    assert len(kept) == 3


def test_white_space_around_words_goes_and_within_them_stays() -> None:
    assert cleaned(say("  Hi \n", "\tOne\n\n  two ")) == ([say("Hi", "One\n\n  two")], {})


def test_a_last_turn_that_nobody_answered_is_cut_off() -> None:
    assert cleaned(say("Hi", "Hello", "Bye")) == ([say("Hi", "Hello")], {})


def test_a_last_turn_is_cut_off_even_if_it_is_empty() -> None:
    assert cleaned(say("Hi", "Hello", " ")) == ([say("Hi", "Hello")], {})


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_system_prompt_is_none(empty: str) -> None:
    with_system = Conversation.of(("system", empty), ("user", "Hi"), ("assistant", "Hello"))
    assert cleaned(with_system) == ([say("Hi", "Hello")], {})


LONG = " ".join(f"word{i}" for i in range(60))


def test_near_duplicates_are_dropped_if_the_recipe_says_so() -> None:
    near = say("Tell me.", LONG.replace("word59", "other"))
    assert cleaned(say("Tell me.", LONG), near, near_duplicates=True) == (
        [say("Tell me.", LONG)],
        {"near_duplicate": 1},
    )


def test_near_duplicates_are_kept_if_the_recipe_says_so() -> None:
    both = say("Tell me.", LONG), say("Tell me.", LONG.replace("word59", "other"))
    assert cleaned(*both, near_duplicates=False) == (list(both), {})


def test_case_and_punctuation_make_no_difference_to_near_duplicates() -> None:
    _, dropped = cleaned(say("Who are you?", "I."), say("who are YOU", "I!"), near_duplicates=True)
    assert dropped == {"near_duplicate": 1}


def test_conversations_that_share_half_their_words_are_both_kept() -> None:
    half = " ".join(f"{'other' if i > 30 else 'word'}{i}" for i in range(60))
    kept, _ = cleaned(say("Tell me.", LONG), say("Tell me.", half), near_duplicates=True)
    assert len(kept) == 2


def test_short_questions_with_different_answers_are_both_kept() -> None:
    kept, _ = cleaned(say("2 + 2?", "4"), say("2 + 3?", "5"), near_duplicates=True)
    assert len(kept) == 2


def test_conversations_in_pictures_are_told_apart() -> None:
    kept, _ = cleaned(say("😀", "👍"), say("🎉", "🥳"), say("👻", "🎃"), near_duplicates=True)
    assert len(kept) == 3


def test_an_exact_duplicate_is_not_called_a_near_one() -> None:
    _, dropped = cleaned(say("Hi", LONG), say("Hi", LONG), near_duplicates=True)
    assert dropped == {"duplicate": 1}


def test_conversations_are_handed_on_as_they_come() -> None:
    endless = (say(f"Question {i}?", f"Answer {i}.") for i in iter(int, 1))
    first = next(iter(clean(endless, Counter(), near_duplicates=True)))
    assert first == say("Question 0?", "Answer 0.")


turns = st.tuples(st.sampled_from(["system", "user", "assistant"]), st.sampled_from("abc "))
talks = st.lists(st.lists(turns, max_size=5).map(lambda t: Conversation.of(*t)), max_size=20)


@given(talks)
def test_each_conversation_is_kept_once_in_order_or_counted(talks: list[Conversation]) -> None:
    kept, dropped = cleaned(*talks)
    assert len(kept) + sum(dropped.values()) == len(talks)
    assert len(set(kept)) == len(kept)
    for conversation in kept:
        assert alternates(conversation.roles)
        assert conversation.roles[-1] == "assistant"
        assert all(m.content.strip() for m in conversation.messages)
    # What is kept is what was given, in the order given.
    positions = [next(i for i, raw in enumerate(talks) if cleaned(raw)[0] == [c]) for c in kept]
    assert positions == sorted(positions)
