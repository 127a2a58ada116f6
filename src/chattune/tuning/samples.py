"""Sample replies of the base and of the tuned model, to the same questions with the same seeds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chattune.conversation import Message
from chattune.generate import Decoding
from chattune.generate.reference import ReferenceEngine
from chattune.generate.reply import Reply, read_reply
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
    """Return for each question its prompt, the base's reply and the tuned model's.

    A question may have a system message before it. `positions` is the number of tokens that the
    model can see; a reply that reaches it is cut off there.
    """
    engine = ReferenceEngine(model, template.end_ids)
    rows: list[dict[str, Any]] = []
    for seed, messages in enumerate(questions):
        prompt = template.prompt(messages)
        budget = min(decoding.max_new_tokens, positions - len(prompt))
        settings = decoding.but(seed=seed, max_new_tokens=budget)
        with model.disable_adapter():
            base = _reply(engine, prompt, template, settings)
        tuned = _reply(engine, prompt, template, settings)
        rows.append({"prompt": messages[-1].content, "base": _row(base), "tuned": _row(tuned)})
    return rows


def _reply(
    engine: ReferenceEngine, prompt: list[int], template: Template, decoding: Decoding
) -> Reply:
    tokens = (token for _, token in engine.generate([prompt], decoding))
    *_, reply = read_reply(tokens, template)
    assert isinstance(reply, Reply)  # it comes after the pieces of text
    return reply


def _row(reply: Reply) -> dict[str, Any]:
    return {"text": reply.text, "tokens": reply.tokens, "stopped": reply.finish == "stop"}
