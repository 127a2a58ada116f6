"""The plan of a run: everything that can be checked, prepared and derived before step 1."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from chattune.base import Base, find_base
from chattune.data import Prepared, prepare
from chattune.device import Device, find_device
from chattune.errors import RecipeError
from chattune.generate import Decoding
from chattune.models import shape_of
from chattune.models.lora import adapter_weights
from chattune.recipe import Recipe, RecipeLike, as_recipe
from chattune.tuning.estimate import Estimate, estimate

_SAMPLE_TOKENS = 96  # the longest reply in samples.json


@dataclass(frozen=True)
class Plan:
    """The meaning of a recipe on this machine: base, data, device, steps, memory and time.

    `decoding` are the settings of the sample replies, as the base recommends them. `steps_changed`
    has an entry for each time that the run was resumed with another number of steps.
    """

    recipe: Recipe
    base: Base
    device: Device
    prepared: Prepared
    steps: int
    warmup_steps: int
    estimate: Estimate
    decoding: Decoding
    steps_changed: tuple[dict[str, int], ...] = ()

    @cached_property
    def origin(self) -> dict[str, dict[str, Any]]:
        """The facts that a resumed run keeps, as run.json holds them from before step 1.

        They are the fingerprints of base and data and where the base comes from, the device with
        the dtype chosen for it, the size of the packs, and the length of the warm-up.
        """
        report = self.prepared.report.to_json()
        names = ("source", "format", "sources", "train", "validation", "tokens")
        return {
            "base": {
                "name": self.base.name,
                "origin": self.base.origin,
                "fingerprint": self.base.fingerprint(),
            },
            "data": {name: report[name] for name in (*names, "supervised_tokens", "fingerprint")},
            "device": asdict(self.device),
            "training": {
                "token_budget": self.estimate.token_budget,
                "warmup_steps": self.warmup_steps,
                "steps_changed": list(self.steps_changed),
            },
        }

    def explain(self) -> list[str]:
        """Return one line for each derived value, with its reason."""
        needs, conversations = self.estimate, len(self.prepared.train)
        per_step = self.recipe.training.conversations_per_step
        passes = conversations_trained(self.recipe, self.steps, conversations) / conversations
        return [
            f"device: {self.device.kind} ({self.device.name}, {self.device.threads} threads)",
            f"dtype: {'base in bf16, adapter in fp32' if self.device.bf16 else 'fp32'}, because "
            + self.device.bf16_reason,
            f"steps: {self.steps:,} of {min(per_step, conversations):,} conversations, "
            f"{passes:.1f} passes over the data"
            + (f" (there are no {per_step:,} for a step)" if per_step > conversations else ""),
            *self._early_stop(),
            f"parameters: {needs.parameters / 1e6:,.1f} M, trained {needs.trainable / 1e6:,.2f} M",
            f"memory: about {needs.memory / 1e9:.1f} GB of {self.device.memory / 1e9:.1f} GB"
            + (", with activations recomputed to save memory" if needs.checkpointing else ""),
            f"layout: packs of at most {needs.token_budget:,} tokens, no padding",
            f"time: about {needs.seconds / 60:,.0f} minutes, from a short measurement of this "
            "machine",
        ]

    def _early_stop(self) -> list[str]:
        patience = self.recipe.training.patience
        if patience is None:
            return []
        validations = "a validation" if patience == 1 else f"{patience} validations in a row"
        return [
            f"early stop: stops after {validations} without a lower loss (one is made every "
            f"{self.recipe.training.evaluate_every} steps)"
        ]


def plan(recipe: RecipeLike, started: Mapping[str, Any] | None = None) -> Plan:
    """Check everything that can be checked before step 1, and prepare the data.

    `started` is what the run that is resumed was started with: it keeps its dtype, the size of its
    packs and its warm-up, even if this machine would choose others today. Raises BaseError,
    DataError, RecipeError, or ChatError for a base whose generation_config.json is damaged.
    """
    recipe = as_recipe(recipe)
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
    steps = total_steps(recipe, len(prepared.train))
    warmup_steps = min(math.ceil(recipe.training.warmup_ratio * steps), steps - 1)
    token_budget, steps_changed = None, ()
    if started is not None:
        bf16 = started["device"]["bf16"]
        device = replace(device, bf16=bf16, bf16_reason="the run was started in it")
        kept = started["training"]
        token_budget, warmup_steps = kept["token_budget"], kept["warmup_steps"]
        steps_changed = tuple(kept["steps_changed"])
    report = prepared.report
    conversations = conversations_trained(recipe, steps, len(prepared.train))
    tokens = conversations * report.tokens / report.kept
    supervised = conversations * report.supervised_tokens / report.kept
    needs = estimate(
        recipe,
        shape,
        device,
        trainable=trainable,
        tokens=tokens,
        supervised=supervised,
        token_budget=token_budget,
    )
    return Plan(recipe, base, device, prepared, steps, warmup_steps, needs, decoding, steps_changed)


def total_steps(recipe: Recipe, conversations: int) -> int:
    """Return a recipe's optimiser steps, for training data of so many conversations."""
    training = recipe.training
    if training.steps is not None:
        return training.steps
    assert training.epochs is not None  # the recipe has one of the two
    return max(1, math.ceil(training.epochs * _steps_per_pass(recipe, conversations)))


def conversations_trained(recipe: Recipe, steps: int, conversations: int) -> int:
    """Return the number of conversations in so many steps, each counted as often as it is used.

    A step never reaches into the next pass over the training data's `conversations`: the last step
    of a pass has those that are left, which are all of them if there are no more than a step takes.
    """
    passes, rest = divmod(steps, _steps_per_pass(recipe, conversations))
    return passes * conversations + rest * recipe.training.conversations_per_step


def _steps_per_pass(recipe: Recipe, conversations: int) -> int:
    return math.ceil(conversations / recipe.training.conversations_per_step)
