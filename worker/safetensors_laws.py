"""The laws a safetensors file must keep before the safetensors library may see it.

The library alone spends 6 s and 433 MiB on a header of 300,000 empty tensors and takes a name that is given twice. Here
the header is read piece by piece, so that memory stays near the header's own size: at most 8 MiB of it, 20,000 tensors
and 4,096 metadata entries, each tensor's entry at most 4 KiB. Format: huggingface.co/docs/safetensors (8 bytes of
length, a JSON object, the raw numbers of all tensors one behind the other).
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from app.domain.zip_laws import Buffer

MAX_HEADER = 8 << 20
MAX_TENSORS = 20_000
MAX_METADATA = 4_096
MAX_ENTRY = 4096
MAX_RANK = 64

DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}

_SPACE = re.compile(rb"[ \t\r\n]*+")
# possessive: a string of megabytes must not fill a stack of places to come back to
_STRING = re.compile(rb'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"')
_FLAT_OBJECT = re.compile(rb'\{[^{}"]*+(?:"[^"\\{}]*+"[^{}"]*+)*+\}')
_COUNTED = b'"data_offsets"'
_PIECE = 1 << 16

Span = tuple[int, int, str]


class SafetensorsRefused(Exception):
    """A safetensors file that breaks a law; `slug` names the problem."""

    def __init__(self, slug: str, detail: str) -> None:
        super().__init__(f"{slug}: {detail}")
        self.slug, self.detail = slug, detail


def check_safetensors(data: Buffer) -> None:
    """Check the header of a safetensors file against its bytes; the numbers themselves are not looked at.

    Raises SafetensorsRefused: invalid-safetensors (length, JSON, UTF-8, dtype, shape, holes, overlap, metadata),
    header-too-large, too-many-tensors, duplicate-tensor or trailing-data.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 10 or length > len(data) - 8:
        raise _invalid(f"a header of {length} bytes in a file of {len(data)}")
    if length > MAX_HEADER:
        raise SafetensorsRefused("header-too-large", f"a header of {length} bytes; at most {MAX_HEADER} are read")
    header = data[8 : 8 + length]
    if header.count(_COUNTED) > MAX_TENSORS:  # counted before they are walked over: this takes a millisecond
        raise _too_many()
    _check_utf8(header)
    _check_spans(_Header(header).spans(), len(data) - 8 - length)


def _invalid(detail: str) -> SafetensorsRefused:
    return SafetensorsRefused("invalid-safetensors", detail)


def _too_many() -> SafetensorsRefused:
    return SafetensorsRefused("too-many-tensors", f"more than {MAX_TENSORS} tensors")


def _check_utf8(header: bytes) -> None:
    """Decode in pieces: as one string, a single character outside Latin-1 would cost up to four bytes for each."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(header), _PIECE):
            decoder.decode(header[start : start + _PIECE], start + _PIECE >= len(header))
    except UnicodeDecodeError as error:
        raise _invalid("the header is not UTF-8") from error


class _Header:
    """Walks the header's JSON from left to right."""

    def __init__(self, text: bytes) -> None:
        self.text, self.at = text, 0

    def spans(self) -> list[Span]:
        """Return (begin, end, name) of every tensor; the header must be used up."""
        found: list[Span] = []
        names: set[str] = set()

        def take(name: str) -> None:
            if name in names:
                raise SafetensorsRefused("duplicate-tensor", f"{name[:100]!r} is there twice")
            names.add(name)
            if name == "__metadata__":
                self._metadata()
                return
            if len(found) == MAX_TENSORS:
                raise _too_many()
            found.append((*_span(name, self._entry(name)), name))

        self._object(take)
        self._skip()
        if self.at != len(self.text):
            raise _invalid(f"something follows the header's object at byte {self.at}")
        return found

    def _object(self, take: Callable[[str], None]) -> None:
        """Walk an object; `take` gets each key and must walk over its value."""
        self._expect(b"{")
        if self._next() == b"}":
            self.at += 1
            return
        while True:
            key = self._string()
            self._expect(b":")
            take(key)
            if self._next() != b",":
                break
            self.at += 1
        self._expect(b"}")

    def _metadata(self) -> None:
        seen: set[str] = set()

        def take(key: str) -> None:
            if key in seen or len(seen) == MAX_METADATA:
                raise _invalid(f"metadata entry {key[:100]!r} is there twice, or one too many")
            seen.add(key)
            self._match(_STRING, "metadata must be text")

        self._object(take)

    def _entry(self, name: str) -> Any:
        raw = self._match(_FLAT_OBJECT, f"tensor {name[:100]!r} has no plain entry")
        if len(raw) > MAX_ENTRY:
            raise _invalid(f"the entry of tensor {name[:100]!r} has {len(raw)} bytes")
        try:
            return json.loads(raw, object_pairs_hook=_unique)
        except ValueError as error:
            raise _invalid(f"the entry of tensor {name[:100]!r}: {str(error)[:100]}") from error

    def _string(self) -> str:
        return str(json.loads(self._match(_STRING, "the header is not JSON")))

    def _match(self, pattern: re.Pattern[bytes], otherwise: str) -> bytes:
        self._skip()
        found = pattern.match(self.text, self.at)
        if found is None:
            raise _invalid(f"{otherwise} (byte {self.at} of the header)")
        self.at = found.end()
        return found.group()

    def _next(self) -> bytes:
        self._skip()
        return self.text[self.at : self.at + 1]

    def _expect(self, character: bytes) -> None:
        if self._next() != character:
            raise _invalid(f"the header is not JSON: {character.decode()!r} is missing at byte {self.at}")
        self.at += 1

    def _skip(self) -> None:
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a field is there twice")
    return dict(pairs)


def _span(name: str, entry: Any) -> tuple[int, int]:
    """Return where a tensor's bytes lie, once its dtype, shape and offsets agree."""
    shown = repr(name[:100])
    if set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _invalid(f"the entry of tensor {shown} has the fields {sorted(entry)[:5]}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _invalid(f"tensor {shown} has an unknown dtype")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2 or len(shape) > MAX_RANK:
        raise _invalid(f"tensor {shown}: shape and offsets must be lists of counts")
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise _invalid(f"tensor {shown}: {end - begin} bytes are set aside for shape {shape[:8]} of {dtype}")
    return begin, end


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_spans(spans: list[Span], held: int) -> None:
    """Check that the tensors lie one behind the other and fill the file."""
    ordered = sorted(spans)
    for before, after in pairwise([(0, 0, "the header"), *ordered]):
        if after[0] != before[1]:
            word = "overlaps" if after[0] < before[1] else "leaves a hole behind"
            raise _invalid(f"tensor {after[2][:100]!r} {word} {before[2][:100]!r}")
    end = ordered[-1][1] if ordered else 0
    if end > held:
        raise _invalid(f"the tensors need {end} bytes, the file holds {held}")
    if end < held:
        raise SafetensorsRefused("trailing-data", f"{held - end} bytes follow the last tensor")
