"""Where a base model is: embedded, in a folder, or on the Hub; checked before it is used.

Only safetensors are read: a pickle can run code while it is loaded. Code that a model brings
along is never run.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from chattune import hub
from chattune.errors import BaseError, HubError, HubNotFound, HubUnreachable

STARTER = "starter"
_TOKENIZER_FILES = ["config.json", "generation_config.json", "tokenizer*", "vocab*", "merges.txt"]
_TOKENIZER_FILES += ["special_tokens_map.json", "added_tokens.json", "chat_template.jinja"]
_WEIGHT_FILES = ["*.safetensors", "model.safetensors.index.json"]
_HUB_ID = re.compile(r"(?!\.)[\w.-]+/[\w.-]+|[\w-]+")


@dataclass(frozen=True)
class Base:
    """A base on this machine's disk: the name it was asked for, its folder, its config."""

    name: str
    folder: Path
    config: dict[str, Any]

    @property
    def portable_name(self) -> str:
        """What another tool on this machine can load: the Hub id, or the folder's path."""
        return self.name if is_on_hub(self.name) else str(self.folder)

    @property
    def positions(self) -> int | None:
        """Tokens the model can see at once, where its config says so."""
        for key in ("max_position_embeddings", "n_positions", "n_ctx"):
            if isinstance(self.config.get(key), int):
                return int(self.config[key])
        return None

    def fingerprint(self) -> str:
        """SHA-256 over config and weight files: sizes, first and last megabyte of each.

        Cheap for files of gigabytes; it tells other weights apart, not one flipped bit (a
        download's own hash does that).
        """
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for path in sorted(self.folder.glob("*.safetensors")):
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(1 << 20))
                file.seek(max(0, size - (1 << 20)))
                digest.update(file.read())
        return digest.hexdigest()


def starter_folder() -> Path:
    """Folder of the embedded base."""
    return Path(str(resources.files("chattune") / "starter"))


def find_base(name: str, *, weights: bool = True) -> Base:
    """Find a base by name and bring it down from the Hub if it is there.

    With `weights=False` only configuration and tokenizer are fetched and needed. Raises BaseError
    for a base that is missing, damaged, pickled, or that wants code of its own to run.
    """
    folder = _folder_of(name, weights)
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except FileNotFoundError as error:
        raise BaseError(f"base {name}: {folder} holds no config.json, so no model") from error
    except (OSError, ValueError) as error:
        raise BaseError(f"base {name}: its config.json is damaged ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise BaseError(f"base {name}: its config.json is damaged (it names no model_type)")
    _refuse_remote_code(name, config)
    if weights:
        _refuse_pickles(name, folder)
    return Base(name, folder, config)


def is_on_hub(name: str) -> bool:
    """Return True if a base of this name comes from the Hub: not embedded, and no local path."""
    return name != STARTER and not Path(name).exists()


def _folder_of(name: str, weights: bool) -> Path:
    if name == STARTER:
        return starter_folder()
    if Path(name).is_dir():
        return Path(name).resolve()
    if Path(name).exists():
        raise BaseError(f"base {name}: a file; give the folder that holds config.json")
    if not _HUB_ID.fullmatch(name):
        raise BaseError(f"base {name}: no such folder, and not a Hub id such as org/model")
    return _download(name, _TOKENIZER_FILES + (_WEIGHT_FILES if weights else []))


def _download(name: str, patterns: list[str]) -> Path:
    try:
        return hub.fetch(name, "model", patterns)
    except HubNotFound as error:
        raise BaseError(
            f"base {name}: the Hub has no such model, or it is private or gated "
            "(then: hf auth login); a local folder must exist"
        ) from error
    except HubUnreachable as error:
        raise BaseError(
            f"base {name}: not on this machine and the Hub cannot be reached; where there is a "
            f"network run `hf download {name}` and copy the cache, or give a folder, or use the "
            f"embedded base: --base {STARTER}"
        ) from error
    except HubError as error:
        raise BaseError(f"base {name}: {error}") from error


def _refuse_remote_code(name: str, config: dict[str, Any]) -> None:
    from transformers import CONFIG_MAPPING

    if config.get("model_type") not in CONFIG_MAPPING:
        wants = "wants to run code of its own" if config.get("auto_map") else "has a model_type"
        raise BaseError(
            f"base {name}: {wants} that this transformers does not know "
            f"({config.get('model_type')!r}); chattune runs no downloaded code"
        )


def _refuse_pickles(name: str, folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = [f.name for pattern in ("*.bin", "*.pt", "*.pth") for f in folder.glob(pattern)]
    if pickles:
        raise BaseError(
            f"base {name}: only pickled weights ({pickles[0]}), which can run code when loaded; "
            "convert them to safetensors, or ask the author to"
        )
    raise BaseError(f"base {name}: {folder} holds no *.safetensors weights")
