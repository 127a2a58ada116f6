"""Recipe: what a run is. Load, override, validate; every error at once."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from chattune.errors import RecipeError


class Section(BaseModel):
    """A part of a recipe: frozen, and closed to fields it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataRecipe(Section):
    """Which conversations, and how they are cleaned, cut and split."""

    source: str = Field(description="Hub id, file, folder, or `starter`.")
    split: str = Field("train", description="Split to read, for a Hub data set.")
    format: str = Field("auto", description="`auto` recognises the rows by their fields.")
    columns: dict[Literal["system", "user", "assistant"], str] | None = Field(
        None, description="Your own column names, for rows of no known format."
    )
    tree_paths: Literal["best", "all"] = Field(
        "best", description="OASST trees: the best-ranked path, or every path."
    )
    rows: int | None = Field(None, ge=1, description="Take a seeded sample of so many rows.")
    max_length: int = Field(512, ge=16, description="Tokens a conversation may have.")
    overlong: Literal["cut", "drop"] = Field(
        "cut", description="Longer ones: cut at a turn or sentence end, or dropped."
    )
    near_duplicates: Literal["drop", "keep"] = Field(
        "drop", description="Conversations that share over nine tenths of their word 5-grams."
    )
    validation: float = Field(
        0.02, ge=0, le=0.5, description="Share held out, by a hash of the opening question."
    )
    skip_bad_rows: bool = Field(False, description="Count unreadable rows and go on.")


class LoraRecipe(Section):
    """The adapter that is trained (LoRA, https://arxiv.org/abs/2106.09685)."""

    rank: int = Field(16, ge=1, description="Rank of the update.")
    alpha: float = Field(32, gt=0, description="The update is scaled by alpha / rank.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout before the adapter.")
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="Modules it is added to, by name; default: all of the block."
    )


class TrainingRecipe(Section):
    """Steps, batch and optimiser (AdamW)."""

    steps: int | None = Field(None, ge=1, description="Optimiser steps; or give `epochs`.")
    epochs: float | None = Field(None, gt=0, description="Passes over the data; or give `steps`.")
    batch_size: int = Field(4, ge=1, description="Conversations of a step, times `accumulation`.")
    accumulation: int = Field(
        4, ge=1, description="Factor of `batch_size`; memory decides how a step is laid out."
    )
    learning_rate: float = Field(2e-4, gt=0, description="AdamW's, after warm-up.")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="Share of the steps that warm up.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Learning rate after warm-up."
    )
    evaluate_every: int = Field(
        50, ge=1, description="Steps between validations; each also saves a checkpoint."
    )
    patience: int | None = Field(
        None, ge=1, description="Stop after so many validations without a better loss."
    )

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingRecipe":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        return self


class Recipe(Section):
    """Everything that decides what a run computes."""

    base: str = Field(description="Hub id or folder of the pre-trained model, or `starter`.")
    data: DataRecipe
    lora: LoraRecipe = LoraRecipe()
    training: TrainingRecipe
    seed: int = Field(
        0, ge=0, lt=2**32, description="Seeds sampling, initialisation, order and dropout."
    )

    def to_yaml(self) -> str:
        """The resolved recipe, every field written out."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def shipped() -> list[str]:
    """Names of the recipes that come with chattune."""
    folder = resources.files("chattune") / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name[-5:] == ".yaml")


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Load a shipped recipe by name, or a YAML file by path.

    `overrides` maps dotted fields to values and wins over the file: `{"lora.rank": 8}`.
    Raises RecipeError that lists every problem found.
    """
    return _validate(_override(_read(name), overrides or {}), name)


def parse_overrides(settings: Sequence[str]) -> dict[str, Any]:
    """Turn `--set a.b=c` texts into overrides; values are read as YAML."""
    pairs = {}
    for setting in settings:
        field, equals, value = setting.partition("=")
        if not equals or not field.strip():
            raise RecipeError(f"--set {setting}: write it as field=value, such as lora.rank=8")
        try:
            pairs[field.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # as a date that is none
            raise RecipeError(f"--set {setting}: {value!r} is not a YAML value") from error
    return pairs


def fields() -> Iterator[tuple[str, Any, str]]:
    """Every dotted field with its default (`...` where required) and description."""
    for name, top in Recipe.model_fields.items():
        section = top.annotation
        if isinstance(section, type) and issubclass(section, Section):
            for inner, field in section.model_fields.items():
                default = ... if field.is_required() else field.default
                yield f"{name}.{inner}", default, field.description or ""
        else:
            yield name, ... if top.is_required() else top.default, top.description or ""


def _read(name: str) -> dict[str, Any]:
    path = Path(name)
    if name in shipped():
        text = (resources.files("chattune") / "recipes" / f"{name}.yaml").read_text("utf-8")
    elif path.is_file():
        try:
            text = path.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {name}: cannot be read as UTF-8 text ({error})") from error
    else:
        raise RecipeError(
            f"recipe {name!r}: no such file, nor a shipped recipe ({', '.join(shipped())})"
        )
    try:
        tree = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{name}:{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"recipe {name}: expected fields such as `base:` and `data:`")
    return tree


def _override(tree: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    for dotted, value in overrides.items():
        *parents, leaf = dotted.split(".")
        section = tree
        for parent in parents:
            inner = section.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise RecipeError(f"--set {dotted}: {parent} is a value, not a section")
            section = inner
        section[leaf] = value
        # steps and epochs exclude each other: the one that is set last counts.
        if dotted == "training.steps" and value is not None:
            section.pop("epochs", None)
        if dotted == "training.epochs" and value is not None:
            section.pop("steps", None)
    return tree


def _validate(tree: dict[str, Any], name: str) -> Recipe:
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        problems = [_problem(dict(detail)) for detail in error.errors()]
        raise RecipeError("\n".join(f"recipe {name}: {p}" for p in problems)) from error


def _problem(detail: dict[str, Any]) -> str:
    field = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, [name for name, _, _ in fields()], n=1, cutoff=0.4)
        return f"{field}: unknown field" + (f"; did you mean {near[0]}?" if near else "")
    if detail["type"] == "missing":
        return f"{field}: missing; add it to the recipe or pass --set {field}=..."
    message = detail["msg"].removeprefix("Value error, ")
    seen = "" if isinstance(detail["input"], dict) else f", not {detail['input']!r:.80}"
    return f"{field}: {message[0].lower()}{message[1:]}{seen}"
