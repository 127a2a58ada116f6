"""Tests of the decoding parameters: defaults, changes, wrong values, and recommendations."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from chattune.errors import ChatError
from chattune.generate import Decoding


def test_defaults_are_the_studys() -> None:
    assert Decoding().model_dump() == {
        "do_sample": True,
        "temperature": 0.9,
        "top_k": 30,
        "top_p": 0.95,
        "min_p": 0.0,
        "max_new_tokens": 256,
        "repetition_penalty": 1.0,
        "no_repeat_ngram": 0,
        "stop": (),
        "finish": "cut",
        "finish_tokens": 64,
        "seed": None,
    }


def test_but_changes_a_copy() -> None:
    start = Decoding()
    assert start.but(top_k=5, seed=1) == Decoding(top_k=5, seed=1)
    assert start == Decoding()


def test_parameters_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        Decoding().top_k = 5


def test_every_parameter_is_described() -> None:
    assert all(field.description for field in Decoding.model_fields.values())


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0", 0.0),
        ("temperature", "1.5", 1.5),
        ("top_k", "0", 0),
        ("top_p", "1", 1.0),
        ("finish", "summary", "summary"),
        ("finish_tokens", "0", 0),
        ("seed", "7", 7),
        ("seed", None, None),
        ("do_sample", "false", False),
        ("stop", "###", ("###",)),
        ("stop", None, ()),
    ],
)
def test_values_may_come_as_text(name: str, text: str | None, value: Any) -> None:
    assert getattr(Decoding(seed=3).but(**{name: text}), name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 5.1),
        ("temperature", "hot"),
        ("temperature", ""),
        ("temperature", None),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("max_new_tokens", 0),
        ("max_new_tokens", "many"),
        ("repetition_penalty", 0),
        ("repetition_penalty", 6),
        ("finish", "whole"),
        ("finish", None),
        ("finish_tokens", -1),
        ("seed", -1),
        ("seed", 2**70),
    ],
)
def test_a_wrong_value_is_named_in_one_line(name: str, value: Any) -> None:
    with pytest.raises(ChatError) as caught:
        Decoding().but(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert message.endswith(f"not {value!r}")
    assert "\n" not in message


@pytest.mark.parametrize("name", ["temprature", "", "top-k", "self", "model_config"])
def test_an_unknown_setting_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ChatError) as caught:
        Decoding().but(**{name: 1})
    message = str(caught.value)
    assert message.startswith(f"{name}: no such setting; there are do_sample, temperature, top_k")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "greedy"),
    [({}, False), ({"temperature": 0}, True), ({"temperature": 0.0}, True),
     ({"do_sample": False}, True), ({"temperature": 0.01}, False)],
)  # fmt: skip
def test_an_explicit_zero_is_greedy(changes: dict[str, Any], greedy: bool) -> None:
    assert Decoding(**changes).greedy is greedy
    assert Decoding().but(**changes).greedy is greedy


@pytest.mark.parametrize(
    ("finish", "most"), [("cut", 100), ("sentence", 100), ("continue", 130), ("summary", 130)]
)
def test_only_some_ends_take_more_tokens(finish: str, most: int) -> None:
    settings = Decoding(max_new_tokens=100, finish_tokens=30).but(finish=finish)
    assert settings.most_tokens == most


def test_a_folder_recommends_only_what_it_lists(tmp_path: Path) -> None:
    assert Decoding.of(tmp_path) == Decoding()
    config = {"temperature": 0.4, "top_k": None, "eos_token_id": 0, "max_new_tokens": 7}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert Decoding.of(tmp_path) == Decoding(temperature=0.4)


@pytest.mark.parametrize("config", ['{"top_p": 7}', "{", "[]"])
def test_an_invalid_recommendation_is_refused_with_its_file(config: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(config)
    with pytest.raises(ChatError, match=r"generation_config\.json: "):
        Decoding.of(tmp_path)
