"""The head of a GGUF file: the origin of the model, its sampling settings, and its shape."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from gguf import GGUFWriter

from chattune.base import Base, is_on_hub
from chattune.models.gguf_tensors import head_width
from chattune.run import Run

if TYPE_CHECKING:
    from transformers import PretrainedConfig

log = logging.getLogger(__name__)


def add_description(writer: GGUFWriter, run: Run, base: Base, target: Path) -> None:
    """Add what the model card says in its head: name, origin, licence and what was done."""
    from huggingface_hub import metadata_load

    facts, lora = run.facts, run.recipe.lora
    writer.add_type("model")
    writer.add_name(target.stem)
    writer.add_description(
        f"A chatbot, tuned with chattune {facts['versions']['chattune']}: the LoRA adapter "
        f"(r={lora.rank}, alpha={lora.alpha:g}) of step {facts['result']['best_step']} is merged "
        "into the base's weights."
    )
    writer.add_tags(["chattune", "lora"])
    place = run.base_place or base.name
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, Path(place).name)
    if is_on_hub(place):
        writer.add_base_model_organization(0, place.partition("/")[0])
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{place}")
    card = base.folder / "README.md"
    licence = (metadata_load(card) or {}).get("license") if card.is_file() else None
    if licence:
        writer.add_license(str(licence))
    else:
        log.info("not in the GGUF file: the base's licence, which its folder does not tell")


def add_sampling(writer: GGUFWriter, run: Run) -> None:
    """Add the sampling settings of the run, under the names that llama.cpp reads."""
    settings = json.loads((run.folder / "generation_config.json").read_text("utf-8"))
    temperature = settings.get("temperature", 1.0) if settings["do_sample"] else 0.0
    penalty = settings.get("repetition_penalty") or 1.0
    writer.add_sampling_temp(temperature)
    writer.add_sampling_top_k(settings.get("top_k") or 0)
    writer.add_sampling_top_p(settings.get("top_p") or 1.0)
    writer.add_sampling_min_p(settings.get("min_p") or 0.0)
    writer.add_sampling_penalty_repeat(penalty)
    writer.add_sampling_penalty_last_n(-1)  # the whole conversation, as chattune does
    log.info(
        "the sampling settings are in the GGUF file for llama.cpp alone; give Ollama and LM Studio "
        "temperature %g, top-k %d, top-p %g, min-p %g and repetition penalty %g yourself",
        temperature,
        settings.get("top_k") or 0,
        settings.get("top_p") or 1.0,
        settings.get("min_p") or 0.0,
        penalty,
    )


def add_shape(writer: GGUFWriter, config: "PretrainedConfig") -> None:
    """Add the numbers with which llama.cpp builds the model."""
    positions = config.max_position_embeddings
    if window := getattr(config, "sliding_window", None):
        positions = min(positions, window)
        log.info(
            "not in the GGUF file: the sliding window of %d tokens; the file says that the model "
            "sees %d tokens, within which it makes no difference",
            window,
            positions,
        )
    writer.add_context_length(positions)
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_width(config))
    writer.add_value_length(head_width(config))
    writer.add_rope_dimension_count(head_width(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
