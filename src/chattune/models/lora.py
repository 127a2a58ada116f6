"""LoRA adapters through peft: on which modules, and put onto a base."""

import difflib
from typing import TYPE_CHECKING

from chattune.errors import RecipeError
from chattune.recipe import LoraRecipe

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel


def linear_modules(model: "PreTrainedModel") -> dict[str, int]:
    """Names of the block's linear modules, as a recipe may list them, with how many there are."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    counts: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not output:
            leaf = name.rpartition(".")[2]
            counts[leaf] = counts.get(leaf, 0) + 1
    return counts


def check_targets(recipe: LoraRecipe, model: "PreTrainedModel") -> None:
    """Raise RecipeError for targets that the model does not have; lists those it has."""
    known = linear_modules(model)
    if not known:
        raise RecipeError("lora.targets: the base has no linear module to adapt")
    wanted = recipe.targets if isinstance(recipe.targets, list) else []
    unknown = [t for t in wanted if t not in known]
    if unknown or recipe.targets == []:
        near = difflib.get_close_matches(unknown[0], known, n=1) if unknown else []
        raise RecipeError(
            f"lora.targets: {', '.join(unknown) or 'an empty list'} not in this base; it has "
            f"{', '.join(sorted(known))}" + (f"; did you mean {near[0]}?" if near else "")
        )


def lora_config(recipe: LoraRecipe, model: "PreTrainedModel") -> "LoraConfig":
    """The recipe as peft's configuration."""
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    modules = {name.rpartition(".")[2]: m for name, m in model.named_modules()}
    targets = sorted(linear_modules(model)) if recipe.targets == "all-linear" else recipe.targets
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=targets,
        fan_in_fan_out=all(isinstance(modules[t], Conv1D) for t in targets),
        task_type="CAUSAL_LM",
    )


def add_lora(model: "PreTrainedModel", recipe: LoraRecipe, seed: int) -> "PeftModel":
    """Put a fresh adapter on a base (in place): A random, B zero, so that nothing changes yet."""
    import torch
    from peft import get_peft_model

    check_targets(recipe, model)
    torch.manual_seed(seed)
    adapted: PeftModel = get_peft_model(model, lora_config(recipe, model))
    return adapted
