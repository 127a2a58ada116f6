"""The base model on disk: embedded, installed, in a folder, a GGUF file or on the Hub; and checked.

Only safetensors and GGUF files are read, because a pickle can run code while it is loaded. Code
that comes with a model is never run.
"""

import hashlib
import json
import shlex
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chattune import gguf_file, hub, smollm2
from chattune.errors import BaseError, HubError, HubNotFound, HubUnreachable, first_line
from chattune.run import ADAPTER_CONFIG, is_lfs_pointer, is_run
from chattune.template import Template, TemplateKind

if TYPE_CHECKING:
    from transformers import PretrainedConfig

STARTER, SMOLLM2 = "starter", smollm2.NAME
NAMED = (STARTER, SMOLLM2)  # bases that are neither a path nor a Hub id
DEFAULT_POSITIONS = 2048  # for a model whose config does not say how many tokens it can see
_RUNS = "runs/"  # tuning writes here by default, so no such name is taken for a Hub id
_TOKENIZER_FILES = [
    *("config.json", "generation_config.json", "tokenizer*", "vocab*", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
]
_WEIGHT_FILES = ["*.safetensors", "model.safetensors.index.json"]


@dataclass(frozen=True)
class Base:
    """A base model on this machine's disk.

    `name` is the one that the user gave, or the Hub id if smollm2 was found there; `config` is the
    content of config.json. `origin` says where the weights come from.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    origin: str = "folder"

    @property
    def portable_name(self) -> str:
        """A name that other tools on this machine can load: the Hub id or the folder's path."""
        return self.name if is_on_hub(self.name) else str(self.folder)

    @property
    def positions(self) -> int | None:
        """The number of tokens that the model can see at once, or None if config.json lacks it."""
        for key in ("max_position_embeddings", "n_positions", "n_ctx"):
            if isinstance(self.config.get(key), int):
                return int(self.config[key])
        return None

    def fingerprint(self) -> str:
        """Return a SHA-256 of the config and of each weight file's size, first and last megabyte.

        It is cheap for files of gigabytes and tells different weights apart. It does not notice a
        single flipped bit; downloads are compared with the Hub's full hashes for that.
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
    """Return the folder of the embedded base."""
    return Path(str(resources.files("chattune") / "starter"))


def find_base(name: str, *, weights: bool = True) -> Base:
    """Find a base by name: `starter`, `smollm2`, a folder, a GGUF file or a Hub id.

    What is on the Hub is downloaded, and a GGUF file is turned into a folder in the cache. With
    `weights=False` only configuration and tokenizer are downloaded and required. Raises BaseError
    if the base is missing or damaged, is a run, has only pickled weights, or needs its own code.
    """
    patterns = _TOKENIZER_FILES + (_WEIGHT_FILES if weights else [])
    folder, origin = _folder_of(name, patterns)
    _refuse_lfs_pointers(name, folder, patterns)
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except FileNotFoundError as error:
        raise BaseError(f"base {name}: {_why_no_model(name, folder)}") from error
    except (OSError, ValueError) as error:
        raise BaseError(
            f"base {name}: its config.json is damaged ({error}); save or download it again"
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise BaseError(
            f"base {name}: its config.json is damaged (it names no model_type); "
            "save or download it again"
        )
    _refuse_remote_code(name, config)
    if weights:
        _refuse_pickles(name, folder)
    if name == SMOLLM2 and origin.startswith("Hub"):
        name = smollm2.HUB_ID
    return Base(name, folder, config, origin)


def is_on_hub(name: str) -> bool:
    """Return whether `name` is a Hub id, rather than `starter`, `smollm2` or a local path."""
    is_local = name in NAMED or name.startswith(_RUNS) or Path(name).exists()
    is_file = name.lower().endswith(gguf_file.SUFFIX)
    return not is_local and not is_file and hub.is_hub_id(name, "model")


def model_config(base: Base) -> "PretrainedConfig":
    """Return a base's configuration as transformers reads it, with its defaults filled in.

    Raises BaseError for values that transformers refuses.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base.folder, trust_remote_code=False)
    except Exception as error:  # each model family raises its own types
        raise unusable_config(base, error) from error


def unusable_config(base: Base, error: Exception) -> BaseError:
    """Return the error for a config.json with values that transformers refuses."""
    return BaseError(
        f"base {base.name}: its config.json cannot be used ({first_line(error)}); "
        "save or download it again"
    )


def load_template(base: Base, folder: Path | None = None, kind: TemplateKind = "auto") -> Template:
    """Load a base's tokenizer and chat template, or those that a run of this base has in `folder`.

    `kind` chooses another template than the base's own: see `Template.load`. Raises BaseError if
    they cannot be used, or if the tokenizer has an id for which the model has no row of embeddings.
    """
    folder = folder or base.folder
    template = Template.load(folder, kind)
    tokenizer = template.tokenizer
    # Many models have a padding token without a row; chattune never pads.
    unused = {tokenizer.pad_token_id} - {tokenizer.eos_token_id}
    largest, token = max(
        (index, token) for token, index in tokenizer.get_vocab().items() if index not in unused
    )
    rows = getattr(model_config(base).get_text_config(), "vocab_size", None)
    if rows is not None and largest >= rows:
        raise BaseError(
            f"{folder}: its tokenizer has ids up to {largest} ({token!r}), but base {base.name} "
            f"has only {rows} rows of embeddings; use the tokenizer that belongs to the model, or "
            f"enlarge the model with transformers' resize_token_embeddings({largest + 1})"
        )
    return template


def _folder_of(name: str, patterns: list[str]) -> tuple[Path, str]:
    """Return a base's folder, and the origin of what is in it."""
    path, is_gguf = Path(name), name.lower().endswith(gguf_file.SUFFIX)
    if name == STARTER:
        return starter_folder(), "embedded in chattune"
    if name == SMOLLM2:
        return smollm2.find(patterns)
    if path.is_dir():
        return path.resolve(), "folder"
    if path.exists() and is_gguf:
        folder = gguf_file.as_folder(path, name)
        return folder, f"GGUF file, SHA-256 {folder.name.rpartition('-')[2]}"
    if path.exists():
        raise BaseError(
            f"base {name}: is a file; give the folder that holds config.json, or a GGUF file, "
            f"whose name ends in {gguf_file.SUFFIX}"
        )
    if is_gguf:
        raise BaseError(f"base {name}: no such file; check the path")
    if name.startswith(_RUNS):
        raise BaseError(f"base {name}: no such folder; check the path")
    if not is_on_hub(name):
        raise BaseError(
            f"base {name}: no such folder, and not a Hub id such as org/model; check the name"
        )
    snapshot = _download(name, patterns)
    return snapshot, f"Hub, commit {snapshot.name}"


def _download(name: str, patterns: list[str]) -> Path:
    parent = str(Path(name).parent)
    is_likely_path = parent != "." and Path(parent).is_dir()
    try:
        return hub.fetch(name, "model", patterns)
    except (HubNotFound, HubUnreachable) as error:
        if is_likely_path:
            raise BaseError(
                f"base {name}: no such folder in {parent}, and not found on the Hub either; "
                "check the path"
            ) from error
        if isinstance(error, HubNotFound):
            raise BaseError(
                f"base {name}: the Hub has no such model, or it is private or gated, and there is "
                "no such folder; check the name, log in with `hf auth login`, or give a local "
                "folder that exists"
            ) from error
        raise BaseError(
            f"base {name}: no such folder, no such model in the Hub's cache on this machine, and "
            f"the Hub cannot be reached; check the path, run `hf download {name}` on a machine "
            "with a network and copy its cache, give a local folder, or use the embedded base "
            f"with --base {STARTER}"
        ) from error
    except HubError as error:
        raise BaseError(f"base {name}: {error}") from error


def _why_no_model(name: str, folder: Path) -> str:
    """Return what a folder without config.json is instead of a model, with the remedy."""
    if is_run(folder):
        return (
            "is a run, not a model; merge it into its base with "
            f"`chattune export {shlex.quote(name)} --merged FOLDER`, and give that folder"
        )
    if (folder / ADAPTER_CONFIG).is_file():
        return (
            f"holds an adapter ({ADAPTER_CONFIG}), not a model; merge it into its base, and give "
            "the folder of the merged model"
        )
    return f"{folder} holds no config.json; give the folder of a model"


def _refuse_lfs_pointers(name: str, folder: Path, patterns: list[str]) -> None:
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        try:
            is_pointer = is_lfs_pointer(path)
        except OSError as error:
            raise BaseError(
                f"base {name}: {path.name} cannot be read ({error.strerror}); make it readable"
            ) from error
        if is_pointer:
            raise BaseError(
                f"base {name}: {path.name} is a Git LFS pointer, not the file itself; run "
                f"`git lfs pull` in {folder}"
            )


def _refuse_remote_code(name: str, config: dict[str, Any]) -> None:
    from transformers import CONFIG_MAPPING

    if config.get("model_type") not in CONFIG_MAPPING:
        own_code = ", and it wants to run code of its own, which chattune never runs"
        raise BaseError(
            f"base {name}: the installed transformers does not know its model_type "
            f"{config.get('model_type')!r}{own_code if config.get('auto_map') else ''}; "
            "choose another base"
        )


def _refuse_pickles(name: str, folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = [f.name for pattern in ("*.bin", "*.pt", "*.pth") for f in folder.glob(pattern)]
    if pickles:
        raise BaseError(
            f"base {name}: has only pickled weights ({pickles[0]}), which can run code when "
            "loaded; convert them to safetensors, or ask the author to"
        )
    raise BaseError(
        f"base {name}: {folder} holds no *.safetensors weights; save or download them again"
    )
