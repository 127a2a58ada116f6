"""Score the replies of a tuned starter to the held-out prompts.

Usage: python training/starter/score.py RUN [--half test] [--seeds 0,1,2] [--text TEXTS.json]

The figures are:
- right: share of replies with a word of every required group and no forbidden word;
- stopped: share of replies that end by themselves within 96 tokens;
- markers: share of replies that contain a role name or another sign of a forged turn;
- repeated_4grams: share of the word 4-grams that occur earlier in the same reply;
- own_prompt: share of the first seed's replies (40 of them, spread evenly) that are likelier under
  their own prompt than under nine others;
- perplexity, perplexity_untuned: of the run and of its base, on a JSON list of held-out texts;
- bits_per_byte: of the base on the same texts.

Choose settings on the development half; the test half is for final figures.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bits import bits_per_byte
from chattune import Chatbot
from chattune.device import find_device
from chattune.evaluate.agreement import is_right
from chattune.evaluate.likelihood import own_prompt
from chattune.evaluate.prompts import load_prompts
from chattune.evaluate.replying import Job, Speaker, write_replies
from chattune.models import Loaded, find, load, load_base
from chattune.template import Template
from perplexity import perplexity

MARKER = re.compile(r"(?i)\b(user|assistant|human|bot|question|answer)\s*:|###|<\|")


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
    prompts = [prompt for prompt in load_prompts("starter") if prompt.kind == half]
    speaker = Speaker(bot.engine, bot.template, bot.positions)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(prompts, bot.decoding, seeds, Path(folder) / "samples")
        (answers,) = write_replies(speaker, [job], lambda done, total: None)
    samples = answers.samples
    if show:
        for sample in samples:
            if not is_right(sample):
                print(f"{sample.seed} {sample.question}\n    -> {sample.reply}")
    repeated = [repeats(sample.reply) for sample in samples]
    first = [sample for sample in samples if sample.seed == seeds[0]]
    compared = own_prompt(loaded, first).values()
    shares = {
        "right": [is_right(sample) for sample in samples],
        "stopped": [sample.stopped for sample in samples],
        "markers": [MARKER.search(sample.reply) is not None for sample in samples],
        "own_prompt": [comparison.first for comparison in compared],
    }
    return {
        name: round(sum(map(bool, values)) / len(values), 4) for name, values in shares.items()
    } | {
        "repeated_4grams": round(
            sum(grams for grams, _ in repeated) / max(1, sum(total for _, total in repeated)), 4
        ),
        "prompts": len(prompts),
    }


def repeats(text: str) -> tuple[int, int]:
    """Return how many 4-grams of words occur earlier in the text, and how many there are."""
    words = text.lower().split()
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return len(grams) - len(set(grams)), len(grams)


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
