"""The replies of a model to prompts, written to a file while they are generated.

A seed gives the same replies whatever else is generated, and a stopped evaluation goes on after the
last reply that was finished.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from chattune.chat import fit_prompt
from chattune.conversation import Message
from chattune.errors import ChatError
from chattune.evaluate.prompts import Prompt
from chattune.evaluate.sample import Sample
from chattune.generate import Decoding, Engine
from chattune.generate.finish import finish_reply
from chattune.generate.reply import Reply
from chattune.template import Template


@dataclass(frozen=True)
class Speaker:
    """A model that can write replies: its engine, its template and its number of positions."""

    engine: Engine
    template: Template
    positions: int


class Progress(Protocol):
    """An object that is told how many of the replies there are."""

    def __call__(self, done: int, total: int) -> None:
        """Take note that so many replies of the total are written."""


@dataclass(frozen=True)
class Job:
    """Prompts to answer under one decoding and several seeds, and the JSONL file of the samples.

    A greedy reply is the same for each seed, so only the first seed is used for it.
    """

    prompts: Sequence[Prompt]
    decoding: Decoding
    seeds: Sequence[int]
    path: Path


@dataclass(frozen=True)
class Answers:
    """The samples of a job in the order of its prompts, and why prompts were left out, by name."""

    samples: list[Sample]
    left_out: dict[str, str]


@dataclass(frozen=True)
class _Task:
    """One reply to be written."""

    prompt: Prompt
    seed: int
    turn: int

    @property
    def key(self) -> tuple[str, int, int]:
        return self.prompt.name, self.seed, self.turn


class _State:
    """The state of a job: the samples that it has, and those that it still needs."""

    def __init__(self, job: Job) -> None:
        self.job = job
        job.path.touch()
        _remove_partial_line(job.path)
        self.written = {sample.key: sample for sample in read_samples(job.path)}
        self.left_out: dict[str, str] = {}
        self.seeds = job.seeds[:1] if job.decoding.greedy else job.seeds
        self.total = sum(len(prompt.turns) for prompt in job.prompts) * len(self.seeds)

    def tasks(self, turn: int) -> list[_Task]:
        """Return the replies of one turn that are missing."""
        asked = [
            p for p in self.job.prompts if turn <= len(p.turns) and p.name not in self.left_out
        ]
        tasks = [_Task(prompt, seed, turn) for prompt in asked for seed in self.seeds]
        return [task for task in tasks if task.key not in self.written]

    def add(self, sample: Sample) -> None:
        """Append a sample to the job's file."""
        with self.job.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(sample.to_json(), ensure_ascii=False) + "\n")
        self.written[sample.key] = sample

    def answers(self) -> Answers:
        """Return all samples; a prompt that was left out at a later turn has none at all."""
        order = {prompt.name: index for index, prompt in enumerate(self.job.prompts)}
        samples = sorted(self.written.values(), key=lambda s: (order[s.prompt], s.seed, s.turn))
        return Answers([s for s in samples if s.prompt not in self.left_out], self.left_out)


def write_replies(speaker: Speaker, jobs: Sequence[Job], progress: Progress) -> list[Answers]:
    """Answer the prompts of all jobs together, and return the answers of each job.

    Samples that a job's file already holds are kept, and each new one is appended as soon as its
    reply ends. A turn of a conversation sees the model's own replies to the turns before it. A
    prompt that is too long for the model is left out.
    """
    states = [_State(job) for job in jobs]
    total = sum(state.total for state in states)
    progress(sum(len(state.written) for state in states), total)
    last_turn = max(len(prompt.turns) for job in jobs for prompt in job.prompts)
    for turn in range(1, last_turn + 1):
        for state, sample in _answer(speaker, states, turn):
            state.add(sample)
            progress(sum(len(state.written) for state in states), total)
    return [state.answers() for state in states]


def read_samples(path: Path) -> Iterator[Sample]:
    """Yield the samples of a JSONL file that `write_replies` has written."""
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield Sample.from_json(json.loads(line))


def _remove_partial_line(path: Path) -> None:
    """Remove what a killed evaluation left of a line, so that lines can be appended."""
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(content.rfind(b"\n") + 1)


@dataclass
class _Request:
    """A reply under way: what the engine is asked for, and the tokens that it has given."""

    state: _State
    task: _Task
    messages: list[Message]
    prompt: list[int]
    decoding: Decoding
    most: int  # tokens that the engine may write
    reply: list[int] = field(default_factory=list)


def _answer(
    speaker: Speaker, states: Sequence[_State], turn: int
) -> Iterator[tuple[_State, Sample]]:
    """Yield the missing samples of a turn, each with its job, in the order in which they end."""
    requests = [r for state in states for r in _requests(speaker, state, turn)]
    tokens = speaker.engine.generate(
        [r.prompt for r in requests], [r.decoding.but(max_new_tokens=r.most) for r in requests]
    )
    for index, token in tokens:
        request = requests[index]
        request.reply.append(token)
        if token in speaker.template.end_ids or len(request.reply) == request.most:
            yield request.state, _sample(request, speaker.template)


def _requests(speaker: Speaker, state: _State, turn: int) -> Iterator[_Request]:
    """Yield a request for each reply that a job still needs in a turn."""
    for task in state.tasks(turn):
        decoding, messages = state.job.decoding, _messages(task, state.written)
        try:
            ids = fit_prompt(speaker.template, None, messages, speaker.positions, decoding)
        except ChatError as error:
            state.left_out[task.prompt.name] = str(error)
            continue
        free = speaker.positions - len(ids)
        limit = min(decoding.max_new_tokens, free)
        own = decoding.but(seed=_seed(task), max_new_tokens=limit)
        yield _Request(state, task, messages, ids, own, min(decoding.most_tokens, free))


def _text(reply: list[int], template: Template, decoding: Decoding) -> tuple[str, bool]:
    """Return the text of a reply, and whether it ended before the limit of its decoding.

    Special tokens are spelled out, unless `decoding.finish` leaves out a part of the reply.
    """
    if decoding.finish != "cut":
        *_, finished = finish_reply(reply, template, decoding)
        assert isinstance(finished, Reply)  # it comes after the pieces of text
        return finished.text, finished.finish == "stop"
    stopped = reply[-1] in template.end_ids
    text = template.decode(reply[:-1] if stopped else reply, special=True)
    cuts = [text.index(s) for s in decoding.stop if s in text]
    return text[: min(cuts, default=None)], stopped or bool(cuts)


def _messages(task: _Task, written: dict[tuple[str, int, int], Sample]) -> list[Message]:
    """Return the messages before a reply, with the model's own replies to earlier turns."""
    messages = list(task.prompt.messages)
    for turn, text in enumerate(task.prompt.turns[: task.turn], 1):
        messages.append(Message("user", text))
        if turn < task.turn:
            own = written[task.prompt.name, task.seed, turn].reply
            messages.append(Message("assistant", own))
    return messages


def _sample(request: _Request, template: Template) -> Sample:
    task, prompt = request.task, request.task.prompt
    last = task.turn == len(prompt.turns)
    text, stopped = _text(request.reply, template, request.decoding)
    return Sample(
        prompt=prompt.name,
        kind=prompt.kind,
        turn=task.turn,
        seed=task.seed,
        messages=tuple(request.messages),
        reply=text.strip(),
        tokens=len(request.reply),
        stopped=stopped,
        reference=prompt.reference if last else None,
        required=prompt.required if last else (),
        forbidden=prompt.forbidden if last else (),
    )


def _seed(task: _Task) -> int:
    """Return a seed that depends on the task alone, and not on what is answered beside it."""
    return int.from_bytes(hashlib.sha256(repr(task.key).encode()).digest()[:7])
