"""Replies of the base beside the tuned model's, to the same questions with the same seeds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chattune.conversation import Message
from chattune.generate import Decoding
from chattune.generate.finish import Reply, read_reply
from chattune.generate.reference import ReferenceEngine
from chattune.template import Template

if TYPE_CHECKING:
    from peft import PeftModel


def sample_replies(
    model: "PeftModel",
    template: Template,
    questions: Sequence[Sequence[Message]],
    decoding: Decoding,
    positions: int,
) -> list[dict[str, Any]]:
    """For each question (a system message may stand before it): prompt, base's and tuned reply.

    A reply ends where the model's positions do.
    """
    engine = ReferenceEngine(model, template.end_ids)
    rows: list[dict[str, Any]] = []
    for seed, messages in enumerate(questions):
        prompt = template.prompt(messages)
        room = min(decoding.max_new_tokens, positions - len(prompt))
        settings = decoding.but(seed=seed, max_new_tokens=room)
        with model.disable_adapter():
            base = _reply(engine, prompt, template, settings)
        tuned = _reply(engine, prompt, template, settings)
        rows.append({"prompt": messages[-1].content, "base": _row(base), "tuned": _row(tuned)})
    return rows


def _reply(
    engine: ReferenceEngine, prompt: list[int], template: Template, decoding: Decoding
) -> Reply:
    tokens = (token for _, token in engine.generate([prompt], decoding))
    *_, whole = read_reply(tokens, template)
    assert isinstance(whole, Reply)
    return whole


def _row(reply: Reply) -> dict[str, Any]:
    return {"text": reply.text, "tokens": reply.tokens, "stopped": reply.finish == "stop"}
