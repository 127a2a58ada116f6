"""The fast engine: several replies decoded together, each continuing from cached keys and values.

A request takes a slot: one row of the decoder's cache. Requests join and leave at any step, so one
pass over the weights serves all of them (continuous batching: Yu et al. 2022, Orca). A free slot
keeps its cache, and a prompt that begins like it starts there, so the next turn of a chat computes
only what is new.
"""

import random
import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from chattune.errors import ChatError
from chattune.families import Decoder
from chattune.generate.decoding import Decoding
from chattune.generate.sampling import next_token


@dataclass(eq=False)
class _Request:
    """A prompt that is being answered; `ready` holds the tokens that were not yielded yet."""

    prompt: list[int]
    decoding: Decoding
    generator: random.Random
    reply: list[int] = field(default_factory=list)
    ready: deque[int] = field(default_factory=deque)
    done: bool = False


class FastEngine:
    """An engine that generates with a family's decoder; see Engine. Several threads may use it.

    A thread that wants a token and finds none ready computes the next step for everybody. A reply
    does not depend on what is decoded beside it. Without a seed it does depend, by rounding, on how
    much of the cache it could reuse.
    """

    def __init__(self, decoder: Decoder, end_ids: Collection[int]) -> None:
        self.at_once = decoder.slots
        self._decoder = decoder
        self._end_ids = frozenset(end_ids)
        self._in_slot: list[_Request | None] = [None] * decoder.slots
        self._cached: list[list[int]] = [[] for _ in range(decoder.slots)]  # token ids per slot
        self._waiting: deque[_Request] = deque()
        self._lock = threading.Lock()

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding | Sequence[Decoding]
    ) -> Iterator[tuple[int, int]]:
        """Yield (index of prompt, token id); see Engine. Takes one Decoding, or one per prompt.

        Raises ChatError for a prompt that is empty or longer than the model's positions.
        """
        positions = self._decoder.positions
        for prompt in prompts:
            if not 0 < len(prompt) <= positions:
                raise ChatError(
                    f"a prompt of {len(prompt)} tokens; the model takes 1 to {positions}"
                )
        decodings = [decoding] * len(prompts) if isinstance(decoding, Decoding) else decoding
        requests = [
            _Request(list(prompt), settings, random.Random(settings.seed))
            for prompt, settings in zip(prompts, decodings, strict=True)
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
                            self._recover()
                            raise
                    tokens = [(i, r.ready.popleft()) for i, r in enumerate(requests) if r.ready]
                yield from tokens
        finally:
            with self._lock:
                self._withdraw(requests)

    def _withdraw(self, requests: list[_Request]) -> None:
        """Free the slots of requests that nobody reads any more; finished ones have none."""
        for request in requests:
            if request in self._in_slot:
                self._in_slot[self._in_slot.index(request)] = None
            elif request in self._waiting:
                self._waiting.remove(request)

    def _recover(self) -> None:
        """Let all requests wait again after an interrupted step, which left caches half-written."""
        for slot, request in enumerate(self._in_slot):
            if request is not None:
                self._in_slot[slot], self._cached[slot] = None, []
                self._waiting.appendleft(request)

    @torch.inference_mode()
    def _step(self) -> None:
        """Admit waiting prompts to free slots, then compute one token for every slot in use."""
        while self._waiting and None in self._in_slot:
            self._admit()
        busy = [(slot, r) for slot, r in enumerate(self._in_slot) if r is not None]
        if not busy:
            return
        slots = [slot for slot, _ in busy]
        tokens = [r.reply[-1] for _, r in busy]
        lengths = [len(self._cached[slot]) for slot in slots]
        logits = self._decoder.decode(slots, tokens, lengths)
        for (slot, request), row, token in zip(busy, logits, tokens, strict=True):
            self._cached[slot].append(token)
            self._draw(slot, request, row)

    def _admit(self) -> None:
        """Compute the next waiting prompt in a free slot, and draw its first token.

        The slot is the one where reusing its cache saves most: the number of cached tokens that the
        prompt shares, less the number of those that it would overwrite. The prompt's last token is
        always computed, for its logits. A request with a seed reuses nothing: keys that were
        computed one by one are rounded differently from those of a prefill, and the same seed must
        give the same reply.
        """
        request = self._waiting[0]
        tokens = request.prompt + request.reply  # there is a reply after an interrupted step
        reusable = len(tokens) - 1 if request.decoding.seed is None else 0
        free = [slot for slot, other in enumerate(self._in_slot) if other is None]
        shared = {s: min(_common_prefix(self._cached[s], tokens), reusable) for s in free}
        slot = max(free, key=lambda s: shared[s] - (len(self._cached[s]) - shared[s]))
        start = self._decoder.rewind(slot, shared[slot])
        self._in_slot[slot], self._cached[slot] = self._waiting.popleft(), []
        logits = self._decoder.prefill(slot, tokens[start:], start)
        self._cached[slot] = tokens
        self._draw(slot, request, logits)

    def _draw(self, slot: int, request: _Request, logits: torch.Tensor) -> None:
        """Draw a request's next token; free its slot if that was the last one."""
        history = request.prompt + request.reply
        token = next_token(logits.numpy(), request.decoding, history, request.generator.random())
        request.reply.append(token)
        request.ready.append(token)
        at_limit = len(request.reply) >= request.decoding.max_new_tokens
        if at_limit or token in self._end_ids or len(history) + 1 >= self._decoder.positions:
            request.done = True
            self._in_slot[slot] = None


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the longest common prefix."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
