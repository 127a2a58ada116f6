"""Made-up evaluations, whose replies fail in known places, and a sweep, findings and losses."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from chattune.conversation import Message
from chattune.evaluate import Evaluation, Judged, Sample
from chattune.evaluate.intervals import mean, rate
from chattune.evaluate.prompts import Prompt, hash_of, load_prompts
from chattune.evaluate.scores import score
from chattune.evaluate.sweeping import Cell, Sweep

MEASURED = (
    "not_stopping", "unfinished", "self_talk", "repetition", "echo", "template", "empty", "language"
)  # fmt: skip

_SENTENCES = """
It depends on what you want to do with it, but a simple start is often the best one.
Begin with a short list of the things that matter most to you, and leave the rest for later.
Water expands when it freezes, which is why a full bottle may burst in the cold.
The castle stood on a hill, so that its guards could see who came along the road.
Try to do a little every day, because small steps are easier to keep than large ones.
Most people sleep better in a dark and quiet room that is not too warm.
The old keeper turned the letter over twice before he dared to open it.
You could ask a friend to join you, since it is harder to give up in company.
Prices rise, and the same money buys less bread than it did a year ago.
If it still hurts after a week, it would be wise to see a doctor.
A fridge moves heat from the inside to the outside with the help of a pump.
I would say it kindly, once, and at a time when neither of you is in a hurry.
""".strip().splitlines()


@dataclass(frozen=True)
class MadeFinding:
    title: str
    evidence: list[str]
    place: str
    remedy: str
    command: str | None = None


FINDING = MadeFinding(
    "The conversations end without an end token",
    ["In 412 of 2,000 training replies the end token is missing.", "It stops in 61 of 97 replies."],
    "data.max_length",
    "Raise data.max_length, so that fewer replies are cut before their end.",
    "chattune tune smollm2 --set data.max_length=512",
)


def judged(
    reply: str,
    failures: dict[str, list[tuple[int, int]]] | None = None,
    *,
    question: str = "What is a comet?",
    prompt: str = "general/knowledge-1",
    kind: str = "knowledge",
    seed: int = 0,
    before: tuple[Message, ...] = (),
    required: tuple[tuple[str, ...], ...] = (),
    reference: str | None = None,
) -> Judged:
    """Return one judged reply to the first turn of a prompt."""
    return Judged(
        Sample(
            prompt=prompt,
            kind=kind,
            turn=1,
            seed=seed,
            messages=(*before, Message("user", question)),
            reply=reply,
            tokens=len(reply.split()),
            stopped="not_stopping" not in (failures or {}),
            reference=reference,
            required=required,
        ),
        failures or {},
    )


def evaluation(
    label: str,
    replies: list[Judged],
    *,
    temperature: float = 0.9,
    folder: Path = Path("runs/made"),
    not_measured: dict[str, str] | None = None,
    left_out: dict[str, str] | None = None,
) -> Evaluation:
    """Return an evaluation of these replies, with figures computed as evaluate() does it."""
    not_measured = not_measured or {}
    # Self-BLEU takes seconds, and no test here needs its value.
    with patch("chattune.evaluate.diversity.self_bleu", return_value=0.2):
        figures = score(replies, [name for name in MEASURED if name not in not_measured])
    prompts = [Prompt(j.sample.prompt, j.sample.kind, (j.sample.question,)) for j in replies]
    scores = {
        "chattune": "0.1.0",
        "label": label,
        "model": {
            "name": str(folder),
            "kind": "run",
            "base": {"name": "smollm2", "fingerprint": "5f0c" * 16},
            "adapter": "a1b2" * 16,
        },
        "engine": "fast, int8",
        "template": "77aa" * 16,
        "prompts": {"general": {"prompts": len(prompts), "sha256": hash_of(prompts)}},
        "decoding": {"temperature": temperature, "top_k": 30, "top_p": 0.95, "stop": []},
        "seeds": 1,
        "left_out": left_out or {},
        "not_measured": not_measured,
        **figures,
    }
    return Evaluation(folder, scores, replies)


def realistic(label: str, failing: dict[str, float], **options: object) -> Evaluation:
    """Return an evaluation on the shipped general prompts, in which so large shares fail."""
    chance = random.Random(label)
    replies = []
    for prompt in load_prompts("general"):
        messages = prompt.messages
        for turn, question in enumerate(prompt.turns, 1):
            messages = (*messages, Message("user", question))
            likelier = {name: p * (0.6 + 0.4 * turn) for name, p in failing.items()}
            reply, failures = _reply(question, likelier, chance)
            replies.append(_judged(prompt, turn, messages, reply, failures, chance))
            messages = (*messages, Message("assistant", reply))
    return evaluation(label, replies, **options)  # type: ignore[arg-type]


def sweep() -> Sweep:
    """Return a sweep of nine cells: what repeats less depends less on its prompt."""
    chance = random.Random(0)
    cells = []
    for temperature in (0.1, 0.5, 0.9):
        for top_p in (0.9, 0.95, 0.99):
            heat = temperature * top_p
            halves = [
                {
                    "any_failure": rate([[chance.random() < 0.3] for _ in range(40)]),
                    "repetition": rate([[chance.random() < 0.5 - heat / 2] for _ in range(40)]),
                    "seq_rep_4": mean([[0.3 - heat / 4 + chance.random() / 9] for _ in range(9)]),
                    "own_prompt_nats": mean([[1.5 - heat + chance.random()] for _ in range(9)]),
                    "own_prompt_first": rate([[chance.random() < 0.8] for _ in range(9)]),
                }
                for _ in range(2)
            ]
            cells.append(Cell({"temperature": temperature, "top_p": top_p}, *halves))
    return Sweep(["temperature", "top_p"], cells, 4, [1, 4, 8])


def write_metrics(folder: Path, steps: int = 300) -> None:
    """Write a metrics.jsonl with a falling loss and a validation every 50 steps."""
    chance = random.Random(0)
    lines = []
    for step in range(1, steps + 1):
        loss = 1.4 + 1.8 / (1 + step / 30)
        lines.append({"step": step, "loss": loss + chance.gauss(0, 0.12)})
        if step % 50 == 0:
            lines.append({"step": step, "validation_loss": loss + 0.1})
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, "utf-8")


def _reply(
    question: str, failing: dict[str, float], chance: random.Random
) -> tuple[str, dict[str, list[tuple[int, int]]]]:
    """Return a reply and the spans of the failures that were put into it."""
    text = " ".join(chance.sample(_SENTENCES, chance.randint(1, 5)))
    failures = {}
    for name, share in failing.items():
        if chance.random() < share:
            text, span = _spoilt(name, text, question)
            failures[name] = [span]
            break
    return text, failures


def _spoilt(name: str, text: str, question: str) -> tuple[str, tuple[int, int]]:
    """Put a failure into a reply; return it with the span of the failure."""
    if name == "empty":
        return "", (0, 0)
    if name == "template":
        opening = "I'm sorry, but as a language model I have no opinion on that."
        return f"{opening} {text}", (0, len(opening))
    if name == "language":
        german = "Das kommt darauf an, was du damit vorhast. Fang am besten klein an."
        return german, (0, len(german))
    if name == "echo":
        return f"{question}\n\n{text}", (0, len(question))
    added = {
        "repetition": " It is a good idea to start small." * 5,
        "self_talk": "\n\n### Human: And what else?\n### Assistant: There is one more thing.",
        "not_stopping": " And then there is one more thing to say about it, which is that the",
        "unfinished": " The second reason for it is that the",
    }[name]
    return text + added, (len(text), len(text + added))


def _judged(
    prompt: Prompt,
    turn: int,
    messages: tuple[Message, ...],
    reply: str,
    failures: dict[str, list[tuple[int, int]]],
    chance: random.Random,
) -> Judged:
    last = turn == len(prompt.turns)
    if last and prompt.required and chance.random() < 0.6 and not failures:
        reply = f"It is {', '.join(group[0].capitalize() for group in prompt.required)}. {reply}"
    sample = Sample(
        prompt.name,
        prompt.kind,
        turn,
        0,
        messages,
        reply,
        tokens=len(reply.split()) * 4 // 3,
        stopped="not_stopping" not in failures,
        required=prompt.required if last else (),
    )
    own = {"first": chance.random() < 0.8, "nats": chance.random() * 2}
    nats = {"nats": 60 + 20 * chance.random(), "tokens": 30, "text_nats": 60.0, "bytes": 140}
    return Judged(sample, failures, likelihood=nats, own_prompt=own)
