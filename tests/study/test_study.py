"""Studies: their plans, and a small one that is stopped and goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from chattune.errors import RecipeError, RunError
from chattune.study import comparisons, load_study, study
from chattune.study.plan import shipped_studies
from conftest import Outcome
from tuned import recipe


def test_every_shipped_study_can_be_loaded() -> None:
    assert shipped_studies() == ["gpt-neo", "smollm2", "starter"]
    plans = [load_study(name) for name in shipped_studies()]
    assert [len(plan.cells()) for plan in plans] == [18, 9, 9]


def test_data_and_settings_of_the_command_line_win() -> None:
    plan = load_study(
        "smollm2", data={"guanaco": "mine.jsonl"}, settings={"training.steps": 7, "seed": 3}
    )
    changed = plan.recipe_of("smollm2", "guanaco")
    assert (changed.data.source, changed.training.steps, changed.seed) == ("mine.jsonl", 7, 3)
    assert plan.recipe_of("smollm2", "openorca").data.source == "Open-Orca/OpenOrca"


@pytest.fixture
def plan_file(tmp_path: Path, tiny_base: Path, talk_file: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(tiny_base, talk_file).to_yaml())
    asked = tmp_path / "asked.txt"
    asked.write_text("Hi\nWho are you?\n")
    content = {
        "title": "A small study",
        "recipe": str(path),
        "models": {"tiny": {"base": str(tiny_base)}},
        "data": {"talk": {"data.source": str(talk_file)}},
        "decodings": {
            "cold": {"temperature": 0.1, "max_new_tokens": 4},
            "hot": {"temperature": 1.5, "max_new_tokens": 4},
        },
        "prompts": [str(asked)],
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "small.yaml"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"models": {}}, "models: "),
        ({"decodings": {"cold": {"heat": 1}}}, "decodings.cold.heat: no such setting"),
        ({"data": {"a/b": {}}}, "data.a/b"),
        ({"recipe": "nowhere"}, "recipe 'nowhere': no such file"),
        ({"models": {"tiny": {"lora.rang": 1}}}, "lora.rang: unknown field"),
        ({"wish": 1}, "wish: "),
    ],
)
def test_a_wrong_plan_is_refused(plan_file: Path, change: dict[str, Any], problem: str) -> None:
    tree = yaml.safe_load(plan_file.read_text()) | change
    plan_file.write_text(yaml.safe_dump(tree))
    with pytest.raises(RecipeError) as error:
        load_study(str(plan_file))
    assert problem in str(error.value)


def test_unknown_studies_and_data_sets_are_named() -> None:
    with pytest.raises(RecipeError, match="shipped study \\(gpt-neo, smollm2, starter\\)"):
        load_study("nothing")
    with pytest.raises(RecipeError, match="no such data set; it has guanaco, openorca"):
        load_study("smollm2", data={"dolly": "x"})


def test_a_study_goes_on_with_the_cells_that_are_missing(
    plan_file: Path, tmp_path: Path, quick_tuning: None
) -> None:
    plan = load_study(str(plan_file))
    replies: list[tuple[int, int]] = []

    def stop_in_the_third_cell(done: int, total: int) -> None:
        replies.append((done, total))
        if replies.count((total, total)) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(plan, tmp_path / "out", progress=stop_in_the_third_cell)
    run = tmp_path / "out" / "runs" / "tiny-talk"
    made = (run / "manifest.json").stat().st_mtime_ns
    seen: list[tuple[int, int]] = []
    cells = study(plan, tmp_path / "out", progress=lambda *counts: seen.append(counts))
    assert (run / "manifest.json").stat().st_mtime_ns == made  # not tuned again
    assert seen == [(2, 2), (0, 2), (1, 2), (2, 2)]  # the third cell's replies, then the fourth's
    assert [(c.data, c.decoding) for c in cells] == [
        ("untuned", "cold"), ("untuned", "hot"), ("talk", "cold"), ("talk", "hot"),
    ]  # fmt: skip
    pairs = [comparison.names for comparison in comparisons(cells)]
    assert ("tiny untuned, cold", "tiny talk, cold") in pairs
    assert ("tiny talk, cold", "tiny talk, hot") in pairs
    assert len(pairs) == 4
    other = load_study(str(plan_file), settings={"training.steps": 3})
    with pytest.raises(RunError, match="another recipe than the study's"):
        study(other, tmp_path / "out")


def test_the_command_line_lists_the_cells(cli: Callable[..., Outcome]) -> None:
    listed = cli("study", "starter", "--dry-run")
    assert listed.code == 0
    assert listed.out.splitlines()[0] == "starter, untuned, cold"
    assert len(listed.out.splitlines()) == 9
