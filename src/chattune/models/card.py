"""The model card of a run: base, data, numbers and limits, from the run's own files."""

from chattune.base import is_on_hub
from chattune.run import Run


def model_card(run: Run, *, merged: bool = False) -> str:
    """Markdown with the metadata block that the Hub reads."""
    recipe, facts = run.recipe, run.facts
    data, result = facts["data"], facts["result"]
    base = recipe.base
    metadata = ["library_name: " + ("transformers" if merged else "peft"), "tags: [chattune, lora]"]
    if is_on_hub(base):
        metadata.insert(0, f"base_model: {base}")
    loss = result["validation_loss"]
    a_step = recipe.training.batch_size * recipe.training.accumulation
    form = "The adapter is merged into the base's weights (fp32)."
    if not merged:
        form = "An adapter (LoRA) for the base named below."
    rows = [
        ("base", f"`{base}` (fingerprint `{facts['base']['fingerprint'][:16]}`)"),
        ("conversations", f"`{data['source']}` ({data['format']}), {data['train']:,} trained on"),
        ("tokens", f"{data['tokens']:,}, {data['supervised_tokens']:,} supervised"),
        ("adapter", f"LoRA r={recipe.lora.rank}, alpha={recipe.lora.alpha:g}"),
        ("steps", f"{result['steps']:,} of {a_step} conversations; kept: {result['best_step']:,}"),
        ("validation loss", "not measured" if loss is None else f"{loss:.4f} nats a token"),
        ("device", f"{facts['device']['name']}, {result['seconds']:.0f} s"),
    ]  # fmt: skip
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

A chatbot tuned with chattune {facts["versions"]["chattune"]}.
{form}

| | |
|---|---|
{table}

It was trained on the replies only, each closed by its end token; the chat template is stored with
the tokenizer.

## Samples

Not chosen: the first held-out questions, each answered once ({_settings(facts["decoding"])}).

{samples}

## Limits

A small model tuned on a small set: it can be wrong with confidence, repeats what its data holds,
biases included, knows nothing newer than its base, and must not be relied on for medical, legal or
financial advice. The licences of the base and of the conversations apply to it.
"""


def _quoted(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"


def _settings(decoding: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in decoding.items() if value is not None)
