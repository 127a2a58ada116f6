"""Replies that were cut off, break off, or are empty."""

import pytest

from chattune.conversation import Message
from chattune.evaluate.failures.endings import empty, not_stopping, unfinished
from chattune.evaluate.sample import Sample


def sample(reply: str, stopped: bool | None = True) -> Sample:
    question = (Message("user", "Please help me."),)
    return Sample("set/1", "general", 1, 0, question, reply, stopped=stopped)


def breaks_off(reply: str, stopped: bool | None = True) -> bool:
    return bool(unfinished([sample(reply, stopped)])[0])


# --- unfinished --------------------------------------------------------------------------------

BROKEN_OFF = {
    "article": "The main causes are the",
    "such as": "You can grow many herbs on a balcony, such as",
    "preposition": "First of all you should talk with",
    "comma": "To bake bread you need flour, water, salt,",
    "comma after sentences": "Cats sleep a lot. They also like to play, eat,",
    "colon": "Here are the three steps:",
    "conjunction": "The museum is closed on Monday and",
    "auxiliary": "The second reason for this is",
    "auxiliary after a conjunction": "I am writing to let you know that I will be",
    "pronoun": "When the sun goes down, the birds stop singing because they",
    "open fence": "Here is the function:\n\n```python\ndef add(a, b):\n    return a + b",
    "open fence after text": "```\nx = 1\n```\nAnd now the other one:\n```\ny = 2",
    "open bracket": "The capital of Australia is Canberra (and not",
    "open quotation": 'He looked at me and said, "I have never',
    "open bold": "1. **Plan ahead**: write a list.\n2. **Drink",
    "bare marker": "Some ideas:\n1. Read a book.\n2. Go for a walk.\n3.",
    "bare bullet": "- Apples are sweet.\n- Pears are soft.\n-",
    "heading": "# Bread\n\nMix the flour and the water.\n\n## Baking",
    "next number": "The steps are: 1. Mix the dough. 2. Let it rest. 3.",
    "abbreviation": "Many animals sleep in winter, e.g.",
    "hyphen": "This is a state-of-the-",
    "dash": "There is only one way to find out —",
    "operator": "Add the numbers: 12 + 30 =",
    "no full stop after two": (
        "Rain falls when clouds cool down. The drops become heavy. Then they fall to the ground wh"
    ),
    "last of the sentences in a list": (
        "- Drink enough water every day.\n- Sleep for eight hours.\n- Try to walk to work when"
    ),
    "second sentence of an item": "1. Eat well. Fruit is good.\n2. Sleep. You need eight hours of",
    "item without its explanation": "- Sleep: eight hours\n- Food: fruit and bread\n- Exercise",
    "table": "| a | b |\n|---|---|\n| 1 | 2 |\n| 3",
    "german": "Die Hauptstadt von Frankreich ist Paris, und sie liegt an der",
    "spanish": "El agua hierve a cien grados y se convierte en vapor de",
    "chinese": "太阳是一颗恒星。地球绕着太阳转。月亮绕着地球",
}


@pytest.mark.parametrize("reply", BROKEN_OFF.values(), ids=BROKEN_OFF.keys())
def test_broken_off_replies_are_found_though_the_model_stopped(reply: str) -> None:
    assert breaks_off(reply)


FINISHED = {
    "sentence": "The capital of France is Paris.",
    "one word": "Paris",
    "name": "Marie Curie",
    "sum": "7 + 5 = 12",
    "phrase": "A small town in the north of Italy",
    "sentence without full stop": "The best time to visit is in early spring",
    "question": "What would you like to know about it?",
    "quotation": 'She said: "I will come tomorrow."',
    "bracket": "It was built in 1889 (for the World's Fair).",
    "item list": "You need:\n- eggs\n- milk\n- flour",
    "numbered list": "1. Mercury\n2. Venus\n3. Earth\n4. Mars",
    "explained list": "- Dog: barks\n- Cat: meows\n- Cow: moos",
    "list with one full stop": "- Read a book.\n- Listen to music\n- Bake a cake",
    "comma list": "Here they are. Red, green, blue, yellow, white and black",
    "poem": "The moon is a boat\nthat sails through the night\nand carries me home\nto the light",
    "code": "```python\nprint('hello')\n```",
    "bare code": "for i in range(3):\n    print(i)\n",
    "statement": "int x = 5;",
    "address": "You can read more here: https://example.org/bread",
    "e-mail": "Write to info@example.org",
    "signature": "Dear Ms Lane,\n\nThank you for the book. I liked it.\n\nBest regards,\nTom",
    "placeholder": "Thank you for your time.\n\nSincerely,\n[Your Name]",
    "valediction": "I enjoyed the evening very much. Thank you.\n\nYours truly,",
    "emoji": "Happy birthday, and have a great day 🎉",
    "emoticon": "Nice to meet you :)",
    "hashtag": "Our new café opens today. Come and try the cake! #coffee #cake",
    "ellipsis": "And nobody ever saw the fox again...",
    "title": "The Old Man and the Lighthouse",
    "etc": "You can use apples, pears, plums etc.",
    "table": "| a | b |\n|---|---|\n| 1 | 2 |",
    "verb at the end": "I do not know where he is",
    "mark of a format": "Emmanuel\n\n### Human: And in Germany?\n### Assistant: Frank-Walter",
    "as fast as I can": "I am running as fast as I can",
    "log in": "- Open the page\n- Log in",
    "percent": "About 70%",
    "letter": "B",
    "number": "42.",
    "bold": "The answer is **42**.",
    "separator": "That was the first part.\n\n---",
    "chinese": "法国的首都是巴黎。",
    "arabic": "هل تريد أن تعرف المزيد؟",
    "hindi": "पेरिस फ्रांस की राजधानी है।",
    "thai": "ปารีสเป็นเมืองหลวงของฝรั่งเศส",
    "C++": "My favourite language is C++",
}


@pytest.mark.parametrize("reply", FINISHED.values(), ids=FINISHED.keys())
def test_finished_replies_are_not_found(reply: str) -> None:
    assert not breaks_off(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "The heart pumps blood through the body and bring",
        "Water boils at one hundred degrees",
        "1. Turn off the lights when you leave the room\n2. Take short showers instead of",
        "Roses are red\nviolets are blu",
    ],
)
def test_the_limit_makes_an_ending_without_full_stop_unfinished(reply: str) -> None:
    assert breaks_off(reply, stopped=False)


@pytest.mark.parametrize(
    "reply", ["Paris is the capital.", "- tea\n- milk\n- honey\n- bread", "🎈"]
)
def test_a_reply_may_be_finished_at_the_limit(reply: str) -> None:
    assert not breaks_off(reply, stopped=False)


def test_the_span_is_the_last_sentence() -> None:
    reply = "Bread needs time. It has to"
    ((start, end),) = unfinished([sample(reply)])[0]
    assert reply[start:end] == "It has to"


# --- not_stopping ------------------------------------------------------------------------------


def test_only_replies_that_hit_the_limit_do_not_stop() -> None:
    reply = "It rains. It rains. It"
    found = not_stopping([sample(reply, stopped) for stopped in (False, True, None)])
    assert found == [[(20, 22)], [], []]


def test_the_last_line_of_a_reply_without_sentences_is_marked() -> None:
    assert not_stopping([sample("one\ntwo\nthree", False), sample(" \n", False)]) == [
        [(8, 13)],
        [(0, 2)],
    ]


# --- empty -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        *(
            "",
            " \n\t",
            "...",
            "?!",
            "---",
            "***",
            "```\n```",
            "```python\n```",
            "</s>",
            "<|im_end|>",
        ),
        *("\u200b", "\ufffd\ufffd", "<br><br>", "| | |", "###", "“”", "\x00\x01", "- \n- \n-"),
    ],
)
def test_nothing_to_read_is_empty(reply: str) -> None:
    assert empty([sample(reply)]) == [[(0, len(reply))]]


@pytest.mark.parametrize(
    "reply",
    ["a", "7", "👍", "🤷‍♀️", ":)", "∞", "€", "は", "ok", "```\nx\n```", "- yes", "½", "<3", "안"],
)
def test_a_letter_a_digit_or_a_symbol_is_not_empty(reply: str) -> None:
    assert empty([sample(reply)]) == [[]]
