"""The plan of a run: everything that can be checked, prepared and derived before step 1."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from chattune.base import Base, find_base
from chattune.data import Prepared, prepare
from chattune.device import Device, find_device
from chattune.errors import RecipeError
from chattune.generate import Decoding
from chattune.models import shape_of
from chattune.models.lora import adapter_weights
from chattune.recipe import Recipe
from chattune.tuning.estimate import Estimate, estimate

_SAMPLE_TOKENS = 96  # the longest reply in samples.json


@dataclass(frozen=True)
class Plan:
    """The meaning of a recipe on this machine: base, data, device, steps, memory and time.

    `decoding` are the settings of the sample replies, as the base recommends them.
    """

    recipe: Recipe
    base: Base
    device: Device
    prepared: Prepared
    steps: int
    estimate: Estimate
    decoding: Decoding

    @cached_property
    def origin(self) -> dict[str, dict[str, Any]]:
        """The base and the data with their fingerprints, as run.json holds them from step 1."""
        report = self.prepared.report
        names = ("source", "format", "train", "validation", "tokens", "supervised_tokens")
        return {
            "base": {"name": self.base.name, "fingerprint": self.base.fingerprint()},
            "data": {name: getattr(report, name) for name in (*names, "fingerprint")},
        }

    def explain(self) -> list[str]:
        """Return one line for each derived value, with its reason."""
        needs, conversations = self.estimate, self.recipe.training.conversations_per_step
        epochs = self.steps * conversations / len(self.prepared.train)
        return [
            f"device: {self.device.kind} ({self.device.name}, {self.device.threads} threads)",
            f"dtype: {'base in bf16, adapter in fp32' if self.device.bf16 else 'fp32'}, because "
            + self.device.bf16_reason,
            f"steps: {self.steps:,} of {conversations} conversations, {epochs:.1f} passes over the "
            "data",
            f"parameters: {needs.parameters / 1e6:,.1f} M, trained {needs.trainable / 1e6:,.2f} M",
            f"memory: about {needs.memory / 1e9:.1f} GB of {self.device.memory / 1e9:.1f} GB"
            + (", with activations recomputed to save memory" if needs.checkpointing else ""),
            f"layout: packs of at most {needs.token_budget:,} tokens, no padding",
            f"time: about {needs.seconds / 60:,.0f} minutes, from a short measurement of this "
            "machine",
        ]


def plan(recipe: Recipe) -> Plan:
    """Check everything that can be checked before step 1, and prepare the data.

    Raises BaseError, DataError, RecipeError, or ChatError for a base whose generation_config.json
    is damaged.
    """
    base = find_base(recipe.base)
    decoding = Decoding.of(base.folder).but(max_new_tokens=_SAMPLE_TOKENS)
    shape = shape_of(base)
    trainable = adapter_weights(recipe.lora, shape)  # also refuses targets that the base lacks
    prepared = prepare(recipe, base=base)
    device = find_device()
    if recipe.training.patience is not None and not len(prepared.validation):
        raise RecipeError(
            "training.patience: no conversation is held out to measure the loss on; raise "
            "data.validation, or leave training.patience out"
        )
    steps = _total_steps(recipe, len(prepared.train))
    report = prepared.report
    tokens = steps * recipe.training.conversations_per_step * report.tokens / report.kept
    supervised = tokens * report.supervised_tokens / report.tokens
    needs = estimate(
        recipe, shape, device, trainable=trainable, tokens=tokens, supervised=supervised
    )
    return Plan(recipe, base, device, prepared, steps, needs, decoding)


def _total_steps(recipe: Recipe, conversations: int) -> int:
    """Return a recipe's optimiser steps, for training data of so many conversations."""
    training = recipe.training
    if training.steps is not None:
        return training.steps
    assert training.epochs is not None  # the recipe has one of the two
    steps_per_epoch = math.ceil(conversations / training.conversations_per_step)
    return max(1, math.ceil(training.epochs * steps_per_epoch))
