"""Tests of the command line: replies on standard output, errors in one line, exit codes."""

import json
from pathlib import Path

import pytest

import chattune
from chattune.recipe import shipped

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


def test_no_verb_shows_the_help(cli) -> None:
    shown = cli()
    assert "quickstart" in shown.out + shown.err


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
