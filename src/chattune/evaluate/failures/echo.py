"""Replies that give back the prompt instead of answering it."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from chattune.evaluate.failures.text import (
    SPECIAL_TOKEN,
    Found,
    Span,
    Word,
    any_of,
    content_words,
    merged,
    phrases,
    sentences,
    words,
)
from chattune.evaluate.failures.word_lists import GENERIC
from chattune.evaluate.sample import Sample

# Requests whose answer may be the prompt's own text.
_ASKS_FOR_TEXT = phrases(r"""
    translat\w+ re-?writ\w+ re-?phras\w+ paraphras\w+ re-?word correct\w* proof-?read edit fix cite
    read_(?:out|aloud) summar\w+ shorten simplif\w+ improve revise polish expand format convert turn
    change complete continue finish fill extract replace remove insert add join merge
    capitali[sz]e (?:upper|lower)_?case sort order arrange unscramble reverse annotate label tag
    combine punctuat\w+ transform restate highlight underline transcribe spelling grammar story poem
    based_on following_(?:text|sentence|passage|paragraph) title headline caption slogan
""")
_ASKS_TO_REPEAT = re.compile(
    r"(?:^|[.!?:\n]\s*|please |can you |could you |you to |just )"
    r"(?:repeat|say|quote|copy|echo|recite|type|write down|spell)\b",
    re.IGNORECASE,
)
_BEGINS_REQUEST = any_of(r"""
    what(?!_an?\b) how why who whom whose where when which can could would will is are was were do
    does did should has have may am in_what at_what give tell write explain describe list(?!_of\b)
    name make create suggest find show help compare classify identify provide generate compose
    recommend define calculate discuss imagine design develop solve i_(?:need|want)_(?:you_)?to
    i_would_like teach outline state think_of propose determine analy[sz]e evaluate draft prove
    answer choose select pick read consider implement translate rewrite summari[sz]e correct fix
    convert complete extract rephrase paraphrase
""")
_REQUEST = re.compile(
    rf"(?:(?:please|now|ok|okay|hi|hello|hey|so|and)\b,? )*{_BEGINS_REQUEST}\b", re.IGNORECASE
)
# What may stand before a question that is given back.
_LEAD = re.compile(
    r"[\W_\d]*(?:(?:question|q|prompt|user|human|instruction|input|assistant|you asked"
    r"|your question(?: is| was)?|the question (?:is|was)|i see,?)\b[\W_]+)*",
    re.IGNORECASE,
)
# A question may come back with the user's "I" as "you", and the other way round.
_PERSON = {
    "you": "i", "me": "i", "your": "my", "yours": "mine", "are": "am", "yourself": "myself",
    "you're": "i'm", "you've": "i've", "you'd": "i'd",
}  # fmt: skip
_ASKING = frozenset(("what", "who", "where", "when", "how", "why"))
_SENTENCE = 5  # words of a question that is recognised as a part of the prompt, or with differences
_STATEMENT = 8  # words of a statement that counts as given back
_LONG_PROMPT = 12  # words of a prompt that is looked for in the whole reply
_VERY_LONG_PROMPT = 25  # words of a prompt that is looked for in pieces
_LONGEST_COMPARED = 200  # words of a prompt that is recognised with differences
_PIECE = 8  # words
_NEARLY = 0.9  # share of the prompt's words that have to come back


def echo(samples: Sequence[Sample]) -> Found:
    """Find replies that begin with the user's question, or contain the whole of a longer prompt.

    Small differences count as the same: one word in ten, and "you" for "I". Whether an answer
    follows makes no difference. An answer in the words of the question is no echo, because they are
    in another order. Passed over are prompts of fewer than three words and those of small talk,
    prompts whose answer is text that they contain (to repeat, translate, rewrite, correct or
    summarise it, and the like) unless the request itself comes back, and a title or the beginning
    of a sentence with which an answer goes on. The span is what was given back.
    """
    return [_echoed(s) for s in samples]


def _echoed(sample: Sample) -> list[Span]:
    reply = SPECIAL_TOKEN.sub(lambda m: " " * len(m.group()), sample.reply)
    asked, answer = _words(sample.question), _words(reply)
    if len(asked) < 3 or not answer or _ASKS_TO_REPEAT.search(sample.question):
        return []
    lead = _LEAD.match(reply)
    begin = next((i for i, w in enumerate(answer) if lead and w.start >= lead.end()), 0)
    if span := _given_back_at_start(reply, answer[begin:], sample.question, asked):
        return [span]
    if _ASKS_FOR_TEXT.search(sample.question):
        return []
    return _given_back_anywhere(reply, answer, asked)


def _words(text: str) -> list[Word]:
    """Return the words of a text, with "what's" and its like as two."""
    found = []
    for word in words(text):
        stem, apostrophe, _ = word.text.partition("'s")
        if apostrophe and stem in _ASKING:
            found += [word._replace(text=stem), word._replace(text="is")]
        else:
            found.append(word)
    return found


def _texts(found: Sequence[Word]) -> list[str]:
    return [w.text for w in found]


def _given_back_at_start(
    reply: str, answer: Sequence[Word], question: str, asked: Sequence[Word]
) -> Span | None:
    """Return the beginning of an answer that is the question, its last sentence, or part of it."""
    if _is_first_part(answer, asked) and _is_request(question):
        return answer[0].start, answer[-1].end
    if length := _matching_length(answer, asked):
        end = answer[length - 1].end
        stops = bool(re.match(r"[\W_]*(?:$|[.!?\n])", reply[end:]))
        if _is_request(question):
            # Nearly the same words may begin an answer: "How bees make honey is a long story."
            given_back = stops or _texts(answer[:length]) == _texts(asked)
        else:
            # A statement that the answer goes on with is a sentence to complete, or a title.
            whole = len(answer) == length and len(content_words(question)) > 1
            given_back = stops and (whole or len(asked) >= _STATEMENT)
        if given_back:
            return answer[0].start, end
    last = question[slice(*sentences(question)[-1])]
    part = _words(last)
    if not last.endswith("?") or not _SENTENCE <= len(part) < len(asked):
        return None
    length = _matching_length(answer, part)
    return (answer[0].start, answer[length - 1].end) if length else None


def _is_first_part(answer: Sequence[Word], asked: Sequence[Word]) -> bool:
    """Return whether a whole answer is the beginning of a prompt, of half its length or more."""
    same = _texts(answer) == _texts(asked[: len(answer)])
    return same and len(answer) > _SENTENCE and 2 * len(answer) >= len(asked)


def _is_request(question: str) -> bool:
    return question.rstrip().endswith("?") or bool(_REQUEST.match(question.strip()))


def _matching_length(answer: Sequence[Word], asked: Sequence[Word]) -> int:
    """Return how many words at the start of an answer are nearly those asked; 0 if they are not."""
    count = len(asked)
    own = [_PERSON.get(w.text, w.text) for w in answer[: count + 1 + count // 10]]
    wanted = [_PERSON.get(w.text, w.text) for w in asked]
    if count <= _SENTENCE and GENERIC.issuperset(w.text for w in asked):  # "How are you?"
        return 0
    if own[:count] == wanted:
        return count
    if not _SENTENCE <= count <= _LONGEST_COMPARED or own[:1] != wanted[:1]:
        return 0
    blocks = SequenceMatcher(None, own, wanted, autojunk=False).get_matching_blocks()
    same = sum(block.size for block in blocks)
    one_missing = same == count - 1 and GENERIC.issuperset(set(own) ^ set(wanted))
    return blocks[-2].a + blocks[-2].size if one_missing or same >= _NEARLY * count else 0


def _given_back_anywhere(reply: str, answer: Sequence[Word], asked: Sequence[Word]) -> list[Span]:
    """Return where an answer has the whole of a long prompt, its beginning and end included."""
    count = len(asked)
    if count < _LONG_PROMPT:
        return []
    size = count if count < _VERY_LONG_PROMPT else _PIECE
    places: dict[tuple[str, ...], int] = {}
    for i in range(len(answer) - size + 1):
        places.setdefault(tuple(w.text for w in answer[i : i + size]), i)
    covered = bytearray(count)
    spans = []
    for i in range(count - size + 1):
        if (at := places.get(tuple(w.text for w in asked[i : i + size]))) is not None:
            covered[i : i + size] = b"\1" * size
            spans.append((answer[at].start, answer[at + size - 1].end))
    if not (covered[0] and covered[-1] and sum(covered) >= _NEARLY * count):
        return []
    # In the middle of a sentence, the words of a shorter prompt belong to an answer.
    begins = re.search(r"(?:^|[.!?:\n\"“'*])[ \t]*$", reply[: min(spans)[0]])
    return merged(spans) if begins or size == _PIECE else []
