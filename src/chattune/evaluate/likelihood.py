"""The likelihood that a model gives to replies, and whether a reply depends on its prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn.functional import cross_entropy

from chattune.conversation import Conversation, Message
from chattune.evaluate.sample import Sample
from chattune.models import Loaded
from chattune.models.packing import causal_model, speed_up_training
from chattune.template import Template

RIVALS = 9  # other prompts, or other replies, that each is compared with
_COMPARED = 40  # samples that are compared with rivals, which takes ten passes for each
_COMPARED_TOKENS = 48  # of a reply that is compared
_PACK = 4096  # tokens that are computed together

# The ids of a prompt and those of what follows it, whose likelihood is wanted.
Scored = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of one reference reply after its prompt.

    `nats` is its negative log-likelihood with the end token, where the template writes one, and
    `tokens` their number. `text_nats` leaves out the end token, and `bytes` is the text in UTF-8.
    """

    nats: float
    tokens: int
    text_nats: float
    bytes: int


@dataclass(frozen=True)
class Comparison:
    """The log-likelihood of a pair of prompt and reply beside those of nine rivals.

    `first` says whether the pair's is the highest of the ten, `nats` how much higher it is than the
    mean of the rivals, in nats per token of the reply.
    """

    first: bool
    nats: float


def likelihoods(loaded: Loaded, samples: Sequence[Sample]) -> list[Likelihood]:
    """Return the likelihood of each sample's reference; every sample must have one."""
    pairs = [(_prompt(loaded, s), _reply_ids(loaded.template, s)) for s in samples]
    found = []
    for sample, (_, ids), nats in zip(samples, pairs, nats_of_tokens(loaded, pairs), strict=True):
        text = nats[:-1] if ids[-1] in loaded.template.end_ids else nats
        size = len((sample.reference or "").strip().encode())
        found.append(Likelihood(float(nats.sum()), len(nats), float(text.sum()), size))
    return found


def own_prompt(
    loaded: Loaded,
    samples: Sequence[Sample],
    *,
    compared: int = _COMPARED,
    tokens: int = _COMPARED_TOKENS,
) -> dict[int, Comparison]:
    """Compare each reply's likelihood after its own prompt and after nine other prompts.

    A model whose replies do not depend on their prompts gets 0.1 first places and 0 nats. At most
    so many samples, spread evenly, are `compared`, and so many `tokens` of each reply. The keys of
    the result are their indices. Nothing is compared if there are fewer than ten samples.
    """
    chosen = _spread([i for i, s in enumerate(samples) if s.reply], compared)
    if len(chosen) <= RIVALS:
        return {}
    prompts = [_prompt(loaded, samples[i]) for i in chosen]
    replies = [loaded.template.encode(samples[i].reply)[:tokens] for i in chosen]
    pairs = [[(prompts[j], replies[i]) for j in _and_rivals(i, chosen)] for i in range(len(chosen))]
    return dict(zip(chosen, _compare(loaded, pairs), strict=True))


def own_reply(loaded: Loaded, samples: Sequence[Sample]) -> dict[int, Comparison]:
    """Compare the likelihood of each reference with those of nine others, after the same prompt.

    The log-likelihoods are divided by the replies' numbers of tokens, because longer replies are
    less likely. This is hits@1 of ConvAI2 (Dinan et al. 2019), with ten candidates; see
    `own_prompt` for what is compared.
    """
    chosen = _spread([i for i, s in enumerate(samples) if s.reference], _COMPARED)
    if len(chosen) <= RIVALS:
        return {}
    prompts = [_prompt(loaded, samples[i]) for i in chosen]
    replies = [_reply_ids(loaded.template, samples[i])[:_COMPARED_TOKENS] for i in chosen]
    pairs = [[(prompts[i], replies[j]) for j in _and_rivals(i, chosen)] for i in range(len(chosen))]
    return dict(zip(chosen, _compare(loaded, pairs), strict=True))


@torch.inference_mode()
def nats_of_tokens(loaded: Loaded, pairs: Sequence[Scored]) -> list[torch.Tensor]:
    """Return for each pair the negative log-likelihood of each token of its second part, in nats.

    The tensors (tokens) are fp32 and on the CPU. A prompt loses its beginning where both parts
    together have more tokens than the model sees.
    """
    rows = [[*prompt, *rest][-loaded.positions :] for prompt, rest in pairs]
    found = [torch.zeros(0)] * len(pairs)
    packing = speed_up_training(loaded.model, longest=max(map(len, rows), default=1))
    model = causal_model(loaded.model)
    for pack in _packs(rows, alone=packing.problem is not None):
        lengths = [len(rows[i]) for i in pack]
        ids = torch.tensor([token for i in pack for token in rows[i]], device=model.device)
        starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
        wanted = [
            torch.arange(end - min(len(pairs[i][1]), end - start - 1), end)
            for i, (start, end) in zip(pack, pairwise(starts), strict=True)
        ]
        positions = torch.cat(wanted).to(model.device)
        arguments = packing.arguments(lengths, model.device)
        # The logits at a position are those of the token after it.
        logits = model(
            ids[None], use_cache=False, logits_to_keep=positions - 1, **arguments
        ).logits[0]
        nats = cross_entropy(logits.float(), ids[positions], reduction="none").cpu()
        for i, part in zip(pack, torch.split(nats, [len(w) for w in wanted]), strict=True):
            found[i] = part
    return found


def _compare(loaded: Loaded, pairs: Sequence[Sequence[Scored]]) -> Iterator[Comparison]:
    """Compare the first pair of each group with the others of the group."""
    flat = [pair for group in pairs for pair in group]
    means = iter([-float(nats.mean()) for nats in nats_of_tokens(loaded, flat)])
    for group in pairs:
        own, *rivals = (next(means) for _ in group)
        yield Comparison(own > max(rivals), own - sum(rivals) / len(rivals))


def _and_rivals(index: int, chosen: Sequence[int]) -> list[int]:
    """Return the index and those of nine others, evenly spread over all."""
    others = [j for j in range(len(chosen)) if j != index]
    return [index, *_spread(others, RIVALS)]


def _spread(values: Sequence[int], count: int) -> list[int]:
    """Return at most `count` of the values, at even distances."""
    if len(values) <= count:
        return list(values)
    return [values[i * len(values) // count] for i in range(count)]


def _prompt(loaded: Loaded, sample: Sample) -> list[int]:
    return loaded.template.prompt(sample.messages)


def _reply_ids(template: Template, sample: Sample) -> list[int]:
    """Return the supervised ids of the reference, as a training on it would have them."""
    messages = (*sample.messages, Message("assistant", sample.reference or ""))
    rendered = template.render(Conversation(messages))
    start = len(template.prompt(sample.messages))
    rest = zip(rendered.ids[start:], rendered.supervised[start:], strict=True)
    return [token for token, supervised in rest if supervised]


def _packs(rows: Sequence[Sequence[int]], *, alone: bool) -> Iterator[list[int]]:
    """Yield the indices of rows that are computed together, the longest first."""
    pack: list[int] = []
    tokens = 0
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        if pack and (alone or tokens + len(rows[i]) > _PACK):
            yield pack
            pack, tokens = [], 0
        pack.append(i)
        tokens += len(rows[i])
    if pack:
        yield pack
