"""Replies in which the model writes other turns than its own."""

import pytest

from chattune.conversation import Message
from chattune.evaluate.failures.self_talk import self_talk
from chattune.evaluate.sample import Sample


def found(prompt: str, reply: str) -> list[str]:
    """Return the texts that show that a reply to `prompt` has another turn."""
    sample = Sample("set/1", "general", 1, 0, (Message("user", prompt),), reply)
    return [reply[start:end] for start, end in self_talk([sample])[0]]


WITH_OTHER_TURNS = {
    "guanaco": (
        "What is the capital of Italy?",
        "The capital of Italy is Rome.### Human: And of Spain?### Assistant: Madrid.",
    ),
    "heading on a line": (
        "How do I boil an egg?",
        "Put it in hot water for six minutes.\n### Human\nThank you!",
    ),
    "alpaca": (
        "Name two fruits.",
        "Apples and pears.\n\n### Instruction:\nName two trees.\n\n### Response:\nOaks, elms.",
    ),
    "assistant's own mark": ("Hello!", "### Assistant: Hello, how are you?"),
    "user": (
        "Is the Moon a planet?",
        "No, the Moon is a satellite.\n\nUser: How far away is it?\nAssistant: 384,000 km.",
    ),
    "upper case": (
        "Is tea healthy?",
        "In small amounts it is. USER: And coffee? ASSISTANT: Coffee too.",
    ),
    "after a sentence": ("Can cats swim?", "Yes, but few like it. Human: Why not?"),
    "bold": ("Can cats swim?", "Yes, they can.\n\n**User:** Do they like it?\n**Assistant:** No."),
    "lower case": ("hi", "hello there\nuser: how are you\nassistant: i am fine"),
    "list of speakers": (
        "Who wrote Faust?",
        "- Human: Who wrote Faust?\n- Human: Goethe wrote it.\n- Human: When was that?",
    ),
    "bot": ("Good morning!", "Good morning!\nMe: What is the time?\nBot: It is eight o'clock."),
    "chatml": (
        "What do cows eat?",
        "Cows eat grass.<|im_end|>\n<|im_start|>user\nAnd pigs?<|im_end|>",
    ),
    "end of text": ("What do cows eat?", "Cows eat grass.<|endoftext|>The 1998 season was the"),
    "llama 2": ("What do cows eat?", "Cows eat grass. </s><s>[INST] And pigs? [/INST]"),
    "gemma": ("What do cows eat?", "Grass.<end_of_turn>\n<start_of_turn>user\nAnd pigs?"),
    "bare speaker": (
        "What do cows eat?",
        "Cows eat grass and hay.\nuser\nWhat do pigs eat?\nassistant\nThey eat almost anything.",
    ),
    "decoded template": ("Tell me about Oslo.", "assistant\n\nOslo is the capital of Norway."),
    "Q and A": (
        "How many legs does a spider have?",
        "A spider has eight legs.\nQ: How many legs does an ant have?\nA: Six.",
    ),
    "A after a question": ("Who painted it?", "Who painted the ceiling?\nA: Michelangelo did."),
    "question and answer": (
        "What is the largest ocean?",
        "The Pacific Ocean.\n\nQuestion: Which river is the longest?\nAnswer: The Nile.",
    ),
    "question inside a line": (
        "Do you read?",
        "I like to. Question: What do you write? Answer: The book is about two dogs.",
    ),
    "next question on its line": (
        "What is the capital of France?",
        "The capital of France is Paris.\nWhat is the capital of Germany?\nIt is Berlin.",
    ),
    "follow-up": (
        "What do rabbits eat?",
        "Rabbits eat hay, and they need fresh water.\nWhat about carrots?\nOnly a few of them.",
    ),
    "in a user's words": (
        "How do I get rid of a headache?",
        "Rest in a quiet room.\nCan you tell me what causes it?\nOften it is stress.",
    ),
    "lower-case question": (
        "name the planets",
        "Eight planets travel around the Sun.\nhow many of them can i see, please?\nFive of them.",
    ),
    "same question again": (
        "Where do penguins live?",
        "In the south.\nWhere do penguins live?\nMost live in Antarctica.",
    ),
    "request": (
        "What is photosynthesis?",
        "Plants make sugar from light.\nWrite a short poem about the sea.\nThe sea is blue.",
    ),
    "next task": ("Name a fruit.", "Apple.\n\nName a vegetable.\n\nCarrot."),
    "short follow-up": ("What do cows eat?", "Cows eat grass.\nAnd pigs?\nAlmost anything."),
    "interview that is only mentioned": (
        "I have a job interview on Friday. What can I do?",
        "Prepare answers to common questions.\nUser: What should I wear?\nAssistant: A suit.",
    ),
    "request in the first person": (
        "What is a noun?",
        "A noun is the name of a thing.\nGive me a list of green vegetables.\nPeas and spinach.",
    ),
}


@pytest.mark.parametrize(("prompt", "reply"), WITH_OTHER_TURNS.values(), ids=WITH_OTHER_TURNS)
def test_other_turns_are_found(prompt: str, reply: str) -> None:
    assert found(prompt, reply)


OWN_TURN_ONLY = {
    "plain": ("What is the capital of Italy?", "The capital of Italy is Rome."),
    "joke": ("Tell me a joke.", "Why did the scarecrow win a prize?\nHe was outstanding."),
    "riddle": ("Do you know a riddle?", "What has keys but opens no lock?\nA piano."),
    "closing question": (
        "How do I bake bread?",
        "Mix flour and water, and bake it for an hour.\n\nWould you like to have a recipe?",
    ),
    "question back": (
        "There is a smell in my flat. What should I do?",
        "First find out where it comes from.\n\nIs it stronger in the kitchen or your bathroom?\n\n"
        "Then open the windows.",
    ),
    "rhetorical": (
        "Write an essay about patience.",
        "Patience is hard to learn.\n\nBut what does a patient gardener know about haste?\n\n"
        "She knows that roots need time.",
    ),
    "heading as a question": (
        "Explain why sleep is important.",
        "Sleep restores the body.\n\nWhy is sleep important for the brain?\n\nThe brain rests.",
    ),
    "faq": (
        "Write an FAQ for a bakery.",
        "Q: When are you open?\nA: From six to noon.\nQ: Do you sell cake?\nA: On Sundays.",
    ),
    "quiz": (
        "Make a quiz about birds.",
        "Question 1: Which bird cannot fly?\nAnswer: The ostrich.",
    ),
    "dialogue": (
        "Write a dialogue between a user and an assistant.",
        "User: My printer is broken.\nAssistant: Is it switched on?",
    ),
    "interview": (
        "Write an interview with a baker.",
        "Interviewer: When do you get up?\nBaker: At two in the morning.",
    ),
    "play": ("Write a short play about two friends.", "Anna: Where were you?\nBen: At home."),
    "yaml in a block": (
        "Show me a config file.",
        "Here it is:\n\n```yaml\nuser: tom\nassistant: none\n```",
    ),
    "yaml": ("Show me a config file.", "database: shop\nuser: tom\npassword: secret"),
    "glossary": (
        "Which roles does the forum have?",
        "Admin: a person who may do everything.\nUser: a person who writes.\nGuest: a reader.",
    ),
    "markdown heading": (
        "Describe the app.",
        "### User interface\n\nIt has two buttons.\n\n### Assistant functions\n\nIt reads aloud.",
    ),
    "answer once": ("What is 6 times 7?", "6 times 7 is 42.\n\nAnswer: 42"),
    "restated question": (
        "Which planet is the largest?",
        "Question: Which planet is the largest?\nAnswer: Jupiter.",
    ),
    "options": ("Which one is a fish?", "A: a whale\nB: a cod\nC: a seal\n\nIt is B."),
    "note": ("How do I cook rice?", "Cook it for ten minutes.\n\nNote: Rinse it before."),
    "announced example": (
        "How do chatbots work?",
        "They predict the next words. For example, a chat looks like this:\nUser: Hi\nBot: Hello!",
    ),
    "marks in the prompt": (
        "What does <|endoftext|> mean?",
        "The marker <|endoftext|> stands between two documents.",
    ),
    "list of roles": ("Name roles of a chat.", "The roles are:\nsystem\nuser\nassistant"),
    "inline code": ("How do templates look?", "A turn begins with `<|im_start|>user` and ends."),
    "assignment": ("Write code.", "b := 1\na := merge(b)\nreturn a"),
    "questions to ask": (
        "Which questions should I ask a landlord?",
        "What does the heating cost?\nWho repairs the roof?\nWhen can I move in?",
    ),
    "list item": ("How do I learn?", "- Write a summary.\n- Give me a call.\n- Sleep enough."),
}


@pytest.mark.parametrize(("prompt", "reply"), OWN_TURN_ONLY.values(), ids=OWN_TURN_ONLY)
def test_replies_with_their_own_turn_only_are_not_found(prompt: str, reply: str) -> None:
    assert found(prompt, reply) == []


def test_prompt_formats_are_found_even_in_a_dialogue_that_was_asked_for() -> None:
    reply = "Anna: Hello.\nBen: Hello.\n### Human: Thanks."
    assert found("Write a dialogue.", reply) == ["### Human: Thanks."]


def test_spans_are_the_marks_and_their_lines() -> None:
    reply = "It is Rome.\nUser: And of Spain?\nAssistant: Madrid."
    assert found("The capital of Italy?", reply) == ["User: And of Spain?", "Assistant: Madrid."]


def test_mentions_in_earlier_replies_do_not_excuse() -> None:
    messages = (
        Message("user", "Hi"),
        Message("assistant", "Shall I write a dialogue?"),
        Message("user", "No, what do cows eat?"),
    )
    sample = Sample("set/1", "general", 2, 0, messages, "Grass.\nUser: And pigs?")
    assert self_talk([sample]) == [[(7, 22)]]
