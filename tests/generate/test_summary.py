"""Tests of summarise: ranks that can be calculated by hand, what is left out, and what stays."""

import math

import pytest

from chattune.generate.summary import split_units, summarise, text_ranks

DAMPING = 0.85  # PageRank's, as in the paper


def at_most(words: int):  # type: ignore[no-untyped-def]
    return lambda text: len(text.split()) <= words


def test_a_sentence_that_shares_no_word_has_the_lowest_rank() -> None:
    """The two others are each other's only neighbour; the single one gets a share of its own."""
    alone = (1 - DAMPING) / 3 / (1 - DAMPING / 3)
    pair = (1 - alone) / 2
    assert text_ranks(["Cats like milk.", "Dogs LIKE milk!", "Stones fall."]) == pytest.approx(
        [pair, pair, alone], abs=1e-5
    )


def test_ranks_are_those_of_the_paper() -> None:
    """They solve PageRank's equation with the paper's similarity as weights."""
    sentences = ["the cat drinks the milk", "a cat sleeps", "the milk is cold", "it is a cold day"]
    shared = {(0, 1): 1, (0, 2): 2, (1, 3): 1, (2, 3): 2}
    lengths = [5, 3, 4, 5]
    weights = [[0.0] * 4 for _ in sentences]
    for (i, j), count in shared.items():
        weight = count / (math.log(lengths[i]) + math.log(lengths[j]))
        weights[i][j] = weights[j][i] = weight
    ranks = text_ranks(sentences)
    for i, rank in enumerate(ranks):
        votes = sum(weights[j][i] / sum(weights[j]) * ranks[j] for j in range(4))
        assert rank == pytest.approx((1 - DAMPING) / 4 + DAMPING * votes, abs=1e-5)
    assert sum(ranks) == pytest.approx(1)


def test_characters_are_the_words_of_scripts_without_spaces() -> None:
    a, b, c = text_ranks(["猫は牛乳が好き。", "犬も牛乳が好き。", "空。"])
    assert c < b == pytest.approx(a)


@pytest.mark.parametrize("sentences", [["One."], ["One.", "One."], ["One.", "…", ""]])
def test_hardly_any_words_can_be_ranked(sentences: list[str]) -> None:
    assert sum(text_ranks(sentences)) == pytest.approx(1)


TEXT = (
    "The cat likes warm milk. My car is red. Warm milk makes the cat sleep. "
    "The cat sleeps after the milk."
)


def test_the_lowest_ranked_sentence_is_left_out_and_the_order_stays() -> None:
    assert summarise(TEXT, at_most(17)) == TEXT.replace(" My car is red.", "")


def test_nothing_is_left_out_of_a_text_that_fits() -> None:
    assert summarise(TEXT, at_most(21)) == TEXT


def test_the_first_sentence_stays_even_if_it_does_not_fit() -> None:
    text = "My car is red. The cat likes milk. The cat drinks milk."
    assert summarise(text, at_most(1)) == "My car is red."


def test_of_equal_sentences_the_later_one_is_left_out() -> None:
    assert summarise("One a. Two b. Three c. Four d.", at_most(4)) == "One a. Two b."


def test_items_and_code_are_left_out_whole() -> None:
    code = "```\nx = 1\ny = 2. Or more\n```"
    text = f"The cat likes milk:\n- The cat drinks milk. Daily.\n- Red. Green.\n{code}\nMilk, cat."
    assert split_units(text) == [
        "The cat likes milk:\n- The cat drinks milk. Daily.",
        "\n- Red. Green.",
        f"\n{code}",
        "\nMilk, cat.",
    ]
    assert summarise(text, at_most(12)) == (
        "The cat likes milk:\n- The cat drinks milk. Daily.\nMilk, cat."
    )


def test_a_break_between_paragraphs_stays() -> None:
    text = "The cat likes milk.\n\nBlue. The cat drinks milk. The milk is for the cat."
    assert summarise(text, at_most(14)) == text.replace("Blue. ", "")
