"""The one renderer: a conversation to ids and reply mask, a prompt to ids.

Training, evaluation, chat and the server all turn words into tokens here. The base's Jinja chat
template (or ours, for a base that has none) is rendered with empty slots where the words go. What
lies between the slots is tokenised with special tokens on, once for each sequence of roles; the
words are tokenised with special tokens off. So no text can make a boundary, and training and
chatting cannot differ.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chattune.conversation import Conversation, Message, Role
from chattune.errors import BaseError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# A turn is the end token, a role header and the words. The end token after a reply belongs to the
# reply (the model writes it), and opens the next turn. The header ends in a newline, which
# byte-level BPE never merges with a word after it.
CHAT_TEMPLATE = """\
{%- set heads = {'system': '### System:\\n', 'user': '### Human:\\n', \
'assistant': '### Assistant:\\n'} -%}
{%- set ns = namespace(open=false) -%}
{%- for message in messages -%}
{%- if not ns.open -%}{{- eos_token -}}{%- endif -%}
{{- heads[message['role']] -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] | trim -}}{{- eos_token -}}{%- endgeneration -%}
{%- set ns.open = true -%}
{%- else -%}
{{- message['content'] | trim -}}
{%- set ns.open = false -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{%- if not ns.open -%}{{- eos_token -}}{%- endif -%}
{{- heads['assistant'] -}}
{%- endif -%}
"""

# Slots are marked with private-use characters; the words themselves never pass through Jinja.
_OPEN, _CLOSE = "\ue000", "\ue001"
_PROBE = Conversation.of(
    ("user", "How far is it?"), ("assistant", "Two miles."), ("user", "And back?")
)
IGNORED_LABEL = -100  # the label that PyTorch's cross entropy leaves out
_BATCH, _BATCH_TEXT = 1000, 1_000_000  # conversations and characters tokenised at once


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids, and for each whether the loss covers it; both of the same length."""

    ids: list[int]
    supervised: list[bool]

    @property
    def labels(self) -> list[int]:
        """The ids where the loss covers them, IGNORED_LABEL elsewhere."""
        return [
            token if covered else IGNORED_LABEL
            for token, covered in zip(self.ids, self.supervised, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _Skeleton:
    """What the template writes around the words: one gap before each slot, one after the last."""

    gaps: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]  # how many ids of gap i belong to the reply in slot i - 1


class Template:
    """Renders conversations for one tokenizer.

    Raises BaseError for a tokenizer without an end token, and for a chat template that drops or
    repeats a message, or closes a reply with no special token: a model tuned on it could not stop.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        if not tokenizer.is_fast:
            raise BaseError(f"{tokenizer.name_or_path}: chattune needs a tokenizer.json")
        if tokenizer.eos_token_id is None:
            raise BaseError(f"{tokenizer.name_or_path}: its tokenizer has no end token (eos_token)")
        if not tokenizer.chat_template:
            tokenizer.chat_template = CHAT_TEMPLATE
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._special = frozenset(tokenizer.all_special_ids) | {
            i for i in added if added[i].special
        }
        # A copy of its own: the flag is state, and a server encodes from several threads. Every
        # added token counts as special in it, for some templates' markers are not marked so.
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        for token in backend["added_tokens"]:
            token["special"] = True
        self._words = type(tokenizer.backend_tokenizer).from_str(json.dumps(backend))
        self._words.encode_special_tokens = True
        self._words.no_padding()
        self._words.no_truncation()
        self._skeleton = functools.lru_cache(maxsize=256)(self._build_skeleton)
        self._refuse_unlike_other_tools()

    @classmethod
    def load(cls, folder: Path) -> "Template":
        """Read the tokenizer in `folder`; give it our chat template if it has none."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # transformers raises many kinds for a damaged tokenizer
            raise BaseError(
                f"{folder}: its tokenizer cannot be loaded ({first_line(error)})"
            ) from error
        return cls(tokenizer)

    def render(self, conversation: Conversation) -> Rendered:
        """Tokens of a conversation; supervised are each reply's words and their end token."""
        return next(self.render_many([conversation]))

    def render_many(self, conversations: Iterable[Conversation]) -> Iterator[Rendered]:
        """Render in order, tokenising many conversations at a time."""
        for batch in _batches(conversations):
            words = iter(self._encode([m.content for c in batch for m in c.messages]))
            for conversation in batch:
                yield self._join(conversation.roles, [next(words) for _ in conversation.messages])

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids that the model answers: exactly what stands before the reply in training."""
        roles: tuple[Role, ...] = (*(m.role for m in messages), "assistant")
        words = [*self._encode([m.content for m in messages]), []]
        whole = self._join(roles, words).ids
        return whole[: len(whole) - len(self._skeleton(roles).gaps[-1])]

    def words(self, text: str) -> list[int]:
        """Ids of plain words: whatever they spell, no special token is among them."""
        return self._encode([text])[0]

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of ids, without special tokens unless asked for, spaces left as they are."""
        return str(
            self.tokenizer.decode(
                ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False
            )
        )

    @functools.cached_property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a reply."""
        skeleton = self._skeleton(("user", "assistant"))
        closing = skeleton.gaps[-1][skeleton.ends[-1] - 1]
        return frozenset({closing, int(self.tokenizer.eos_token_id)})

    def _encode(self, texts: list[str]) -> list[list[int]]:
        encoded = self._words.encode_batch_fast(
            # Half a surrogate pair, as a terminal may send one, is no text: it becomes "?".
            [text.strip().encode("utf-8", "replace").decode() for text in texts],
            add_special_tokens=False,
        )
        return [encoding.ids for encoding in encoded]

    def _join(self, roles: tuple[Role, ...], words: list[list[int]]) -> Rendered:
        skeleton = self._skeleton(roles)
        ids: list[int] = []
        supervised: list[bool] = []
        for i, gap in enumerate(skeleton.gaps):
            ids += gap
            supervised += [j < skeleton.ends[i] for j in range(len(gap))]
            if i < len(words):
                ids += words[i]
                supervised += [roles[i] == "assistant"] * len(words[i])
        return Rendered(ids, supervised)

    def _build_skeleton(self, roles: tuple[Role, ...]) -> _Skeleton:
        slots = [f"{_OPEN}{i}{_CLOSE}" for i in range(len(roles))]
        rest = self._apply([{"role": r, "content": s} for r, s in zip(roles, slots, strict=True)])
        pieces = []
        for slot, role in zip(slots, roles, strict=True):
            before, found, rest = rest.partition(slot)
            if not found or slot in rest:
                raise BaseError(
                    f"{self.tokenizer.name_or_path}: its chat template drops or repeats the "
                    f"{role} message in {' / '.join(roles)}; remove chat_template from its "
                    "tokenizer to use chattune's own"
                )
            pieces.append(before)
        gaps = [
            tuple(self.tokenizer(piece, add_special_tokens=False).input_ids)
            for piece in [*pieces, rest]
        ]
        ends = [0] + [
            self._closing(gap) if role == "assistant" else 0
            for role, gap in zip(roles, gaps[1:], strict=True)
        ]
        return _Skeleton(tuple(gaps), tuple(ends))

    def _closing(self, gap: tuple[int, ...]) -> int:
        for i, token in enumerate(gap):
            if token in self._special:
                return i + 1
        raise BaseError(
            f"{self.tokenizer.name_or_path}: its chat template ends a reply with no special token, "
            "so a model tuned on it could not stop; remove chat_template from its tokenizer to "
            "use chattune's own"
        )

    def _apply(self, messages: list[dict[str, str]], **options: Any) -> str:
        from jinja2 import TemplateError

        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options))
        except (TemplateError, TypeError, ValueError) as error:
            roles = " / ".join(m["role"] for m in messages)
            raise BaseError(
                f"{self.tokenizer.name_or_path}: its chat template refuses {roles} ({error})"
            ) from error

    def _refuse_unlike_other_tools(self) -> None:
        """Our pieces, tokenised apart, must equal what `apply_chat_template` gives for the whole.

        They would not where a tokenizer merges over the edge of a piece; the model would then be
        tuned on tokens that no other tool sends it. And what stands before a reply must not depend
        on the turns after it, which nobody knows yet while chatting.
        """
        messages = [{"role": m.role, "content": m.content} for m in _PROBE.messages]
        whole = self.tokenizer(
            self._apply(messages, add_generation_prompt=True), add_special_tokens=False
        ).input_ids
        first = self.prompt(_PROBE.messages[:1])
        alike = list(whole) == self.prompt(_PROBE.messages)
        if not alike or self.render(_PROBE).ids[: len(first)] != first:
            raise BaseError(
                f"{self.tokenizer.name_or_path}: its tokenizer or chat template does not keep "
                "turns apart: the prompt differs from what stands before a reply in training"
            )


def _batches(conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    """Encodings take a hundred bytes a token, so a batch ends by its text too."""
    batch: list[Conversation] = []
    text = 0
    for conversation in conversations:
        batch.append(conversation)
        text += sum(len(m.content) for m in conversation.messages)
        if len(batch) == _BATCH or text >= _BATCH_TEXT:
            yield batch
            batch, text = [], 0
    if batch:
        yield batch
