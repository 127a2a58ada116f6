"""The tokenizer of a GGUF file.

A GGUF file has the vocabulary and the merges, but only a name for the rules by which text is cut
into words before the merges apply (`tokenizer.ggml.pre`). Other rules give other tokens than the
model was trained on, without any error. So the rules are built here, for the names whose rules are
known, and every other name is refused.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chattune.errors import BaseError, first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Rules:
    """Steps by which a tokenizer prepares text for its merges.

    `words` is the regular expression of a word, or None for GPT-2's. `digits_apart` makes each
    digit a word of its own before that. `whole_words` takes a word that is in the vocabulary as it
    is, even if no merges lead to it. `composed` puts accents and letters together (Unicode's NFC).
    """

    words: str | None = None
    digits_apart: bool = False
    whole_words: bool = False
    composed: bool = False


_LLAMA_3 = Rules(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    whole_words=True,
)
_QWEN_2 = Rules(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    composed=True,
)
_TEKKEN = Rules(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    whole_words=True,
)
# From llama.cpp's src/llama-vocab.cpp, which quotes the expressions of the models' tokenizer.json,
# and for NFC from transformers' Qwen2Tokenizer.
RULES = {
    "gpt-2": Rules(),
    **{name: Rules(digits_apart=True) for name in ("smollm", "starcoder")},
    **{name: _LLAMA_3 for name in ("llama-bpe", "llama3", "llama-v3")},
    "qwen2": _QWEN_2,
    "tekken": _TEKKEN,
}

_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens in tokenizer.ggml.token_type
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
# It reads the same after a tokenizer with an NFC normaliser, and before.
_TEST = "In 2024, «Zoë» paid £13.50:\n\tfor i in range(10):  x += i**2   # naïve 🙂👩‍🚀 日本語\r\n"


def build_tokenizer(metadata: dict[str, Any], name: str) -> "PreTrainedTokenizerFast":
    """Build the tokenizer that a GGUF file's metadata describes; errors call it `base {name}`.

    Raises BaseError if there is none, if its rules are not known, or if its vocabulary or merges
    are damaged.
    """
    from transformers import PreTrainedTokenizerFast

    tokens, rules = _tokens(metadata, name), _rules(metadata, name)
    try:
        backend = _backend(tokens, metadata, rules)
    except Exception as error:  # tokenizers raises plain Exception for merges it refuses
        raise _damaged(name, f"its merges are refused: {first_line(error)!r}") from error
    special: dict[str, Any] = {}
    for role, key in _SPECIAL.items():
        number = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if number is not None:
            if not isinstance(number, int) or not 0 <= number < len(tokens):
                raise _damaged(name, f"its {role} token is {number!r:.40} of {len(tokens):,}")
            special[f"{role}_token"] = tokens[number]
    if metadata.get("tokenizer.ggml.add_bos_token", rules is _LLAMA_3) and "bos_token" in special:
        special["add_bos_token"] = True
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **special
    )
    if len(tokenizer) != len(tokens):
        raise _damaged(name, "its special tokens are not in its vocabulary")
    ids = tokenizer(_TEST, add_special_tokens=False).input_ids
    if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != _TEST:
        raise _damaged(name, "its vocabulary does not spell out a test text")
    return tokenizer


def _rules(metadata: dict[str, Any], name: str) -> Rules:
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise BaseError(
            f"base {name}: its tokenizer is of the kind {kind!r:.40} (tokenizer.ggml.model), and "
            "only byte-level BPE (gpt2) is rebuilt exactly; use the folder or Hub id of the "
            "model that the file was converted from"
        )
    named = metadata.get("tokenizer.ggml.pre")
    if not isinstance(named, str) or named not in RULES:
        raise BaseError(
            f"base {name}: its pre-tokenizer is {named!r:.40} (tokenizer.ggml.pre), whose rules "
            f"are not known; known are {', '.join(RULES)}; use the folder or Hub id of the model "
            "that the file was converted from"
        )
    return RULES[named]


def _tokens(metadata: dict[str, Any], name: str) -> list[str]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        raise BaseError(
            f"base {name}: it holds no tokenizer (tokenizer.ggml.tokens); get a file with one, or "
            "use the folder or Hub id of the model that it was converted from"
        )
    kinds = metadata.get("tokenizer.ggml.token_type")
    merges = metadata.get("tokenizer.ggml.merges", [])
    if not _is_list(tokens, str) or not _is_list(merges, str):
        raise _damaged(name, "its tokens or merges are no texts")
    if kinds is None or not _is_list(kinds, int) or len(kinds) != len(tokens):
        raise _damaged(name, "it does not tell the kind of each token")
    if len(set(tokens)) != len(tokens):
        raise _damaged(name, "a token is twice in its vocabulary")
    return list(tokens)


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _damaged(name: str, reason: str) -> BaseError:
    return BaseError(
        f"base {name}: its tokenizer is damaged ({reason}); download or convert the file again"
    )


def _backend(tokens: list[str], metadata: dict[str, Any], rules: Rules) -> "Tokenizer":
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
    )

    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in metadata.get("tokenizer.ggml.merges", [])]
    model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rules.whole_words)
    tokenizer = Tokenizer(model)
    steps: list[Any] = []
    if rules.digits_apart:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if rules.words is not None:
        steps.append(pre_tokenizers.Split(Regex(rules.words), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rules.words is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if rules.composed:
        tokenizer.normalizer = normalizers.NFC()
    kinds = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    return tokenizer
