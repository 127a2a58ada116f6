"""GGUF files as bases: checked, and turned once into a model folder, which is kept in the cache."""

import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chattune.errors import BaseError
from chattune.folders import CACHE, atomic_folder, cache_folder, write_json
from chattune.gguf_file.header import read_header
from chattune.run import size_and_hash

SUFFIX = ".gguf"
_FORMAT = 1  # of the folders in the cache; raise it when a file is turned into another folder
_MANIFEST = "converted.json"  # the sizes and hashes of a folder's other files
_TEMPLATE_SECONDS = 3  # for rendering a chat template

log = logging.getLogger(__name__)


def as_folder(path: Path, name: str) -> Path:
    """Return the model folder of a GGUF file, which is made unless it is in the cache, intact.

    Raises BaseError, which calls the file `base {name}`, if it is damaged or cannot be turned into
    a model that computes what the file says, and OutputError if the cache cannot be written to.
    """
    read_header(path, name)  # finds a truncated file before gigabytes of it are hashed
    return kept_folder(path, name, sha256(path))


def kept_folder(
    path: Path,
    name: str,
    digest: str,
    kind: str = "gguf",
    decoding: Mapping[str, Any] | None = None,
) -> Path:
    """Return the model folder of a GGUF file with the SHA-256 `digest`, as `as_folder` does.

    Its name is `kind`, a version and the digest. `decoding` is written to its
    generation_config.json.
    """
    folder = cache_folder() / f"{kind}-{_FORMAT}-{digest}"
    if is_intact(folder):
        return folder
    header = read_header(path, name)
    log.info("base %s: turned into a model folder in the cache, once", name)
    from chattune.gguf_file.model import write_model
    from chattune.gguf_file.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(header.metadata, name)
    tokenizer.chat_template = _chat_template(header.metadata, tokenizer.special_tokens_map, name)
    with atomic_folder(folder, CACHE) as temporary:
        write_model(path, header, temporary, name)
        tokenizer.save_pretrained(temporary)
        if decoding:
            write_json(temporary / "generation_config.json", dict(decoding))
        files = {file.name: size_and_hash(file) for file in sorted(temporary.iterdir())}
        write_json(temporary / _MANIFEST, {"files": files})
    return folder


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    return str(size_and_hash(path)["sha256"])


def is_intact(folder: Path) -> bool:
    """Return whether a folder in the cache holds what was written to it."""
    try:
        files = json.loads((folder / _MANIFEST).read_text("utf-8"))["files"]
        return bool(files) and all(size_and_hash(folder / n) == files[n] for n in files)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _chat_template(metadata: Mapping[str, Any], tokens: Mapping[str, Any], name: str) -> str | None:
    """Return the chat template, after rendering it in a process of its own, or None without one.

    A template can loop for ever, and nothing inside this process could stop it. Raises BaseError if
    it takes more than some seconds, or fails.
    """
    template = metadata.get("tokenizer.chat_template")
    if template is None:
        log.info("base %s: it has no chat template; chattune's own is used", name)
        return None
    given = json.dumps({"template": template, "tokens": dict(tokens)})
    program = Path(__file__).with_name("render_template.py")
    try:
        rendered = subprocess.run(
            [sys.executable, "-I", program],
            input=given,
            capture_output=True,
            text=True,
            timeout=_TEMPLATE_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        reason = f"took more than {_TEMPLATE_SECONDS} seconds"
        raise _bad_template(name, reason) from error
    except subprocess.CalledProcessError as error:
        raise _bad_template(name, "ended the process that rendered it") from error
    if rendered.stdout:
        raise _bad_template(name, f"failed: {rendered.stdout[:200]!r}")
    return str(template)


def _bad_template(name: str, reason: str) -> BaseError:
    return BaseError(
        f"base {name}: its chat template, rendered for a short conversation, {reason}; get the "
        "model from a source that you trust"
    )
