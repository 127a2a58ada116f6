"""Measures of how much replies differ from each other."""

import pytest

from chattune.evaluate.diversity import distinct, self_bleu


def test_distinct_of_known_texts() -> None:
    texts = ["the cat sat", "The cat ran!"]
    assert distinct(texts, 1) == pytest.approx(4 / 6)  # the, cat, sat, ran
    assert distinct(texts, 2) == pytest.approx(3 / 4)  # the cat, cat sat, cat ran
    assert distinct(["a a a a"], 1) == pytest.approx(1 / 4)
    assert distinct(["a b", "c d"], 2) == 1


def test_n_grams_do_not_cross_texts() -> None:
    assert distinct(["a b", "a b"], 2) == pytest.approx(1 / 2)
    assert distinct(["a", "b"], 2) == 0


def test_nothing_is_distinct_in_nothing() -> None:
    assert distinct([], 1) == 0
    assert distinct(["", "..."], 1) == 0


def test_equal_texts_have_the_highest_self_bleu() -> None:
    assert self_bleu(["the cat sat on the mat"] * 3) == pytest.approx(1)


def test_texts_without_common_words_have_almost_none() -> None:
    assert self_bleu(["one two three four five", "six seven eight nine ten"]) < 0.1


def test_self_bleu_of_known_texts() -> None:
    # Precisions of either text: 4/5 words, 3/4, 2/3 and 1/2 of the longer n-grams; equal lengths.
    expected = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    assert self_bleu(["a b c d e", "a b c d f"]) == pytest.approx(expected)


def test_alike_texts_have_more_than_varied_ones() -> None:
    alike = [f"the best way to {verb} is to begin early" for verb in ("read", "cook", "run")]
    varied = ["read in the morning", "cook with fresh herbs", "run when nobody is watching you"]
    assert self_bleu(alike) > 0.5 > self_bleu(varied)


def test_few_or_empty_texts_have_none() -> None:
    assert self_bleu([]) == self_bleu(["one text"]) == self_bleu(["one text", "", "!"]) == 0


def test_many_texts_are_compared_in_part_and_always_alike() -> None:
    texts = [f"reply number {i} of a long series of replies" for i in range(400)]
    assert self_bleu(texts) == self_bleu(texts) > 0.5
