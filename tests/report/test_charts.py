"""Charts hold the figures of their tables, and fit beside each other on one page."""

import json
import re
from pathlib import Path

import pytest
from made_evaluations import evaluation, judged, realistic, sweep, write_metrics

from chattune.evaluate.comparing import compare
from chattune.report.charts import evaluation_pictures, failures, lengths
from chattune.report.curves import differences, frontier, loss, loss_pictures
from chattune.report.figures import meaning
from chattune.report.picture import WIDTH, Picture
from chattune.report.tables import other_tables


def drawn(picture: Picture) -> dict:
    """Return the chart's specification."""
    assert picture.chart is not None
    return picture.chart.to_dict()  # type: ignore[attr-defined]


def values(picture: Picture) -> list[dict]:
    """Return the rows of all data sets of a chart."""
    return [row for rows in drawn(picture)["datasets"].values() for row in rows]


@pytest.fixture(scope="module")
def two() -> list:
    return [
        realistic("ours", {"repetition": 0.2}),
        realistic("theirs", {"echo": 0.3, "empty": 0.1}),
    ]


def test_all_charts_are_drawn_equally_wide_with_ids_of_their_own(two: list, tmp_path: Path) -> None:
    write_metrics(tmp_path)
    pictures = [
        *evaluation_pictures(two),
        loss(tmp_path),
        differences(compare(*two)),
        frontier(sweep()),
    ]
    assert len(pictures) == 6
    for picture in pictures:
        svg = picture.svg()
        assert svg.startswith('<svg role="img"')
        assert re.search(r'viewBox="0 0 ([\d.]+)', svg)[1] == str(WIDTH), picture.name  # type: ignore[index]
        assert "http" not in svg
        assert all(i.startswith(f"{picture.name}-") for i in re.findall(r' id="([^"]+)"', svg))
        assert picture.table.rows
        assert {len(row) for row in picture.table.rows} == {len(picture.table.columns)}


def test_failures_are_drawn_of_100_replies(two: list) -> None:
    picture = failures(two)
    rows = {(row["failure"].replace("\n", " "), row["model"]): row for row in values(picture)}
    rate = two[0].scores["failures"]["repetition"]
    drawn_rate = rows[meaning("repetition").title, "ours"]
    assert drawn_rate["value"] == pytest.approx(100 * rate["value"])
    assert drawn_rate["low"] == pytest.approx(100 * rate["low"])
    assert len(rows) == len(picture.table.rows) == 16
    assert picture.svg().count("role-legend-entry") == 1  # colours and shapes share a legend


def test_one_evaluation_needs_no_legend(two: list) -> None:
    assert "role-legend-entry" not in failures(two[:1]).svg()
    assert failures(two[:1]).table.columns[0] != "Model"


def test_many_evaluations_get_a_chart_of_each_failure_that_occurs(two: list) -> None:
    many = [*two, realistic("third", {}), realistic("fourth", {"echo": 0.1})]
    *charts, turns, _ = evaluation_pictures(many)
    assert [chart.name for chart in charts] == [
        "failure-repetition", "failure-echo", "failure-empty",
    ]  # fmt: skip
    rates = [e.scores["failures"]["echo"]["value"] * 100 for e in many]
    assert [row["value"] for row in values(charts[1])] == pytest.approx(rates)
    assert [row[0] for row in charts[1].table.rows] == [meaning("echo").title] * 4
    assert (turns.name, turns.svg()) == ("turns", "")
    assert turns.table.rows
    fine = [evaluation(f"model {n}", [judged("Yes.")]) for n in range(4)]
    assert [picture.name for picture in evaluation_pictures(fine)] == ["lengths"]
    assert other_tables(fine)[0].caption == "Failures"


def test_lengths_count_every_reply_once(two: list) -> None:
    assert sum(row["replies"] for row in values(lengths(two))) == 240
    empty = lengths([evaluation("made", [judged("")])])
    assert empty.table.rows == [("made", "0 to 0", "1")]
    assert empty.svg()


def test_a_long_loss_curve_is_averaged_and_its_table_has_the_validations(tmp_path: Path) -> None:
    write_metrics(tmp_path, steps=2000)
    picture = loss(tmp_path)
    training = [row for row in values(picture) if row["on"] == "training"]
    assert len(training) <= 150
    assert training[-1]["step"] == 2000
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = [line["loss"] for line in lines if "loss" in line][-(2000 - training[-2]["step"]) :]
    assert training[-1]["loss"] == pytest.approx(sum(last) / len(last))
    assert [row[0] for row in picture.table.rows] == [f"{50 * n:,}" for n in range(1, 41)]


def test_a_loss_without_validation_has_a_table_of_the_training(tmp_path: Path) -> None:
    lines = [{"step": n, "loss": 2.0} for n in range(1, 100)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = loss(tmp_path).table.rows
    assert 5 < len(rows) <= 12
    assert rows[-1] == ("99", "2.000", "–")


def test_each_run_that_is_there_has_its_loss_once(tmp_path: Path) -> None:
    write_metrics(tmp_path / "run")
    made = [
        evaluation("a", [judged("Yes.")], folder=tmp_path / "run", temperature=0.2),
        evaluation("b", [judged("Yes.")], folder=tmp_path / "run"),
        evaluation("c", [judged("Yes.")], folder=tmp_path / "gone"),
    ]
    assert [picture.name for picture in loss_pictures(made)] == ["loss-1"]


def test_differences_that_are_no_rates_are_in_the_table_only(two: list) -> None:
    comparison = compare(*two)
    picture = differences(comparison)
    rates = [d for d in comparison.differences if meaning(d.name).is_rate]
    assert len([row for row in values(picture) if "figure" in row]) == len(rates)
    assert len(picture.table.rows) == len(comparison.differences) > len(rates)


def test_the_cells_of_a_sweep_are_numbered_as_in_the_table() -> None:
    found = sweep()
    picture = frontier(found)
    cells = values(picture)[: len(found.cells)]
    assert [c["number"] for c in cells if c["kind"] == "chosen"] == [str(found.chosen + 1)]
    assert {int(c["number"]) - 1 for c in cells if c["number"]} == {*found.frontier, found.chosen}
    assert picture.table.rows[found.chosen][0] == f"{found.chosen + 1} ✓"
    assert [row[0] for row in picture.table.rows if row[0].endswith("*")] == ["2 *", "9 *"]
