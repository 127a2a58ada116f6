"""Tests of the command line: replies on standard output, errors in one line, exit codes."""

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
import typer

import chattune
from chattune.chat import Chatbot
from chattune.cli import app
from chattune.errors import BaseError
from chattune.recipe import shipped
from chattune.run import ADAPTER_CONFIG, RECIPE, Run, seal

BRIEF = "Hi! How are you today?"


def one_line(text: str) -> bool:
    return text.startswith("chattune: ") and text.count("\n") == 1


# --- chat --------------------------------------------------------------------------------------


def test_only_the_reply_is_on_standard_output(cli, tiny_base: Path) -> None:
    shown = cli("chat", tiny_base, "--prompt", BRIEF, "--seed", 1)
    bot = chattune.Chatbot.load(tiny_base)
    expected = bot.reply(BRIEF, bot.decoding.but(seed=1)).text
    assert (shown.code, shown.out, shown.err) == (0, expected + "\n", "")


def test_the_same_seed_gives_the_same_reply(cli, tiny_base: Path) -> None:
    first = cli("chat", tiny_base, "--prompt", BRIEF, "--seed", 1)
    again = cli("chat", tiny_base, "--prompt", BRIEF, "--seed", 1)
    other = cli("chat", tiny_base, "--prompt", BRIEF, "--seed", 2)
    assert first.out == again.out != other.out


def test_the_system_prompt_reaches_the_model(cli, tiny_base: Path) -> None:
    shown = cli(
        "chat", tiny_base, "--prompt", BRIEF, "--seed", 1, "--system", "Speak like a pirate."
    )
    bot = chattune.Chatbot.load(tiny_base, system="Speak like a pirate.")
    assert shown.out == bot.reply(BRIEF, bot.decoding.but(seed=1)).text + "\n"


def test_chat_without_a_prompt_answers_until_the_input_ends(
    cli, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["/set max_new_tokens 2", "Hi!"])

    def read(_: object = None) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    shown = cli("chat", tiny_base)
    assert shown.code == 0
    assert "max_new_tokens = 2" in shown.out
    assert "bot" in shown.out


@pytest.mark.parametrize("prompt", ["", "  "])
def test_an_empty_prompt_is_refused(cli, tiny_base: Path, prompt: str) -> None:
    shown = cli("chat", tiny_base, "--prompt", prompt)
    assert (shown.code, shown.out) == (2, "")
    assert shown.err == "chattune: the message is empty; write something\n"


def test_a_prompt_too_long_is_refused(cli, tiny_base: Path) -> None:
    shown = cli("chat", tiny_base, "--prompt", "why " * 400)
    assert (shown.code, shown.out) == (2, "")
    assert one_line(shown.err)
    assert "too long" in shown.err


@pytest.mark.parametrize("seed", [-1, 2**70])
def test_a_seed_out_of_range_is_refused(cli, tiny_base: Path, seed: int) -> None:
    shown = cli("chat", tiny_base, "--prompt", BRIEF, "--seed", seed)
    assert (shown.code, shown.out) == (2, "")
    assert one_line(shown.err)
    assert "seed" in shown.err


def test_a_prompt_that_is_not_utf8_is_answered_or_refused(cli, tiny_base: Path) -> None:
    """Such bytes from the shell reach Python as half of a surrogate pair."""
    shown = cli("chat", tiny_base, "--prompt", b"caf\xe9".decode("utf-8", "surrogateescape"))
    assert shown.code == 0 or one_line(shown.err)


# --- wrong input -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/nowhere/model", "no-such-org/no-such-model", "not a name"])
def test_a_wrong_path_gives_one_line(cli, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shown = cli("chat", name)
    assert (shown.code, shown.out) == (2, "")
    assert one_line(shown.err)
    assert name in shown.err


def test_a_folder_without_a_model_is_refused(cli, tmp_path: Path) -> None:
    shown = cli("chat", tmp_path, "--prompt", BRIEF)
    assert shown.code == 2
    assert one_line(shown.err)
    assert "holds no config.json" in shown.err


def test_an_unfinished_run_is_refused(cli, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("base: starter\n")
    (tmp_path / "checkpoints").mkdir()
    shown = cli("chat", tmp_path, "--prompt", BRIEF)
    assert shown.code == 2
    assert one_line(shown.err)
    assert "not finished; go on with chattune tune --resume" in shown.err


@pytest.mark.parametrize("verb", ["prepare", "tune"])
def test_every_wrong_setting_has_its_own_line(cli, verb: str) -> None:
    shown = cli(verb, "starter", "--set", "lora.rnak=8", "--set", "seed=-1", "--dry-run")
    assert (shown.code, shown.out) == (2, "")
    first, second = sorted(shown.err.splitlines())
    assert first == "chattune: recipe starter: lora.rnak: unknown field; did you mean lora.rank?"
    assert second.startswith("chattune: recipe starter: seed: ")


def test_an_unknown_recipe_lists_the_shipped_ones(cli) -> None:
    shown = cli("tune", "guanaco")
    assert shown.code == 2
    assert one_line(shown.err)
    assert "gpt-neo-125m-guanaco" in shown.err


@pytest.mark.parametrize("command", [["tnue"], ["chat"], ["tune", "starter", "--stepz", "1"]])
def test_wrong_usage_exits_with_2(cli, command: list[str]) -> None:
    shown = cli(*command)
    assert (shown.code, shown.out) == (2, "")
    assert "Traceback" not in shown.err


def test_threads_that_wait_leave_the_processor_to_others(
    cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the user has said how they should wait."""
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    cli("--help")
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    cli("--help")
    assert os.environ["GOMP_SPINCOUNT"] == "1000"


def test_no_verb_shows_the_help(cli) -> None:
    shown = cli()
    assert "quickstart" in shown.out + shown.err


def options_with_one_value() -> list[tuple[str, str]]:
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return [
        (verb, option.opts[0])
        for verb, command in verbs.items()
        for option in command.params
        if option.opts[0].startswith("--") and not option.is_flag and not option.multiple
    ]


@pytest.mark.parametrize(("verb", "option"), options_with_one_value())
def test_an_option_given_twice_is_refused(cli, verb: str, option: str) -> None:
    shown = cli(verb, "starter", option, "1", f"{option}=2")
    assert (shown.code, shown.out) == (2, "")
    assert shown.err == f"chattune: {option}: given 2 times; give it once\n"


@pytest.mark.parametrize(
    ("recipe", "folder"),
    [
        ("gpt-neo-1.3b-guanaco", "runs/gpt-neo-1.3b-guanaco"),
        ("gpt-neo-1.3b-openorca", "runs/gpt-neo-1.3b-openorca"),
        ("mine-v1.2.yaml", "runs/mine-v1.2"),
        ("deep/mine-v1.2.yml", "runs/mine-v1.2"),
        ("mine-v1.2", "runs/mine-v1.2"),
    ],
)
def test_a_run_is_named_after_its_recipe(
    cli, recipe: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is taken, so the refusal names it before anything is computed."""
    monkeypatch.chdir(tmp_path)
    Path("deep").mkdir()
    (Path(folder) / "taken").mkdir(parents=True)
    if recipe not in shipped():
        Path(recipe).write_text("base: starter\ndata: {source: starter}\ntraining: {steps: 1}\n")
    shown = cli("tune", recipe)
    assert shown.code == 2
    assert shown.err.startswith(f"chattune: output {folder}: exists")


# --- paths -------------------------------------------------------------------------------------


@pytest.fixture
def home(
    tmp_path: Path,
    tiny_base: Path,
    tiny_run: Run,
    talk_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A home folder with a base, a run, a recipe and conversations; the current folder is empty."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "base").symlink_to(tiny_base)
    (folder / "run").symlink_to(tiny_run.folder)
    (folder / "talk.jsonl").symlink_to(talk_file)
    (folder / "mine.yaml").write_text(
        "base: starter\ndata: {source: starter, max_length: 64}\ntraining: {steps: 1}\n"
    )
    monkeypatch.setenv("HOME", str(folder))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def test_a_tilde_is_the_home_folder_in_prepare(cli, home: Path) -> None:
    shown = cli(
        *("prepare", "~/mine.yaml", "--data=~/talk.jsonl", "--base=~/base", "--output=~/out"),
        "--json",
    )
    assert shown.code == 0, shown.err
    assert json.loads(shown.out)["source"] == str(home / "talk.jsonl")
    assert (home / "out").is_dir()
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("chat", "~/base", "--prompt", BRIEF),
        ("chat", "~/run", "--base=~/base", "--prompt", BRIEF),
        ("export", "~/run", "--base=~/base", "--merged=~/merged", "--dry-run"),
        ("prepare", "starter", "--set=data.source=~/talk.jsonl", "--set=base=~/base",
         "--set=data.max_length=64", "--dry-run"),
    ],
    ids=["model", "run", "export", "settings"],
)  # fmt: skip
def test_a_tilde_is_the_home_folder(cli, home: Path, arguments: tuple[str, ...]) -> None:
    shown = cli(*arguments)
    assert shown.code == 0, shown.err
    assert "~" not in shown.err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("tune", "~/mine.yaml", "--output=~/base"),
        ("quickstart", "--output=~/base", "--no-ui"),
        ("export", "~/run", "--merged=~/base"),
    ],
    ids=["tune", "quickstart", "export"],
)
def test_a_tilde_is_the_home_folder_of_every_output(
    cli, home: Path, arguments: tuple[str, ...]
) -> None:
    """The folder is taken, so the refusal names it before anything is computed."""
    shown = cli(*arguments)
    assert shown.code == 2
    assert f" {home / 'base'}: exists" in shown.err.splitlines()[-1]


def test_quickstart_takes_the_embedded_base_where_smollm2_cannot_be_had(
    cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what would bring SmolLM2."""

    def absent(_: object) -> None:
        raise BaseError("base smollm2: the package is not installed; run `pip install ...`")

    monkeypatch.setattr("chattune.smollm2.find", absent)
    shown = cli("quickstart", "--dry-run")
    assert shown.code == 0
    assert "base: starter" in shown.out
    assert "run `pip install ...`" in shown.err
    assert "the embedded base" in shown.err


def test_the_home_folder_of_an_unknown_user_is_refused(cli, home: Path) -> None:
    shown = cli("tune", "~/mine.yaml", "--output=~nobody-of-this-name/run")
    assert shown.code == 2
    assert one_line(shown.err)
    assert "no such user" in shown.err


def test_a_printed_command_is_quoted(
    cli, tmp_path: Path, tiny_base: Path, talk_file: Path, quick_tuning: None
) -> None:
    folder = tmp_path / "it's my run"
    shown = cli(
        *("tune", "starter", "--base", tiny_base, "--data", talk_file, "--output", folder),
        *("--set", "data.max_length=64", "--set", "training.steps=1"),
    )
    assert shown.code == 0, shown.err
    command = shown.err.partition("talk to it: ")[2]
    assert shlex.split(command) == ["chattune", "chat", str(folder)]


# --- a run whose base has moved ----------------------------------------------------------------


@pytest.fixture
def moved(tiny_run: Run, tmp_path: Path) -> Path:
    """A copy of the tiny run whose base is no longer where it was tuned."""
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    base, gone = tiny_run.recipe.base, str(tmp_path / "gone")
    for name in (RECIPE, ADAPTER_CONFIG):
        text = (folder / name).read_text("utf-8")
        (folder / name).write_text(text.replace(base, gone), "utf-8")
    return seal(folder).folder


def test_chat_takes_the_place_of_a_base_that_has_moved(
    cli, moved: Path, tiny_run: Run, tiny_base: Path
) -> None:
    shown = cli("chat", moved, "--prompt", BRIEF, "--seed", 1, "--base", tiny_base)
    assert shown.code == 0, shown.err
    assert shown.out == cli("chat", tiny_run.folder, "--prompt", BRIEF, "--seed", 1).out


def test_serve_takes_the_place_of_a_base_that_has_moved(
    cli, moved: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Chatbot] = []
    monkeypatch.setattr("chattune.serve.serve_page", lambda bot, **_: served.append(bot))
    assert cli("serve", moved, "--base", tiny_base).code == 0
    assert served[0].positions == 128


def test_export_takes_the_place_of_a_base_that_has_moved(
    cli, moved: Path, tiny_base: Path, tmp_path: Path
) -> None:
    assert cli("export", moved, "--merged", tmp_path / "m", "--base", tiny_base).code == 0
    assert (tmp_path / "m" / "model.safetensors").is_file()


@pytest.mark.parametrize("place", [[], ["--base", "starter"]], ids=["gone", "other weights"])
@pytest.mark.parametrize("verb", ["chat", "serve", "export", "export --dry-run"])
def test_a_base_that_is_not_found_is_refused(
    cli, moved: Path, tmp_path: Path, verb: str, place: list[str]
) -> None:
    name, *dry_run = verb.split()
    merged = ["--merged", tmp_path / "m"] if name == "export" else []
    shown = cli(name, moved, *merged, *dry_run, *place)
    assert shown.code == 2
    assert one_line(shown.err)
    assert "--base" in shown.err
    assert not (tmp_path / "m").exists()


# --- doctor ------------------------------------------------------------------------------------


@pytest.fixture
def quick_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chattune.doctor.matmul_rate", lambda bf16: 2e11 if bf16 else 1e11)
    monkeypatch.setattr("chattune.doctor.read_rate", lambda: 5e10)


def test_doctor_answers_in_json(cli, quick_rates: None) -> None:
    shown = cli("doctor", "--json")
    assert (shown.code, shown.err) == (0, "")
    findings = json.loads(shown.out)
    assert findings["device"] in ("cpu", "cuda", "mps")
    assert findings["versions"]["chattune"] == chattune.__version__
    assert findings["matrix_gflops"]["fp32"] == 100
    assert ("bf16" in findings["matrix_gflops"]) == (findings["training_dtype"] == "base in bf16")
    assert findings["threads"] >= 1
    assert findings["memory_gb"] > 0
    assert findings["training_dtype_because"]
    assert findings["read_gb_per_s"] == 50
    assert sorted(findings["expected_tokens_per_s"]) == shipped()
    assert findings["hub"] == "switched off (HF_HUB_OFFLINE)"


def test_doctor_shows_the_same_as_a_table(cli, quick_rates: None) -> None:
    shown = cli("doctor")
    assert (shown.code, shown.err) == (0, "")
    for name in ("python", "device", "training dtype", "memory gb", "hub", "versions"):
        assert name in shown.out


def test_doctor_measures_this_machine(cli) -> None:
    assert json.loads(cli("doctor", "--json").out)["matrix_gflops"]["fp32"] > 0


@pytest.mark.parametrize("verb", ["chat", "tune"])
def test_a_name_longer_than_any_path_is_refused(cli, verb: str) -> None:
    shown = cli(verb, "a" * 300)
    assert shown.code == 2
    assert shown.err.count("\n") == 1
    assert "too long to be a path" in shown.err
