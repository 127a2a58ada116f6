"""The fast engine: GPT-Neo decoding several prompts together, each from where it last was.

A request takes a slot: a row of the key and value cache. Slots join and leave at any step, so a
step is one pass over the weights for all of them (continuous batching, Yu et al. 2022, Orca). A
slot that is free keeps its cache; a prompt that begins as one of them begins there, so the next
turn of a chat computes only what is new.
"""

import random
import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from chattune.errors import ChatError
from chattune.generate.decoding import Decoding
from chattune.generate.gpt_neo import GptNeo
from chattune.generate.sampling import next_token
from chattune.models.gpt_neo_weights import GptNeoWeights

_SLOTS = 8


@dataclass(eq=False)
class _Request:
    """A prompt that is being answered; `ready` holds the tokens that nobody has fetched yet."""

    prompt: list[int]
    decoding: Decoding
    random: random.Random
    reply: list[int] = field(default_factory=list)
    ready: deque[int] = field(default_factory=deque)
    done: bool = False


class FastEngine:
    """Generates with GPT-Neo weights; see Engine. May be used from several threads at once.

    Whoever asks for a token and finds none ready computes the next step for everybody. A reply does
    not depend on who else is being answered; on keys that it reuses it does, by rounding.
    """

    def __init__(
        self,
        weights: GptNeoWeights,
        end_ids: Collection[int],
        *,
        bf16: bool = True,
        slots: int = _SLOTS,
    ) -> None:
        """`bf16` says whether this machine multiplies bf16 fast."""
        self.at_once = slots
        self._model = GptNeo(weights, slots, bf16=bf16)
        self._end_ids = frozenset(end_ids)
        self._slots: list[_Request | None] = [None] * slots
        self._cached: list[list[int]] = [[] for _ in range(slots)]  # ids whose keys are in the slot
        self._waiting: deque[_Request] = deque()
        self._lock = threading.Lock()

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding | Sequence[Decoding]
    ) -> Iterator[tuple[int, int]]:
        """Yield (index of prompt, token id); see Engine. One decoding for all, or one for each.

        Raises ChatError for a prompt that is empty or longer than the model's positions.
        """
        most = self._model.positions
        for prompt in prompts:
            if not 0 < len(prompt) <= most:
                raise ChatError(f"a prompt of {len(prompt)} tokens; the model takes 1 to {most}")
        each = [decoding] * len(prompts) if isinstance(decoding, Decoding) else decoding
        requests = [
            _Request(list(prompt), settings, random.Random(settings.seed))
            for prompt, settings in zip(prompts, each, strict=True)
        ]
        with self._lock:
            self._waiting.extend(requests)
        try:
            while not all(r.done and not r.ready for r in requests):
                with self._lock:
                    if not any(r.ready for r in requests):
                        try:
                            self._step()
                        except BaseException:
                            self._start_again()
                            raise
                    fresh = [(i, r.ready.popleft()) for i, r in enumerate(requests) if r.ready]
                yield from fresh
        finally:
            with self._lock:
                self._forget(requests)

    def _forget(self, requests: list[_Request]) -> None:
        """Free the slots of requests whose caller went away; those that are done have none."""
        for request in requests:
            if request in self._slots:
                self._slots[self._slots.index(request)] = None
            elif request in self._waiting:
                self._waiting.remove(request)

    def _start_again(self) -> None:
        """After a step that broke off: what is in the slots may be half a step, so none is kept."""
        for slot, request in enumerate(self._slots):
            if request is not None:
                self._slots[slot], self._cached[slot] = None, []
                self._waiting.appendleft(request)

    @torch.inference_mode()
    def _step(self) -> None:
        """Let waiting prompts in, then one token for every slot that is in use."""
        while self._waiting and None in self._slots:
            self._admit()
        busy = [(slot, r) for slot, r in enumerate(self._slots) if r is not None]
        if not busy:
            return
        rows = [slot for slot, _ in busy]
        last = [r.reply[-1] for _, r in busy]
        logits = self._model.decode(rows, last, [len(self._cached[slot]) for slot in rows])
        for (slot, request), row, token in zip(busy, logits, last, strict=True):
            self._cached[slot].append(token)
            self._take(slot, request, row)

    def _admit(self) -> None:
        """Prefill the next prompt into a free slot, and draw its next token.

        The slot is the one where most is gained: keys that it shares, less those it would lose. Its
        last token is computed in any case, for the logits. With a seed nothing is reused: keys that
        came from single steps are rounded otherwise than those of a prefill, and the same seed is
        to give the same reply.
        """
        request = self._waiting[0]
        tokens = request.prompt + request.reply  # a reply is there if a step broke off
        reuse = len(tokens) - 1 if request.decoding.seed is None else 0
        free = [slot for slot, used in enumerate(self._slots) if used is None]
        shared = {s: min(_common(self._cached[s], tokens), reuse) for s in free}
        slot = max(free, key=lambda s: 2 * shared[s] - len(self._cached[s]))
        start = self._model.rewind(slot, shared[slot])
        self._slots[slot], self._cached[slot] = self._waiting.popleft(), []
        logits = self._model.prefill(slot, tokens[start:], start)
        self._cached[slot] = tokens
        self._take(slot, request, logits)

    def _take(self, slot: int, request: _Request, logits: torch.Tensor) -> None:
        """Draw a request's next token; free the slot if it was the last."""
        history = request.prompt + request.reply
        token = next_token(logits.numpy(), request.decoding, history, request.random.random())
        request.reply.append(token)
        request.ready.append(token)
        full = len(request.reply) >= request.decoding.max_new_tokens
        if full or token in self._end_ids or len(history) + 1 >= self._model.positions:
            request.done = True
            self._slots[slot] = None


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
