"""Safetensors files that lie, made by code."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors.numpy import save

HEADER_CAP = 8 << 20


def sound() -> bytes:
    """Return a file that keeps every law: four float rows, and metadata."""
    return save({"x": np.arange(48, dtype=np.float32).reshape(4, 3, 2, 2), "y": np.arange(4)}, {"made by": "code"})


def framed(header: bytes, payload: bytes = b"", length: int | None = None) -> bytes:
    """Return a file of a header (with any claim about its length) and numbers."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + payload


def laid_out(entries: dict[str, Any], payload: bytes) -> bytes:
    """Return a file of the given header entries and numbers."""
    return framed(json.dumps(entries).encode(), payload)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    """Return the header entry of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def zip_bytes() -> bytes:
    """Return a small zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", b"hello")
    return buffer.getvalue()


def empty_tensors(count: int) -> bytes:
    """Return a file of `count` tensors without elements."""
    one = b'"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return framed(b"{" + b",".join(one % number for number in range(count)) + b"}")


def twice(escaped: bool) -> bytes:
    """Return a file that names a tensor twice, the second time perhaps by an escape."""
    first = json.dumps(entry()).encode()
    name = rb'"\u0077"' if escaped else b'"w"'
    return framed(b'{"w":' + first + b"," + name + b":" + first + b"}", bytes(8))


def metadata_flood() -> bytes:
    """Return a header of nearly 8 MiB that holds nothing but metadata."""
    pairs = b",".join(b'"k%06d":"v%06d"' % (number, number) for number in range(350_000))
    return framed(b'{"__metadata__":{' + pairs + b"}}")


def long_shape() -> bytes:
    """Return a header of nearly 8 MiB that is one tensor's shape."""
    return framed(b'{"w":{"dtype":"F32","shape":[' + b"1," * 4_000_000 + b'1],"data_offsets":[0,4]}}', bytes(4))


def string_flood() -> bytes:
    """Return a header of nearly 8 MiB that is one name of escapes."""
    return framed(b'{"' + rb"\u0041" * 1_350_000 + b'":' + json.dumps(entry()).encode() + b"}", bytes(8))


def nested() -> bytes:
    """Return a header of nothing but opened brackets."""
    return framed(b'{"w":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}")


Made = Callable[[], bytes]
INVALID: dict[str, Made] = {
    "header longer than the file": lambda: framed(b'{"w":1}' + bytes(16), length=4096),
    "header of 2^63 bytes": lambda: framed(b'{"w":1}' + bytes(16), length=1 << 63),
    "header of 2^64 - 1 bytes": lambda: framed(b'{"w":1}' + bytes(16), length=(1 << 64) - 1),
    "header is no JSON": lambda: framed(b"{w: not json at all}", bytes(8)),
    "header is a list": lambda: framed(b"[" + json.dumps(entry()).encode() + b"]", bytes(8)),
    "header is cut": lambda: framed(b'{"w":{"dtype":"F32"', bytes(8)),
    "header is not UTF-8": lambda: framed(b'{"\xff\xfe":' + json.dumps(entry()).encode() + b"}", bytes(8)),
    "something behind the object": lambda: framed(json.dumps({"w": entry()}).encode() + b"{}", bytes(8)),
    "hole at the start": lambda: laid_out({"w": entry(offsets=(8, 16))}, bytes(16)),
    "hole between": lambda: laid_out({"a": entry(), "b": entry(offsets=(16, 24))}, bytes(24)),
    "overlap": lambda: laid_out({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "the same bytes twice": lambda: laid_out({"a": entry(), "b": entry()}, bytes(8)),
    "too few bytes": lambda: laid_out({"w": entry(shape=(4,), offsets=(0, 16))}, bytes(8)),
    "offsets backwards": lambda: laid_out({"w": entry(offsets=(8, 0))}, bytes(8)),
    "offsets and shape disagree": lambda: laid_out({"w": entry(shape=(3,))}, bytes(8)),
    "three offsets": lambda: laid_out({"w": entry(offsets=(0, 4, 8))}, bytes(8)),
    "unknown dtype": lambda: laid_out({"w": entry("F31")}, bytes(8)),
    "dtype is a number": lambda: laid_out({"w": entry(7)}, bytes(8)),
    "dtype is a list": lambda: laid_out({"w": entry(["F32"])}, bytes(8)),
    "negative size": lambda: laid_out({"w": entry(shape=(-2,))}, bytes(8)),
    "negative offset": lambda: laid_out({"w": entry(offsets=(-8, 0))}, bytes(8)),
    "size of 2^62": lambda: laid_out({"w": entry(shape=(1 << 62, 4))}, bytes(8)),
    "size of 2^80": lambda: laid_out({"w": entry(shape=(1 << 80,))}, bytes(8)),
    "fractional size": lambda: laid_out({"w": entry(shape=(2.0,))}, bytes(8)),
    "true for a size": lambda: laid_out({"w": entry(shape=(True, 2))}, bytes(8)),
    "rank of 1,000": lambda: laid_out({"w": entry(shape=(1,) * 1000, offsets=(0, 4))}, bytes(4)),
    "unknown field": lambda: laid_out({"w": entry(strides=[1])}, bytes(8)),
    "no dtype": lambda: laid_out({"w": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "a field twice": lambda: framed(b'{"w":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "metadata of numbers": lambda: laid_out({"__metadata__": {"epoch": 3}, "w": entry()}, bytes(8)),
    "metadata of objects": lambda: laid_out({"__metadata__": {"a": {"b": "c"}}, "w": entry()}, bytes(8)),
    "metadata is text": lambda: laid_out({"__metadata__": "text", "w": entry()}, bytes(8)),
    "metadata without end": metadata_flood,
    "shape without end": long_shape,
    "brackets without end": nested,
    "tensor is a list": lambda: laid_out({"w": [1, 2]}, bytes(8)),
}
"""Everything whose answer is `invalid-safetensors`."""

HOSTILE: dict[str, tuple[Made, str]] = {
    **{name: (made, "invalid-safetensors") for name, made in INVALID.items()},
    "300,000 empty tensors": (lambda: empty_tensors(300_000), "header-too-large"),
    "header of 50 MiB": (lambda: framed(b'{"w":' + b" " * (50 << 20) + b"1}"), "header-too-large"),
    "20,001 empty tensors": (lambda: empty_tensors(20_001), "too-many-tensors"),
    "120,000 empty tensors": (lambda: empty_tensors(120_000), "too-many-tensors"),
    "a tensor twice": (lambda: twice(False), "duplicate-tensor"),
    "a tensor twice by an escape": (lambda: twice(True), "duplicate-tensor"),
    "an appended zip": (lambda: sound() + zip_bytes(), "trailing-data"),
    "one more byte": (lambda: sound() + b"\0", "trailing-data"),
}

LEGAL: dict[str, Made] = {
    "sound": sound,
    "nothing": lambda: framed(b"{}  "),
    "20,000 empty tensors": lambda: empty_tensors(20_000),
    "a name of escapes": string_flood,
    "spaces around": lambda: framed(b' { "w" : ' + json.dumps(entry()).encode() + b"\n } \t\r\n", bytes(8)),
    "a scalar": lambda: laid_out({"w": entry(shape=(), offsets=(0, 4))}, bytes(4)),
    "metadata": lambda: laid_out({"w": entry(), "__metadata__": {"{": '}"', "n\u00e4me": "\U0001f600"}}, bytes(8)),
}
