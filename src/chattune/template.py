"""The one renderer: it turns a conversation into token ids and a reply mask, and a prompt into ids.

Training, evaluation, chat and the server all turn text into tokens here. The base's Jinja chat
template (or chattune's own, for a base without one) is rendered with an empty slot in place of each
message. The segments that the template writes between the slots are tokenised with special tokens
enabled, once for each sequence of roles; the messages are tokenised with special tokens disabled.
Therefore no text can forge a turn boundary, and training and chatting see the same tokens.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from chattune.conversation import Conversation, Message, Role
from chattune.errors import BaseError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# A turn is the end token, a role header and the message. The end token after a reply belongs to the
# reply, because the model writes it, and also opens the next turn. The header ends in a newline,
# which byte-level BPE never merges with the word after it.
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
# ChatML, as OpenAI described it in 2023, and without the system message that some models' templates
# write where a conversation has none.
CHATML_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] | trim + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] | trim + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
# What TRL's SFTTrainer makes of prompts and replies that are concatenated to one text: everything
# is supervised, and no end token is written. It exists to show what goes wrong. A header ends in
# its colon, and the space after it belongs to the message: byte-level BPE joins a space to the word
# after it, so that the ids of the header are the same whether a message follows or not.
CONCATENATED_TEMPLATE = """\
{%- set heads = {'system': '### System:', 'user': '### Human:', 'assistant': '### Assistant:'} -%}
{%- generation -%}
{%- for message in messages -%}
{%- if not loop.first -%}{{- '\\n' -}}{%- endif -%}
{{- heads[message['role']] -}}
{%- set text = message['content'] | trim -%}
{%- if text -%}{{- ' ' + text -}}{%- endif -%}
{%- endfor -%}
{%- endgeneration -%}
{%- if add_generation_prompt -%}{{- '\\n' + heads['assistant'] -}}{%- endif -%}
"""

TemplateKind = Literal["auto", "chattune", "chatml", "concatenated"]

IGNORED_LABEL = -100  # the label that PyTorch's cross entropy leaves out

_REMEDY = "remove chat_template from its tokenizer to use chattune's own"
# Private-use characters mark the slots; the messages themselves never pass through Jinja.
_SLOT_START, _SLOT_END = "\ue000", "\ue001"
_EXAMPLE = Conversation.of(
    ("user", "How far is it?"), ("assistant", "Two miles."), ("user", "And back?")
)
_BATCH_CONVERSATIONS, _BATCH_CHARACTERS = 1000, 1_000_000  # limits of one call of the tokenizer


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids and, at the same positions, whether the loss covers each of them."""

    ids: list[int]
    supervised: list[bool]

    @property
    def labels(self) -> list[int]:
        """The ids that the loss covers, with IGNORED_LABEL at every other position."""
        return [
            token if supervised else IGNORED_LABEL
            for token, supervised in zip(self.ids, self.supervised, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _Layout:
    """The template's own tokens for one sequence of n roles, split at the n message slots."""

    segments: tuple[tuple[int, ...], ...]  # n + 1: one before each slot and one after the last
    closings: tuple[int, ...]  # leading ids of segment i that end the reply in slot i - 1


class Template:
    """The renderer of conversations for one tokenizer.

    `concatenated` says whether the chat template is CONCATENATED_TEMPLATE, which is recognised by
    its text. Raises BaseError for a tokenizer without an end token, and for any other chat template
    that drops or repeats a message or that ends a reply with no special token, because a model
    tuned on it could not stop.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        if not tokenizer.is_fast:
            raise BaseError(
                f"{tokenizer.name_or_path}: has no tokenizer.json, which chattune needs; "
                "choose another base"
            )
        if tokenizer.eos_token_id is None:
            raise BaseError(
                f"{tokenizer.name_or_path}: its tokenizer has no end token; "
                "set eos_token in its tokenizer_config.json"
            )
        if not tokenizer.chat_template:
            tokenizer.chat_template = CHAT_TEMPLATE
        self.tokenizer = tokenizer
        self.concatenated = tokenizer.chat_template == CONCATENATED_TEMPLATE
        self._space = " " if self.concatenated else ""  # tokenised together with the message
        added = tokenizer.added_tokens_decoder
        self._special_ids = frozenset(tokenizer.all_special_ids) | {
            i for i in added if added[i].special
        }
        # Messages are encoded with a copy, because `encode_special_tokens` is state of a tokenizer
        # and a server encodes from several threads. Every added token is made special in the copy,
        # because the markers of some templates are added as ordinary tokens.
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        for token in backend["added_tokens"]:
            token["special"] = True
        self._text_encoder = type(tokenizer.backend_tokenizer).from_str(json.dumps(backend))
        self._text_encoder.encode_special_tokens = True
        self._text_encoder.no_padding()
        self._text_encoder.no_truncation()
        self._layout = functools.lru_cache(maxsize=256)(self._build_layout)
        self._check_turns_are_independent()

    @classmethod
    def load(cls, folder: Path, kind: TemplateKind = "auto") -> "Template":
        """Load the tokenizer in `folder` with a chat template.

        `kind` "auto" is the tokenizer's own template, or chattune's if it has none; the other
        kinds replace the tokenizer's own. Raises BaseError if the tokenizer is missing, damaged or
        cannot be used.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # transformers raises many types for a damaged tokenizer
            raise BaseError(
                f"{folder}: its tokenizer cannot be loaded ({first_line(error)}); "
                "save or download it again"
            ) from error
        if kind == "chattune":
            tokenizer.chat_template = CHAT_TEMPLATE
        elif kind == "chatml":
            if absent := [t for t in _CHATML_TOKENS if t not in tokenizer.added_tokens_encoder]:
                raise BaseError(
                    f"template chatml: the tokenizer in {folder} has no token {absent[0]}; use "
                    "template: auto, or chattune"
                )
            tokenizer.chat_template = CHATML_TEMPLATE
        elif kind == "concatenated":
            tokenizer.chat_template = CONCATENATED_TEMPLATE
        return cls(tokenizer)

    def render(self, conversation: Conversation) -> Rendered:
        """Return a conversation's tokens, of which each reply and its end token are supervised.

        Of a concatenated conversation, which has no end token, every token is supervised.
        """
        return next(self.render_many([conversation]))

    def render_many(self, conversations: Iterable[Conversation]) -> Iterator[Rendered]:
        """Render conversations in order, tokenising many of them at a time."""
        for batch in _batches(conversations):
            contents = iter(self._encode_messages([m for c in batch for m in c.messages]))
            for conversation in batch:
                yield self._fill(
                    conversation.roles, [next(contents) for _ in conversation.messages]
                )

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids up to where the reply begins, exactly as they precede it in training."""
        roles: tuple[Role, ...] = (*(m.role for m in messages), "assistant")
        contents = [*self._encode_messages(messages), []]
        ids = self._fill(roles, contents).ids
        return ids[: len(ids) - len(self._layout(roles).segments[-1])]

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text, which hold no special token whatever the text spells."""
        return self._encode_all([text])[0]

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of `ids`, with special tokens if `special`, and with spaces unchanged."""
        return str(
            self.tokenizer.decode(
                ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False
            )
        )

    @functools.cached_property
    def end_ids(self) -> frozenset[int]:
        """The ids that end a reply: the template's closing token and the tokenizer's end token.

        A concatenated reply has no closing token.
        """
        layout = self._layout(("user", "assistant"))
        closing = layout.segments[-1][: layout.closings[-1]][-1:]
        return frozenset({*closing, int(self.tokenizer.eos_token_id)})

    def _encode_messages(self, messages: Sequence[Message]) -> list[list[int]]:
        return self._encode_all([m.content for m in messages], self._space)

    def _encode_all(self, texts: list[str], space: str = "") -> list[list[int]]:
        """Encode texts stripped of outer white space, with `space` before each that is not empty.

        Half a surrogate pair, which a terminal may send, cannot be encoded: it becomes "?".
        """
        stripped = [text.strip().encode("utf-8", "replace").decode() for text in texts]
        encodings = self._text_encoder.encode_batch_fast(
            [text and space + text for text in stripped], add_special_tokens=False
        )
        return [encoding.ids for encoding in encodings]

    def _fill(self, roles: tuple[Role, ...], contents: list[list[int]]) -> Rendered:
        """Put the ids of each message between the template's segments."""
        layout = self._layout(roles)
        ids: list[int] = []
        supervised: list[bool] = []
        for i, segment in enumerate(layout.segments):
            ids += segment
            supervised += [j < layout.closings[i] for j in range(len(segment))]
            if i < len(contents):
                ids += contents[i]
                supervised += [roles[i] == "assistant"] * len(contents[i])
        return Rendered(ids, [True] * len(ids) if self.concatenated else supervised)

    def _build_layout(self, roles: tuple[Role, ...]) -> _Layout:
        slots = [f"{_SLOT_START}{i}{_SLOT_END}" for i in range(len(roles))]
        rest = self._apply_chat_template(
            [{"role": r, "content": s} for r, s in zip(roles, slots, strict=True)]
        )
        texts = []
        for slot, role in zip(slots, roles, strict=True):
            before, separator, rest = rest.partition(slot)
            if not separator or slot in rest:
                raise BaseError(
                    f"{self.tokenizer.name_or_path}: its chat template drops or repeats the "
                    f"{role} message in {' / '.join(roles)}; {_REMEDY}"
                )
            texts.append(before.removesuffix(self._space))
        segments = [
            tuple(self.tokenizer(text, add_special_tokens=False).input_ids)
            for text in [*texts, rest]
        ]
        closings = [0] + [
            self._closing_length(segment) if role == "assistant" else 0
            for role, segment in zip(roles, segments[1:], strict=True)
        ]
        return _Layout(tuple(segments), tuple(closings))

    def _closing_length(self, segment: tuple[int, ...]) -> int:
        """Return how many ids of the segment after a reply end it: up to the first special one."""
        if self.concatenated:
            return 0
        for i, token in enumerate(segment):
            if token in self._special_ids:
                return i + 1
        raise BaseError(
            f"{self.tokenizer.name_or_path}: its chat template ends a reply with no special token, "
            f"so a model tuned on it could not stop; {_REMEDY}"
        )

    def _apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        from jinja2 import TemplateError

        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options))
        except (TemplateError, TypeError, ValueError) as error:
            roles = " / ".join(m["role"] for m in messages)
            raise BaseError(
                f"{self.tokenizer.name_or_path}: its chat template refuses {roles} "
                f"({first_line(error)}); {_REMEDY}"
            ) from error

    def _check_turns_are_independent(self) -> None:
        """Raise BaseError unless an example renders as transformers' `apply_chat_template` does.

        Segments and messages are tokenised apart, which gives other tokens if the tokenizer merges
        across their boundaries; the model would then be tuned on tokens that no other tool sends
        it. Nor may the text before a reply depend on later turns, which are unknown while chatting.
        """
        messages = [{"role": m.role, "content": m.content} for m in _EXAMPLE.messages]
        text = self._apply_chat_template(messages, add_generation_prompt=True)
        expected = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        first_prompt = self.prompt(_EXAMPLE.messages[:1])
        trained = self.render(_EXAMPLE).ids[: len(first_prompt)]
        if self.prompt(_EXAMPLE.messages) != expected or trained != first_prompt:
            remedy = "use template: chattune" if self.concatenated else _REMEDY
            raise BaseError(
                f"{self.tokenizer.name_or_path}: its tokenizer or chat template does not keep "
                "turns apart: the prompt in a chat differs from the tokens before a reply in "
                f"training; {remedy}, or choose another base"
            )


def _batches(conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    """Group conversations for the tokenizer, limited by count and by number of characters.

    The second limit bounds the memory: an encoding takes about a hundred bytes a token.
    """
    batch: list[Conversation] = []
    characters = 0
    for conversation in conversations:
        batch.append(conversation)
        characters += sum(len(m.content) for m in conversation.messages)
        if len(batch) == _BATCH_CONVERSATIONS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
