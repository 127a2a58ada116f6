"""Score the replies of a tuned starter to the held-out prompts.

Usage: python training/starter/score.py RUN [--half test] [--seeds 0,1,2] [--text TEXTS.json]

The figures are:
- right: share of replies with a word of every required group and no forbidden word;
- stopped: share of replies that end by themselves within 96 tokens;
- markers: share of replies that contain a role name or another sign of a forged turn;
- repeated_4grams: share of the word 4-grams that occur earlier in the same reply;
- own_prompt: share of the first seed's replies that are likelier under their own prompt than under
  nine others;
- perplexity, perplexity_untuned: of the run and of its base, on a JSON list of held-out texts;
- bits_per_byte: of the base on the same texts.

Choose settings on the development half; the test half is for final figures.
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
from chattune.generate.reply import Reply, read_reply
from chattune.models import Loaded, find, load, load_base
from chattune.template import Template
from perplexity import perplexity

MARKER = re.compile(r"(?i)\b(user|assistant|human|bot|question|answer)\s*:|###|<\|")
RIVALS = 9  # other prompts that a reply is compared under


def main() -> None:
    """Score the run that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--half", choices=["development", "test"], default="development")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--temperature", type=float, help="instead of the temperature that the run recommends"
    )
    parser.add_argument("--text", type=Path, help="JSON list of texts, for perplexity and bits")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--show", action="store_true", help="print the replies that are not right")
    args = parser.parse_args()
    bot = Chatbot.load(args.run)
    bot.decoding = bot.decoding.but(max_new_tokens=96)
    if args.temperature is not None:
        bot.decoding = bot.decoding.but(temperature=args.temperature)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    loaded = load(args.run, find_device())
    figures = score(bot, loaded, args.half, seeds, args.show)
    if args.text:
        figures |= on_texts(args.run, loaded, json.loads(args.text.read_text("utf-8")))
    if args.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:18}{value:8.3f}" for name, value in figures.items()))


def score(
    bot: Chatbot, loaded: Loaded, half: str, seeds: Sequence[int], show: bool = False
) -> dict[str, float]:
    """Return every figure except those of texts, averaged over the seeds.

    `bot` writes the replies, and `loaded` is the same model for computing their likelihood.
    """
    lines = Path(__file__).with_name("heldout.jsonl").read_text("utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["half"] == half]
    talks = [conversation(row["turns"]) for row in rows]
    outcomes: dict[str, list[bool]] = {"right": [], "stopped": [], "markers": []}
    repeated = total = 0
    first_replies: list[str] = []
    for seed in seeds:
        for row, reply in zip(rows, answers(bot, talks, seed), strict=True):
            right = is_right(reply.text, row["must"], row["must_not"])
            if show and not right:
                print(f"{seed} {row['turns'][-1]}\n    -> {reply.text}")
            outcomes["right"].append(right)
            outcomes["stopped"].append(reply.finish == "stop")
            outcomes["markers"].append(MARKER.search(reply.text) is not None)
            repeated_grams, grams = repeats(reply.text)
            repeated, total = repeated + repeated_grams, total + grams
            if seed == seeds[0]:
                first_replies.append(reply.text)
    shares = {name: round(sum(values) / len(values), 4) for name, values in outcomes.items()}
    return shares | {
        "repeated_4grams": round(repeated / max(1, total), 4),
        "own_prompt": round(own_prompt(loaded, talks, first_replies), 4),
        "prompts": len(rows),
    }


def conversation(turns: Sequence[str]) -> list[Message]:
    """Return messages of user and assistant in turn, beginning with the user."""
    return [Message("assistant" if i % 2 else "user", t) for i, t in enumerate(turns)]


def answers(bot: Chatbot, talks: list[list[Message]], seed: int) -> list[Reply]:
    """Return the reply to the last message of each talk; the engine decodes them together."""
    prompts = [bot.template.prompt(talk) for talk in talks]
    tokens: list[list[int]] = [[] for _ in prompts]
    for index, token in bot.engine.generate(prompts, bot.decoding.but(seed=seed)):
        tokens[index].append(token)
    replies = (list(read_reply(ids, bot.template, bot.decoding.stop))[-1] for ids in tokens)
    return [reply for reply in replies if isinstance(reply, Reply)]


def is_right(reply: str, must: list[list[str]], must_not: list[str]) -> bool:
    """Return whether the reply contains a word of every group in `must` and none of `must_not`."""
    return all(any(contains(reply, word) for word in group) for group in must) and not any(
        contains(reply, word) for word in must_not
    )


def contains(reply: str, words: str) -> bool:
    """Return whether the reply contains the words as whole words, in upper or lower case."""
    return re.search(rf"(?i)(?<![\w-]){re.escape(words)}(?![\w-])", reply) is not None


def repeats(text: str) -> tuple[int, int]:
    """Return how many 4-grams of words occur earlier in the text, and how many there are."""
    words = text.lower().split()
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return len(grams) - len(set(grams)), len(grams)


@torch.inference_mode()
def own_prompt(loaded: Loaded, talks: list[list[Message]], replies: list[str]) -> float:
    """Return the share of replies that are likelier under their own prompt than under RIVALS."""
    prompts = [loaded.template.prompt(talk) for talk in talks]
    likeliest = 0
    for i, reply in enumerate(replies):
        rivals = [(i + 1 + k * 13) % len(prompts) for k in range(RIVALS)]
        ids = loaded.template.encode(reply) or [next(iter(loaded.template.end_ids))]
        own, *others = (nats(loaded, prompts[j], ids) for j in (i, *rivals))
        likeliest += own < min(others)
    return likeliest / len(replies)


def nats(loaded: Loaded, prompt: list[int], reply: list[int]) -> float:
    """Return the negative log-likelihood of the reply's tokens after the prompt, in nats."""
    ids = torch.tensor([[*prompt, *reply]], device=loaded.model.device)[:, -loaded.positions :]
    logits = loaded.model(ids).logits[0, -len(reply) - 1 : -1]
    return cross_entropy(logits.float(), ids[0, -len(reply) :], reduction="sum").item()


def on_texts(run: str, loaded: Loaded, texts: list[str]) -> dict[str, float]:
    """Return the perplexity of a run and of its base, and the base's bits per byte, on the texts.

    For a base alone, both perplexities are its own.
    """
    base, _ = find(run)
    untuned = load_base(base, find_device())
    tokenizer = Template.load(base.folder).tokenizer
    end = tokenizer.eos_token_id
    ids = [tokenizer.encode(text) for text in texts]
    stream = [token for text in ids for token in (*text, end)]
    n_bytes = sum(len(text.encode()) for text in texts)
    return {
        "perplexity": round(perplexity(loaded.model, ids, end), 3),
        "perplexity_untuned": round(perplexity(untuned, ids, end), 3),
        "bits_per_byte": round(bits_per_byte(untuned, stream, n_bytes, end), 4),
    }


if __name__ == "__main__":
    main()
