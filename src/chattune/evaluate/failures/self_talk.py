"""Replies in which the model talks to itself: it writes the next turns of the conversation."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

from chattune.evaluate.failures.text import (
    LIST_MARKER,
    SPECIAL_TOKEN,
    Found,
    Span,
    any_of,
    content_words,
    lines,
    merged,
    phrases,
    requests,
    sentences,
    without_code,
    word_texts,
)
from chattune.evaluate.sample import Sample

_SPEAKERS = any_of("""
    human user assistant usuario asistente utilisateur benutzer assistent utente usuário
    пользователь ассистент 用户 助手
""")
# A heading of a prompt format, such as "### Human:" or "### Response:". Without a colon, only a
# speaker that stands alone is one, because "### User interface" is a heading of a text.
_HEADING = re.compile(
    rf"(?<!#)#{{2,6}}(?!#)[ \t]*\**(?:{_SPEAKERS}\**[ \t]*(?=\n|$)"
    rf"|(?:{_SPEAKERS}|ai|bot|chatbot|system|instructions?|response|prompt)\b\**[ \t]*:)",
    re.IGNORECASE,
)
# A speaker at the start of a line, after a sentence, or within a line.
_SPEAKER = re.compile(
    rf"^[ \t]*(?:[-*•] )?[*_\[(]{{0,3}}(?P<name>{_SPEAKERS}) ?\d?[*_\])]{{0,3}}[ \t]*[:：]"
    r"|^[ \t]*(?:<(?:human|bot)>:|</?(?:human|user|assistant|bot)>[ \t]*$)"
    r"|(?:(?<=[.!?…])|(?<=[.!?…][\"”)]))[ \t]?(?:Human|User|Assistant):[ \t]"
    r"|(?<=\w )(?-i:Human|HUMAN|USER|Assistant|ASSISTANT): (?=(?-i:[A-Z]))",
    re.IGNORECASE | re.MULTILINE,
)
# Speakers that are also ordinary labels, so that two of them have to take turns.
_OTHER_SPEAKER = re.compile(
    r"^[ \t]*[*_\[(]{0,3}(ai|bot|chatbot|chatgpt|gpt|model|system|me|you|i|customer|client|agent"
    r"|student|teacher|doctor|patient|interviewer|interviewee|friend|(?:person|speaker) [a-z1-9])"
    r"[*_\])]{0,3}[ \t]*:",
    re.IGNORECASE | re.MULTILINE,
)
_BARE_SPEAKER = re.compile(any_of("human user assistant model system"), re.IGNORECASE)
_LABEL = re.compile(r"(?:[-*•]|\d+[.)])?\s*[*_]{0,2}[^\W\d][\w /-]{0,30}[*_]{0,2}:")
_QUESTION_MARK = re.compile(
    r"[*_#\s]*q(?:uestion)?[ \t]?\d*[*_]{0,2}[ \t]*[:：](?!=)", re.IGNORECASE
)
_ANSWER_MARK = re.compile(r"[*_#\s]*a(?:nswer)?[ \t]?\d*[*_]{0,2}[ \t]*[:：](?!=)", re.IGNORECASE)
_OPTION = re.compile(r"[*_\s]*[b-e][*_]{0,2}[ \t]*[:：]", re.IGNORECASE)
_INLINE_QUESTION = re.compile(r"(?<=[.!?] )Q(?:uestion)?: [^\n]{5,200}?\? A(?:nswer)?: ")
_INSTRUCTION = re.compile(r"[*_\s]*instruction[*_]{0,2}[ \t]*:", re.IGNORECASE)
_RESPONSE = re.compile(
    r"[*_\s]*(?:response|output|answer|completion)[*_]{0,2}[ \t]*:", re.IGNORECASE
)
_INTRODUCES_EXAMPLE = re.compile(
    r"(?:example|sample|conversation|dialogue|exchange|interaction|script|chat|format)[^\n]*:\W*$",
    re.IGNORECASE,
)

_ASKS_FOR_TURNS = requests(r"""
    dialog(?:ue)?s? conversations? interviews? screenplays? transcripts? skits? sketch(?:es)?
    debates? role-?_?play\w* scenes? chat_?logs? monologues? plays? text_messages? phone_calls?
    scripts? (?:exchange|chat|talk|argument)_(?:between|with) customer_service diálogo conversación
""")
_ASKS_FOR_QUESTIONS = phrases(r"""
    questions quiz\w* trivia riddles? jokes? puns? funny knock flash_?cards? exams? interviews?
    faqs? frequently_asked q_?&_?a q_and_a
    (?:ask|write|generate|create|make|pose|give|form|come_up_with)\b.{0,30}\bquestion
""")
_ASKS_FOR_TEXT = requests(r"""
    stor(?:y|ies) novels? tales? fables? poems? songs? lyrics verses? rap letters? e-?mails?
    speech(?:es)? essays? articles? blog chapter summary reviews?
""")
_OPENS_QUESTION = re.compile(
    r"(?:(?:and|so|ok(?:ay)?|but|also|now|hi|hello|thanks?|thank you)\b[,.!]* )*(?:what|how|why"
    r"|who|whom|whose|where|when|which|can|could|is|are|was|were|do|does|did|will|should|would"
    r"|has|have|am|may)(?:'s|'re)?\b",
    re.IGNORECASE,
)
# What an assistant asks the user, and not the user the assistant.
_TO_THE_USER = phrases(r"""
    (?:would|do|did|are|have|were|will)_you you(?:'d)?_(?:like|want|need|prefer)
    (?:can|may)_i_(?:help|assist|offer) anything_else your interests?_you you_think about_you
""")
_HELP = any_of("""
    give tell show explain help write make describe list suggest recommend name provide create find
    do
""")
_FROM_THE_USER = phrases(rf"""
    (?:can|could|will|would)_you_(?:please_)?(?:also_)?{_HELP}
    do_you_know please (?:do|can|should|could|must|did|am|would)_i my tell_me
""")
_REQUEST = re.compile(
    r"(?:please |now |ok(?:ay)?,? )*(?:(?:give|tell|show|teach|write|help) me\b|i want you to\b"
    r"|write (?:an?|the) (?:\w+ ){0,3}?(?:story|poem|song|essay|letter|e-?mail|paragraph|joke"
    r"|article|function|program|script|haiku|summary|speech|review|dialogue)\b)",
    re.IGNORECASE,
)
_TASKS = frozenset(("name", "list", "give", "tell", "define", "explain", "describe", "translate"))
_INTRODUCTION = 300  # characters before an example that may introduce it
_LONGEST_TURN = 40  # words of a line that may be a user's turn


def self_talk(samples: Sequence[Sample]) -> Found:
    """Find replies that contain a turn that is not the assistant's.

    It shows by a special token that is spelled out, by the mark of a speaker or of a prompt format
    ("### Human:", "User:", "Q:", a line "user"), or by a line that only a user would write (a
    question about something new, the same question again, a request in the first person) with an
    answer after it. The spans are the marks and the lines that they begin.

    Passed over are marks in code and those that the prompt contains; and, except special tokens and
    "### Human" and its like, those in dialogues, interviews, quizzes, jokes and question lists that
    the prompt asks for. Labels of a list, a question that restates the prompt's at the start of the
    reply, "Answer:" alone and what an assistant asks the user are no turns.
    """
    return [_turns(s) for s in samples]


def _turns(sample: Sample) -> list[Span]:
    asked = "\n".join(m.content for m in sample.messages if m.role != "assistant")
    text = without_code(sample.reply)
    spans = [*_special_tokens(text, asked), *_headings(text, asked)]
    if not _ASKS_FOR_TURNS.search(asked):
        found = lines(SPECIAL_TOKEN.sub(lambda m: "\n" * len(m.group()), text))
        spans += [*_speakers(text, found), *_bare_speakers(text, found)]
        spans += _instructions(text, found)
        if not _ASKS_FOR_QUESTIONS.search(asked):
            spans += _questions_and_answers(text, found, sample.question)
            if not _ASKS_FOR_TEXT.search(asked):
                spans += _unmarked(text, found, sample)
    return merged(spans)


def _special_tokens(text: str, asked: str) -> Iterator[Span]:
    if not re.search(r"\btoken", asked, re.IGNORECASE):
        yield from (m.span() for m in SPECIAL_TOKEN.finditer(text) if m.group() not in asked)


def _headings(text: str, asked: str) -> Iterator[Span]:
    for m in _HEADING.finditer(text):
        if m.group().strip() not in asked:
            yield m.start(), _line_end(text, m.end())


def _speakers(text: str, found: Sequence[Span]) -> list[Span]:
    """Return the lines that speakers begin, unless they are labels of a list or an example."""
    certain = [m for m in _SPEAKER.finditer(text) if not _is_label_of_a_list(text, m, found)]
    others = list(_OTHER_SPEAKER.finditer(text))
    if not certain and not _take_turns(others, found):
        return []
    markers = sorted([*certain, *others], key=lambda m: m.start())
    first = markers[0].start()
    if _INTRODUCES_EXAMPLE.search(text[:first][-_INTRODUCTION:]):
        return []
    return [(m.start(), _line_end(text, m.end())) for m in markers]


def _is_label_of_a_list(text: str, marker: re.Match[str], found: Sequence[Span]) -> bool:
    """Return whether the lines beside a speaker's have other labels, as in YAML or a glossary."""
    if marker.group("name") is None:
        return False
    place = _line_of(marker, found)
    beside = [text[slice(*found[i])] for i in (place - 1, place + 1) if 0 <= i < len(found)]
    marks = (_SPEAKER, _OTHER_SPEAKER, _QUESTION_MARK, _ANSWER_MARK)
    return any(_LABEL.match(x) and not any(mark.match(x) for mark in marks) for x in beside)


def _take_turns(markers: Sequence[re.Match[str]], found: Sequence[Span]) -> bool:
    """Return whether two different speakers begin two lines, one after the other."""
    return any(
        _line_of(b, found) - _line_of(a, found) == 1 and a.group(1).lower() != b.group(1).lower()
        for a, b in pairwise(markers)
    )


def _line_of(marker: re.Match[str], found: Sequence[Span]) -> int:
    """Return the number of the line that a marker begins."""
    return bisect_right(found, marker.start(), key=lambda span: span[1])


def _bare_speakers(text: str, found: Sequence[Span]) -> Iterator[Span]:
    """Yield lines that are a speaker's name alone, as decoded chat templates leave it."""
    for i, (start, end) in enumerate(found[:-1]):
        name, after = text[start:end], text[slice(*found[i + 1])]
        if _BARE_SPEAKER.fullmatch(name) and not _BARE_SPEAKER.fullmatch(after):
            beside = [*found[max(0, i - 1) : i], found[i + 1]]
            counts = [len(word_texts(text[a:b])) for a, b in beside]
            if (name.islower() and max(counts) > 2) or (i and name.istitle() and min(counts) > 4):
                yield start, found[i + 1][1]


def _questions_and_answers(text: str, found: Sequence[Span], asked: str) -> Iterator[Span]:
    """Yield the lines with "Q:" or "Question:" that are not the prompt's, and their answers."""
    yield from (m.span() for m in _INLINE_QUESTION.finditer(text))
    texts = [text[a:b] for a, b in found]
    has_options = any(map(_OPTION.match, texts))
    answers = sum(map(_is_short_answer_mark, texts))
    question = False
    for i, line in enumerate(texts):
        mark = _QUESTION_MARK.match(line)
        if mark and not (has_options and "?" not in line):
            is_long = len(mark.group().strip()) > 3  # "Question:", which may cite the prompt
            restated = (i == 0 or is_long) and _is_restated(line[mark.end() :], asked)
            question = not restated and len(texts) > 1
            if question:
                yield found[i]
        elif _ANSWER_MARK.match(line) and not has_options:
            expected = i > 0 and (answers > 1 or texts[i - 1].endswith("?"))
            if question or (expected and _is_short_answer_mark(line)):
                yield found[i]


def _is_short_answer_mark(line: str) -> bool:
    """Return whether a line begins with "A:"; an answer may well begin with "Answer:"."""
    mark = _ANSWER_MARK.match(line)
    return mark is not None and len(mark.group().strip(" \t*_#")) < 4


def _is_restated(question: str, asked: str) -> bool:
    own = content_words(question) or set(word_texts(question))
    return len(own.intersection(word_texts(asked))) >= 0.6 * len(own)


def _instructions(text: str, found: Sequence[Span]) -> Iterator[Span]:
    """Yield the lines with "Instruction:" that one with "Response:" or the like follows."""
    texts = [text[a:b] for a, b in found]
    for i, line in enumerate(texts):
        if _INSTRUCTION.match(line) and any(map(_RESPONSE.match, texts[i + 1 : i + 4])):
            yield found[i]


def _unmarked(text: str, found: Sequence[Span], sample: Sample) -> Iterator[Span]:
    """Yield the lines that only a user would write, and that have an answer after them."""
    asked = word_texts(sample.question)
    said = set(word_texts(" ".join(m.content for m in sample.messages)))
    for (before, before_end), (start, end), (after, after_end) in zip(
        found, found[1:], found[2:], strict=False
    ):
        said.update(word_texts(text[before:before_end]))
        line, answer = text[start:end], text[after:after_end]
        if LIST_MARKER.match(line) or line[0] in "#*\"“'>|-—–(" or answer.endswith("?"):
            continue
        if len(word_texts(line)) > _LONGEST_TURN:
            continue
        last = line[slice(*sentences(line)[-1])]
        if last.endswith("?"):
            if _is_users_question(line, last, said, asked):
                yield start, end
        elif last[-1] not in ".!" or LIST_MARKER.match(answer):
            continue
        elif _REQUEST.match(line) or _is_next_task(line, said, asked):
            yield start, end


def _is_next_task(line: str, said: set[str], asked: Sequence[str]) -> bool:
    """Return whether a line asks for something new in the words in which the prompt asks."""
    alike = word_texts(line)[:2] == asked[:2]
    return alike and asked[0] in _TASKS and not content_words(line) <= said


def _is_users_question(line: str, question: str, said: set[str], asked: Sequence[str]) -> bool:
    """Return whether the question at the end of a line is a user's.

    It is what was asked before, or in a user's words, or about something new; `said` are the words
    of the conversation before it.
    """
    own = word_texts(question)
    if len(own) > 3 and own == asked:
        return True
    if _FROM_THE_USER.search(question) and not _TO_THE_USER.search(question):
        return True
    opens = _OPENS_QUESTION.match(question) or (len(own) < 5 and own[:1] == ["and"])
    if not opens or re.search(r"\byou(?:r|rs)?\b", line):
        return False
    content = content_words(question)
    new = content - said
    # A heading of an essay keeps to the topic, unless half of it is about another name.
    named = any(name.lower() in new for name in re.findall(r"(?<= )[A-Z]\w+", question))
    return 2 * len(new) > len(content) or (named and 2 * len(new) == len(content))


def _line_end(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end
