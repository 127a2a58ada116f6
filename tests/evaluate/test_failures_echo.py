"""Replies that give back the prompt."""

import pytest

from chattune.conversation import Message
from chattune.evaluate.failures.echo import echo
from chattune.evaluate.sample import Sample


def found(prompt: str, reply: str) -> list[str]:
    """Return the parts of a reply that give back `prompt`."""
    sample = Sample("set/1", "general", 1, 0, (Message("user", prompt),), reply)
    return [reply[start:end] for start, end in echo([sample])[0]]


LONG = (
    "I am planning a weekend in the mountains with two friends and a dog. We have a tent, three "
    "warm sleeping bags and a small stove. What else should we pack for two nights in October?"
)
ECHOES = {
    "whole": ("What is the capital of Peru?", "What is the capital of Peru?"),
    "then an answer": ("What is the capital of Peru?", "What is the capital of Peru?\nIt is Lima."),
    "other case": ("how do i bake bread", "How do I bake bread?"),
    "three words": ("What is photosynthesis?", "What is photosynthesis? It is what plants do."),
    "person": (
        "How can I improve my handwriting?",
        "How can you improve your handwriting? Practise every day.",
    ),
    "contraction": ("What is the best houseplant?", "What's the best houseplant?"),
    "word left out": ("What is the capital of Peru?", "What is capital of Peru?"),
    "small difference": (
        "Why do leaves change their colours in autumn in many countries?",
        "Why do the leaves change their colours in autumn in many countries?",
    ),
    "with a label": ("Who wrote Faust?", "Question: Who wrote Faust?\nAnswer: Goethe."),
    "in quotation marks": ("Who wrote Faust?", '"Who wrote Faust?" is a good question.'),
    "as a heading": (
        "How do bees make honey?",
        "**How do bees make honey?**\n\nThey collect nectar.",
    ),
    "request": (
        "Give me three tips for a job interview.",
        "Give me three tips for a job interview. Give me three more.",
    ),
    "numbered": ("Name the largest lake in Africa.", "1. Name the largest lake in Africa."),
    "cut off": (
        "Could you please explain to me how a steam engine works?",
        "Could you please explain to me how a steam",
    ),
    "last question of several sentences": (
        "My cat does not eat since yesterday. What should I do with her?",
        "What should I do with her? I do not know.",
    ),
    "long, at the start": (LONG, LONG + " I would pack a torch."),
    "long, later": (LONG, f"The user says:\n{LONG}\nThat is all I know."),
    "quoted later": (
        "What if the pyramids had been built by people from another planet?",
        'The question is: "What if the pyramids had been built by people from another planet?"',
    ),
    "statement": (
        "I have been learning the violin for three years now.",
        "I have been learning the violin for three years now.",
    ),
    "short statement": ("My printer does not work.", "My printer does not work."),
    "request for a translation": (
        "Translate this sentence into German: The weather is fine.",
        "Translate this sentence into German: The weather is fine.",
    ),
    "special token": ("Who wrote Faust?", "<|user|> Who wrote Faust?"),
}


@pytest.mark.parametrize(("prompt", "reply"), ECHOES.values(), ids=ECHOES)
def test_echoes_are_found(prompt: str, reply: str) -> None:
    assert found(prompt, reply)


NO_ECHOES = {
    "words of the question": ("What is the capital of Peru?", "The capital of Peru is Lima."),
    "begins alike": ("How do bees make honey?", "How bees make honey is a long story."),
    "other question": ("How do bees make honey?", "Do you want to know how bees make honey?"),
    "greeting": ("Hi!", "Hi!"),
    "small talk": ("How are you?", "How are you?"),
    "good night": ("Good night to you", "Good night to you"),
    "thanks": ("Thank you very much!", "Thank you very much!"),
    "repeat": ("Repeat after me: I am a tree.", "I am a tree."),
    "say": ("Say good morning to everybody here.", "Good morning to everybody here."),
    "correct": ("Correct this: He go to the school by bus.", "He goes to the school by bus."),
    "rewrite": (
        "Rewrite the text in capitals: The small dog runs over the wide green field every morning.",
        "THE SMALL DOG RUNS OVER THE WIDE GREEN FIELD EVERY MORNING.",
    ),
    "translate": (
        "Translate into English: Guten Morgen, liebe Leute.",
        "Good morning, dear people.",
    ),
    "title": ("The history of salt", "The History of Salt\n\nSalt was once worth a lot."),
    "sentence to go on with": (
        "The first battle of the long war was fought in",
        "The first battle of the long war was fought in a valley near the sea.",
    ),
    "list of": ("List of prime numbers below ten", "List of prime numbers below ten: 2, 3, 5, 7"),
    "quotation of the context": (
        "Where is the stadium?\n\nThe stadium was opened in 1954 and lies in the south of the "
        "city. It has seats for 30,000 people and a large car park beside the river.",
        "The stadium was opened in 1954 and lies in the south of the city.",
    ),
    "request in an answer": (
        "Create a web page that shows the temperature of the city of Florence in large letters.",
        "This is an example of code that you can use to create a web page that shows the "
        "temperature of the city of Florence in large letters: ...",
    ),
    "agreement": ("I love my old dog.", "I love my old dog too, if I may say so."),
    "story": ("Write a story that begins: It was dark.", "It was dark. Nobody spoke."),
    "choice": ("Is a tomato a fruit or a vegetable?", "A tomato is a fruit."),
    "empty": ("What is the capital of Peru?", ""),
}


@pytest.mark.parametrize(("prompt", "reply"), NO_ECHOES.values(), ids=NO_ECHOES)
def test_answers_are_no_echoes(prompt: str, reply: str) -> None:
    assert found(prompt, reply) == []


def test_the_span_is_what_was_given_back() -> None:
    assert found("Who wrote Faust?", "Q: Who wrote Faust? A: Goethe.") == ["Who wrote Faust"]


def test_only_the_last_message_counts() -> None:
    messages = (
        Message("user", "What is the capital of Peru?"),
        Message("assistant", "Lima."),
        Message("user", "And now ask me what you were asked before."),
    )
    sample = Sample("set/1", "general", 2, 0, messages, "What is the capital of Peru?")
    assert echo([sample]) == [[]]
