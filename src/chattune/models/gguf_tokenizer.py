"""The tokenizer and the chat template of a GGUF file, in the terms that llama.cpp knows.

llama.cpp has its own code for each way of splitting a text before byte-pair encoding, and a GGUF
file holds no more than the name of one (`tokenizer.ggml.pre`). A tokenizer that splits in another
way would get other ids there without any error, so it is refused.
"""

import json
import logging
import re
from typing import Any

from gguf import GGUFWriter, TokenType

from chattune.errors import BaseError
from chattune.template import Template

log = logging.getLogger(__name__)

_LLAMA3, _QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}{1,3}", r"\p{N}")
)
_WITH_REGEX = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_BYTES_ONLY = _WITH_REGEX | {"use_regex": False}


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False
    }  # fmt: skip


# llama.cpp's name -> the steps of the tokenizer, and whether a whole word that is in the vocabulary
# is taken without merging its parts (`ignore_merges`), which llama.cpp derives from the name.
_PRE_TOKENIZERS: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "smollm": ([{"type": "Digits", "individual_digits": True}, _WITH_REGEX], False),
    "gpt-2": ([_WITH_REGEX], False),
    "llama-bpe": ([_split(_LLAMA3), _BYTES_ONLY], True),
    "qwen2": ([_split(_QWEN2), _BYTES_ONLY], False),
}


def pre_tokenizer_name(template: Template) -> str:
    """Return llama.cpp's name for the way in which a tokenizer splits a text.

    Raises BaseError for a tokenizer whose ids llama.cpp could not reproduce.
    """
    tokenizer = json.loads(template.tokenizer.backend_tokenizer.to_str())
    model, steps = tokenizer["model"], _steps(tokenizer["pre_tokenizer"])
    if model["type"] != "BPE" or model.get("byte_fallback"):
        kind = f"{model['type']}, with byte fallback" if model["type"] == "BPE" else model["type"]
        raise _refusal(template, f"it is of the kind {kind}, and not byte-level BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise _refusal(template, f"it has {name} {model[name]!r}")
    normalizers = [step["type"] for step in _steps(tokenizer["normalizer"], "normalizers")]
    if normalizers not in ([], ["NFC"]):
        raise _refusal(template, f"it normalises texts by {', '.join(normalizers)}")
    for token in tokenizer["added_tokens"]:
        if rule := next((r for r in ("lstrip", "rstrip", "single_word") if token[r]), None):
            raise _refusal(template, f"its token {token['content']!r} has the rule {rule}")
    ignores_merges = bool(model.get("ignore_merges"))
    for name, known in _PRE_TOKENIZERS.items():
        if (steps, ignores_merges) == known:
            return name
    described = " + ".join(json.dumps(step, ensure_ascii=False) for step in steps) or "nothing"
    raise _refusal(
        template,
        f"its pre-tokenizer is {described} with ignore_merges {str(ignores_merges).lower()}, "
        f"for which chattune knows no name; it knows {', '.join(_PRE_TOKENIZERS)}",
    )


def add_tokenizer(writer: GGUFWriter, template: Template, rows: int) -> None:
    """Add the tokenizer, its special tokens and the chat template to a GGUF file.

    `rows` is the number of the model's rows of embeddings, for each of which the file needs a
    token. Raises BaseError as `pre_tokenizer_name` does.
    """
    tokenizer = template.tokenizer
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token["id"]: token["special"] for token in backend["added_tokens"]}
    texts = {index: token for token, index in tokenizer.get_vocab().items()}
    types = [
        TokenType.UNUSED if i not in texts
        else TokenType.NORMAL if i not in special
        else TokenType.CONTROL if special[i]
        else TokenType.USER_DEFINED
        for i in range(rows)
    ]  # fmt: skip
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for byte-level BPE
    writer.add_tokenizer_pre(pre_tokenizer_name(template))
    writer.add_token_list([texts.get(i, f"[PAD{i}]") for i in range(rows)])
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    end = int(tokenizer.eos_token_id)
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(min(template.end_ids - {end}, default=end))
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id < rows:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    # The chat template writes every special token itself, so llama.cpp must not add a second one.
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(_portable_chat_template(template))
    if backend["normalizer"]:
        log.info(
            "not in the GGUF file: the tokenizer's Unicode normalisation (NFC); llama.cpp has "
            "none, and gives other tokens for letters whose accents are characters of their own"
        )
    if dropped := sorted(texts[i] for i in texts if i >= rows):
        log.info("not in the GGUF file: %s, which the model has no row for", ", ".join(dropped))


def _portable_chat_template(template: Template) -> str:
    """Return the chat template without what only transformers knows; it writes the same text."""
    tokenizer = template.tokenizer
    text: str = tokenizer.get_chat_template()
    # These markers tell training what the reply is. `if true` keeps the white space around them.
    text = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", text)
    text = re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", text)
    if tokenizer.bos_token is None and "bos_token" in text:
        # llama.cpp would write the token that it assumes to be the first one.
        text = '{%- set bos_token = "" -%}' + text
    return text


def _steps(rule: dict[str, Any] | None, key: str = "pretokenizers") -> list[dict[str, Any]]:
    """Return the steps of a rule of tokenizer.json, without what changes no id."""
    if rule is None:
        return []
    if rule["type"] == "Sequence":
        return [step for inner in rule[key] for step in _steps(inner, key)]
    return [{name: value for name, value in rule.items() if name != "trim_offsets"}]


def _refusal(template: Template, why: str) -> BaseError:
    return BaseError(
        f"{template.tokenizer.name_or_path}: its tokenizer cannot be written as GGUF, because "
        f"{why}; export the model with --merged instead"
    )
