"""The memory and time that a run will take, estimated before it starts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chattune.cost import TRAINING_SHARE, matrix_weights, training_operations
from chattune.device import Device, matmul_rate
from chattune.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Values that a forward pass keeps for the backward pass, for each token, layer and hidden unit: the
# inputs of norms, adapted modules and GELU (10 in GPT-Neo, more with gated layers), and what an
# allocator loses.
_VALUES_PER_UNIT = 16
_LIBRARY_BYTES = 1 << 30  # PyTorch and everything else that is not the model
_MEMORY_SHARE = 0.8  # the share of the memory that a run may take
# Tokens in a pack beyond which larger matrices are no faster.
_ENOUGH_TOKENS = {"cpu": 640, "mps": 4096, "cuda": 16384}


@dataclass(frozen=True)
class Estimate:
    """The memory in bytes and the time in seconds that a run takes, and how it is made to fit.

    `parameters` counts the base's weights and `trainable` the adapter's. A pack has at most
    `token_budget` tokens. With `checkpointing`, activations are recomputed in the backward pass.
    """

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
    trainable: int,
    tokens: float,
    supervised: float,
    token_budget: int | None = None,
) -> Estimate:
    """Estimate a run from the model's shape and a short measurement of this machine.

    `shape` is the model without weights, `trainable` the number of the adapter's weights. The run
    trains on `tokens` tokens in all, and its loss covers `supervised` of them. A resumed run brings
    the `token_budget` that it was started with.
    """
    config, longest = shape.config.get_text_config(), recipe.data.max_length
    item_bytes = device.base_dtype().itemsize
    parameters = sum(p.numel() for p in shape.parameters())
    # An adapter's weight, its gradient and AdamW's two moments are 16 bytes in fp32.
    fixed = item_bytes * parameters + 16 * trainable + _LIBRARY_BYTES
    token_bytes = _activation_bytes(shape, longest, item_bytes)
    # Counted from all memory, not from what is free now, because a run that is resumed later must
    # cut its steps alike.
    activation_memory = int(_MEMORY_SHARE * device.memory - fixed)
    checkpointing = activation_memory < max(token_budget or 0, longest) * token_bytes
    if checkpointing:  # only each layer's input is kept, and the activations of one layer
        token_bytes = 2 * token_bytes // config.num_hidden_layers + item_bytes * config.hidden_size
    token_budget = token_budget or min(
        _ENOUGH_TOKENS[device.kind], max(activation_memory // token_bytes, longest)
    )
    activations = max(token_budget, longest) * token_bytes
    # The proof at the end keeps no activations; it converts a base in bf16 matrix by matrix.
    converted = 4 * max(p.numel() for p in shape.parameters()) if device.bf16 else 0
    memory = int(fixed + max(activations, converted))

    operations = training_operations(
        *matrix_weights(shape), tokens=tokens, supervised=supervised, recomputed=checkpointing
    )
    seconds = operations / (matmul_rate(device.bf16) * TRAINING_SHARE[device.bf16])
    return Estimate(parameters, trainable, memory, token_budget, checkpointing, seconds)


def _activation_bytes(shape: "PreTrainedModel", longest: int, item_bytes: int) -> int:
    """Return the bytes per token that a forward pass keeps for the backward pass."""
    config = shape.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 0)  # a state-space model has none
    probabilities = heads * longest  # an upper bound: a layer with a window keeps fewer
    values = _VALUES_PER_UNIT * config.hidden_size + probabilities
    return int(config.num_hidden_layers * values * item_bytes)
