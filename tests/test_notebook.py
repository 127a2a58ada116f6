"""Tests of running.ipynb, which must run without errors, and of running.py's choice of a run."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_notebook_runs_top_to_bottom(tiny_base: Path, talk_file: Path, tmp_path: Path) -> None:
    """Its first cell is changed to a tiny base and data set, as its text invites the reader to."""
    notebook = nbformat.read(ROOT / "running.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    changes = {
        "base": str(tiny_base), "template": "auto", "data.source": str(talk_file),
        "data.max_length": 64, "data.rows": None,
    }  # fmt: skip
    first.source += f"\nCHANGES = {changes | {'training.steps': 2}!r}"
    NotebookClient(notebook, timeout=180, resources={"metadata": {"path": tmp_path}}).execute()
    shown = str([cell.get("outputs") for cell in notebook.cells])
    assert "image/png" in shown
    assert "What is a black hole? ->" in shown
    assert (tmp_path / "runs" / "notebook" / "manifest.json").is_file()


def running(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "running.py"],
        cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip


def test_without_a_run_running_offers_quickstart(tmp_path: Path) -> None:
    completed = running(tmp_path)
    assert completed.returncode != 0
    assert "no run in runs/ yet" in completed.stderr
    assert "chattune quickstart" in completed.stderr


def test_running_serves_the_newest_run(tmp_path: Path) -> None:
    for age, name in enumerate(["new", "old"]):
        manifest = tmp_path / "runs" / name / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text("{}")  # damaged, so that serving it ends at once with its name
        os.utime(manifest, (1000 - age, 1000 - age))
    completed = running(tmp_path)
    assert completed.returncode == 2
    assert "chattune: run runs/new: manifest.json is damaged" in completed.stderr
