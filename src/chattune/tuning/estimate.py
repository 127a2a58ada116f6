"""What a run will take: memory and time, before it starts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chattune.device import TRAINING_SHARE, Device, matmul_rate
from chattune.models.lora import linear_modules
from chattune.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Values kept for the backward pass, per token, layer and hidden unit: inputs of the norms, of the
# adapted modules and of the GELU (GPT-Neo: 10; gated layers more), and what an allocator loses;
# per token, head and key: a probability.
_VALUES_A_UNIT = 16
_ROOM = 0.8  # share of the memory that a run may take
# Tokens in a pack: beyond it nothing is gained, for the matrices are large enough.
_ENOUGH = {"cpu": 640, "mps": 4096, "cuda": 16384}


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds a run needs, and how it fits: tokens in a pack, activations recomputed."""

    parameters: int
    trainable: int
    memory: int
    token_budget: int
    checkpointing: bool
    seconds: float


def estimate(
    recipe: Recipe,
    shape: "PreTrainedModel",
    device: Device,
    *,
    steps: int,
    tokens_a_row: float,
    supervised: float,
) -> Estimate:
    """Estimate from the model's shape; the time from a short measurement of this machine.

    `supervised` is the share of tokens that the loss covers.
    """
    parameters = sum(p.numel() for p in shape.parameters())
    trainable = _trainable(recipe, shape)
    size = device.base_dtype().itemsize
    fixed = size * parameters + 16 * trainable + (1 << 30)  # base, adapter with AdamW, libraries
    a_token, config = _bytes_a_token(recipe, shape, size), shape.config.get_text_config()
    # All of the memory, not what is free now: a run that goes on later must cut its steps alike.
    room = int(_ROOM * device.memory - fixed)
    checkpointing = room < recipe.data.max_length * a_token
    if checkpointing:  # a layer's input stays, and the layer that is being computed
        a_token = 2 * a_token // config.num_hidden_layers + size * config.hidden_size
    budget = min(_ENOUGH[device.kind], max(room // a_token, recipe.data.max_length))
    embedding = shape.get_input_embeddings().weight.numel()
    # Forward and input gradients of frozen weights: 4 FLOP a token each; with recomputing 6.
    # The output layer only where a token is supervised.
    flop = (6 if checkpointing else 4) * (parameters - embedding + supervised * embedding)
    tokens = steps * recipe.training.batch_size * recipe.training.accumulation * tokens_a_row
    seconds = tokens * flop / (matmul_rate(device.bf16) * TRAINING_SHARE[device.bf16])
    needed = fixed + max(budget, recipe.data.max_length) * a_token
    return Estimate(parameters, trainable, int(needed), budget, checkpointing, seconds)


def _bytes_a_token(recipe: Recipe, shape: "PreTrainedModel", size: int) -> int:
    """Activations that a forward pass keeps for the backward pass."""
    config = shape.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 0)  # a state-space model has none
    probabilities = heads * recipe.data.max_length  # a local layer's: fewer
    units = _VALUES_A_UNIT * config.hidden_size + probabilities
    return int(config.num_hidden_layers * units * size)


def _trainable(recipe: Recipe, shape: "PreTrainedModel") -> int:
    wanted = recipe.lora.targets
    names = set(linear_modules(shape)) if wanted == "all-linear" else set(wanted)
    output = shape.get_output_embeddings()
    return sum(
        recipe.lora.rank * sum(module.weight.shape)
        for name, module in shape.named_modules()
        if name.rpartition(".")[2] in names and module is not output
    )
