"""Replies that repeat themselves, and the measure of repetition."""

import pytest

from chattune.conversation import Message
from chattune.evaluate.failures.repetition import repetition, seq_rep_4
from chattune.evaluate.sample import Sample


def found(prompt: str, reply: str) -> list[str]:
    """Return the texts of a reply that repeat what was before them."""
    sample = Sample("set/1", "general", 1, 0, (Message("user", prompt),), reply)
    return [reply[start:end] for start, end in repetition([sample])[0]]


def test_seq_rep_4_of_known_texts() -> None:
    assert seq_rep_4("") == 0
    assert seq_rep_4("one two three") == 0
    assert seq_rep_4("one two three four five six") == 0
    # Four of the five 4-grams are the same one.
    assert seq_rep_4("no no no no no no no no") == pytest.approx(4 / 5)
    # "a b c d" and "b c d a" twice, "c d a b" and "d a b c" once: six 4-grams, four different.
    assert seq_rep_4("a b c d a b c d a") == pytest.approx(1 - 4 / 6)
    assert seq_rep_4("A b, c; D. a B C d!") == pytest.approx(1 - 4 / 5)


REPEATING = {
    "sentence twice": (
        "What is a lighthouse?",
        "A lighthouse is a tower with a bright light. It warns ships of rocks. "
        "A lighthouse is a tower with a bright light.",
    ),
    "sentence without end": (
        "Where do you live?",
        "I live in the city. I live in the city. I live in the city. I live in the",
    ),
    "sentences in turn": (
        "What do birds do?",
        "Birds can fly high. Birds build nests. Birds can fly high. Birds build nests. "
        "Birds can fly high. Birds build nests.",
    ),
    "phrase in a loop": (
        "Describe the song.",
        "The music is part of the story of the world of the story of the world of the story of the "
        "world of the story of the world",
    ),
    "word in a loop": ("Who was he?", "He was a very very very very very very very very old man."),
    "word after sense": (
        "Describe her.",
        "She was a kind and brilliant, brilliant, brilliant, brilliant, brilliant, brilliant, "
        "brilliant, brilliant",
    ),
    "list items": (
        "How can I sleep better?",
        "1. Go to bed early every single day.\n2. Do not drink coffee.\n"
        "3. Go to bed early every single day.\n4. Open the window.",
    ),
    "short items in a row": ("List colours.", "- Red\n- Blue\n- Blue\n- Blue\n- Blue\n- Blue"),
    "lines with letters": (
        "Are you sure?",
        "I am not quite sure.\nB: I am not quite sure.\nC: I am not quite sure.",
    ),
    "three words three times": (
        "Give me facts about bees.",
        "1. Bees make honey.\n2. Bees have wings.\n3. Bees make honey.\n4. Bees make honey.",
    ),
    "how many times": (
        "How many times a week should I run?",
        "You should run three times a week. You should run three times a week.",
    ),
    "song that is only mentioned": (
        "Who sang the song?",
        "A choir of children sang it in 1982. A choir of children sang it in 1982.",
    ),
    "after a marker": (
        "How are you?",
        "I am happy to talk.\n### Bot: I am happy to talk.\n### Bot: I am happy to talk.",
    ),
    "twice in a row": ("What is it?", "It is hard to say. It is hard to say. Ask somebody else."),
    "steps without sense": (
        "How do I plan a party?",
        "Step 1: The first step is to find out what you want to plan.\n"
        "Step 2: The first step is to find out what you want to plan.",
    ),
    "long passage": (
        "Why is the sea salty?",
        "Rivers wash salt out of rocks and carry it to the sea where it stays when the water of "
        "the sea becomes vapour in the sun, and then rivers wash salt out of rocks and carry it to "
        "the sea where it stays when the water of the sea becomes vapour in the sun, I think.",
    ),
    "variations": (
        "What is a framework?",
        "A framework is a tool that helps people to build programs. It is a tool that helps people "
        "to build better programs. A framework is a tool that helps people to build web programs. "
        "It is a kind of tool that helps people to build programs. So a framework is a tool that "
        "helps people to build a program.",
    ),
    "letters in a word": ("Where is it?", "It is in the Wind" + "ed" * 9 + " mountains."),
    "word four times": ("What is a river?", "It is the flow flow flow flow of cold water."),
    "letters": ("Laugh!", "ha" * 40),
    "signs": ("Celebrate!", "Hooray " + "🎉" * 30),
    "code points without spaces": ("讲一个故事", "从前有一个国王。" * 6),
    "code in a loop": (
        "Write the regular expression.",
        "It is:\n\nfirst part and second part and second part and second part and second part and",
    ),
}


@pytest.mark.parametrize(("prompt", "reply"), REPEATING.values(), ids=REPEATING)
def test_repetition_is_found(prompt: str, reply: str) -> None:
    assert found(prompt, reply)


CHORUS = (
    "[Verse]\nThe rain is falling on my little town tonight\n\n[Chorus]\n"
    "Oh take me home across the silver river\n\n[Verse]\nThe moon is hiding and there is no light"
    "\n\n[Chorus]\nOh take me home across the silver river"
)
NOT_REPEATING = {
    "sentence": ("What is a lighthouse?", "A lighthouse is a tower that warns ships of rocks."),
    "frame of a short text": (
        "What is the meaning of life?",
        "Some people believe that the meaning of life is to be happy. Others believe that the "
        "meaning of life is to help others.",
    ),
    "same beginnings": (
        "How can I save resources?",
        "- Use less water\n- Use less paper\n- Use less plastic\n- Use less electricity",
    ),
    "same frame": (
        "Which of these are fruits: apple, carrot, pear, leek, plum, pea?",
        "Apple: this is a kind of fruit.\nCarrot: this is not a fruit.\nPear: this is a kind of "
        "fruit.\nLeek: this is not a fruit.\nPlum: this is a kind of fruit.\n"
        "Pea: this is not a fruit.",
    ),
    "song": ("Write a song about going home.", CHORUS),
    "poem": (
        "Write a poem about hope.",
        "I hope for the sun\nI hope for the rain\nI hope for the one\nwho comes back again",
    ),
    "code": (
        "Print five lines.",
        "```python\n" + "print('hello to the whole wide world')\n" * 5 + "```",
    ),
    "bare code": (
        "How do I sort?",
        "first = sorted(values, key=lambda value: value)\nprint(first)\n"
        "first = sorted(values, key=lambda value: value)\nprint(first)",
    ),
    "table": (
        "Make a table.",
        "| day | task |\n|---|---|\n| Monday | read a book |\n| Tuesday | read a book |",
    ),
    "plan": (
        "Make a training plan.",
        "Monday\nWarm-up: ten minutes of running in the park\nMain part: push-ups\n\n"
        "Tuesday\nWarm-up: ten minutes of running in the park\nMain part: squats",
    ),
    "terms": (
        "What is the difference between speed and velocity?",
        "Speed says how fast something moves. Velocity says how fast it moves and where to. A car "
        "on a round track has a constant speed, but its velocity changes all the time.",
    ),
    "asked for": ("Repeat this ten times: I will not be late.", "I will not be late. " * 10),
    "asked for in numbers": ("Write hello 8 times.", "hello " * 8),
    "sentence of the prompt": (
        'Explain the sentence "The early bird always catches the worm".',
        'The sentence is: "The early bird always catches the worm". People say "The early bird '
        'always catches the worm" to those who sleep long.',
    ),
    "result at the end": (
        "Translate 'Je voudrais un verre d'eau, s'il vous plaît' and explain it.",
        'It is:\n\n"I would like a glass of water, please."\n\n"Je voudrais" is polite. "Verre" is '
        'a glass.\n\nSo the sentence means:\n\n"I would like a glass of water, please."',
    ),
    "short exclamations": ("Cheer me up!", "You can do it! Come on! You can do it!"),
    "dialogue": ("Write a short scene.", '"Yes," he said.\n"No," she said.\n"Yes," he said.'),
    "line of signs": ("Draw a line.", "=" * 80 + "\n" + "-" * 80 + "\nThat is a line."),
    "multiplication table": ("Multiply by 3.", "1 x 3 = 3\n2 x 3 = 6\n3 x 3 = 9\n4 x 3 = 12"),
    "laughter": ("Laugh!", "Hahahahahahahahaha! La la la la la. Noooooooooo!"),
    "decimals": ("What is 1/7?", "1/7 is 0.142857142857142857142857142857142857."),
    "digits": ("What is 1/3?", "1/3 is 0.3333333333333333."),
    "empty": ("Hello?", ""),
}


@pytest.mark.parametrize(("prompt", "reply"), NOT_REPEATING.values(), ids=NOT_REPEATING)
def test_what_good_replies_repeat_is_not_found(prompt: str, reply: str) -> None:
    assert found(prompt, reply) == []


def test_a_song_may_not_end_in_a_loop() -> None:
    assert found("Write a song.", CHORUS + "\n" + "la la la oh yes my love " * 12)


def test_the_spans_are_what_was_there_before() -> None:
    sentence = "The old mill stands beside the river."
    reply = f"{sentence} Nobody lives there now. {sentence}"
    assert found("Where is the mill?", reply) == [sentence]
