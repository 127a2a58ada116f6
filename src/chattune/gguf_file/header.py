"""The header of a GGUF file: its metadata and its list of tensors, checked before anything is used.

The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every length, count and
offset in a file may lie, so each is compared with the size of the file, and what a header may hold
is limited: reading one takes at most some seconds and some hundred megabytes.
"""

import mmap
import struct
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from chattune.errors import BaseError

# More than any known model has: the largest vocabularies have 262,144 tokens.
_MOST_ITEMS = 1_500_000  # in all arrays of the metadata together
_MOST_ENTRIES = 1 << 16  # of metadata, and tensors
_MOST_BYTES = 1 << 26  # of metadata and list of tensors
_MOST_DIMENSIONS = 4

_STRING, _ARRAY = 8, 9
_NUMBERS = {  # the format's number for a type, as struct names it
    **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"},
    **{10: "Q", 11: "q", 12: "d"},
}


@dataclass(frozen=True)
class Tensor:
    """A tensor's name, shape in PyTorch's order, type such as Q4_1, and first byte in the file."""

    name: str
    shape: tuple[int, ...]
    kind: str
    begin: int

    @property
    def count(self) -> int:
        """The number of weights."""
        return prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The metadata of a GGUF file by key, with arrays as lists, and its tensors."""

    metadata: dict[str, Any]
    tensors: list[Tensor]


class _Lie(Exception):
    """A header that contradicts itself or the file, with the reason as text."""


def read_header(path: Path, name: str) -> Header:
    """Read the header of a GGUF file; errors call it `base {name}`.

    Raises BaseError for a file that is truncated, damaged, of another format or byte order, or one
    part of a model that was split into several files.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise _Lie("it does not begin as a GGUF file does")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                header = _Reader(content).header()
    except _Lie as lie:
        raise BaseError(f"base {name}: {lie}; download or convert the file again") from lie
    except OSError as error:
        raise BaseError(f"base {name}: cannot be read ({error.strerror}); check it") from error
    if (parts := header.metadata.get("split.count", 1)) != 1:
        raise BaseError(
            f"base {name}: it is one of the {parts!r:.20} files of a split model; join them with "
            "llama.cpp's `llama-gguf-split --merge`, or get the model as one file"
        )
    return header


class _Reader:
    """A position in a GGUF file that moves on with each value that is read."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._size, self._at, self._items = content, len(content), 4, 0

    def header(self) -> Header:
        (version,) = self._numbers("I")
        if version not in (2, 3):
            raise _Lie(
                f"its version is {version}, and only 2 and 3 in little-endian order are read"
            )
        tensors, entries = self._numbers("QQ")
        if max(tensors, entries) > _MOST_ENTRIES:
            raise _Lie(f"it claims {tensors:,} tensors and {entries:,} entries of metadata")
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._text()
            if key in metadata:
                raise _Lie(f"its metadata has {key!r:.80} twice")
            metadata[key] = self._value(*self._numbers("I"))
        return Header(metadata, self._tensors(tensors, metadata.get("general.alignment", 32)))

    def _numbers(self, form: str) -> tuple[Any, ...]:
        """Read numbers, written one after the other without gaps."""
        size = struct.calcsize(f"<{form}")
        return struct.unpack(f"<{form}", self._bytes(size))

    def _bytes(self, count: int) -> bytes:
        if count > self._size - self._at:
            raise _Lie(
                f"it is truncated or damaged: byte {self._at:,} announces {count:,} more, and the "
                f"file has {self._size:,}"
            )
        if self._at + count > _MOST_BYTES:
            raise _Lie(f"its header has more than {_MOST_BYTES:,} bytes")
        self._at += count
        return self._content[self._at - count : self._at]

    def _text(self) -> str:
        start = self._at
        text = self._bytes(*self._numbers("Q"))
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise _Lie(f"it is damaged: the text at byte {start:,} is not UTF-8") from error

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            return self._array()
        if kind not in _NUMBERS:
            raise _Lie(
                f"it is damaged: byte {self._at:,} names a type {kind}, which does not exist"
            )
        return self._numbers(_NUMBERS[kind])[0]

    def _array(self) -> list[Any]:
        kind, count = self._numbers("IQ")
        self._items += count
        if self._items > _MOST_ITEMS:
            raise _Lie(f"its metadata claims arrays of {self._items:,} items or more")
        if kind in _NUMBERS:
            return list(self._numbers(f"{count}{_NUMBERS[kind]}"))
        if kind != _STRING:
            raise _Lie(f"it is damaged: byte {self._at:,} announces an array of type {kind}")
        return [self._text() for _ in range(count)]

    def _tensors(self, count: int, alignment: Any) -> list[Tensor]:
        """Read the list of tensors, whose data must lie in the file and not on each other."""
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise _Lie(f"its general.alignment is {alignment!r:.80}")
        entries = [self._tensor() for _ in range(count)]
        data = -(-self._at // alignment) * alignment  # offsets are counted from here
        tensors = [replace(tensor, begin=data + tensor.begin) for tensor, _ in entries]
        end = data
        for tensor, size in sorted(
            zip(tensors, (size for _, size in entries), strict=True), key=lambda e: e[0].begin
        ):
            if tensor.begin < end or tensor.begin + size > self._size:
                raise _Lie(
                    f"it is truncated or damaged: {tensor.name!r:.80} takes {size:,} bytes from "
                    f"byte {tensor.begin:,} on, and the file has {self._size:,}"
                )
            end = tensor.begin + size
        if len({tensor.name for tensor in tensors}) < count:
            raise _Lie("it is damaged: two of its tensors have the same name")
        return tensors

    def _tensor(self) -> tuple[Tensor, int]:
        """Read one entry of the list: a tensor that begins at an offset, and its size in bytes."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name, (dimensions,) = self._text(), self._numbers("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise _Lie(f"it is damaged: {name!r:.80} has {dimensions} dimensions")
        shape = self._numbers(f"{dimensions}Q")
        number, offset = self._numbers("IQ")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError as error:
            raise _Lie(f"{name!r:.80} has a type {number}, which is not known") from error
        block, size = GGML_QUANT_SIZES[kind]
        if 0 in shape or shape[0] % block:
            raise _Lie(f"it is damaged: {name!r:.80} of type {kind.name} has the shape {shape}")
        return Tensor(name, shape[::-1], kind.name, offset), prod(shape) // block * size
