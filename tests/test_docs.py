"""What the documents show is what the program says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from chattune.cli import app
from chattune.recipe import fields, shipped

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
VERBS = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def recipe_table() -> str:
    """The recipe's fields as the README shows them."""
    rows = [
        f"| `{name}` | {'required' if default is ... else f'`{shown(default)}`'} | {text} |"
        for name, default, text in fields()
    ]
    return "\n".join(["| field | default | what it is |", "|---|---|---|", *rows])


def shown(default: object) -> str:
    if default is None:
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


def cli_page() -> str:
    """Every verb's help, as docs/cli.md shows it."""
    parts = ["# The command line\n"]
    for verb in ("", *VERBS):
        command = [sys.executable, "-m", "chattune.cli", *verb.split(), "--help"]
        help_text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        help_text = help_text.replace("python -m chattune.cli", "chattune").rstrip()
        parts.append(f"## chattune {verb}".rstrip() + f"\n\n```\n{help_text}\n```\n")
    return "\n".join(parts)


def between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].partition(end)[0].strip()


def test_the_readme_lists_every_recipe_field() -> None:
    assert between(README, "<!-- recipe-fields -->", "<!-- /recipe-fields -->") == recipe_table()


def test_the_command_line_page_is_the_help_itself() -> None:
    assert (ROOT / "docs" / "cli.md").read_text("utf-8") == cli_page()


def test_the_readme_names_every_shipped_recipe() -> None:
    assert all(f"`{name}`" in README or f" {name}" in README for name in shipped())


@pytest.mark.parametrize("marker", ["quickstart-command", "test-command"])
def test_a_readme_command_is_one_line_that_a_shell_accepts(marker: str) -> None:
    block = between(README, f"<!-- {marker} -->\n```", "```")
    assert "\n" not in block
    assert block.startswith("python3 -m venv .venv && .venv/bin/pip install")
    subprocess.run(["bash", "-n", "-c", block], check=True)


def test_every_command_in_the_readme_parses() -> None:
    """Each `chattune ...` line names a verb and options that its help knows."""
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    blocks = "\n".join(re.findall(r"```\n(.*?)```", README, re.DOTALL))
    commands = re.findall(r"^(?:\S+/)?chattune (\w+)(.*)$", blocks, re.MULTILINE)
    assert len(commands) >= 7
    for verb, rest in commands:
        verb_help = between(page, f"## chattune {verb}\n", "\n## ")
        assert verb in VERBS
        assert all(option in verb_help for option in re.findall(r"--[a-z-]+", rest))


def test_relative_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


if __name__ == "__main__":  # python tests/test_docs.py writes both again
    (ROOT / "docs" / "cli.md").write_text(cli_page(), "utf-8")
    before, _, rest = README.partition("<!-- recipe-fields -->")
    after = rest.partition("<!-- /recipe-fields -->")[2]
    (ROOT / "README.md").write_text(
        f"{before}<!-- recipe-fields -->\n{recipe_table()}\n<!-- /recipe-fields -->{after}", "utf-8"
    )
