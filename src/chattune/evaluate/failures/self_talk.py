"""Replies in which the model talks to itself: it writes the next turns of the conversation."""

import re
from collections.abc import Iterator, Sequence

from chattune.evaluate.failures.text import (
    LIST_MARKER,
    SPECIAL_TOKEN,
    Found,
    Span,
    content_words,
    lines,
    merged,
    sentences,
    without_code,
    words,
)
from chattune.evaluate.sample import Sample

_SPEAKERS = (
    r"human|user|assistant|usuario|asistente|utilisateur|benutzer|assistent|utente|usuário"
    r"|пользователь|ассистент|用户|助手"
)
# A heading of a prompt format, such as "### Human:" or "### Response:". Without a colon, only a
# speaker that stands alone is one, because "### User interface" is a heading of a text.
_HEADING = re.compile(
    rf"#{{2,}}[ \t]*\**(?:(?:{_SPEAKERS}|ai|bot|chatbot|system|instructions?|response|prompt)\b\**[ \t]*:"
    rf"|(?:{_SPEAKERS})\**[ \t]*(?=\n|$))",
    re.IGNORECASE,
)
# A speaker at the start of a line, after a sentence, or in the middle of a line.
_SPEAKER = re.compile(
    rf"^[ \t]*(?:[-*•] )?[*_\[(]{{0,3}}(?P<name>{_SPEAKERS}) ?\d?[*_\])]{{0,3}}[ \t]*[:：]"
    r"|^[ \t]*(?:<(?:human|bot)>:|</?(?:human|user|assistant|bot)>[ \t]*$)"
    r"|(?:(?<=[.!?…])|(?<=[.!?…][\"”)]))[ \t]?(?:Human|User|Assistant):[ \t]"
    r"|(?<=\w )(?:(?-i:Human|HUMAN|USER|Assistant|ASSISTANT)): (?=(?-i:[A-Z]))",
    re.IGNORECASE | re.MULTILINE,
)
# Speakers that are also ordinary labels, so that two of them have to take turns.
_OTHER_SPEAKER = re.compile(
    r"^[ \t]*[*_\[(]{0,3}(ai|bot|chatbot|chatgpt|gpt|model|system|me|you|i|customer|client|agent"
    r"|student|teacher|doctor|patient|interviewer|interviewee|friend|person [a-z1-9]|speaker [a-z1-9])"
    r"[*_\])]{0,3}[ \t]*:",
    re.IGNORECASE | re.MULTILINE,
)
_BARE_SPEAKER = re.compile(r"(?:human|user|assistant|model|system)", re.IGNORECASE)
_LABEL = re.compile(r"(?:[-*•]|\d+[.)])?\s*[*_]{0,2}[^\W\d][\w /-]{0,30}[*_]{0,2}:")
_QUESTION_MARK = re.compile(r"[*_#\s]*q(?:uestion)?[ \t]?\d*[*_]{0,2}[ \t]*[:：](?!=)", re.IGNORECASE)
_ANSWER_MARK = re.compile(r"[*_#\s]*a(?:nswer)?[ \t]?\d*[*_]{0,2}[ \t]*[:：](?!=)", re.IGNORECASE)
_OPTION = re.compile(r"[*_\s]*[b-e][*_]{0,2}[ \t]*[:：]", re.IGNORECASE)
_INLINE_QUESTION = re.compile(r"(?<=[.!?] )Q(?:uestion)?: [^\n]{5,200}?\? A(?:nswer)?: ")
_INSTRUCTION = re.compile(r"[*_\s]*(?:instruction|prompt|task|input)[*_]{0,2}[ \t]*:", re.IGNORECASE)
_RESPONSE = re.compile(r"[*_\s]*(?:response|output|answer|completion)[*_]{0,2}[ \t]*:", re.IGNORECASE)

_ASKS_FOR_TURNS = re.compile(
    r"\b(?:dialog(?:ue)?s?|conversations?|interview(?:s|er|ee|ing)?|screenplays?|transcripts?|skits?"
    r"|sketch(?:es)?|debates?|role-?play\w*|faqs?|frequently asked|q ?& ?a|q and a|questions"
    r"|question and answer|quiz\w*|trivia|riddles?|jokes?|puns?|funny|knock|flash ?cards?|exams?"
    r"|chat ?logs?|monologues?|(?:movie|film|short|podcast|video|radio|stage|comedy) scripts?"
    r"|(?:ask|write|generate|create|make|pose|give|form|come up with)\b.{0,30}\bquestion"
    r"|script for (?:an?|the)|(?:a|an|one-act|short|stage|\w+ act) play|scenes?|diálogo|conversación)\b",
    re.IGNORECASE,
)
_ASKS_FOR_FICTION = re.compile(
    r"\b(?:stor(?:y|ies)|novels?|tales?|fables?|poems?|songs?|lyrics|verses?|rap|letters?|e-?mails?"
    r"|speech(?:es)?|essays?|articles?|blog|chapter|summary|summari[sz]e|reviews?)\b",
    re.IGNORECASE,
)
_OPENS_QUESTION = re.compile(
    r"(?:(?:and|so|ok(?:ay)?|but|also|now|hi|hello|thanks?|thank you)\b[,.!]* )*(?:what|how|why|who|whom"
    r"|whose|where|when|which|can|could|is|are|was|were|do|does|did|will|should|would|has|have|am|may)"
    r"(?:'s|'re)?\b",
    re.IGNORECASE,
)
# What an assistant asks the user, and not the user the assistant.
_TO_THE_USER = re.compile(
    r"\b(?:(?:would|do|did|are|have|were|will) you|you(?:'d)? (?:like|want|need|prefer)|(?:can|may) i"
    r" (?:help|assist|offer)|anything else|your|interests? you|you think|about you)\b",
    re.IGNORECASE,
)
_FROM_THE_USER = re.compile(
    r"\b(?:(?:can|could|will|would) you (?:please )?(?:also )?(?:give|tell|show|explain|help|write|make"
    r"|describe|list|suggest|recommend|name|provide|create|find|do)|do you know|please|(?:do|can|should"
    r"|could|must|did|am|would) i|my|tell me)\b",
    re.IGNORECASE,
)
_REQUEST = re.compile(
    r"(?:please |now |ok(?:ay)?,? )*(?:(?:give|tell|show|teach|write|help) me\b|i want you to\b"
    r"|write (?:an?|the) (?:\w+ ){0,3}?(?:story|poem|song|essay|letter|e-?mail|paragraph|joke|article"
    r"|function|program|script|haiku|summary|speech|review|dialogue)\b)",
    re.IGNORECASE,
)
_MOST_WORDS_OF_A_TURN = 40


def self_talk(samples: Sequence[Sample]) -> Found:
    """Find replies that contain a turn that is not the assistant's.

    """
    return [_self_talk(s) for s in samples]


def _self_talk(sample: Sample) -> list[Span]:
    asked = "\n".join(m.content for m in sample.messages if m.role != "assistant")
    text = without_code(sample.reply)
    spans = [*_special_tokens(text, asked), *_headings(text, asked)]
    if not _ASKS_FOR_TURNS.search(asked):
        found = lines(SPECIAL_TOKEN.sub(lambda m: "\n" * len(m.group()), text))
        spans += _speakers(text, found)
        spans += _bare_speakers(text, found)
        spans += _questions_and_answers(text, found, sample.question)
        spans += _instructions(text, found)
        if not _ASKS_FOR_FICTION.search(asked):
            spans += _next_questions(text, found, sample)
    return merged(spans)


def _special_tokens(text: str, asked: str) -> Iterator[Span]:
    if re.search(r"\btoken", asked, re.IGNORECASE):
        return
    for m in SPECIAL_TOKEN.finditer(text):
        if m.group() not in asked:
            yield m.span()


def _headings(text: str, asked: str) -> Iterator[Span]:
    for m in _HEADING.finditer(text):
        if m.group().strip() not in asked:
            yield m.start(), _line_end(text, m.end())


def _speakers(text: str, found: Sequence[Span]) -> list[Span]:
    """Return the lines that begin with speakers, unless they are the labels of a list."""
    certain = [m for m in _SPEAKER.finditer(text) if not _is_label_of_a_list(text, m, found)]
    others = list(_OTHER_SPEAKER.finditer(text))
    if not certain and len({m.group(1).lower() for m in others}) < 2:
        return []
    if not certain and not _take_turns(others, found):
        return []
    return [(m.start(), _line_end(text, m.end())) for m in [*certain, *others]]


def _is_label_of_a_list(text: str, marker: re.Match[str], found: Sequence[Span]) -> bool:
    """Return whether the lines beside a speaker's have labels that are no speakers, as in YAML."""
    if marker.group("name") is None:
        return False
    place = next(i for i, (start, end) in enumerate(found) if end >= marker.end())
    beside = [text[slice(*found[i])] for i in (place - 1, place + 1) if 0 <= i < len(found)]
    return any(
        _LABEL.match(line)
        and not _SPEAKER.match(line)
        and not _OTHER_SPEAKER.match(line)
        and not _QUESTION_MARK.match(line)
        and not _ANSWER_MARK.match(line)
        for line in beside
    )


def _take_turns(markers: Sequence[re.Match[str]], found: Sequence[Span]) -> bool:
    """Return whether speakers stand at the start of two lines, one after the other."""
    at = [next(i for i, (_, end) in enumerate(found) if end >= m.end()) for m in markers]
    pairs = zip(at, at[1:], markers, markers[1:], strict=False)
    return any(b - a == 1 and m.group(1).lower() != n.group(1).lower() for a, b, m, n in pairs)


def _bare_speakers(text: str, found: Sequence[Span]) -> Iterator[Span]:
    """Yield lines that are a speaker's name alone, as decoded chat templates leave it."""
    for i, (start, end) in enumerate(found[:-1]):
        name = text[start:end]
        if not _BARE_SPEAKER.fullmatch(name):
            continue
        near = [len(words(text[a:b])) for a, b in [*found[max(0, i - 1) : i], found[i + 1]]]
        if (name.islower() and max(near) > 2) or (i and name.istitle() and min(near) > 4):
            yield start, found[i + 1][1]


def _questions_and_answers(text: str, found: Sequence[Span], asked: str) -> Iterator[Span]:
    """Yield the lines with "Q:" or "Question:" that are not the prompt's, and their answers."""
    yield from (m.span() for m in _INLINE_QUESTION.finditer(text))
    texts = [text[a:b] for a, b in found]
    has_options = any(map(_OPTION.match, texts))
    answers = sum(_is_short_answer_mark(line) for line in texts)
    question = False
    for i, line in enumerate(texts):
        if (mark := _QUESTION_MARK.match(line)) and not (has_options and "?" not in line):
            own = line[mark.end() :]
            is_last = i == len(texts) - 1
            restated = _is_restated(own, asked) and (i == 0 or len(mark.group().strip()) > 3)
            question = not restated and not (is_last and len(words(own)) > 3 and i == 0)
            if question:
                yield found[i]
        elif _ANSWER_MARK.match(line) and not has_options:
            follows_question = i > 0 and texts[i - 1].endswith("?") or answers > 1
            if question or (i > 0 and _is_short_answer_mark(line) and follows_question):
                yield found[i]


def _is_short_answer_mark(line: str) -> bool:
    """Return whether a line begins with "A:"; an answer may well begin with "Answer:"."""
    mark = _ANSWER_MARK.match(line)
    return mark is not None and len(mark.group().strip(" \t*_#")) < 4


def _is_restated(question: str, asked: str) -> bool:
    own = content_words(question) or {w.text for w in words(question)}
    return len(own & {w.text for w in words(asked)}) >= 0.6 * len(own)


def _instructions(text: str, found: Sequence[Span]) -> Iterator[Span]:
    """Yield lines with "Instruction:" or the like that a line with "Response:" follows."""
    texts = [text[a:b] for a, b in found]
    for i, line in enumerate(texts):
        if _INSTRUCTION.match(line) and any(map(_RESPONSE.match, texts[i + 1 : i + 4])):
            if re.match(r"\W*instruction", line, re.IGNORECASE):
                yield found[i]


def _next_questions(text: str, found: Sequence[Span], sample: Sample) -> Iterator[Span]:
    """Yield the lines that a user would write, with an answer after them."""
    prompt = " ".join(m.content for m in sample.messages)
    asked = [w.text for w in words(sample.question)]
    for i in range(1, len(found) - 1):
        start, end = found[i]
        line, after = text[start:end], text[slice(*found[i + 1])]
        if LIST_MARKER.match(line) or line[0] in "#*\"“'>|-—–(" or len(words(line)) > _MOST_WORDS_OF_A_TURN:
            continue
        last = line[slice(*sentences(line)[-1])]
        if not after.endswith("?") and (
            (last.endswith("?") and _is_new_question(line, last, prompt + text[:start], asked))
            or (last[-1] in ".!" and _REQUEST.match(line) and not after.startswith(("-", "1")))
        ):
            yield start, end


def _is_new_question(line: str, question: str, before: str, asked: Sequence[str]) -> bool:
    """Return whether the question at the end of a line is a user's.

    It is what was asked before, or in a user's words, or about something new.
    """
    own = [w.text for w in words(question)]
    if len(own) > 3 and own == list(asked):
        return True
    if _FROM_THE_USER.search(question) and not _TO_THE_USER.search(question):
        return True
    if not _OPENS_QUESTION.match(question) or re.search(r"\byou(?:r|rs)?\b", line):
        return False
    content = content_words(question)
    new = content - {w.text for w in words(before)}
    return bool(new) and 2 * len(new) >= len(content)


def _line_end(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end
