"""A small Hugging Face Hub on the loopback interface, for tests without a network.

It serves local folders as repositories, as far as `huggingface_hub`, `datasets` and `transformers`
need: the listing of a repository and its files, with the headers that the clients' caches depend
on. The clients read HF_ENDPOINT once, when they are imported. The code under test therefore runs in
a subprocess whose environment has `Hub.environment` in place of all other HF_ variables.
"""

import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

Damage = Literal["truncate", "corrupt"]
Json = dict[str, Any]

# The Hub keeps large and binary files in Git LFS, and announces their SHA-256 instead.
LFS_SUFFIXES = frozenset({".arrow", ".bin", ".gz", ".parquet", ".pt", ".safetensors", ".zst"})
LFS_SIZE = 10 * 2**20

_REPO = r"(?P<repo>[^/]+(?:/[^/]+)??)"
_API = re.compile(
    rf"/api/(?P<kind>models|datasets)/{_REPO}"
    r"(?:/(?P<verb>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?"
)
_FILE = re.compile(rf"/(?P<kind>datasets/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


def git_hash(data: bytes) -> str:
    """Return git's hash of a blob, which is the Hub's ETag of a file that is not in LFS."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Blob:
    """A file of a repository, with the hashes that the Hub announces for it."""

    data: bytes
    oid: str
    sha256: str | None = None  # this and `pointer_size` are set only for a file in LFS
    pointer_size: int = 0

    @classmethod
    def load(cls, file: Path) -> "Blob":
        """Read a file. For one in LFS, git itself holds only a small text that points to it."""
        data = file.read_bytes()
        if file.suffix not in LFS_SUFFIXES and len(data) <= LFS_SIZE:
            return cls(data, git_hash(data))
        sha256 = hashlib.sha256(data).hexdigest()
        text = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n"
        )
        return cls(data, git_hash(text.encode()), sha256, len(text))

    def about(self, oid_name: str, sha256_name: str) -> Json:
        """Return size and hashes, whose names differ between the Hub's answers."""
        size = len(self.data)
        about: Json = {"size": size, oid_name: self.oid}
        if self.sha256:
            lfs = {"size": size, sha256_name: self.sha256, "pointerSize": self.pointer_size}
            about["lfs"] = lfs
        return about


@dataclass(frozen=True)
class Repo:
    """The content of a folder when the server started: the only commit, and the head of `main`."""

    name: str
    commit: str
    blobs: Mapping[str, Blob]

    @classmethod
    def load(cls, name: str, root: Path) -> "Repo":
        """Read a folder; its commit is a hash of its content, as the clients' caches expect."""
        files = sorted(file for file in root.rglob("*") if file.is_file())
        blobs = {file.relative_to(root).as_posix(): Blob.load(file) for file in files}
        listing = "".join(f"{blob.oid} {path}\n" for path, blob in blobs.items())
        return cls(name, git_hash(listing.encode()), blobs)

    def info(self, details: bool) -> Json:
        """Return the answer to `model_info` and `dataset_info`, with sizes and hashes if asked."""
        siblings = [
            {"rfilename": path} | (blob.about("blobId", "sha256") if details else {})
            for path, blob in self.blobs.items()
        ]
        about = {"id": self.name, "sha": self.commit, "private": False, "gated": False}
        return about | {"tags": [], "siblings": siblings}

    def entries(self) -> dict[str, Json]:
        """Return every file and folder by path."""
        entries: dict[str, Json] = {}
        for path, blob in self.blobs.items():
            for folder in map(str, list(PurePosixPath(path).parents)[:-1]):
                oid = git_hash(folder.encode())
                entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": oid}
            entries[path] = {"type": "file", "path": path} | blob.about("oid", "oid")
        return entries

    def tree(self, folder: str, recursive: bool) -> list[Json]:
        """Return the entries in a folder, with those of its subfolders if `recursive`."""
        prefix = f"{folder}/" if folder else ""
        below = {path: entry for path, entry in self.entries().items() if path.startswith(prefix)}
        return [
            entry for path, entry in below.items() if recursive or "/" not in path[len(prefix) :]
        ]


@dataclass
class Hub:
    """A running server; `requests` lists the paths, with queries, that were requested from it."""

    repos: Mapping[tuple[str, str], Repo]
    damage: Mapping[str, Damage]
    url: str = ""
    requests: list[str] = field(default_factory=list)

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables that lead a subprocess to this server, with its cache at `home`."""
        switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return switches | {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}


class _MissingError(Exception):
    """A request that is answered with 404 and the error code that the clients expect."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes, which costs 40 ms otherwise
    server: "_Server"

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing, because `Hub.requests` holds the requests."""

    def do_GET(self) -> None:
        self.server.hub.requests.append(self.path)
        url = urlsplit(self.path)
        form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        try:
            if match := _API.fullmatch(url.path):
                self._api(match, parse_qs(url.query) | parse_qs(form))
            elif match := _FILE.fullmatch(url.path):
                self._file(match)
            else:
                raise _MissingError("NotFound")
        except _MissingError as missing:
            self._send(404, b"", {"X-Error-Code": str(missing)})

    do_HEAD = do_POST = do_GET  # noqa: N815

    def _repo(self, kind: str, match: re.Match[str]) -> Repo:
        repo = self.server.hub.repos.get((kind, unquote(match["repo"])))
        if repo is None:
            raise _MissingError("RepoNotFound")
        if match["revision"] not in (None, "main", repo.commit):
            raise _MissingError("RevisionNotFound")
        return repo

    def _api(self, match: re.Match[str], query: dict[str, list[str]]) -> None:
        repo = self._repo(match["kind"], match)
        answer: Any = repo.info("blobs" in query)
        if match["verb"] == "tree":
            folder = unquote(match["path"] or "")
            answer = repo.tree(folder, query.get("recursive") == ["true"])
            if folder and not answer:
                raise _MissingError("EntryNotFound")
        elif match["verb"] == "paths-info":
            entries = repo.entries()
            answer = [entries[path] for path in query.get("paths", []) if path in entries]
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, match: re.Match[str]) -> None:
        repo = self._repo("datasets" if match["kind"] else "models", match)
        headers = {"X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        path = unquote(match["path"])
        if (
            path not in repo.blobs
        ):  # the commit is sent too, because clients cache that it lacks the file
            self._send(404, b"", headers | {"X-Error-Code": "EntryNotFound"})
            return
        blob = repo.blobs[path]
        headers["ETag"] = f'"{blob.sha256 or blob.oid}"'
        if blob.sha256:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(blob.data))}
        self._send_file(blob.data, self.server.hub.damage.get(path), headers)

    def _send_file(self, data: bytes, damage: Damage | None, headers: dict[str, str]) -> None:
        """Send a file, or the range of it that was requested, damaged if `damage` is given.

        A truncated file always ends in its middle, so that no resumed download completes it. A
        corrupt one has a single changed bit, the damage that is hardest to notice.
        """
        size, middle = len(data), len(data) // 2
        requested = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(requested[1]) if requested else 0
        stop = min(int(requested[2]) + 1, size) if requested and requested[2] else size
        if requested and start >= stop:
            self._send(416, b"", headers | {"Content-Range": f"bytes */{size}"})
            return
        if requested:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        if damage == "corrupt":
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        sent = data[start : min(stop, middle) if damage == "truncate" else stop]
        self._send(206 if requested else 200, sent, headers | {"Content-Length": str(stop - start)})

    def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        headers = {"Content-Length": str(len(body))} | headers
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.close_connection |= len(body) < int(headers["Content-Length"])


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # an idle connection of a client must not delay the end of a test

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        hub.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report errors, except that a client closed the connection during an answer."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serve_hub(
    models: dict[str, Path], datasets: dict[str, Path], *, damage: dict[str, Damage] | None = None
) -> Iterator[Hub]:
    """Serve folders as the repositories with these ids while the context is open.

    `damage` maps paths of files, in any repository, to the damage with which they are sent.
    """
    folders = {("models", name): root for name, root in models.items()}
    folders |= {("datasets", name): root for name, root in datasets.items()}
    repos = {key: Repo.load(key[1], root) for key, root in folders.items()}
    server = _Server(Hub(repos, damage or {}))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
