"""Tests of recipes: the shipped ones, overrides and error messages."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import chattune
from chattune.errors import RecipeError, UserError
from chattune.recipe import (
    MixedSource,
    Recipe,
    Section,
    as_recipe,
    fields,
    load_recipe,
    parse_overrides,
    shipped,
)

STUDY = [f"gpt-neo-{size}-{data}" for size in ("1.3b", "125m") for data in ("guanaco", "openorca")]
SMALLEST = "base: starter\ndata: {source: starter}\ntraining: {steps: 5}\n"


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def complaints(name: str, **overrides: Any) -> list[str]:
    """Return the lines of the RecipeError; in the names of overrides, __ stands for a dot."""
    dotted = {field.replace("__", "."): value for field, value in overrides.items()}
    with pytest.raises(RecipeError) as caught:
        load_recipe(name, dotted)
    return str(caught.value).splitlines()


# --- shipped -----------------------------------------------------------------------------------


def test_seven_recipes_are_shipped() -> None:
    assert shipped() == sorted([*STUDY, "smollm2", "smollm2-guanaco", "starter"])


@pytest.mark.parametrize("name", STUDY)
def test_the_recipes_of_the_study_have_its_settings(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.training.model_dump() == {
        "steps": 500,
        "epochs": None,
        "batch_size": 4,
        "accumulation": 4,
        "learning_rate": 2e-4,
        "warmup_ratio": 0.03,
        "schedule": "constant",
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "neftune": 0.0,
        "evaluate_every": 50,
        "patience": None,
    }
    assert recipe.lora.model_dump() == {
        "rank": 16,
        "alpha": 32,
        "dropout": 0.05,
        "targets": "all-linear",
    }
    assert recipe.data.max_length == 512


@pytest.mark.parametrize("name", STUDY)
def test_the_recipes_of_the_study_are_named_after_base_and_data(name: str) -> None:
    recipe = load_recipe(name)
    size = "1.3B" if "1.3b" in name else "125m"
    source = {
        "guanaco": "timdettmers/openassistant-guanaco",
        "openorca": "Open-Orca/OpenOrca",
    }[name.rpartition("-")[2]]
    assert (recipe.base, recipe.data.source) == (f"EleutherAI/gpt-neo-{size}", source)


def test_the_starter_needs_no_network() -> None:
    recipe = load_recipe("starter")
    assert (recipe.base, recipe.data.source) == ("starter", "starter")


def test_the_defaults_are_the_settings_of_the_study(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, SMALLEST)) == Recipe.model_validate(
        {
            "base": "starter",
            "data": {"source": "starter", "max_length": 512},
            "lora": {"rank": 16, "alpha": 32, "dropout": 0.05},
            "training": {
                "steps": 5,
                "batch_size": 4,
                "accumulation": 4,
                "learning_rate": 2e-4,
                "warmup_ratio": 0.03,
                "schedule": "constant",
            },
        }
    )


# --- overrides ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lora.rank=8", 8),
        ("lora.dropout=0", 0.0),
        ("lora.targets=[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("lora.targets=all-linear", "all-linear"),
        ("lora.targets=q_proj,v_proj", ["q_proj", "v_proj"]),
        ("lora.targets=q_proj, v_proj", ["q_proj", "v_proj"]),
        ("lora.targets=q_proj", ["q_proj"]),
        ("training.max_grad_norm=0.3", 0.3),
        ("training.weight_decay=0.01", 0.01),
        ("training.learning_rate=2e-4", 2e-4),
        ("training.learning_rate=0.001", 1e-3),
        ("training.steps=7", 7),
        ("training.epochs=1.5", 1.5),
        ("training.patience=null", None),
        ("data.rows=100", 100),
        ("data.skip_bad_rows=true", True),
        ("data.source=a=b.jsonl", "a=b.jsonl"),
        ("data.columns={user: q, assistant: a}", {"user": "q", "assistant": "a"}),
        ("data.mix=[{source: x, weight: 2}]", [MixedSource(source="x", weight=2)]),
        ("base= org/model ", "org/model"),
        (" seed =3", 3),
    ],
)
def test_a_setting_replaces_the_value_of_the_file(setting: str, value: Any) -> None:
    recipe: Any = load_recipe("starter", parse_overrides([setting]))
    for name in setting.partition("=")[0].strip().split("."):
        recipe = getattr(recipe, name)
    assert recipe == value
    assert type(recipe) is type(value)


def test_the_last_of_two_settings_is_used() -> None:
    assert parse_overrides(["seed=1", "seed=2"]) == {"seed": 2}


@pytest.mark.parametrize("setting", ["lora.rank", "=8", " =8", ""])
def test_the_error_of_a_setting_without_field_or_value_shows_the_syntax(setting: str) -> None:
    with pytest.raises(RecipeError, match="write it as field=value"):
        parse_overrides([setting])


@pytest.mark.parametrize("setting", ["base=[1", "base=2024-99-99", "base={a", "base=\x07"])
def test_a_setting_that_is_not_yaml_is_refused(setting: str) -> None:
    with pytest.raises(RecipeError, match="--set base="):
        parse_overrides([setting])


def test_a_field_below_a_value_is_refused() -> None:
    assert complaints("starter", base__name="x") == [
        "--set base.name: base is a value, not a section; set base itself"
    ]


def test_settings_do_not_change_the_shipped_recipe() -> None:
    before = load_recipe("starter")
    load_recipe("starter", {"lora.rank": 1, "training.steps": 3})
    assert load_recipe("starter") == before


# --- steps or epochs ---------------------------------------------------------------------------


def test_steps_set_on_the_command_line_replace_epochs() -> None:
    training = load_recipe("starter", {"training.steps": 3}).training
    assert (training.steps, training.epochs) == (3, None)


def test_epochs_set_on_the_command_line_replace_steps() -> None:
    training = load_recipe(STUDY[0], {"training.epochs": 2}).training
    assert (training.steps, training.epochs) == (None, 2)


@pytest.mark.parametrize("training", ["{steps: 5, epochs: 1}", "{}", "{batch_size: 2}"])
def test_both_or_neither_of_steps_and_epochs_is_refused(tmp_path: Path, training: str) -> None:
    path = write(tmp_path, f"base: starter\ndata: {{source: starter}}\ntraining: {training}\n")
    [line] = complaints(path)
    assert "training: give either steps or epochs" in line


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("lora.rnak", "lora.rank"),
        ("training.lerning_rate", "training.learning_rate"),
        ("training.warmup", "training.warmup_ratio"),
        ("data.maxlength", "data.max_length"),
        ("sead", "seed"),
    ],
)
def test_the_error_of_an_unknown_field_names_the_nearest_one(wrong: str, nearest: str) -> None:
    [line] = complaints("starter", **{wrong: 1})
    assert line == f"recipe starter: {wrong}: unknown field; did you mean {nearest}?"


@pytest.mark.parametrize(
    ("other", "field"),
    [
        ("training.lr", "training.learning_rate"),
        ("lr", "training.learning_rate"),
        ("learning_rate", "training.learning_rate"),
        ("r", "lora.rank"),
        ("lora.r", "lora.rank"),
        ("lora.lora_r", "lora.rank"),
        ("rank", "lora.rank"),
        ("lora_alpha", "lora.alpha"),
        ("lora.lora_alpha", "lora.alpha"),
        ("lora_dropout", "lora.dropout"),
        ("lora.target_modules", "lora.targets"),
        ("max_steps", "training.steps"),
        ("training.max_steps", "training.steps"),
        ("num_train_epochs", "training.epochs"),
        ("epochs", "training.epochs"),
        ("max_seq_length", "data.max_length"),
        ("training.max_length", "data.max_length"),
        ("per_device_train_batch_size", "training.batch_size"),
        ("gradient_accumulation_steps", "training.accumulation"),
        ("lr_scheduler_type", "training.schedule"),
        ("training.gradient_clipping", "training.max_grad_norm"),
        ("dataset", "data.source"),
        ("data.dataset_mixer", "data.mix"),
        ("interleave_probs", "data.mix"),
        ("neftune_noise_alpha", "training.neftune"),
        ("training.neftune_noise_alpha", "training.neftune"),
        ("model", "base"),
    ],
)
def test_the_names_of_other_libraries_are_known(other: str, field: str) -> None:
    [line] = complaints("starter", **{other: 1})
    assert line == f"recipe starter: {other}: unknown field; did you mean {field}?"


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"source": "x"}, "data.mix[1].weight: missing; add it to this entry"),
        ({"weight": 1}, "data.mix[1].source: missing; add it to this entry"),
        ({"source": "x", "weight": 0}, "data.mix[1].weight: input should be greater than 0, not 0"),
        (
            {"source": "x", "weight": 1, "wieght": 2},
            "data.mix[1].wieght: unknown field; did you mean data.mix[1].weight?",
        ),
        (
            {"source": "x", "weight": 1, "max_samples": 2},
            "data.mix[1].max_samples: unknown field; did you mean data.mix[1].rows?",
        ),
        (
            {"source": "x", "weight": 1, "zzzzzzzz": 2},
            "data.mix[1].zzzzzzzz: unknown field; remove it",
        ),
        (
            "x.jsonl",
            "data.mix[1]: a section; set its fields, such as data.mix[1].source, not 'x.jsonl'",
        ),
    ],
)
def test_the_errors_of_a_mixed_source_name_its_entry(entry: Any, problem: str) -> None:
    good = {"source": "y.jsonl", "weight": 0.5}
    assert complaints("starter", data__mix=[good, entry]) == [f"recipe starter: {problem}"]


def test_a_dotted_name_in_a_file_is_explained(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST + "lora.rank: 8\n")
    assert complaints(path) == [
        f"recipe {path}: lora.rank: unknown field; write rank inside the section lora"
    ]


@pytest.mark.parametrize(
    ("section", "field"),
    [("data", "data.source"), ("lora", "lora.rank"), ("training", "training.steps")],
)
def test_a_value_in_place_of_a_section_is_explained(section: str, field: str) -> None:
    assert complaints("starter", **{section: "x"}) == [
        f"recipe starter: {section}: a section; set its fields, such as {field}, not 'x'"
    ]


@pytest.mark.parametrize("targets", [r".*_proj", "q_proj|v_proj", [r"h\.\d+"], "q_proj,*", ","])
def test_patterns_of_targets_are_refused(targets: Any) -> None:
    [line] = complaints("starter", lora__targets=targets)
    assert line.startswith("recipe starter: lora.targets: patterns are not supported; give the na")
    assert "q_proj,v_proj" in line


@pytest.mark.parametrize("targets", [5, None, {"a": 1}, [1, 2]])
def test_targets_that_are_no_names_are_refused_in_one_line(targets: Any) -> None:
    [line] = complaints("starter", lora__targets=targets)
    assert "lora.targets: give the names of layers, such as q_proj,v_proj, or all-linear" in line


def test_the_error_of_an_unknown_field_like_no_other_says_to_remove_it() -> None:
    assert complaints("starter", zzzzzzzz=1) == [
        "recipe starter: zzzzzzzz: unknown field; remove it"
    ]


def test_all_errors_come_at_once() -> None:
    lines = complaints(
        "starter", lora__rnak=8, data__max_length="long", training__batch_size=0, seed=-1
    )
    assert len(lines) == 4
    for field in ("lora.rnak", "data.max_length", "training.batch_size", "seed"):
        assert any(f"{field}: " in line for line in lines)


def test_an_error_names_the_field_and_the_value() -> None:
    [line] = complaints("starter", training__schedule="sinus")
    assert "training.schedule" in line
    assert "'cosine'" in line
    assert "not 'sinus'" in line


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.max_length", 15),
        ("data.validation", 0.6),
        ("data.rows", 0),
        ("data.overlong", "cut it"),
        ("data.columns", {"human": "q"}),
        ("lora.rank", 0),
        ("lora.rank", 1.5),
        ("lora.alpha", 0),
        ("lora.dropout", 1),
        ("lora.targets", 5),
        ("training.steps", 0),
        ("training.epochs", 0),
        ("training.learning_rate", 0),
        ("training.max_grad_norm", 0),
        ("training.weight_decay", -0.1),
        ("training.warmup_ratio", 1),
        ("training.patience", 0),
        ("seed", -1),
        ("base", None),
        ("data", None),
        ("lora", 5),
    ],
)
def test_values_out_of_range_are_refused(field: str, value: Any) -> None:
    assert all(
        f"recipe starter: {field}" in line for line in complaints("starter", **{field: value})
    )


@pytest.mark.parametrize("field", ["training.learning_rate", "training.epochs", "lora.alpha"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_must_be_finite(field: str, value: float) -> None:
    [line] = complaints("starter", **{field: value})
    assert field in line


def test_a_seed_of_more_than_32_bits_is_refused() -> None:
    [line] = complaints("starter", seed=2**70)
    assert "seed" in line


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("seed: 1\n", ["base", "data", "training"]),
        ("base: starter\ndata: {}\ntraining: {steps: 1}\n", ["data.source"]),
    ],
)
def test_the_errors_of_missing_fields_say_how_to_give_them(
    tmp_path: Path, text: str, missing: list[str]
) -> None:
    path = write(tmp_path, text)
    assert complaints(path) == [
        f"recipe {path}: {field}: missing; add it to the recipe or pass --set {field}=..."
        for field in missing
    ]


# --- files -------------------------------------------------------------------------------------


def test_a_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, "base: starter\ndata:\n  source: [x\nseed: 1\n")
    [line] = complaints(path)
    assert line.startswith(f"{path}:4: not valid YAML")


@pytest.mark.parametrize(
    "text", ["base: \x07\n", "base: 2024-99-99\n", "base: !!python/object:os.system x\n", "a: *b\n"]
)
def test_other_yaml_errors_name_the_file(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    [line] = complaints(path)
    assert path in line


@pytest.mark.parametrize("text", ["", "- base\n", "just words\n", "5\n"])
def test_the_error_of_a_file_without_fields_says_what_is_expected(
    tmp_path: Path, text: str
) -> None:
    [line] = complaints(write(tmp_path, text))
    assert "expected fields such as" in line


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    [line] = complaints(str(path))
    assert "cannot be read as UTF-8" in line


def test_a_byte_order_mark_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(SMALLEST, encoding="utf-8-sig")
    assert load_recipe(str(path)).training.steps == 5


@pytest.mark.parametrize("name", ["starte", "nowhere/mine.yaml", ""])
def test_the_error_of_an_unknown_recipe_lists_the_shipped_ones(name: str) -> None:
    [line] = complaints(name)
    assert all(known in line for known in shipped())


@pytest.mark.parametrize("name", ["talk.jsonl", "talk.csv", "talk.JSONL", "talk.jsonl.gz"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_file_of_conversations_is_not_read_as_a_recipe(
    tmp_path: Path, name: str, exists: bool
) -> None:
    path = tmp_path / "my talk" / name
    path.parent.mkdir()
    if exists:
        path.write_text('{"messages": []}\n{"messages": []}\n')
    [line] = complaints(str(path))
    assert f"did you mean --data '{path}', after a recipe" in line


@pytest.mark.parametrize("name", ["talk.json", "talk.txt", "talk"])
@pytest.mark.parametrize("text", ['[{"messages": []}]', '{"messages": []}\n{"messages": []}\n'])
def test_the_error_of_a_file_that_may_hold_conversations_names_data(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    [line] = complaints(str(tmp_path / name))
    assert f"if it holds conversations, pass --data {tmp_path / name} after" in line


def test_a_file_too_large_for_a_recipe_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, "a: b\n" * 300_000)
    [line] = complaints(path)
    assert f"did you mean --data {path}, after a recipe" in line


def test_a_folder_is_not_a_recipe(tmp_path: Path) -> None:
    [line] = complaints(str(tmp_path))
    assert ": a folder; give the path of a YAML file" in line
    assert "conversations are given with --data" in line


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "base: ~/base\ndata: {source: ~/talk.jsonl}\ntraining: {steps: 5}\n")
    recipe = load_recipe("~/mine.yaml")
    assert (recipe.base, recipe.data.source) == (f"{tmp_path}/base", f"{tmp_path}/talk.jsonl")
    assert load_recipe("starter", {"base": "a~b"}).base == "a~b"
    with pytest.raises(UserError, match="~nobody-of-this-name/x: no such user"):
        load_recipe("starter", {"base": "~nobody-of-this-name/x"})


# --- from Python -------------------------------------------------------------------------------


def test_a_recipe_is_given_by_name_path_fields_or_as_it_is(tmp_path: Path) -> None:
    recipe = load_recipe("starter")
    assert as_recipe(recipe) is recipe
    assert as_recipe("starter") == recipe
    path = write(tmp_path, recipe.to_yaml())
    assert as_recipe(path) == as_recipe(Path(path)) == recipe
    assert as_recipe(recipe.model_dump()) == recipe


def test_the_errors_of_fields_from_python_are_those_of_a_file() -> None:
    with pytest.raises(RecipeError) as caught:
        as_recipe({"base": "starter", "data": {"source": "starter"}, "training": {"lr": 1}})
    assert str(caught.value).splitlines() == [
        "recipe: training.lr: unknown field; did you mean training.learning_rate?",
    ]


@pytest.mark.parametrize("value", [None, 5, ["starter"], b"starter"])
@pytest.mark.parametrize("stage", [as_recipe, chattune.prepare, lambda v: chattune.tune(v, "run")])
def test_what_is_no_recipe_is_refused_with_what_is_wanted(stage: Any, value: Any) -> None:
    with pytest.raises(TypeError, match="recipe: give a Recipe, a dict of its fields, the name"):
        stage(value)


def test_prepare_takes_fields_and_text_paths(
    tmp_path: Path, tiny_base: Path, talk_file: Path
) -> None:
    recipe = {
        "base": str(tiny_base),
        "data": {"source": str(talk_file), "max_length": 64},
        "training": {"steps": 1},
    }
    assert chattune.prepare(recipe, str(tmp_path / "out")).report.kept == 4
    assert (tmp_path / "out").is_dir()


def test_tune_takes_fields(
    tmp_path: Path, tiny_base: Path, talk_file: Path, quick_tuning: None
) -> None:
    recipe = {
        "base": str(tiny_base),
        "data": {"source": str(talk_file), "max_length": 64},
        "lora": {"targets": "q_proj,v_proj"},
        "training": {"steps": 1},
    }
    run = chattune.tune(recipe, tmp_path / "run")
    assert run.recipe.lora.targets == ["q_proj", "v_proj"]


# --- the recipe itself -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*STUDY, "starter"])
def test_yaml_round_trip(tmp_path: Path, name: str) -> None:
    columns = {"user": "Größe", "assistant": "答"}
    mix = [{"source": "other.csv", "weight": 0.5, "columns": columns}]
    recipe = load_recipe(name, {"data.columns": columns, "data.mix": mix})
    assert load_recipe(write(tmp_path, recipe.to_yaml())) == recipe


def test_yaml_has_every_field() -> None:
    text = load_recipe("starter").to_yaml()
    assert all(f"{name.rpartition('.')[2]}:" in text for name, _, _ in fields())


def test_fields_are_listed_once_with_their_description() -> None:
    names = [name for name, _, _ in fields()]
    assert len(names) == len(set(names))
    assert all(description.strip() for _, _, description in fields())
    assert names == leaves(Recipe)


def leaves(section: type[Section], prefix: str = "") -> list[str]:
    names = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            names += leaves(inner, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def test_fields_have_their_defaults_or_are_required(tmp_path: Path) -> None:
    defaults = {name: default for name, default, _ in fields()}
    assert {name for name, default in defaults.items() if default is ...} == {"base", "data.source"}
    recipe = load_recipe(write(tmp_path, SMALLEST))
    for name, default in defaults.items():
        if default is not ... and name != "training.steps":
            value: Any = recipe
            for part in name.split("."):
                value = getattr(value, part)
            assert value == default, name


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load_recipe("starter").lora.rank = 1
