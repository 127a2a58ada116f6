"""How well a tuned starter answers the held-out prompts.

python training/starter/score.py RUN [--half test] [--seeds 0,1,2] [--text TEXTS.json] [--json]

right: share of replies that hold a word of every group they must, and none that they must not.
stopped: share that ended by themselves within 96 tokens. markers: share with a role's name or that
goes on with a next question of its user. repeated_4grams: of all 4-grams of words, those that stood
in the same reply before. own_prompt: share of seed-0 replies likelier under their own prompt than
under nine others'. bits_per_byte: of the untuned base, on a JSON list of held-out texts.

Settings are chosen on the development half; the test half is for final figures.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from bits import bits_per_byte
from chattune import Chatbot
from chattune.conversation import Message
from chattune.device import find_device
from chattune.models import Loaded, find, load, load_base
from chattune.template import Template

MARKER = re.compile(r"(?i)\b(user|assistant|human|bot|question|answer)\s*:|###|<\|")
RIVALS = 9


def main() -> None:
    """Score one run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--half", choices=["development", "test"], default="development")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--temperature", type=float, help="in place of what the run recommends")
    parser.add_argument("--text", type=Path, help="JSON list of texts, for bits_per_byte")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--show", action="store_true", help="print what was wrong")
    given = parser.parse_args()
    bot = Chatbot.load(given.run)
    bot.decoding = bot.decoding.but(max_new_tokens=96)
    if given.temperature is not None:
        bot.decoding = bot.decoding.but(temperature=given.temperature)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    found = score(bot, load(given.run, find_device()), given.half, seeds, given.show)
    if given.text:
        texts = json.loads(given.text.read_text("utf-8"))
        found["bits_per_byte"] = round(base_bits_per_byte(given.run, texts), 4)
    if given.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name:18}{value:8.3f}" for name, value in found.items()))


def score(
    bot: Chatbot, loaded: Loaded, half: str, seeds: Sequence[int], show: bool = False
) -> dict[str, float]:
    """Every figure but bits_per_byte; `loaded` gives the likelihoods of what `bot` says."""
    rows = [
        row
        for line in (Path(__file__).with_name("heldout.jsonl")).read_text("utf-8").splitlines()
        if (row := json.loads(line))["half"] == half
    ]
    talks = [conversation(row["turns"]) for row in rows]
    marks: dict[str, list[bool]] = {"right": [], "stopped": [], "markers": []}
    repeated = grams = 0
    first: list[str] = []
    for seed in seeds:
        decoding = bot.decoding.but(seed=seed)
        for row, talk in zip(rows, talks, strict=True):
            reply = bot.fresh(messages=talk[:-1]).reply(talk[-1].content, decoding)
            right = is_right(reply.text, row["must"], row["must_not"])
            if show and not right:
                print(f"{seed} {row['turns'][-1]}\n    -> {reply.text}")
            marks["right"].append(right)
            marks["stopped"].append(reply.finish == "stop")
            marks["markers"].append(MARKER.search(reply.text) is not None)
            again, every = repeats(reply.text)
            repeated, grams = repeated + again, grams + every
            if seed == seeds[0]:
                first.append(reply.text)
    shares = {name: round(sum(values) / len(values), 4) for name, values in marks.items()}
    return shares | {
        "repeated_4grams": round(repeated / max(1, grams), 4),
        "own_prompt": round(own_prompt(loaded, talks, first), 4),
        "prompts": len(rows),
    }


def conversation(turns: Sequence[str]) -> list[Message]:
    """User and assistant in turn."""
    return [Message("assistant" if i % 2 else "user", t) for i, t in enumerate(turns)]


def is_right(reply: str, must: list[list[str]], must_not: list[str]) -> bool:
    """Whole words, whatever their case."""
    return all(any(holds(reply, word) for word in group) for group in must) and not any(
        holds(reply, word) for word in must_not
    )


def holds(reply: str, words: str) -> bool:
    """Whether the words stand in the reply."""
    return re.search(rf"(?i)(?<![\w-]){re.escape(words)}(?![\w-])", reply) is not None


def repeats(text: str) -> tuple[int, int]:
    """4-grams that stood before, and all."""
    words = text.lower().split()
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return len(grams) - len(set(grams)), len(grams)


@torch.inference_mode()
def own_prompt(loaded: Loaded, talks: list[list[Message]], replies: list[str]) -> float:
    """Share of replies that no other of ten prompts makes likelier."""
    prompts = [loaded.template.prompt(talk) for talk in talks]
    won = 0
    for i, reply in enumerate(replies):
        rivals = [(i + 1 + k * 13) % len(prompts) for k in range(RIVALS)]
        words = loaded.template.words(reply) or [next(iter(loaded.template.end_ids))]
        own, *others = (nats(loaded, prompts[j], words) for j in (i, *rivals))
        won += own < min(others)
    return won / len(replies)


def nats(loaded: Loaded, prompt: list[int], words: list[int]) -> float:
    """Of the words after the prompt."""
    ids = torch.tensor([[*prompt, *words]], device=loaded.model.device)[:, -loaded.positions :]
    logits = loaded.model(ids).logits[0, -len(words) - 1 : -1]
    return cross_entropy(logits.float(), ids[0, -len(words) :], reduction="sum").item()


def base_bits_per_byte(run: str, texts: list[str]) -> float:
    """Of the run's base without its adapter."""
    base, _ = find(run)
    tokenizer = Template.load(base.folder).tokenizer
    end = tokenizer.eos_token_id
    ids = [token for text in texts for token in (*tokenizer.encode(text), end)]
    n_bytes = sum(len(text.encode()) for text in texts)
    return bits_per_byte(load_base(base, find_device()), ids, n_bytes, end)


if __name__ == "__main__":
    main()
