"""What a run will take: memory and time, before it starts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chattune.device import Device, matmul_rate
from chattune.models.lora import linear_modules
from chattune.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Share of the machine's matrix rate that a step reaches. In fp32 from one run: GPT-Neo-125M, 400
# Dolly rows, 2 cores, about 69 GFLOP/s where the rate itself, read at other moments, was mostly
# near 100 (once 42). Under bf16 autocast a cautious guess: attention and whatever
# else is no matrix product gains nothing there.
_EFFICIENCY = {False: 0.7, True: 0.2}
# fp32 values kept for the backward pass, per token, layer and hidden unit (Korthikanti et al.
# 2022, section 4: 34 bytes at fp16; fp32 and LoRA's own inputs make it about 80), and per score.
_BYTES_A_UNIT = 80
_BYTES_A_SCORE = 20
_ROOM = 0.8  # share of the memory that a run may take


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds a run needs, and whether activations are recomputed to save memory."""

    parameters: int
    trainable: int
    memory: int
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
    rows = recipe.training.batch_size
    fixed = 4 * parameters + 16 * trainable + (1 << 30)  # weights, adapter with AdamW, libraries
    activations = _activations(recipe, shape, rows)
    checkpointing = fixed + activations > _ROOM * device.memory
    layers = getattr(shape.config, "num_hidden_layers", 12)
    needed = fixed + (activations // max(1, layers // 2) if checkpointing else activations)
    embedding = shape.get_input_embeddings().weight.numel()
    # Forward and input gradients of frozen weights: 4 FLOP a token each; with recomputing 6.
    # The output layer only where a token is supervised.
    flop = (6 if checkpointing else 4) * (parameters - embedding + supervised * embedding)
    tokens = steps * rows * recipe.training.accumulation * tokens_a_row
    seconds = tokens * flop / (matmul_rate(device.bf16) * _EFFICIENCY[device.bf16])
    return Estimate(parameters, trainable, int(needed), checkpointing, seconds)


def _activations(recipe: Recipe, shape: "PreTrainedModel", rows: int) -> int:
    config = shape.config.get_text_config()
    tokens = rows * recipe.data.max_length
    layers, hidden = config.num_hidden_layers, config.hidden_size
    scores = config.num_attention_heads * recipe.data.max_length * tokens
    head = 3 * 4 * tokens * config.vocab_size  # logits, their log-softmax and gradient
    return int(layers * (_BYTES_A_UNIT * tokens * hidden + _BYTES_A_SCORE * scores) + head)


def _trainable(recipe: Recipe, shape: "PreTrainedModel") -> int:
    wanted = recipe.lora.targets
    names = set(linear_modules(shape)) if wanted == "all-linear" else set(wanted)
    output = shape.get_output_embeddings()
    return sum(
        recipe.lora.rank * sum(module.weight.shape)
        for name, module in shape.named_modules()
        if name.rpartition(".")[2] in names and module is not output
    )
