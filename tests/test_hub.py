"""Models and data from the Hub: fetched, checked, cached, and refused where they came down damaged.

The clients read their settings when they are imported, so every command has a process of its own.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hub as hub_server
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Outcome
from hub import Damage, Hub, serve_hub

ROWS = 400
# The clients wait for seconds between attempts; here nothing gets better by waiting.
IMPATIENT = "import time; sleep = time.sleep; time.sleep = lambda s: sleep(min(s, 0.01))\n"
STREAMING = IMPATIENT + (
    "import fsspec.spec; fsspec.spec.AbstractBufferedFile.DEFAULT_BLOCK_SIZE = 2**14\n"
    "from chattune.data import sources\n"
    "sources.MAX_FETCHED, sources._SHUFFLE_BUFFER = 0, 50\n"
)


def chattune(hub: Hub, home: Path, *args: str, before: str = IMPATIENT, **env: str) -> Outcome:
    """Run `chattune ARGS` against the server, with caches of its own in `home`."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    clean |= hub.environment(home) | {"CHATTUNE_CACHE": str(home / "chattune")} | env
    code = before + "from chattune.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, *args], env=clean, capture_output=True, text=True, timeout=180
    )
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


def prepare(hub: Hub, home: Path, *args: str, **more: str) -> Outcome:
    return chattune(hub, home, "prepare", "--data", "org/data", "--json", *args, **more)


def refused(outcome: Outcome) -> str:
    """The one line of an error that is a person's to read."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith("chattune: ")
    return outcome.err


def asked_files(hub: Hub) -> set[str]:
    """Names of the files whose content was asked for."""
    return {path.rpartition("/")[2] for path in hub.requests if "/resolve/" in path}


def talk(number: int) -> dict[str, Any]:
    words = f"Question {number}: how much is {number * 7} and {number % 13}?"
    return {
        "messages": [
            {"role": "user", "content": words},
            {"role": "assistant", "content": f"It is {number * 7 + number % 13}."},
        ]
    }


@pytest.fixture(scope="module")
def jsonl_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jsonl")
    lines = (json.dumps(talk(i)) + "\n" for i in range(ROWS))
    (folder / "train.jsonl").write_text("".join(lines), "utf-8")
    return folder


@pytest.fixture(scope="module")
def parquet_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of 40 row groups, and 4 MB each."""
    folder = tmp_path_factory.mktemp("parquet")
    rng = random.Random(0)
    for part in range(2):
        rows = [talk(part * 2000 + i) | {"padding": rng.randbytes(2000)} for i in range(2000)]
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, folder / f"train-{part}.parquet", row_group_size=50)
    return folder


@pytest.fixture(scope="module")
def model_repo(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose author left a pickle beside its weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(tiny_base, folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle can run code")
    (folder / "README.md").write_text("A tiny model.\n", "utf-8")
    return folder


def test_a_model_comes_down_answers_and_works_offline_after_that(
    model_repo: Path, tmp_path: Path
) -> None:
    question = ["chat", "org/tiny", "--prompt", "hi", "--seed", "1"]
    with serve_hub({"org/tiny": model_repo}, {}) as hub:
        first = chattune(hub, tmp_path, *question)
        assert first.code == 0, first.err
        assert first.out.strip()
        for name in asked_files(hub):
            assert name.endswith((".safetensors", ".json", ".txt", ".jinja")), name
        assert "model.safetensors" in asked_files(hub)
        hub.requests.clear()
        offline = chattune(hub, tmp_path, *question, HF_HUB_OFFLINE="1")
    assert (offline.code, offline.out) == (0, first.out)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("damage", "says"), [("truncate", "the download failed"), ("corrupt", "came down damaged")]
)
def test_damaged_weights_are_refused_and_forgotten(
    damage: Damage, says: str, model_repo: Path, tmp_path: Path
) -> None:
    question = ["chat", "org/tiny", "--prompt", "hi"]
    with serve_hub({"org/tiny": model_repo}, {}, damage={"model.safetensors": damage}) as hub:
        line = refused(chattune(hub, tmp_path, *question))
    assert says in line
    assert "again" in line
    with serve_hub({"org/tiny": model_repo}, {}) as hub:
        assert chattune(hub, tmp_path, *question).code == 0


def test_data_are_prepared_once_and_offline_after_that(jsonl_repo: Path, tmp_path: Path) -> None:
    with serve_hub({}, {"org/data": jsonl_repo}) as hub:
        first = prepare(hub, tmp_path)
        assert first.code == 0, first.err
        assert first.err == ""
        assert json.loads(first.out)["rows"] == ROWS
        hub.requests.clear()
        second = prepare(hub, tmp_path)
        assert asked_files(hub) == set()
        assert "read from the cache" in second.err
        offline = prepare(hub, tmp_path, HF_HUB_OFFLINE="1")
        assert "read from the cache" in offline.err
        assert first.out == second.out == offline.out
        sampled = prepare(hub, tmp_path, "--set", "data.rows=50", HF_HUB_OFFLINE="1")
        assert json.loads(sampled.out)["rows"] == 50  # of the rows that were fetched before


@pytest.mark.parametrize(
    ("damage", "says"), [("truncate", "the download failed"), ("corrupt", "came down damaged")]
)
def test_damaged_data_are_refused_and_forgotten(
    damage: Damage, says: str, jsonl_repo: Path, tmp_path: Path
) -> None:
    with serve_hub({}, {"org/data": jsonl_repo}, damage={"train.jsonl": damage}) as hub:
        assert says in refused(prepare(hub, tmp_path, "--set", "data.rows=50"))
    with serve_hub({}, {"org/data": jsonl_repo}) as hub:
        healthy = prepare(hub, tmp_path)
    assert healthy.code == 0, healthy.err
    assert json.loads(healthy.out)["rows"] == ROWS


def test_a_sample_of_small_data_is_of_checked_files_and_seeded(
    parquet_repo: Path, tmp_path: Path
) -> None:
    def sample(seed: int) -> dict[str, Any]:
        shutil.rmtree(tmp_path / "chattune", ignore_errors=True)
        chosen = prepare(hub, tmp_path, "--set", "data.rows=60", "--set", f"seed={seed}")
        assert chosen.code == 0, chosen.err
        report = json.loads(chosen.out)
        assert isinstance(report, dict)
        return report

    with serve_hub({}, {"org/data": parquet_repo}) as hub:
        one, again, other = sample(1), sample(1), sample(2)
    assert one["rows"] == 60
    assert one == again
    assert one["tokens"] != other["tokens"]


def test_a_big_repository_is_sampled_by_streaming_a_part_of_it(
    parquet_repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    send = hub_server._Handler._send

    def counted(self: Any, code: int, body: bytes, headers: dict[str, str]) -> None:
        sent.append(len(body))
        send(self, code, body, headers)

    monkeypatch.setattr(hub_server._Handler, "_send", counted)
    sample = ["--set", "data.rows=30", "--set", "seed=1"]
    with serve_hub({}, {"org/data": parquet_repo}) as hub:
        one = prepare(hub, tmp_path / "one", *sample, before=STREAMING)
        whole = sum(file.stat().st_size for file in parquet_repo.iterdir())
        assert sum(sent) < whole / 2
        again = prepare(hub, tmp_path / "again", *sample, before=STREAMING)
    assert one.code == 0, one.err
    assert json.loads(one.out)["rows"] == 30
    assert one.out == again.out


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_stream_that_breaks_off_is_one_line(
    kind: str, jsonl_repo: Path, parquet_repo: Path, tmp_path: Path
) -> None:
    folder = {"jsonl": jsonl_repo, "parquet": parquet_repo}[kind]
    broken: dict[str, Damage] = {file.name: "truncate" for file in folder.iterdir()}
    with serve_hub({}, {"org/data": folder}, damage=broken) as hub:
        sample = prepare(hub, tmp_path, "--set", "data.rows=300", before=STREAMING)
    assert "cannot be read from the Hub" in refused(sample)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with serve_hub({}, {}) as hub:
        model = refused(chattune(hub, tmp_path, "chat", "org/none", "--prompt", "hi"))
        data = refused(prepare(hub, tmp_path))
    assert "org/none: the Hub has no such model" in model
    assert "org/data: no such data set on the Hub" in data


def test_offline_without_a_cache_says_how_to_get_it(tmp_path: Path) -> None:
    with serve_hub({}, {}) as hub:
        model = refused(
            chattune(hub, tmp_path, "chat", "org/tiny", "--prompt", "hi", HF_HUB_OFFLINE="1")
        )
        data = refused(prepare(hub, tmp_path, HF_HUB_OFFLINE="1"))
        assert hub.requests == []
    # The server is gone: as good as a network that is down.
    unplugged = refused(prepare(hub, tmp_path))
    assert "hf download org/tiny" in model
    assert "hf download --repo-type dataset org/data" in data
    assert "hf download --repo-type dataset org/data" in unplugged
