"""Replies in another language than the user's."""

import importlib.util

import pytest

from chattune.conversation import Message
from chattune.evaluate.failures.language import language, package_problem
from chattune.evaluate.sample import Sample

GERMAN = "Die Hauptstadt von Frankreich ist Paris, und dort leben mehr als zwei Millionen Menschen."
FRENCH = (
    "La capitale de la France est Paris, une ville où vivent plus de deux millions de personnes."
)
SPANISH = (
    "La capital de Francia es París, una ciudad en la que viven más de dos millones de personas."
)
ENGLISH = "The capital of France is Paris, and more than two million people live in that city."
RUSSIAN = "Столица Франции — Париж."
CHINESE = "法国的首都是巴黎。"


def found(prompt: str, reply: str, *earlier: str) -> bool:
    before = [Message("user", text) for text in earlier]
    messages = (*before, Message("user", prompt))
    ((*spans,),) = language([Sample("set/1", "general", 1, 0, messages, reply)])
    assert spans in ([], [(0, len(reply))])
    return bool(spans)


@pytest.mark.parametrize(
    ("prompt", "reply"),
    [
        ("What is the capital of France?", GERMAN),
        ("What is the capital of France?", FRENCH),
        ("What is the capital of France?", SPANISH),
        ("What is the capital of France?", RUSSIAN),
        ("What is the capital of France?", CHINESE),
        ("Tell me a joke.", GERMAN),
        ("Tell me a joke.", "Конечно!"),
        ("Hi!", "你好，我能帮你什么吗？"),
        ("Can you explain the rules of chess?", "はい、もちろんです。"),
        ("Was ist die Hauptstadt von Frankreich, und wie groß ist sie?", ENGLISH),
        ("Was ist die Hauptstadt von Frankreich, und wie groß ist sie?", SPANISH),
        ("¿Cuál es la capital de Francia y cuántas personas viven allí?", ENGLISH),
        ("Quelle est la capitale de la France, et combien de personnes y vivent ?", ENGLISH),
        ("Какая столица Франции?", ENGLISH),
        ("法国的首都是哪里？", ENGLISH),
        ("What is the capital of France?", f"{GERMAN} {GERMAN} Dort gibt es viele alte Häuser."),
    ],
)
def test_another_language_is_found(prompt: str, reply: str) -> None:
    assert found(prompt, reply)


@pytest.mark.parametrize(
    ("prompt", "reply"),
    [
        ("What is the capital of France?", ENGLISH),
        ("What is the capital of France?", "Paris"),
        ("What is the capital of Poland?", "Warszawa"),
        ("Was ist die Hauptstadt von Frankreich?", GERMAN),
        ("Какая столица Франции?", RUSSIAN),
        ("Translate this into German: The capital of France is Paris.", GERMAN),
        ("How do I say that in French?", FRENCH),
        ("Please answer in Spanish. What is the capital of France?", SPANISH),
        ("Say hello in Russian.", "Здравствуйте!"),
        ("用英文回答：法国的首都是哪里？", ENGLISH),
        ("Por favor, responde en inglés: ¿cuál es la capital de Francia?", ENGLISH),
        (f"What does this mean? {GERMAN}", GERMAN),
        ("Write a function.", "```python\ndef hauptstadt(land):\n    return 'Paris'\n```"),
        ("Schreibe eine Funktion.", "def add(a, b):\n    return a + b\nprint(add(1, 2))"),
        ("Who plays in the team?", "Lewandowski, Müller, Gnabry, Kimmich, Goretzka, Coman, Sané"),
        ("Name some dishes.", "Spaghetti alla carbonara, tagliatelle al ragù, tiramisù"),
        ("Give me a link.", "https://example.org/ciudad/capital/de/francia/y/sus/personas"),
        ("Which letter is it?", "It is the Greek letter π, which is written like this: π."),
        ("Continue.", "loc loc ab3 xk, dorip ip ip, floor lcii and the"),
        ("Tell me more.", "DRULAPUL is used by the United States of the first-tierre of internal"),
        ("Какой язык программирования выбрать?", "Python, Java, C++"),
        ("Hva er hovedstaden i Frankrike, og hvor mange bor der?",
         "Hovedstaden i Frankrig er Paris, og der bor mere end to millioner mennesker i byen."),
        ("What is the capital of France?", ""),
        ("42?", "42!"),
        ("😀", "Hello, how are you today?"),
    ],
)  # fmt: skip
def test_the_same_language_is_not_found(prompt: str, reply: str) -> None:
    assert not found(prompt, reply)


def test_an_earlier_wish_counts() -> None:
    assert not found("And how many people live there?", GERMAN, "Let us speak German.")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert package_problem() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert package_problem() == "the package py3langid is not installed"
