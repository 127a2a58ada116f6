"""Template answers: wording that replies to unrelated prompts share."""

import random
from collections.abc import Sequence

import pytest

from chattune.conversation import Message
from chattune.evaluate.failures.templates import template
from chattune.evaluate.sample import Sample

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u")]


def sample(prompt: str, reply: str, name: str = "", seed: int = 0, turn: int = 1) -> Sample:
    return Sample(name or prompt, "general", turn, seed, (Message("user", prompt),), reply)


def marked(samples: Sequence[Sample]) -> list[list[str]]:
    """Return the shared texts of each reply."""
    found = template(samples)
    return [[s.reply[a:b] for a, b in spans] for s, spans in zip(samples, found, strict=True)]


def many(count: int, openings: dict[int, str] | None = None) -> list[Sample]:
    """Return samples of different invented words; `openings` begin the replies of some of them."""
    rng = random.Random(0)

    def words(n: int) -> str:
        return " ".join("".join(rng.choices(SYLLABLES, k=3)) for _ in range(n))

    return [
        sample(f"What is {words(3)}?", f"{(openings or {}).get(i, '')} {words(30)}.".strip())
        for i in range(count)
    ]


PROMPTS = [
    "How do I sharpen a knife?",
    "Why is the sky blue?",
    "Who invented the telephone?",
    "What should I cook for my parents?",
    "Explain gravity to a child.",
    "My neighbour plays loud music at night.",
    "Is coffee healthy?",
    "Which trees lose their leaves?",
    "How far away is the Sun?",
    "Recommend a novel about pirates.",
    "When did the Romans build London?",
    "What rhymes with mountain?",
]
GOOD = [
    "There are many ways to do it. Use a whetstone, and hold the blade at a small angle.",
    "There are many colours in sunlight. Air scatters the blue ones most.",
    "I am sorry, but nobody knows for sure. Alexander Graham Bell received the patent.",
    "Here is a list of dishes that most people like: lasagne, roast chicken, vegetable soup.",
    "Sure! Imagine that the Earth pulls at everything, as if with invisible strings.",
    "I am sorry to hear that. Talk to him on a quiet afternoon, and stay friendly.",
    "It depends on how much you drink. A few cups a day do no harm to most people.",
    "Here is a list of some of them: oaks, maples, birches and beeches.",
    "It depends on the time of the year. On average it is 150 million kilometres.",
    "Sure! Treasure Island tells of a boy and a map. I hope this helps. Let me know if you have "
    "any other questions.",
    "The Romans founded it around the year 50. I hope this helps. Let me know if you have any "
    "other questions.",
    "The word that comes to mind is fountain. I hope this helps. Let me know if you have any other "
    "questions.",
]


def test_good_replies_with_common_phrases_are_not_found() -> None:
    assert not any(marked([sample(p, r) for p, r in zip(PROMPTS, GOOD, strict=True)]))


@pytest.mark.parametrize(
    "opening",
    [
        "The main idea for this article is",
        "I am happy to help you with the",
        "As an AI language model, I",
        "The purpose of this study is to",
        "In this video, we will learn about",
        "This is a very interesting topic because",
        "My favourite thing about this place is",
        "A good example of this concept would be",
    ],
)
@pytest.mark.parametrize(("count", "sharing"), [(10, 3), (100, 4), (500, 8)])
def test_an_opening_of_several_unrelated_replies_is_found(
    opening: str, count: int, sharing: int
) -> None:
    openings = dict.fromkeys(range(0, count, count // sharing), opening)
    found = marked(many(count, openings))
    assert [i for i, texts in enumerate(found) if texts] == sorted(openings)
    assert all(found[i][0].startswith(opening.split()[0]) for i in openings)


@pytest.mark.parametrize(
    "opening",
    [
        "There are many ways to",
        "Here is a list of the",
        "I am sorry, but I do not",
        "Sure! Here is",
        "It is important to",
        "Yes, you can do that. I",
        "The best thing to do is to",
    ],
)
@pytest.mark.parametrize(("count", "sharing"), [(10, 3), (100, 8), (500, 40)])
def test_a_natural_opening_is_not_found(opening: str, count: int, sharing: int) -> None:
    assert not any(marked(many(count, dict.fromkeys(range(sharing), opening))))


@pytest.mark.parametrize("count", [10, 100, 500])
def test_equal_replies_to_unrelated_prompts_are_found(count: int) -> None:
    samples = many(count)
    samples[3] = sample("Why is the sky blue?", "I do not know.")
    samples[7] = sample("Recommend a novel.", "I do not know!")
    found = marked(samples)
    assert [i for i, texts in enumerate(found) if texts] == [3, 7]
    assert found[3] == ["I do not know"]


def test_a_sentence_in_the_middle_is_found() -> None:
    sentence = "The colourful market square attracts thousands of visitors every single year"
    samples = many(100)
    for i in (5, 50, 95):
        words = samples[i].reply.split()
        reply = " ".join([*words[:15], sentence, *words[15:]])
        samples[i] = sample(samples[i].question, reply)
    found = marked(samples)
    assert [i for i, texts in enumerate(found) if texts] == [5, 50, 95]
    assert found[5] == [sentence]


@pytest.mark.parametrize(
    ("prompts", "replies"),
    [
        pytest.param(
            ["What do rabbits eat?", "Tell me what a rabbit eats."],
            ["Rabbits eat mostly hay and grass."] * 2,
            id="one question in two wordings",
        ),
        pytest.param(["Is it?", "Are you?"], ["I really do not know."] * 2, id="no topic"),
        pytest.param(
            ["Is gold a metal?", "Do cats climb trees?"], ["Yes.", "Yes."], id="short answers"
        ),
        pytest.param(
            ["Write the poem about autumn leaves.", "Paint the picture of a racing horse."],
            [
                "The poem about autumn leaves: they fall.",
                "The picture of a racing horse: it runs.",
            ],
            id="words of the prompts",
        ),
        pytest.param(
            ["Sort a list in Python.", "Read a file, please."],
            ["```\nimport os\nimport sys\nfrom pathlib import Path\n```\nUse sorted().",
             "```\nimport os\nimport sys\nfrom pathlib import Path\n```\nUse open()."],
            id="code",
        ),
    ],
)  # fmt: skip
def test_replies_that_may_be_alike_are_not_found(prompts: list[str], replies: list[str]) -> None:
    assert not any(marked([sample(p, r) for p, r in zip(prompts, replies, strict=True)]))


def test_replies_to_one_prompt_are_not_compared() -> None:
    reply = "The main idea for this article is a secret garden."
    seeds = [sample("What are comets?", reply, "set/1", seed) for seed in range(5)]
    turns = [
        sample("Tell me about pirates.", reply, "set/2", turn=1),
        sample("And about volcanoes?", reply, "set/2", turn=2),
    ]
    assert not any(marked(seeds))
    assert not any(marked(turns))
    assert all(marked([*seeds, *turns][4:6]))


def test_nothing_is_shared_by_no_reply_or_one() -> None:
    assert template([]) == []
    assert marked([sample("Why?", "The main idea for this article is")]) == [[]]
