"""Qwen2- and Llama-3-shaped models with their kinds of templates, from a file to an export."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from chattune.base import starter_folder
from conftest import Outcome
from llamas import random_model
from tuned import recipe

# As Qwen2's, with a default system message.
QWEN_2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Llama 3's, with headers between special tokens.
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
KINDS = {
    "qwen2": (QWEN_2, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "llama-3": (LLAMA_3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>"),
}


@pytest.fixture
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A random model of a shape, with the template and the special tokens of its family."""
    template, special, end = KINDS[request.param]
    tokenizer = AutoTokenizer.from_pretrained(starter_folder())
    tokenizer.add_special_tokens({"additional_special_tokens": special, "eos_token": end})
    tokenizer.chat_template = template
    folder = random_model(request.param, tmp_path / "base", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("base", KINDS, indirect=True)
def test_from_conversations_to_an_export(
    base: Path, talk_file: Path, tmp_path: Path, cli: Callable[..., Outcome], quick_tuning: None
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump(recipe(base, talk_file).model_dump()))
    prepared = cli("prepare", plan, "--show-mask", "1")
    assert prepared.code == 0, prepared.err
    assert "4 kept" in prepared.out
    tuned = cli("tune", plan, "--output", tmp_path / "run")
    assert tuned.code == 0, tuned.err
    chat = ("--prompt", "How are you today?", "--seed", "1", "--engine", "fast")
    said = cli("chat", tmp_path / "run", *chat)
    assert said.code == 0, said.err
    exported = cli(
        *("export", tmp_path / "run", "--merged", tmp_path / "merged"),
        *("--gguf", tmp_path / "run.gguf", "--quantize", "f16"),
    )
    assert exported.code == 0, exported.err
    assert (tmp_path / "run.gguf").stat().st_size > 1e6
    # Another tool loads the export, and its tokens for a chat are those that chattune sends.
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    messages = [{"role": "user", "content": "How are you today?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    from chattune.base import find_base, load_template
    from chattune.conversation import Message

    template = load_template(find_base(str(base)), tmp_path / "run")
    assert list(ids) == template.prompt([Message("user", "How are you today?")])
    assert cli("chat", tmp_path / "merged", *chat).out == said.out
