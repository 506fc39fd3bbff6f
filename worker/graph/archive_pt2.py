"""What a torch.export archive holds: JSON and raw little-endian numbers under the zip laws; nothing in it can run.

`sample_inputs` and every other entry that is not asked for by name are never read.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.domain.formats import CONVERSION_HINT
from app.domain.zip_laws import Buffer, Entry, ZipRefused, contents
from worker.graph.errors import NetworkRefused

PROGRAM = "models/model.json"
MAX_JSON = 32 << 20
MAX_OBJECTS = 600_000
MAX_COMMAS = 1_500_000
MAX_ELEMENTS = 500_000_000
MAX_RANK = 64
MAX_SHARED = 8  # tied weights lie in the file once

# torch.serialization's ScalarType numbers, as the schema of torch.export stores them
DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
_INDEX = {
    "weights": "data/weights/model_weights_config.json",
    "constants": "data/constants/model_constants_config.json",
}


@dataclass(frozen=True)
class _Layout:
    """Where a tensor's elements lie in its entry, counted in elements."""

    dtype: torch.dtype
    sizes: list[int]
    strides: list[int]
    offset: int

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.sizes)

    @property
    def last(self) -> int:
        """The largest index that is addressed."""
        return self.offset + sum((n - 1) * step for n, step in zip(self.sizes, self.strides, strict=True))

    @property
    def bytes(self) -> int:
        """The bytes that the tensor takes in memory."""
        return self.elements * self.dtype.itemsize


class Archive:
    """An archive whose zip laws are checked before anything is read.

    Raises NetworkRefused (invalid-archive, compressed-entry, overlapping-entries, unsafe-format, invalid-tensor,
    dynamic-shape-unsupported, model-too-large).
    """

    def __init__(self, data: Buffer) -> None:
        self.data = data
        self.places: dict[str, str] = {}
        self._sound: set[str] = set()
        try:
            self.entries: dict[str, tuple[Entry, int]] = contents(data)
        except ZipRefused as refusal:
            raise NetworkRefused(refusal.slug, refusal.detail) from refusal
        roots = [name[: -len(PROGRAM)] for name in self.entries if name.endswith(PROGRAM)]
        if len(roots) != 1 or roots[0].count("/") > 1:
            raise NetworkRefused("invalid-archive", f"{len(roots)} programs, or one in a folder's folder; one is read")
        self.root = roots[0]
        if self._has("byteorder") and bytes(self._view("byteorder")) != b"little":
            raise NetworkRefused("invalid-archive", "numbers must be stored little-endian")

    def json(self, name: str) -> Any:
        """Return an entry's JSON, of bounded size and number of values."""
        if self._has(name) and self.entries[self.root + name][0].stored > MAX_JSON:
            raise NetworkRefused("model-too-large", f"entry {name!r} has more than {MAX_JSON} bytes")
        data = bytes(self._view(name))
        # counted before they are parsed, as each takes many times its own bytes in memory
        if data.count(b"{") + data.count(b"[") > MAX_OBJECTS or data.count(b",") > MAX_COMMAS:
            raise NetworkRefused("model-too-large", f"entry {name!r} of {len(data)} bytes holds too many values")
        try:
            return json.loads(data.decode())
        except (ValueError, RecursionError) as error:
            raise NetworkRefused("invalid-archive", f"entry {name!r} is not JSON: {str(error)[:100]}") from error

    def tensors(self, folder: str) -> dict[str, Tensor]:
        """Return the tensors that a weights or constants index lists."""
        if not self._has(_INDEX[folder]):
            self._check_unpickled(folder)
            return {}
        index = self.json(_INDEX[folder])["config"]
        _check_plain(folder, index)
        layouts = {key: _layout(key, item["tensor_meta"]) for key, item in index.items()}
        total = sum(layout.elements for layout in layouts.values())
        if total > MAX_ELEMENTS:
            raise NetworkRefused("model-too-large", f"{total} parameters; at most {MAX_ELEMENTS} are read")
        claimed = sum(layout.bytes for layout in layouts.values())
        if claimed > MAX_SHARED * len(self.data):
            raise NetworkRefused("invalid-tensor", f"{claimed} bytes of tensors in a file of {len(self.data)}")
        found = {}
        for key, item in index.items():
            found[key] = self._tensor(key, f"data/{folder}/{item['path_name']}", layouts[key])
            self.places[key] = f"{folder}/{item['path_name']} {item['tensor_meta']}"
        return found

    def _check_unpickled(self, folder: str) -> None:
        """Refuse tensors that an older torch.export wrote as one pickle, without an index."""
        found = [name for name in self.entries if name.startswith(f"{self.root}data/{folder}/") and name[-3:] == ".pt"]
        if found:
            raise NetworkRefused("unsafe-format", f"{folder} are stored as the pickle {found[0]!r}. {CONVERSION_HINT}")

    def _has(self, name: str) -> bool:
        return self.root + name in self.entries

    def _view(self, name: str) -> memoryview:
        """Return an entry's content, whose CRC is checked the first time."""
        if not self._has(name):
            raise NetworkRefused("invalid-archive", f"entry {name!r} is missing")
        entry, start = self.entries[self.root + name]
        found = memoryview(self.data)[start : start + entry.stored]
        if name not in self._sound and zlib.crc32(found) != entry.crc:
            raise NetworkRefused("invalid-archive", f"entry {name!r} has a wrong CRC")
        self._sound.add(name)
        return found

    def _tensor(self, key: str, path: str, layout: _Layout) -> Tensor:
        """Return a copy of a tensor's elements, in order."""
        if layout.elements == 0:
            return torch.empty(layout.sizes, dtype=layout.dtype)
        view, item = self._view(path), layout.dtype.itemsize
        if layout.last >= len(view) // item:
            said = f"tensor {key!r}: {len(view) // item} stored elements, but index {layout.last} is addressed"
            raise NetworkRefused("invalid-tensor", said)
        steps = [step * item for step in layout.strides]
        # as integers, for NumPy has no bfloat16
        stored = np.ndarray(layout.sizes, f"<i{item}", view, layout.offset * item, steps)
        return torch.from_numpy(np.array(stored, f"=i{item}", order="C")).view(layout.dtype)


def _check_plain(folder: str, index: Any) -> None:
    """Refuse an index that stores anything but plain tensors: pickled ones, objects, scripts."""
    for key, item in index.items():
        code = "use_pickle" if item.get("use_pickle") else "not-a-tensor" if item.get("tensor_meta") is None else None
        if code is not None:
            said = "is stored as a pickle" if code == "use_pickle" else "is not a tensor"
            error = {"pointer": f"/{folder}/{key}", "code": code, "detail": f"{folder[:-1]} {said}"}
            raise NetworkRefused("unsafe-format", f"{folder[:-1]} {key!r} {said}. {CONVERSION_HINT}", [error])


def _layout(key: str, meta: Any) -> _Layout:
    """Return where a tensor lies; its elements must not share places. (Overlap: the strides, from the smallest on, must
    step over everything that the ones before reach.)"""
    dtype = DTYPES.get(meta["dtype"]) if isinstance(meta["dtype"], int) else None
    sizes, strides = ([_integer(item) for item in meta[name]] for name in ("sizes", "strides"))
    offset = _integer(meta["storage_offset"])
    if dtype is None or len(sizes) != len(strides) or len(sizes) > MAX_RANK or min([0, offset, *sizes, *strides]) < 0:
        raise NetworkRefused("invalid-tensor", f"tensor {key!r}: illegal dtype, sizes, strides or offset")
    found = _Layout(dtype, sizes, strides, offset)
    if found.elements > MAX_ELEMENTS or max([offset, *sizes, *strides]) >= 1 << 60:
        raise NetworkRefused("invalid-tensor", f"tensor {key!r} claims {found.elements} elements")
    reach = 0
    for step, size in sorted((step, size) for step, size in zip(strides, sizes, strict=True) if size > 1):
        if found.elements and step <= reach:
            raise NetworkRefused("invalid-tensor", f"tensor {key!r} overlaps itself: strides {strides} of {sizes}")
        reach += step * (size - 1)
    return found


def _integer(value: Any) -> int:
    """Return a plain integer from the schema's `{"as_int": n}`; anything symbolic or textual is refused."""
    found = value.get("as_int") if isinstance(value, dict) else value
    if not isinstance(found, int) or isinstance(found, bool):
        raise NetworkRefused("dynamic-shape-unsupported", "a stored tensor must have fixed sizes")
    return found
