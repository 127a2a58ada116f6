"""LoRA adapters through peft: the modules that get one, and adding them to a base."""

import difflib
from typing import TYPE_CHECKING

from chattune.errors import RecipeError
from chattune.recipe import LoraRecipe

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel


def target_modules(recipe: LoraRecipe, model: "PreTrainedModel") -> dict[str, list["nn.Module"]]:
    """Return the linear modules that the recipe adapts, grouped by the name that it lists.

    Raises RecipeError for a name that the model does not have; the error lists those it has.
    """
    known = _linear_modules(model)
    if not known:
        raise RecipeError(
            "lora.targets: the base has no linear module to adapt; choose another base"
        )
    if recipe.targets == "all-linear":
        return known
    unknown = [name for name in recipe.targets if name not in known]
    if unknown or not recipe.targets:
        nearest = difflib.get_close_matches(unknown[0], known, n=1) if unknown else []
        problem = f"{', '.join(unknown)} not in this base" if unknown else "the list is empty"
        raise RecipeError(
            f"lora.targets: {problem}; the base has {', '.join(sorted(known))}"
            + (f"; did you mean {nearest[0]}?" if nearest else "")
        )
    return {name: known[name] for name in recipe.targets}


def adapter_weights(recipe: LoraRecipe, model: "PreTrainedModel") -> int:
    """Return the number of weights that an adapter would have, all of them trained.

    A module of shape (out, in) gets A (rank, in) and B (out, rank). Raises RecipeError as
    `target_modules` does.
    """
    modules = [m for group in target_modules(recipe, model).values() for m in group]
    return recipe.rank * sum(sum(module.get_parameter("weight").shape) for module in modules)


def add_lora(model: "PreTrainedModel", recipe: LoraRecipe, seed: int) -> "PeftModel":
    """Add a fresh adapter to a base in place; A is random and B zero, so no logit changes yet.

    Raises RecipeError as `target_modules` does.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    groups = target_modules(recipe, model)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=sorted(groups) if recipe.targets == "all-linear" else recipe.targets,
        fan_in_fan_out=all(isinstance(m, Conv1D) for group in groups.values() for m in group),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    adapted: PeftModel = get_peft_model(model, config)
    return adapted


def _linear_modules(model: "PreTrainedModel") -> dict[str, list["nn.Module"]]:
    """Return the layers' linear modules, grouped by the last part of their names."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    groups: dict[str, list[nn.Module]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not output:
            groups.setdefault(name.rpartition(".")[2], []).append(module)
    return groups
