"""Replies in another language than the user's."""

import importlib.util
import math
import re
from collections.abc import Sequence
from functools import lru_cache

from chattune.evaluate.failures.language_names import LANGUAGE_NAMES, LANGUAGES_OF_SCRIPT
from chattune.evaluate.failures.scripts import letters_of_scripts, main_script
from chattune.evaluate.failures.text import (
    Found,
    Span,
    phrases,
    prose,
    sentences,
    trimmed,
    word_texts,
)
from chattune.evaluate.failures.word_lists import ENGLISH, GENERIC
from chattune.evaluate.sample import Sample

# Languages that are too much alike to be told apart in short texts.
_ALIKE = [
    {"da", "no", "sv"}, {"es", "ca", "pt"}, {"hr", "sr", "sl", "bg", "mk"}, {"id", "ms", "tl"},
    {"cs", "sk"}, {"ru", "uk", "bg", "mk", "sr"}, {"hi", "ur"}, {"ar", "fa", "ur"},
]  # fmt: skip
_ASKS_FOR_ANOTHER = phrases(r"""
    translat\w+ (?:foreign|other|another|different|native|multiple|several|many|\d+)_languages?
    bilingual dialects? alphabets? traduc\w+ traduir\w* tradu[zç]\w* tradui\w+ übersetz\w+
    перевод\w* перевед\w+ 翻[译訳譯]\w*
""")
_URL = re.compile(r"https?://\S+|\S{1,64}@\S+")
# Letters of a reply in another script. Names and terms are often in Latin letters, so that a few
# words of them are no answer.
_FEWEST_OF_A_SCRIPT, _FEWEST_OF_LATIN = 4, 30
_FEWEST_WORDS, _FEWEST_LETTERS = 6, 30  # of a reply whose language has to be classified
_CONFIDENT, _POSSIBLE = 0.9, 0.5
_ENGLISH = 0.1  # share of these words from which on a text is English
_ENGLISH_PROMPT = 0.5  # share of English function words from which on a short prompt is English


def language(samples: Sequence[Sample]) -> Found:
    """Find replies that are in another language than the user's last message.

    Another script is certain from four letters on (30 of Latin letters, which names have in any
    text). Within a script, the language of the message and that of a reply of six words or more are
    classified by langid with a probability of 0.9 or more, and both halves of a longer reply have
    to agree. Code, tables and addresses are left out. Passed over are languages that are much
    alike, prompts that ask for a translation or name the reply's language, and those that have a
    sentence in it. The span is the whole reply.
    """
    return [_foreign(s) for s in samples]


def package_problem() -> str | None:
    """Return why languages cannot be told apart here, or None if they can."""
    if importlib.util.find_spec("py3langid") is None:
        return "the package py3langid is not installed"
    return None


def _foreign(sample: Sample) -> list[Span]:
    asked = [_plain(m.content) for m in sample.messages if m.role != "assistant"]
    reply, question = _plain(sample.reply), asked[-1]
    span = trimmed(sample.reply, (0, len(sample.reply)))
    if span is None or _ASKS_FOR_ANOTHER.search("\n".join(asked)):
        return []
    script, wanted = main_script(reply), main_script(question)
    if script is None or wanted is None:
        return []
    if script != wanted:
        return [span] if _another_script(reply, script, "\n".join(asked)) else []
    spoken = _language_of_reply(reply, asked)
    expected = spoken and _language_of_prompt(question, asked)
    if not spoken or not expected or spoken == expected:
        return []
    if any({spoken, expected} <= alike for alike in _ALIKE) or _names(spoken, asked):
        return []
    return [] if _is_quoted(spoken, asked) else [span]


def _plain(text: str) -> str:
    """Return a text without what is in no language: code, tables, addresses, special tokens."""
    return _URL.sub(" ", prose(text))


def _another_script(reply: str, script: str, asked: str) -> bool:
    """Return whether a reply is written in a script that the prompt neither uses nor asks for."""
    letters, others = letters_of_scripts(reply)[script], letters_of_scripts(asked)
    codes = LANGUAGES_OF_SCRIPT.get(script, "").split()
    used = 4 * others.get(script, 0) > sum(others.values())
    if used or script.lower() in asked.lower() or any(_names(code, [asked]) for code in codes):
        return False
    return letters >= (_FEWEST_OF_LATIN if script == "Latin" else _FEWEST_OF_A_SCRIPT)


def _language_of_prompt(question: str, asked: Sequence[str]) -> str | None:
    """Return the language of the last message, or if it is too short, of all messages."""
    texts = word_texts(question)
    if sum(word in GENERIC for word in texts) >= _ENGLISH_PROMPT * len(texts):
        return "en"
    return _classify(question) or _classify("\n".join(asked))


def _language_of_reply(text: str, asked: Sequence[str]) -> str | None:
    """Return the language of a reply, if it is long enough and each half of it is in it.

    The words of the prompt, which may be names, do not count for its length.
    """
    texts = word_texts(text)
    given = set(word_texts("\n".join(asked)))
    own = [word for word in texts if word not in given]
    if len(own) < _FEWEST_WORDS or sum(map(str.isalpha, text)) < _FEWEST_LETTERS:
        return None
    found = _classify(text)
    if found is None or len(texts) < 4 * _FEWEST_WORDS:
        return found
    half = len(text) // 2
    parts = text[:half], text[half:]
    return found if all(_most_probable(part)[0] == found for part in parts) else None


def _classify(text: str) -> str | None:
    """Return the language of a text if it can be told with confidence."""
    code, probability = _most_probable(text)
    return code if probability >= _CONFIDENT else None


@lru_cache(maxsize=1024)
def _most_probable(text: str) -> tuple[str, float]:
    """Return the most probable language of a text, and its probability among LANGUAGE_NAMES.

    The classifier is langid (Lui and Baldwin 2012, https://aclanthology.org/P12-3005). Its scores
    grow with the length of a text; they are divided by its square root before they are normalised,
    because otherwise each long text would be certain. English, whose senseless texts it takes for
    other languages, is known by its function words.
    """
    import py3langid

    texts = word_texts(text)
    if texts and sum(word in ENGLISH for word in texts) >= _ENGLISH * len(texts):
        return "en", 1.0
    scores = [(code, score) for code, score in py3langid.rank(text) if code in LANGUAGE_NAMES]
    scale = math.sqrt(max(1, len(text.encode("utf-8", "replace"))))
    best, highest = scores[0]
    return best, 1 / sum(math.exp((score - highest) / scale) for _, score in scores)


def _names(code: str, asked: Sequence[str]) -> bool:
    """Return whether the user names a language."""
    name = re.compile(rf"(?<![a-z])(?:{LANGUAGE_NAMES[code]})(?![a-z])", re.IGNORECASE)
    return any(map(name.search, asked))


def _is_quoted(code: str, asked: Sequence[str]) -> bool:
    """Return whether the user writes some sentence in a language."""
    quoted = (text[start:end] for text in asked for start, end in sentences(text))
    return any(
        most == code and probability >= _POSSIBLE
        for most, probability in map(_most_probable, quoted)
    )
