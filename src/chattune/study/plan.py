"""The plan of a study: a YAML file with models, data sets, decodings and prompts."""

import itertools
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, StringConstraints, ValidationError

from chattune.errors import ChatError, RecipeError
from chattune.generate import Decoding
from chattune.recipe import Recipe, Section, expand_home, load_recipe

UNTUNED = "untuned"  # stands for the data set of a model that is evaluated as it is

# Names become names of folders.
Name = Annotated[str, StringConstraints(pattern=r"^[\w.][\w.-]*$")]
Overrides = dict[str, Any]  # dotted fields of a recipe, and their values


class Study(Section):
    """What a study compares; each model and each data set is a set of fields of the recipe."""

    title: str
    recipe: str = Field(description="Shipped recipe, or path of a YAML file.")
    models: dict[Name, Overrides] = Field(min_length=1)
    data: dict[Name, Overrides]
    decodings: dict[Name, dict[str, Any]] = Field(min_length=1)
    prompts: list[str] = Field(["general"], min_length=1)
    seeds: int = Field(1, ge=1)
    untuned: bool = Field(True, description="Evaluate the models without tuning too.")
    settings: Overrides = Field({}, description="Recipe fields of all runs.")

    def cells(self) -> list[tuple[str, str, str]]:
        """Return model, data set and decoding of each cell, in the order in which they are done."""
        data = ([UNTUNED] if self.untuned else []) + list(self.data)
        return list(itertools.product(self.models, data, self.decodings))

    def recipe_of(self, model: str, data: str) -> Recipe:
        """Return the recipe of the run that tunes a model on a data set."""
        return load_recipe(self.recipe, self.models[model] | self.data[data] | self.settings)

    def base_of(self, model: str) -> str:
        """Return the name of a model's base."""
        return load_recipe(self.recipe, self.models[model] | self.settings).base


def shipped_studies() -> list[str]:
    """Return the names of the studies that are part of chattune."""
    return sorted(p.name.removesuffix(".yaml") for p in _shipped_folder().glob("*.yaml"))


def load_study(
    name: str,
    *,
    data: Mapping[str, str] | None = None,
    settings: Overrides | None = None,
) -> Study:
    """Load a study by name or path, and check every recipe and decoding of it.

    `data` gives data sets other sources by name, and `settings` are recipe fields of all runs.
    Raises RecipeError that names the field.
    """
    path = (
        _shipped_folder() / f"{name}.yaml" if name in shipped_studies() else Path(expand_home(name))
    )
    if not path.is_file():
        raise RecipeError(
            f"study {name!r}: no such file; give the path of a YAML file, or a shipped study "
            f"({', '.join(shipped_studies())})"
        )
    try:
        tree = yaml.safe_load(path.read_text("utf-8-sig"))
        plan = Study.model_validate(tree)
    except ValidationError as error:
        detail = error.errors()[0]
        field = ".".join(map(str, detail["loc"])) or "its content"
        raise RecipeError(
            f"study {name}: {field}: {detail['msg'].lower()}, not {detail['input']!r:.80}"
        ) from error
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise RecipeError(f"study {name}: not a valid YAML file: {error}") from error
    for data_set, source in (data or {}).items():
        if data_set not in plan.data:
            raise RecipeError(
                f"--data {data_set}=...: the study has no such data set; it has "
                f"{', '.join(plan.data)}"
            )
        plan.data[data_set]["data.source"] = source
    plan = plan.model_copy(update={"settings": {**plan.settings, **(settings or {})}})
    _check(plan, name)
    return plan


def _check(plan: Study, name: str) -> None:
    for model in plan.models:
        plan.base_of(model)
        for data in plan.data:
            plan.recipe_of(model, data)
    for decoding, settings in plan.decodings.items():
        try:
            Decoding().but(**settings)
        except ChatError as error:
            raise RecipeError(f"study {name}: decodings.{decoding}.{error}") from error


def _shipped_folder() -> Path:
    return Path(str(resources.files("chattune"))) / "studies"
