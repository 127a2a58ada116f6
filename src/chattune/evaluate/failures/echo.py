"""Replies that give back the prompt instead of answering it."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from chattune.evaluate.failures.text import (
    GENERIC,
    SPECIAL_TOKEN,
    Found,
    Span,
    Word,
    merged,
    sentences,
    words,
)
from chattune.evaluate.sample import Sample

# Requests whose answer may be the prompt's own text.
_ASKS_FOR_TEXT = re.compile(
    r"\b(?:translat\w+|re-?writ\w+|re-?phras\w+|paraphras\w+|re-?word|correct\w*|proof-?read|edit|fix"
    r"|cite|read (?:out|aloud)|summar\w+|shorten|simplif\w+|improve|revise|polish|expand|format"
    r"|convert|turn|change|complete|continue|finish|fill|extract|replace|remove|insert|add|join|merge"
    r"|capitali[sz]e|(?:upper|lower) ?case|sort|order|arrange|unscramble|reverse|annotate|label|tag"
    r"|combine|punctuat\w+|transform|restate|highlight|underline|transcribe|spelling|grammar"
    r"|story|poem|based on|following (?:text|sentence|passage|paragraph))\b",
    re.IGNORECASE,
)
_ASKS_TO_REPEAT = re.compile(
    r"\b(?:repeat|say|quote|copy|echo|recite|type|write down|spell|title|headline|caption|slogan)\b",
    re.IGNORECASE,
)
_REQUEST = re.compile(
    r"(?:(?:please|now|ok|okay|hi|hello|hey|so|and)\b,? )*(?:what(?! an?\b)|how|why|who|whom|whose|where"
    r"|when|which|can|could|would|will|is|are|was|were|do|does|did|should|has|have|may|am|in what"
    r"|at what|give|tell|write|explain|describe|list(?! of\b)|name|make|create|suggest|find|show|help|compare"
    r"|classify|identify|provide|generate|compose|recommend|define|calculate|discuss|imagine|design"
    r"|develop|solve|i (?:need|want) (?:you )?to|i would like|teach|outline|state|think of|propose"
    r"|determine|analy[sz]e|evaluate|draft|prove|answer|choose|select|pick|read|consider|implement"
    r"|translate|rewrite|summari[sz]e|correct|fix|convert|complete|extract|rephrase|paraphrase)\b",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"[\W_\d]*(?:(?:question|q|prompt|user|human|instruction|input|assistant|you asked|your question"
    r"(?: is| was)?|the question (?:is|was)|i see,?)\b[\W_]+)*",
    re.IGNORECASE,
)
# A question may come back with the user's "I" as "you", and the other way round.
_PERSON = {
    "you": "i", "me": "i", "your": "my", "yours": "mine", "are": "am", "yourself": "myself",
    "you're": "i'm", "you've": "i've", "you'd": "i'd",
}  # fmt: skip
_ASKING = frozenset(("what", "who", "where", "when", "how", "why"))
_LONG_PROMPT = 12  # words
_VERY_LONG_PROMPT = 25  # words
_SHINGLE = 8  # words


def echo(samples: Sequence[Sample]) -> Found:
    """Find replies that begin with the user's question, or contain the whole of a longer prompt.

    Small differences count as the same: one word in ten, and "you" for "I". Whether an answer
    follows makes no difference. An answer in the words of the question is no echo, because they are
    in another order. Passed over are prompts of fewer than three words or without a question or
    request in few words, prompts that ask for text of their own (to repeat, translate, rewrite,
    correct, summarise it and the like) unless the request itself comes back, and the title that a
    prompt without a verb is. The span is what was given back.
    """
    return [_echoed(s) for s in samples]


def _echoed(sample: Sample) -> list[Span]:
    reply = SPECIAL_TOKEN.sub(lambda m: " " * len(m.group()), sample.reply)
    asked, answer = _words(sample.question), _words(reply)
    if len(asked) < 3 or not answer or _ASKS_TO_REPEAT.search(sample.question):
        return []
    lead = _LEAD.match(reply)
    begin = next((i for i, w in enumerate(answer) if lead and w.start >= lead.end()), 0)
    if span := _begins_with(reply, answer[begin:], sample.question, asked):
        return [span]
    if _ASKS_FOR_TEXT.search(sample.question):
        return []
    return _contains(reply, answer, asked)


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


def _begins_with(
    reply: str, answer: Sequence[Word], question: str, asked: Sequence[Word]
) -> Span | None:
    """Return the beginning of an answer that is the question, its last sentence, or part of it."""
    if _is_prefix(answer, asked, question):
        return answer[0].start, answer[-1].end
    if length := _matching_length(answer, asked):
        end = answer[length - 1].end
        # A statement that the answer goes on with is a sentence to complete, or a title.
        complete = len(asked) > 4 and re.match(r"[\W_]*(?:$|[.!?\n])", reply[end:])
        if _is_request(question) or (complete and (len(asked) > 7 or len(answer) == length)):
            return answer[0].start, end
    found = sentences(question)
    last = question[slice(*found[-1])] if len(found) > 1 else ""
    if last.endswith("?") and len(_words(last)) > 4 and (length := _matching_length(answer, _words(last))):
        return answer[0].start, answer[length - 1].end
    return None


def _is_prefix(answer: Sequence[Word], asked: Sequence[Word], question: str) -> bool:
    """Return whether a whole answer is the beginning of a question, of half its length or more."""
    same = [w.text for w in answer] == [w.text for w in asked[: len(answer)]]
    return same and len(answer) > 5 and 2 * len(answer) >= len(asked) and _is_request(question)


def _is_request(question: str) -> bool:
    return question.rstrip().endswith("?") or bool(_REQUEST.match(question.strip()))


def _matching_length(answer: Sequence[Word], asked: Sequence[Word]) -> int:
    """Return how many words at the start of an answer are those asked, nearly; 0 if they are not."""
    count = len(asked)
    own = [_PERSON.get(w.text, w.text) for w in answer[: count + 1 + count // 10]]
    wanted = [_PERSON.get(w.text, w.text) for w in asked]
    if GENERIC.issuperset(w.text for w in asked):
        return 0
    if own[:count] == wanted:
        return count
    if count < 5 or own[:2] != wanted[:2]:
        return 0
    blocks = SequenceMatcher(None, own, wanted, autojunk=False).get_matching_blocks()
    same = sum(block.size for block in blocks)
    small = same == count - 1 and GENERIC.issuperset(set(own) ^ set(wanted))
    return blocks[-2].a + blocks[-2].size if small or same >= 0.9 * count else 0


def _contains(reply: str, answer: Sequence[Word], asked: Sequence[Word]) -> list[Span]:
    """Return where an answer contains the whole of a long prompt, its beginning and end included."""
    texts = [w.text for w in answer]
    wanted = [w.text for w in asked]
    if len(wanted) < _LONG_PROMPT:
        return []
    size = len(wanted) if len(wanted) < _VERY_LONG_PROMPT else _SHINGLE
    places: dict[tuple[str, ...], int] = {}
    for i in range(len(texts) - size + 1):
        places.setdefault(tuple(texts[i : i + size]), i)
    covered = bytearray(len(wanted))
    spans = []
    for i in range(len(wanted) - size + 1):
        if (at := places.get(tuple(wanted[i : i + size]))) is not None:
            covered[i : i + size] = b"\1" * size
            spans.append((answer[at].start, answer[at + size - 1].end))
    if not spans or not (covered[0] and covered[-1] and sum(covered) >= 0.9 * len(wanted)):
        return []
    # In the middle of a sentence, the words of a short prompt belong to an answer.
    begins = re.search(r"(?:^|[.!?:\n\"“'*])[ \t]*$", reply[: min(spans)[0]])
    return merged(spans) if begins or size == _SHINGLE else []
