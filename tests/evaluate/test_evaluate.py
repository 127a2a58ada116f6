"""evaluate() and sweep() on a tiny run, through files and the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chattune.errors import ChatError, DataError, OutputError
from chattune.evaluate import evaluate, read_evaluation
from chattune.evaluate.failures import FAILURES
from chattune.evaluate.sweeping import sweep
from chattune.generate import Decoding
from chattune.run import Run
from conftest import TALK, Outcome, write_talk
from tuned import recipe

QUICK = {"max_new_tokens": 6}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Twelve prompts with references, of which two have two turns."""
    path = tmp_path / "asked.jsonl"
    rows: list[dict[str, Any]] = [
        {"kind": "one", "prompt": f"{q} {i}", "reference": a} for i in range(3) for q, a in TALK[:4]
    ][:10]
    rows += [{"id": f"two-{i}", "kind": "two", "turns": ["Hello", f"And {i}?"],
              "required": [["yes"]]} for i in range(2)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_evaluation_has_every_section(tiny_run: Run, prompts: Path, tmp_path: Path) -> None:
    done = evaluate(tiny_run.folder, [str(prompts)], output=tmp_path / "out", decoding=QUICK)
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores == done.scores
    assert scores["model"]["kind"] == "run"
    assert set(scores["failures"]) | set(scores["not_measured"]) == set(FAILURES)
    assert scores["failures"]["not_stopping"]["n"] == 14
    assert scores["measures"]["tokens"]["value"] <= 6
    assert scores["likelihood"]["perplexity"]["value"] > 1
    assert scores["likelihood"]["bits_per_byte"]["value"] > 0
    assert set(scores["by_turn"]) == {"1", "2"}
    assert set(scores["by_kind"]) == {"one", "two"}
    assert scores["by_kind"]["two"]["right"]["n"] == 2
    assert scores["agreement"]["chrf"]["n"] == 10
    assert scores["dependence"]["own_prompt_first"]["n"] >= 10
    read = read_evaluation(tmp_path / "out")
    assert read is not None
    assert [j.sample for j in read.judged] == [j.sample for j in done.judged]
    assert not list((tmp_path / "out").glob(".*"))


def test_the_same_settings_are_not_evaluated_again(
    tiny_run: Run, prompts: Path, tmp_path: Path
) -> None:
    def run(**options: Any) -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        output = tmp_path / "out"
        evaluate(
            tiny_run.folder,
            [str(prompts)],
            output=output,
            progress=lambda done, total: seen.append((done, total)),
            **options,
        )
        return seen

    assert run(decoding=QUICK)[-1] == (14, 14)
    assert run(decoding=QUICK) == []
    assert run(decoding=QUICK, seeds=2)[-1] == (28, 28)


def test_a_killed_evaluation_keeps_its_replies(
    tiny_run: Run, prompts: Path, tmp_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"output": tmp_path / "out", "decoding": QUICK}
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_run.folder, [str(prompts)], progress=stop, **options)
    seen: list[int] = []
    resumed = evaluate(
        tiny_run.folder, [str(prompts)], progress=lambda done, _: seen.append(done), **options
    )
    assert seen[0] == 5
    whole = evaluate(tiny_run.folder, [str(prompts)], output=tmp_path / "b", decoding=QUICK)
    assert [j.to_json() for j in resumed.judged] == [j.to_json() for j in whole.judged]


def test_training_replies_and_held_out_conversations_of_the_run_are_known(
    tiny_base: Path, tmp_path: Path, quick_tuning: None
) -> None:
    from chattune.tuning import tune

    talks = write_talk(tmp_path / "t.jsonl", [(f"{q} {i}", a) for i in range(9) for q, a in TALK])
    run = tune(recipe(tiny_base, talks, data__validation=0.3), tmp_path / "run")
    done = evaluate(run.folder, ["heldout"], decoding=QUICK)
    assert done.folder == run.folder
    assert "copying" in done.scores["failures"]
    assert done.scores["likelihood"]["loss"]["n"] > 0
    assert {j.sample.reference for j in done.judged} <= {answer for _, answer in TALK}
    Run.open(run.folder)  # the evaluation does not make the run look damaged
    talks.write_text("")
    again = evaluate(run.folder, ["study"], output=tmp_path / "out", decoding=QUICK)
    assert "cannot be read again" in again.scores["not_measured"]["copying"]


def test_a_model_can_be_evaluated_but_has_no_training_data(tiny_base: Path, tmp_path: Path) -> None:
    done = evaluate(tiny_base, ["study"], output=tmp_path / "out", decoding=QUICK)
    assert "not a run" in done.scores["not_measured"]["copying"]
    assert done.scores["model"]["adapter"] is None
    with pytest.raises(DataError, match="is not a run"):
        evaluate(tiny_base, ["heldout"], output=tmp_path / "other")
    with pytest.raises(DataError, match="given twice"):
        evaluate(tiny_base, ["study", "study"], output=tmp_path / "other")
    with pytest.raises(ChatError, match="no such setting"):
        evaluate(tiny_base, ["study"], output=tmp_path / "other", decoding={"heat": 1})
    assert not (tmp_path / "other").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    with pytest.raises(OutputError, match="not an empty folder"):
        evaluate(tiny_base, ["study"], output=tmp_path / "full")


def test_a_sweep_chooses_on_one_half_and_reports_the_other(
    tiny_base: Path, talk_file: Path, tmp_path: Path, quick_tuning: None
) -> None:
    from chattune.tuning import tune

    run = tune(recipe(tiny_base, talk_file), tmp_path / "run")
    path = tmp_path / "asked.txt"
    path.write_text("\n".join(f"Question {i}?" for i in range(24)))
    before = Decoding.of(run.folder)
    grid = {"temperature": [0.3, 1.7], "max_new_tokens": [5]}
    kept = sweep(run.folder, grid, [str(path)], output=tmp_path / "out", keep_decoding=True)
    assert Decoding.of(run.folder) == before
    assert [cell.decoding["temperature"] for cell in kept.cells] == [0.3, 1.7]
    for cell in kept.cells:
        assert cell.choosing["any_failure"].n == cell.reporting["any_failure"].n == 12
        assert cell.choosing["own_prompt_nats"].n == 12
    assert kept.chosen in kept.frontier
    assert not list((tmp_path / "out").glob(".*"))
    written = sweep(run.folder, grid, [str(path)])
    chosen = written.cells[written.chosen].decoding["temperature"]
    assert Decoding.of(run.folder).temperature == chosen
    assert json.loads((run.folder / "sweep.json").read_text())["chosen"] == written.chosen
    Run.open(run.folder)


def test_a_sweep_needs_prompts_for_both_halves(tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="5 prompts, and a sweep needs 20"):
        sweep(tiny_run.folder, {"max_new_tokens": [3]}, ["study"], output=tmp_path / "out")


def test_the_command_line_evaluates_and_compares(
    cli: Callable[..., Outcome], tiny_run: Run, prompts: Path, tmp_path: Path
) -> None:
    for name, temperature in (("a", 0.1), ("b", 2)):
        done = cli(
            *("evaluate", tiny_run.folder, "--prompts", prompts, "--output", tmp_path / name),
            *("--set", "max_new_tokens=6", "--set", f"temperature={temperature}", "--json"),
        )
        assert done.code == 0, done.err
        assert json.loads(done.out)["decoding"]["temperature"] == temperature
        assert "14 of 14 replies" in done.err
    compared = cli("compare", tmp_path / "a", tmp_path / "b", "--json")
    (comparison,) = json.loads(compared.out)
    assert comparison["settings"]["decoding.temperature"] == [0.1, 2]
    assert comparison["shared_prompts"] == 12


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["evaluate", "RUN", "--prompts", "nowhere"], "prompts 'nowhere': no such file"),
        (["evaluate", "RUN", "--set", "heat=1"], "heat: no such setting"),
        (["sweep", "RUN", "--grid", "temperature"], "write it as field=value"),
        (["sweep", "RUN", "--grid", "temperature=-1"], "temperature: "),
        (["compare", "RUN"], "give two or more"),
    ],
)
def test_wrong_arguments_end_in_one_line(
    cli: Callable[..., Outcome], tiny_run: Run, arguments: list[str], problem: str
) -> None:
    done = cli(*(str(tiny_run.folder) if a == "RUN" else a for a in arguments))
    assert done.code == 2
    assert problem in done.err
    assert "Traceback" not in done.err
