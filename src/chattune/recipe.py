"""The recipe of a run: its fields, how it is loaded and overridden, and how it is validated."""

import difflib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from chattune.conversation import Role
from chattune.errors import RecipeError, UserError
from chattune.template import TemplateKind

_CONVERSATION_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet", ".gz")
_LARGEST_FILE = 1 << 20  # bytes; a recipe has far fewer

# Fields under the names that they have in other libraries, by the last part of a dotted name.
_OTHER_NAMES = {
    other: field
    for field, others in {
        "base": "model model_name model_name_or_path base_model base_model_name_or_path",
        "template": "chat_template prompt_template conversation_template",
        "data.source": "dataset datasets dataset_name dataset_path data_path data_files train_file",
        "data.max_length": "max_seq_length max_seq_len sequence_len model_max_length cutoff_len",
        "data.rows": "max_samples max_train_samples num_samples",
        "data.mix": "dataset_mixer dataset_mixer_list dataset_mixture interleave_probs",
        "data.validation": "val_set_size val_size validation_split test_size eval_split",
        "lora.rank": "r lora_r lora_rank",
        "lora.alpha": "lora_alpha",
        "lora.dropout": "lora_dropout",
        "lora.targets": "target_modules lora_target_modules lora_target",
        "training.steps": "max_steps num_steps iters max_iters",
        "training.epochs": "num_epochs num_train_epochs max_epochs",
        "training.batch_size": "per_device_train_batch_size train_batch_size micro_batch_size",
        "training.accumulation": "gradient_accumulation_steps gradient_accumulation grad_accum",
        "training.learning_rate": "lr",
        "training.warmup_ratio": "warmup warmup_steps lr_warmup_steps",
        "training.schedule": "scheduler lr_scheduler lr_scheduler_type",
        "training.max_grad_norm": "grad_clip gradient_clipping gradient_clip_val",
        "training.weight_decay": "wd",
        "training.evaluate_every": "eval_steps eval_every save_steps",
        "training.patience": "early_stopping early_stopping_patience",
        "training.neftune": "neftune_noise_alpha neft_alpha noisy_embedding_alpha",
        "seed": "random_seed data_seed",
    }.items()
    for other in others.split()
}


def expand_home(path: str) -> str:
    """Replace a leading `~` by the home folder, as a shell does unless the path is quoted.

    Raises UserError for the home folder of an unknown user.
    """
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise UserError(
            f"{path}: no such user; write the path in full, or ./{path} for this very name"
        ) from error


HubIdOrPath = Annotated[str, AfterValidator(expand_home)]


class Section(BaseModel):
    """A part of a recipe, which is frozen and refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Source(Section):
    """A set of conversations, and how its rows are read."""

    source: HubIdOrPath = Field(
        description="Hub id, file or folder of the conversations, `starter` or `starter-few`."
    )
    split: str = Field("train", description="Split of a Hub data set to read.")
    format: str = Field(
        "auto", description="Format of the rows; `auto` recognises it by their fields."
    )
    columns: dict[Role, str] | None = Field(
        None, description="Column of each role, for rows of no known format."
    )
    tree_paths: Literal["best", "all"] = Field(
        "best", description="Paths to take from an OASST tree: the best-ranked one or all of them."
    )
    rows: int | None = Field(
        None, ge=1, description="Number of rows in a random sample; by default every row is read."
    )


class MixedSource(Source):
    """A further set of conversations, of which as many are taken as its weight says."""

    weight: float = Field(
        gt=0,
        description="Number of conversations to take, divided by that kept of the main source.",
    )


class DataRecipe(Source):
    """The conversations of a run, and how they are cleaned, shortened and split."""

    mix: list[MixedSource] = Field(
        [],
        description="Further sources, as a list of `{source: other.jsonl, weight: 0.5}`: 0.5 takes "
        "half as many conversations as the main source keeps, drawn by the seed, or all if there "
        "are fewer. `split`, `format`, `columns`, `tree_paths` and `rows` can be set for each.",
    )
    max_length: int = Field(512, ge=16, description="Maximum number of tokens in a conversation.")
    overlong: Literal["cut", "drop"] = Field(
        "cut",
        description="Longer conversations are cut at the end of a turn or sentence, or dropped.",
    )
    near_duplicates: Literal["drop", "keep"] = Field(
        "drop", description="Drop or keep conversations that share over 90 % of their word 5-grams."
    )
    max_per_opening: int | None = Field(
        None,
        ge=1,
        description="Keep at most this many conversations whose first replies begin with the same "
        "four words, such as `As an AI language`; by default there is no limit.",
    )
    validation: float = Field(
        0.02,
        ge=0,
        le=0.5,
        description="Share of conversations held out, chosen by a hash of the first question.",
    )
    skip_bad_rows: bool = Field(
        False, description="Skip and count rows that cannot be read, instead of stopping."
    )


class LoraRecipe(Section):
    """The LoRA adapter to train (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

    rank: int = Field(16, ge=1, description="Rank of the update.")
    alpha: float = Field(
        32, gt=0, description="Scale of the update, which is multiplied by alpha / rank."
    )
    dropout: float = Field(
        0.05, ge=0, lt=1, description="Dropout probability of the adapter's input."
    )
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear",
        description="Names of the layers to adapt; `all-linear` is every linear layer of a block.",
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _split_targets(cls, value: Any) -> Any:
        """Accept names separated by commas, as the command line gives them."""
        if value == "all-linear":
            return value
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
            raise ValueError("give the names of layers, such as q_proj,v_proj, or all-linear")
        names = [name.strip() for name in names]
        if not all(re.fullmatch(r"[\w.-]+", name) for name in names):
            raise ValueError(
                "patterns are not supported; give the names of layers, such as q_proj,v_proj, or "
                "all-linear"
            )
        return names


class TrainingRecipe(Section):
    """The number of steps, the batch and the AdamW optimiser."""

    steps: int | None = Field(
        None, ge=1, description="Number of optimiser steps; give either this or `epochs`."
    )
    epochs: float | None = Field(
        None, gt=0, description="Number of passes over the data; give either this or `steps`."
    )
    batch_size: int = Field(
        4, ge=1, description="A step trains on `batch_size` times `accumulation` conversations."
    )
    accumulation: int = Field(
        4, ge=1, description="Factor of `batch_size`; memory alone decides how a step is split."
    )
    learning_rate: float = Field(
        2e-4, gt=0, description="Learning rate of AdamW after the warm-up."
    )
    warmup_ratio: float = Field(
        0.03,
        ge=0,
        lt=1,
        description="Share of the steps over which the learning rate rises from zero.",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Course of the learning rate after the warm-up."
    )
    max_grad_norm: float = Field(
        1.0, gt=0, description="Gradients with a larger norm are scaled down to this norm."
    )
    weight_decay: float = Field(
        0.0, ge=0, description="Weight decay of AdamW, which applies to the adapter's matrices."
    )
    neftune: float = Field(
        0.0,
        ge=0,
        description="Alpha of NEFTune's noise on the embeddings while training, such as 5 (Jain et "
        "al. 2023, https://arxiv.org/abs/2310.05914); 0 adds none.",
    )
    evaluate_every: int = Field(
        50, ge=1, description="Number of steps between validations; each also saves a checkpoint."
    )
    patience: int | None = Field(
        None, ge=1, description="Stop after this many validations without a lower loss."
    )

    @model_validator(mode="after")
    def _require_steps_or_epochs(self) -> "TrainingRecipe":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs, and not both")
        return self

    @property
    def conversations_per_step(self) -> int:
        """The number of conversations that an optimiser step trains on."""
        return self.batch_size * self.accumulation


class Recipe(Section):
    """All settings that determine what a run computes."""

    base: HubIdOrPath = Field(
        description="Hub id, folder or GGUF file of the pre-trained model, `smollm2` or `starter`."
    )
    template: TemplateKind = Field(
        "auto",
        description="Chat template: `auto` is the base's own, or chattune's if it has none; "
        "`chattune` and `chatml` replace it. `concatenated` does too, to show what goes wrong if "
        "prompts are part of the loss and no end token is learnt: the model does not stop.",
    )
    data: DataRecipe
    lora: LoraRecipe = LoraRecipe()
    training: TrainingRecipe
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Seed of sampling, initialisation, data order, dropout and noise.",
    )

    def to_yaml(self) -> str:
        """Return the recipe as YAML with every field written out."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


RecipeLike = Recipe | Mapping[str, Any] | str | Path


def shipped() -> list[str]:
    """Return the names of the recipes that are part of chattune."""
    folder = resources.files("chattune") / "recipes"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def load_recipe(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Load a shipped recipe by name, or a YAML file by path.

    `overrides` maps dotted fields to values that replace those of the file: `{"lora.rank": 8}`.
    Raises a RecipeError that lists every problem at once.
    """
    return _validate(_override(_read(str(name)), overrides or {}), f"recipe {name}")


def as_recipe(recipe: RecipeLike) -> Recipe:
    """Return a recipe as it is, or make one of its fields, a shipped recipe's name or a path.

    Raises RecipeError as `load_recipe` does, and TypeError for anything else.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return _validate(dict(recipe), "recipe")
    if isinstance(recipe, str | Path):
        return load_recipe(recipe)
    raise TypeError(
        "recipe: give a Recipe, a dict of its fields, the name of a shipped recipe or the path of "
        f"a YAML file, not {recipe!r:.80}"
    )


def parse_overrides(settings: Sequence[str]) -> dict[str, Any]:
    """Turn `a.b=c` settings of the command line into overrides, reading each value as YAML.

    Raises RecipeError for a setting without a field or a value, or with invalid YAML.
    """
    overrides = {}
    for setting in settings:
        field, equals, value = setting.partition("=")
        if not equals or not field.strip():
            raise RecipeError(f"--set {setting}: write it as field=value, such as lora.rank=8")
        try:
            overrides[field.strip()] = yaml.safe_load(value)
        # PyYAML raises ValueError for an impossible date or too long a number.
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise RecipeError(
                f"--set {setting}: {value!r} is not a YAML value; check its quotes and brackets"
            ) from error
    return overrides


def fields(section: type[Section] = Recipe, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield each dotted field with its default (`...` if it is required) and its description."""
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from fields(annotation, f"{prefix}{name}.")
        else:
            default = ... if field.is_required() else field.default
            yield f"{prefix}{name}", default, field.description or ""


def _read(name: str) -> dict[str, Any]:
    if name in shipped():
        path = Path(str(resources.files("chattune"))) / "recipes" / f"{name}.yaml"
    else:
        path = Path(expand_home(name))
        _refuse_other_than_recipe(name, path)
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"recipe {name}: cannot be read as UTF-8 text ({error}); save it as UTF-8"
        ) from error
    as_data = f"if it holds conversations, pass --data {shlex.quote(name)} after a recipe's name"
    remedy = "mend it" if path.suffix in (".yaml", ".yml") else as_data
    try:
        tree = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{name}:{line}: not valid YAML: {error.problem}; {remedy}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{name}: not valid YAML: {reason}; {remedy}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"recipe {name}: expected fields such as `base:` and `data:`; {as_data}")
    return tree


def _refuse_other_than_recipe(name: str, path: Path) -> None:
    """Raise RecipeError for a path that is missing, or that rather holds conversations."""
    if path.suffix.lower() in _CONVERSATION_SUFFIXES or (
        path.is_file() and path.stat().st_size > _LARGEST_FILE
    ):
        raise RecipeError(
            f"recipe {name}: conversations rather than a recipe; did you mean --data "
            f"{shlex.quote(name)}, after a recipe such as starter?"
        )
    if not path.is_file():
        problem = "a folder" if path.is_dir() else "no such file"
        raise RecipeError(
            f"recipe {name!r}: {problem}; give the path of a YAML file, or a shipped recipe "
            f"({', '.join(shipped())}); conversations are given with --data"
        )


def _override(tree: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    for dotted, value in overrides.items():
        *parents, leaf = dotted.split(".")
        section = tree
        for parent in parents:
            subsection = section.setdefault(parent, {})
            if not isinstance(subsection, dict):
                raise RecipeError(
                    f"--set {dotted}: {parent} is a value, not a section; set {parent} itself"
                )
            section = subsection
        section[leaf] = value
        # Steps and epochs exclude each other, so the one that is set replaces the other.
        if dotted == "training.steps" and value is not None:
            section.pop("epochs", None)
        if dotted == "training.epochs" and value is not None:
            section.pop("steps", None)
    return tree


def _validate(tree: dict[str, Any], label: str) -> Recipe:
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        problems = [_problem(dict(detail)) for detail in error.errors()]
        raise RecipeError("\n".join(f"{label}: {p}" for p in problems)) from error


def _problem(detail: dict[str, Any]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]]
    field = "".join(parts).removeprefix(".")
    entry, section = _entry_of(field)
    if detail["type"] == "extra_forbidden":
        return f"{field}: unknown field; {_suggestion(field)}"
    if detail["type"] == "missing":
        where = "this entry" if entry else f"the recipe or pass --set {field}=..."
        return f"{field}: missing; add it to {where}"
    value = "" if isinstance(detail["input"], dict) else f", not {detail['input']!r:.80}"
    if detail["type"] == "model_type":
        names = [name for name, _, _ in fields(section, entry)]
        first = next(name for name in names if name.startswith(f"{field}."))
        return f"{field}: a section; set its fields, such as {first}{value}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{field}: {message[0].lower()}{message[1:]}{value}"


def _entry_of(field: str) -> tuple[str, type[Section]]:
    """Return what a field's name begins with and the model that the rest of the name belongs to.

    They are `data.mix[0].` and MixedSource for an entry of `data.mix`, else nothing and Recipe.
    """
    entry = re.match(r"data\.mix\[\d+\]", field)
    return (f"{entry[0]}.", MixedSource) if entry else ("", Recipe)


def _suggestion(field: str) -> str:
    """Return what to do about an unknown field: use the one that was probably meant, or none."""
    entry, model = _entry_of(field)
    name, known = field.removeprefix(entry), [dotted for dotted, _, _ in fields(model)]
    section, _, leaf = name.rpartition(".")
    if name in known:
        return f"write {leaf} inside the section {section}"
    by_leaf = {dotted.rpartition(".")[2]: dotted for dotted in known}
    nearest = by_leaf.get(_OTHER_NAMES.get(leaf, leaf).rpartition(".")[2]) or next(
        iter(difflib.get_close_matches(name, known, n=1, cutoff=0.4)), None
    )
    return f"did you mean {entry}{nearest}?" if nearest else "remove it"
