"""Datasets that can't be used, made by code."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors.numpy import save

from tests.security.archives import bomb
from tests.security.pickles import npz, objects
from tests.security.tensors import zip_bytes
from tests.security.zips import Item, deflated, packed

Made = Callable[[], bytes]
ROWS, SHAPE = 10, (1, 8, 8)
X = np.arange(ROWS * 64, dtype=np.float32).reshape(ROWS, *SHAPE) / 64
Y = np.arange(ROWS)


def changed(array: Any, row: int, value: float) -> Any:
    """Return a copy with one number of a row changed."""
    copy = array.copy()
    copy[(row, *[0] * (copy.ndim - 1))] = value
    return copy


def squeezed(**arrays: Any) -> bytes:
    """Return a compressed .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    """Return the header of an .npy file."""
    padded = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(padded)) + padded


def member(text: str, content: bytes = b"") -> Made:
    """Return a maker of an .npz file whose `x` has a header of its own."""

    def made() -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("x.npy", header(text) + content)
        return buffer.getvalue()

    return made


def declared(shape: str, dtype: str = "<f4") -> str:
    """Return the text of an .npy header."""
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"


def npz_bomb() -> bytes:
    """Return an .npz file of 40 kB whose members, all of them the same bytes, expand to 5.5 GB."""
    return bomb(False).replace(b"e249", b".npy")


def inflating() -> bytes:
    """Return an .npz file whose member expands to more than its directory says."""
    small, fields = deflated(header(declared("(4096, 1024)")) + bytes(4096 * 4096))
    return packed([Item("x.npy", small, both={**fields, "expanded": 1000})])


def claiming() -> bytes:
    """Return an .npz file that claims to expand to 5 GiB."""
    small, fields = deflated(bytes(1 << 20))
    halves = [Item(name, small, both={**fields, "expanded": 5 << 29}) for name in ("x.npy", "y.npy")]
    return packed(halves)


SETS: dict[str, tuple[Made, str, str]] = {
    "objects": (lambda: npz(x=objects()), "unsafe-format", ""),
    "objects as labels": (lambda: npz(x=X[:2], y=objects()), "unsafe-format", ""),
    "a header that asks for objects": (member(declared("(4, 4)", "|O"), bytes(128)), "unsafe-format", ""),
    "text": (lambda: npz(x=np.array([["a"], ["b"]])), "invalid-dataset", "/x"),
    "complex numbers": (lambda: npz(x=X.astype(complex)), "invalid-dataset", "/x"),
    "truth values": (lambda: save({"x": X > 1}), "invalid-dataset", "/x"),
    "dates": (lambda: npz(x=np.zeros((4, 2), "datetime64[s]")), "invalid-dataset", "/x"),
    "records": (lambda: npz(x=np.zeros((4, 2), [("a", "<f4")])), "invalid-dataset", "/x"),
    "labels alone": (lambda: npz(y=np.zeros(8, np.int64)), "invalid-dataset", "/x"),
    "no rows": (lambda: npz(x=X[:0]), "invalid-dataset", "/x"),
    "no rows, safetensors": (lambda: save({"x": X[:0]}), "invalid-dataset", "/x"),
    "no pixels": (lambda: npz(x=X[:, :, :0]), "invalid-dataset", "/x"),
    "one axis": (lambda: npz(x=X.reshape(-1)), "invalid-dataset", "/x"),
    "a scalar": (lambda: save({"x": np.ones((), np.float32)}), "invalid-dataset", "/x"),
    "NaN in row 3": (lambda: npz(x=changed(X, 3, np.nan)), "invalid-dataset", "/x/3"),
    "NaN in row 7, safetensors": (lambda: save({"x": changed(X, 7, np.nan)}), "invalid-dataset", "/x/7"),
    "infinity in row 2": (lambda: npz(x=changed(X, 2, -np.inf)), "invalid-dataset", "/x/2"),
    "1e300 in row 4": (lambda: npz(x=changed(X.astype(np.float64), 4, 1e300)), "invalid-dataset", "/x/4"),
    "a negative label": (lambda: npz(x=X, y=changed(Y, 5, -1)), "invalid-dataset", "/y/5"),
    "label 2^40": (lambda: npz(x=X, y=changed(Y, 6, 1 << 40)), "invalid-dataset", "/y/6"),
    "labels of floats": (lambda: npz(x=X, y=Y * 1.5), "invalid-dataset", "/y"),
    "too few labels": (lambda: npz(x=X, y=Y[:9]), "invalid-dataset", "/y"),
    "labels in two axes": (lambda: npz(x=X, y=Y[:, None]), "invalid-dataset", "/y"),
    "a shape of 2^40": (member(declared("(1099511627776, 4)")), "invalid-dataset", ""),
    "a shape of 2^80": (member(declared(f"({1 << 80}, 4)")), "invalid-dataset", ""),
    "a negative shape": (member(declared("(-4, 4)"), bytes(64)), "invalid-dataset", ""),
    "a shape that calls": (member(declared("(exit(), 4)"), bytes(64)), "invalid-dataset", ""),
    "fewer bytes than its shape": (member(declared("(4, 4)"), bytes(63)), "invalid-dataset", ""),
    "members that share 5.5 GB": (npz_bomb, "overlapping-entries", ""),
    "members that claim 5 GiB": (claiming, "dataset-too-large", ""),
    "expands past its size": (inflating, "invalid-dataset", ""),
    "a zip without arrays": (zip_bytes, "unrecognised-format", ""),
    "a name twice": (lambda: packed([Item("x.npy", b"1"), Item("x.npy", b"2")]), "invalid-archive", ""),
    "encrypted": (lambda: packed([Item("x.npy", b"1", both={"flags": 0x801})]), "invalid-archive", ""),
    "a path upwards": (lambda: packed([Item("../x.npy", b"1")]), "invalid-archive", ""),
}
"""Row 51: (file, slug, pointer)."""

UNFIT: dict[str, tuple[Made, str]] = {
    "three channels": (lambda: npz(x=np.repeat(X, 3, 1), y=Y), "/x"),
    "another height": (lambda: npz(x=X[:, :, :7], y=Y), "/x"),
    "label 12 of 10": (lambda: npz(x=X, y=changed(Y, 8, 12)), "/y/8"),
    "one row": (lambda: npz(x=X[:1], y=Y[:1]), "/x"),
}
"""Row 51, of a network that takes 1 x 8 x 8 and has ten outputs: `invalid-dataset` (pointer)."""


def sound() -> bytes:
    """Return a set that is read."""
    return npz(x=X, y=Y)
