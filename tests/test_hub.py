"""Tests of downloads from the Hub: files are verified and cached, and damaged ones are refused.

The clients read their settings when they are imported, so every command runs in its own process.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hub as hub_server
from chattune.hub import Kind, is_hub_id
from conftest import Outcome
from hub import Damage, Hub, serve_hub

ROWS = 400
DAMAGES: dict[Damage, str] = {
    "truncate": "the download failed",
    "corrupt": "damaged in the download",
}
# The clients wait for seconds between attempts, which is useless in these tests.
IMPATIENT = "import time; sleep = time.sleep; time.sleep = lambda s: sleep(min(s, 0.01))\n"
STREAMING = IMPATIENT + (
    "import fsspec.spec; fsspec.spec.AbstractBufferedFile.DEFAULT_BLOCK_SIZE = 2**14\n"
    "from chattune.data import hub_rows\n"
    "hub_rows.MAX_FETCHED, hub_rows._SHUFFLE_BUFFER = 0, 50\n"
)


def python(hub: Hub, home: Path, code: str, *args: str, **env: str) -> Outcome:
    """Run Python code against the server, with its caches in `home`."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    variables |= hub.environment(home) | {"CHATTUNE_CACHE": str(home / "chattune")} | env
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def chattune(hub: Hub, home: Path, *args: str, before: str = IMPATIENT, **env: str) -> Outcome:
    """Run `chattune ARGS` against the server."""
    return python(hub, home, before + "from chattune.cli import main; main()", *args, **env)


def samples(hub: Hub, home: Path, rows: int, seeds: list[int], before: str = "") -> list[list[str]]:
    """Return the first questions of a sample of `rows` rows for each seed."""
    code = (
        "import json, sys\n"
        "from chattune.data.sources import read_rows\n"
        "from chattune.recipe import DataRecipe\n"
        "recipe = DataRecipe(source='org/data', rows=int(sys.argv[1]))\n"
        "rows = [[r.fields for r in read_rows(recipe, int(seed))] for seed in sys.argv[2:]]\n"
        "print(json.dumps([[r['messages'][0]['content'] for r in sample] for sample in rows]))\n"
    )
    outcome = python(hub, home, before + code, str(rows), *map(str, seeds))
    assert outcome.code == 0, outcome.err
    chosen: list[list[str]] = json.loads(outcome.out)
    assert [len(set(sample)) for sample in chosen] == [rows] * len(seeds)
    return chosen


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("org/name-1.3B", {"model", "dataset"}),
        ("gpt2", {"model"}),
        ("name.jsonl", set()),
        ("./org/name", set()),
        (".org/name", set()),
        ("a/b/c", set()),
        ("not an id", set()),
        ("", set()),
    ],
)
def test_hub_ids_have_an_owner_and_a_name(name: str, kinds: set[str]) -> None:
    """Only models may lack the owner, as gpt2 does."""
    assert {kind for kind in get_args(Kind) if is_hub_id(name, kind)} == kinds


def test_the_split_of_the_recipe_is_read(tmp_path: Path) -> None:
    """The files are named like those of openassistant-guanaco, where `_eval` is `test`."""
    for name, number in (("train", 1), ("eval", 2)):
        path = tmp_path / "data" / f"openassistant_best_replies_{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(talk(number)) + "\n", "utf-8")
    code = (
        "from chattune.data.sources import read_rows\n"
        "from chattune.recipe import DataRecipe\n"
        "for split in ('train', 'test'):\n"
        "    for row in read_rows(DataRecipe(source='org/data', split=split), 0):\n"
        "        print(split, row.fields['messages'][0]['content'].split(':')[0])\n"
    )
    with serve_hub({}, {"org/data": tmp_path / "data"}) as hub:
        assert python(hub, tmp_path / "home", code).out == "train Question 1\ntest Question 2\n"


def prepare(hub: Hub, home: Path, *args: str, **options: str) -> Outcome:
    return chattune(hub, home, "prepare", "--data", "org/data", "--json", *args, **options)


def refused(outcome: Outcome) -> str:
    """Check that the outcome is an error of one line, and return the line."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith("chattune: ")
    return outcome.err


def requested_files(hub: Hub) -> set[str]:
    """Return the names of the files whose content was requested."""
    return {path.rpartition("/")[2] for path in hub.requests if "/resolve/" in path}


def talk(number: int) -> dict[str, Any]:
    question = f"Question {number}: how much is {number * 7} and {number % 13}?"
    return {
        "messages": [
            {"role": "user", "content": question},
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
    """Return a folder of two files with 40 row groups and 4 MB each."""
    folder = tmp_path_factory.mktemp("parquet")
    rng = random.Random(0)
    for part in range(2):
        rows = [talk(part * 2000 + i) | {"padding": rng.randbytes(2000)} for i in range(2000)]
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, folder / f"train-{part}.parquet", row_group_size=50)
    return folder


@pytest.fixture(scope="module")
def model_repo(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model that also holds a pickle of its weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(tiny_base, folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle can run code")
    (folder / "README.md").write_text("A tiny model.\n", "utf-8")
    return folder


def test_a_model_is_downloaded_and_then_works_offline(model_repo: Path, tmp_path: Path) -> None:
    question = ["chat", "org/tiny", "--prompt", "hi", "--seed", "1"]
    with serve_hub({"org/tiny": model_repo}, {}) as hub:
        first = chattune(hub, tmp_path, *question)
        assert first.code == 0, first.err
        assert first.out.strip()
        for name in requested_files(hub):
            assert name.endswith((".safetensors", ".json", ".txt", ".jinja")), name
        assert "model.safetensors" in requested_files(hub)
        hub.requests.clear()
        offline = chattune(hub, tmp_path, *question, HF_HUB_OFFLINE="1")
    assert (offline.code, offline.out) == (0, first.out)
    assert hub.requests == []


def test_damaged_weights_are_refused_and_removed(model_repo: Path, tmp_path: Path) -> None:
    question = ["chat", "org/tiny", "--prompt", "hi"]
    for damage, says in DAMAGES.items():
        with serve_hub({"org/tiny": model_repo}, {}, damage={"model.safetensors": damage}) as hub:
            assert says in refused(chattune(hub, tmp_path, *question))
    with serve_hub({"org/tiny": model_repo}, {}) as hub:
        healthy = chattune(hub, tmp_path, *question)
    assert healthy.code == 0, healthy.err


def test_data_are_downloaded_and_then_work_offline(jsonl_repo: Path, tmp_path: Path) -> None:
    with serve_hub({}, {"org/data": jsonl_repo}) as hub:
        first = prepare(hub, tmp_path)
        assert first.code == 0, first.err
        assert first.err == ""
        assert json.loads(first.out)["rows"] == ROWS
        hub.requests.clear()
        second = prepare(hub, tmp_path)
        assert requested_files(hub) == set()
        assert "read from the cache" in second.err
        offline = prepare(hub, tmp_path, HF_HUB_OFFLINE="1")
        assert "read from the cache" in offline.err
        assert first.out == second.out == offline.out
        sampled = prepare(hub, tmp_path, "--set", "data.rows=50", HF_HUB_OFFLINE="1")
        assert json.loads(sampled.out)["rows"] == 50  # of the rows that were downloaded before


def test_damaged_data_are_refused_and_removed(jsonl_repo: Path, tmp_path: Path) -> None:
    for damage, says in DAMAGES.items():
        with serve_hub({}, {"org/data": jsonl_repo}, damage={"train.jsonl": damage}) as hub:
            assert says in refused(prepare(hub, tmp_path, "--set", "data.rows=50"))
    with serve_hub({}, {"org/data": jsonl_repo}) as hub:
        healthy = prepare(hub, tmp_path)
    assert healthy.code == 0, healthy.err
    assert json.loads(healthy.out)["rows"] == ROWS


def test_a_sample_of_a_small_data_set_is_seeded(parquet_repo: Path, tmp_path: Path) -> None:
    with serve_hub({}, {"org/data": parquet_repo}) as hub:
        one, again, other = samples(hub, tmp_path, 60, [1, 1, 2])
    assert one == again
    assert one != other


def test_a_large_data_set_is_sampled_by_streaming_a_part_of_it(
    parquet_repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    send = hub_server._Handler._send

    def counted(self: Any, code: int, body: bytes, headers: dict[str, str]) -> None:
        sent.append(len(body))
        send(self, code, body, headers)

    monkeypatch.setattr(hub_server._Handler, "_send", counted)
    with serve_hub({}, {"org/data": parquet_repo}) as hub:
        (one,) = samples(hub, tmp_path, 30, [1], STREAMING)
        assert sum(sent) < sum(file.stat().st_size for file in parquet_repo.iterdir()) / 2
        again, other = samples(hub, tmp_path, 30, [1, 2], STREAMING)
    assert one == again
    assert one != other


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_stream_that_breaks_off_is_an_error_of_one_line(
    kind: str, jsonl_repo: Path, parquet_repo: Path, tmp_path: Path
) -> None:
    folder = {"jsonl": jsonl_repo, "parquet": parquet_repo}[kind]
    broken: dict[str, Damage] = {file.name: "truncate" for file in folder.iterdir()}
    with serve_hub({}, {"org/data": folder}, damage=broken) as hub:
        sample = prepare(hub, tmp_path, "--set", "data.rows=300", before=STREAMING)
    assert "cannot be read from the Hub" in refused(sample)


def test_the_error_of_a_missing_repository_names_it(tmp_path: Path) -> None:
    with serve_hub({}, {}) as hub:
        model = refused(chattune(hub, tmp_path, "chat", "org/none", "--prompt", "hi"))
        data = refused(prepare(hub, tmp_path))
    assert "org/none: the Hub has no such model" in model
    assert "org/data: no such data set on the Hub" in data


@pytest.mark.parametrize(
    ("home", "says"),
    [
        ("/dev/null/none", "cannot be used to keep downloads (Not a directory); set HF_HOME to a"),
        ("~no-such-user/none", "there is no home directory to keep downloads in; set HF_HOME to a"),
    ],
)
def test_the_error_without_a_folder_for_downloads_says_how_to_set_it(
    model_repo: Path, jsonl_repo: Path, tmp_path: Path, home: str, says: str
) -> None:
    with serve_hub({"org/tiny": model_repo}, {"org/data": jsonl_repo}) as hub:
        model = refused(chattune(hub, tmp_path, "chat", "org/tiny", "--prompt", "hi", HF_HOME=home))
        data = refused(prepare(hub, tmp_path, HF_HOME=home))
        offline = refused(prepare(hub, tmp_path, HF_HOME=home, HF_HUB_OFFLINE="1"))
    unplugged = refused(prepare(hub, tmp_path, HF_HOME=home))
    assert says in model
    assert says in data
    for line in (offline, unplugged):
        assert says in line or "hf download --repo-type dataset org/data" in line


def test_the_error_without_a_folder_for_tables_says_how_to_set_it(
    jsonl_repo: Path, tmp_path: Path
) -> None:
    with serve_hub({}, {"org/data": jsonl_repo}) as hub:
        line = refused(prepare(hub, tmp_path, HF_DATASETS_CACHE="/dev/null/none"))
    assert "cannot be used to keep downloads (Not a directory); set HF_HOME" in line


def test_doctor_needs_no_valid_address_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from chattune.doctor import examine

    monkeypatch.delenv("HF_HUB_OFFLINE")
    for address in ("nonsense", "http://a b", "http://127.0.0.1:1"):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert examine()["hub"].startswith("not reachable (")


def test_the_error_without_network_or_cache_says_how_to_download(tmp_path: Path) -> None:
    with serve_hub({}, {}) as hub:
        model = refused(
            chattune(hub, tmp_path, "chat", "org/tiny", "--prompt", "hi", HF_HUB_OFFLINE="1")
        )
        data = refused(prepare(hub, tmp_path, HF_HUB_OFFLINE="1"))
        assert hub.requests == []
    # The server has ended, which is the same as a network that is down.
    unplugged = refused(prepare(hub, tmp_path))
    assert "hf download org/tiny" in model
    assert "hf download --repo-type dataset org/data" in data
    assert "hf download --repo-type dataset org/data" in unplugged
