"""The model card of a run: its base, data, results and limits, read from the run's own files."""

from typing import Any

from chattune.base import is_on_hub
from chattune.recipe import Recipe
from chattune.run import Run


def model_card(run: Run, *, merged: bool = False) -> str:
    """Return the card as Markdown that begins with the metadata block that the Hub reads."""
    recipe, facts = run.recipe, run.facts
    data, result = facts["data"], facts["result"]
    metadata = ["library_name: " + ("transformers" if merged else "peft"), "tags: [chattune, lora]"]
    if run.base_place and is_on_hub(run.base_place):
        metadata.insert(0, f"base_model: {run.base_place}")
    loss = result["validation_loss"]
    per_step = min(recipe.training.conversations_per_step, data["train"])
    kind = "LoRA adapter for the base named below"
    if merged:
        kind = "stand-alone model: the LoRA adapter is merged into the base's weights, in fp32"
    rows = [
        ("base", f"`{recipe.base}` (fingerprint `{facts['base']['fingerprint'][:16]}`)"),
        ("conversations", f"{_sources(data)}, {data['train']:,} trained on"),
        ("tokens", f"{data['tokens']:,}, {data['supervised_tokens']:,} supervised"),
        ("adapter", f"LoRA r={recipe.lora.rank}, alpha={recipe.lora.alpha:g}"),
        (
            "steps",
            f"{result['steps']:,} of {per_step:,} conversations"
            + (", stopped early by the validation loss" if result.get("stopped_early") else ""),
        ),
        ("adapter kept", f"that of step {result['best_step']:,}"),
        ("validation loss", "not measured" if loss is None else f"{loss:.4f} nats per token"),
        ("device", f"{facts['device']['name']}, {result['seconds']:.0f} s"),
    ]
    origin = "The first questions of the held-out conversations"
    if not data["validation"]:
        origin = "The first questions of the training conversations (none was held out)"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    samples = "\n\n".join(
        f"**{sample['prompt']}**\n\n- base: {_quoted(sample['base']['text'])}\n"
        f"- tuned: {_quoted(sample['tuned']['text'])}"
        for sample in run.samples
    )
    return f"""---
{chr(10).join(metadata)}
---

# {run.folder.resolve().name}

A chatbot, tuned with chattune {facts["versions"]["chattune"]} and saved as a {kind}.

| | |
|---|---|
{table}

{_what_is_learnt(recipe)} The chat template is stored with the tokenizer.

## Samples

{origin}. Each is answered once;
the replies are not selected ({_settings(facts["decoding"])}).

{samples}

## Limits

This is a small model tuned on a small data set. It can be confidently wrong, it repeats what its
data holds, biases included, and it knows nothing newer than its base. Do not rely on it for
medical, legal or financial advice. The licences of the base and of the conversations apply to it.
"""


def _sources(data: dict[str, Any]) -> str:
    return ", ".join(f"`{s['source']}` ({s['format']})" for s in data.get("sources") or [data])


def _what_is_learnt(recipe: Recipe) -> str:
    if recipe.template == "concatenated":
        return "The loss covers every token, prompts included, and no end token is learnt."
    return "The loss covers the replies alone, each with the end token that closes it."


def _quoted(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"


def _settings(decoding: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in decoding.items() if value is not None)
