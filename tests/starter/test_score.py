"""Tests of the starter's score on known replies."""

import math
from pathlib import Path

import pytest
import torch

from chattune.chat import Chatbot
from chattune.device import find_device
from chattune.generate.scripted import ScriptedEngine
from chattune.models import load
from perplexity import perplexity
from score import repeats, score


def test_every_repetition_of_a_4gram_counts() -> None:
    assert repeats("a b c d a b c d") == (1, 5)
    assert repeats("one two three four five") == (0, 2)
    assert repeats("short") == (0, 0)


def test_the_score_of_a_chatbot_with_one_reply(tiny_base: Path) -> None:
    loaded = load(tiny_base, find_device())
    reply = "I cannot know if it will rain, a weather report can. User: and you?"
    tokens = [*loaded.template.encode(reply), *loaded.template.end_ids]
    bot = Chatbot(ScriptedEngine([tokens]), loaded.template, 128)
    figures = score(bot, loaded, "development", [0])
    assert figures["stopped"] == figures["markers"] == 1
    assert 0 < figures["right"] < 0.5
    assert figures["repeated_4grams"] == 0
    assert figures["prompts"] == 150


def test_the_perplexity_is_that_of_each_text_by_itself(tiny_base: Path) -> None:
    loaded = load(tiny_base, find_device())
    texts = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
    losses = [
        loaded.model(torch.tensor([[0, *ids]]), labels=torch.tensor([[0, *ids]])).loss.item()
        for ids in texts
    ]
    mean = sum(loss * len(ids) for loss, ids in zip(losses, texts, strict=True)) / 10
    assert perplexity(loaded.model, texts, end=0) == pytest.approx(math.exp(mean))
