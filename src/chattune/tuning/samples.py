"""Sample replies of the base and of the tuned model, to the same questions with the same seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chattune.base import Base
from chattune.conversation import Message
from chattune.device import find_device
from chattune.generate import Decoding, Engine
from chattune.generate.load import fast_engine, fast_engine_problem
from chattune.generate.reply import Reply, read_reply
from chattune.template import Template

if TYPE_CHECKING:
    from peft import PeftModel


def sample_replies(
    base: Base,
    run_folder: Path,
    template: Template,
    questions: Sequence[Sequence[Message]],
    decoding: Decoding,
    model: "PeftModel | None" = None,
) -> list[dict[str, Any]]:
    """Return for each question its prompt, the base's reply and the tuned model's.

    A question may have a system message before it. The adapter is the one saved in `run_folder`.
    The fast engine answers all questions together. Where it cannot compute the base, transformers
    does, with `model`, which is the base with its adapter and is loaded if it is not given.
    """
    prompts = [template.prompt(messages) for messages in questions]
    settings = [decoding.but(seed=seed) for seed in range(len(prompts))]

    def replies(engine: Engine) -> list[Reply]:
        tokens: list[list[int]] = [[] for _ in prompts]
        for index, token in engine.generate(prompts, settings):
            tokens[index].append(token)
        return [_reply(ids, template) for ids in tokens]

    device = find_device()
    if fast_engine_problem(base, device) is None:
        before, after = (
            replies(fast_engine(base, folder, device, template)) for folder in (None, run_folder)
        )
    else:
        from chattune.generate.reference import ReferenceEngine
        from chattune.models import load_adapted

        model = model or load_adapted(run_folder, base, device)
        engine = ReferenceEngine(model, template.end_ids)
        with model.disable_adapter():
            before = replies(engine)
        after = replies(engine)
    return [
        {"prompt": messages[-1].content, "base": _row(base_reply), "tuned": _row(tuned_reply)}
        for messages, base_reply, tuned_reply in zip(questions, before, after, strict=True)
    ]


def _reply(tokens: list[int], template: Template) -> Reply:
    *_, reply = read_reply(tokens, template)
    assert isinstance(reply, Reply)  # it comes after the pieces of text
    return reply


def _row(reply: Reply) -> dict[str, Any]:
    return {"text": reply.text, "tokens": reply.tokens, "stopped": reply.finish == "stop"}
