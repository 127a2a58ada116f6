"""Rules of the code: which room imports which, who prints, what `--help` loads."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import chattune
from chattune.cli import app

HOUSE = Path(chattune.__file__).parent
ROOT = Path(__file__).parents[1]
MODULES = sorted(p.relative_to(HOUSE).as_posix() for p in HOUSE.rglob("*.py"))

ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
# Files that every room may import, and that import no room.
CORE = {
    *("errors", "conversation", "recipe", "template", "run", "device", "cost", "base", "hub"),
    *("folders", "gguf_file", "smollm2", "sentences"),
}
FREE = {"cli", "__init__"}  # the command line and the public names import any room
PRINTERS = {*(m for m in MODULES if m.startswith("cli/")), "chat/terminal.py"}
HEAVY = {
    *("torch", "transformers", "tokenizers", "datasets", "peft", "trl", "accelerate", "numpy"),
    *("gradio", "matplotlib", "pyarrow", "pandas", "huggingface_hub", "safetensors", "numba"),
}
VERBS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def room_of(module: str) -> str:
    """Return the folder, or the top-level file, of a path such as `tuning/loss.py`."""
    return module.split("/")[0].removesuffix(".py")


def imported(module: str) -> Iterator[str]:
    """Yield the rooms of chattune that a module imports, at its top or inside a function."""
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: write the import from chattune on"
            inner = node.module == "chattune"
            names = [f"chattune.{a.name}" for a in node.names] if inner else [node.module or ""]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "chattune" and rest and rest != "__version__":
                yield rest.split(".")[0]


def parsed(module: str) -> ast.Module:
    return ast.parse((HOUSE / module).read_text("utf-8"))


def python(code: str) -> str:
    """Run `code` in a fresh interpreter and return its standard error."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


# --- imports -----------------------------------------------------------------------------------


def drawn_imports() -> set[tuple[str, str]]:
    """Return the arrows between rooms that docs/architecture.md draws."""
    picture = ARCHITECTURE.partition("<!-- imports -->")[2].partition("<!-- /imports -->")[0]
    return set(re.findall(r"^ *(\w+) --> (\w+)$", picture, re.MULTILINE))


def test_rooms_import_each_other_as_the_architecture_page_draws_it() -> None:
    """Arrows to the core, and those of the command line, are not drawn."""
    imports = {(room_of(module), other) for module in MODULES for other in imported(module)}
    between_rooms = {
        (room, other)
        for room, other in imports
        if room != other and room not in CORE | FREE and other not in CORE
    }
    assert drawn_imports() == between_rooms


def test_the_core_imports_no_room() -> None:
    core = [module for module in MODULES if room_of(module) in CORE]
    assert {other for module in core for other in imported(module)} <= CORE


def test_the_architecture_page_has_a_paragraph_for_every_room() -> None:
    rooms = {room_of(module) for module in MODULES} - {"__init__"}
    assert [room for room in sorted(rooms) if f"**`{room}" not in ARCHITECTURE] == []


def test_no_room_imports_the_command_line() -> None:
    others = [m for m in MODULES if room_of(m) != "cli"]
    assert [m for m in others if "cli" in imported(m)] == []


@pytest.mark.parametrize("command", ["", *VERBS])
def test_help_loads_nothing_heavy(command: str) -> None:
    """This keeps `chattune --help` under 0.3 s on any machine."""
    loaded = python(
        "import json, sys\n"
        f"sys.argv = ['chattune', *{command.split()!r}, '--help']\n"
        "from chattune.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "json.dump(sorted({name.partition('.')[0] for name in sys.modules}), sys.stderr)"
    )
    assert HEAVY.isdisjoint(json.loads(loaded))


def test_core_and_scripted_chat_need_no_torch() -> None:
    names = [*CORE, "chat", "chat.terminal", "generate", "generate.reply", "generate.scripted"]
    loaded = python(
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module('chattune.' + name)\n"
        "json.dump(sorted(sys.modules), sys.stderr)"
    )
    assert {"torch", "transformers", "gradio"}.isdisjoint(json.loads(loaded))


def test_numba_is_imported_only_where_loops_are_compiled() -> None:
    """Training on a GPU and the reference engine do without it."""
    names = ["tuning.loss", "generate.reference", "gpt_neo", "generate.load", "models.packing"]
    loaded = python(
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module('chattune.' + name)\n"
        "json.dump(sorted(sys.modules), sys.stderr)"
    )
    assert {"numba", "llvmlite"}.isdisjoint(json.loads(loaded))


def test_public_names_are_what_they_say() -> None:
    for name in chattune.__all__:
        assert getattr(chattune, name).__name__.removeprefix("chattune.") == name
    with pytest.raises(AttributeError, match="no attribute 'chatbot'"):
        chattune.chatbot  # noqa: B018


# --- printing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [m for m in MODULES if m not in PRINTERS])
def test_only_command_line_and_terminal_print(module: str) -> None:
    calls = [node.func for node in ast.walk(parsed(module)) if isinstance(node, ast.Call)]
    names = {f.id for f in calls if isinstance(f, ast.Name)}
    names |= {f.attr for f in calls if isinstance(f, ast.Attribute) and f.attr == "echo"}
    assert names.isdisjoint({"print", "echo", "secho", "Console"})


# --- paths -------------------------------------------------------------------------------------


def written_files() -> list[Path]:
    """Return the files that people read: source, recipes and pages."""
    kinds = {".py", ".md", ".yaml", ".toml", ".ipynb", ".cff"}
    found = [p for folder in (HOUSE, ROOT / "docs") for p in folder.rglob("*")]
    return sorted(p for p in [*found, *ROOT.glob("*")] if p.is_file() and p.suffix in kinds)


def test_no_path_of_one_machine_is_written_down() -> None:
    absolute = re.compile(r"(?<![\w.~*<>}-])/(?:home|work|tmp|root|Users)(?![\w-])")
    named = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in written_files()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if absolute.search(line)
    ]
    assert named == []


# --- verbs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, cli) -> None:
    shown = cli(verb, "--help")
    assert (shown.code, shown.err) == (0, "")
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    docstring = command.callback.__doc__
    assert docstring.splitlines()[0] in " ".join(shown.out.split())
    assert [p.name for p in command.params if not getattr(p, "help", "--help")] == []


def test_help_lists_every_verb(cli) -> None:
    shown = cli("--help")
    assert shown.code == 0
    assert all(verb in shown.out for verb in VERBS)
