"""Datasets: one npz (no objects) or safetensors file, read under caps, split by a seed.

It holds `x`, or one array per network input named like the input, and optional labels `y`.
"""

from __future__ import annotations

import io
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from app.domain import formats
from app.domain.graph import Port
from app.domain.inputs import ONLY, arrays_for, mismatches
from app.domain.metrics import IGNORED
from app.domain.zip_laws import DEFLATED, STORED, Buffer, ZipRefused, contents, directory
from worker.files import mapped
from worker.safetensors_laws import SafetensorsRefused, check_safetensors

Array = np.ndarray[Any, Any]
Role = Literal["calibration", "evaluation", "holdout"]
MAX_EXPANDED = 4 << 30
MAX_CLASSES = 1 << 20
UNREADABLE = (
    *(
        ValueError,
        TypeError,
        OverflowError,
        OSError,
        EOFError,
        KeyError,
        MemoryError,
        NotImplementedError,
        RuntimeError,
        struct.error,
    ),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
)
"""What numpy and zipfile raise on damaged or hostile files (RuntimeError: encrypted, MemoryError: a lying header)."""
ROLES: tuple[Role, ...] = get_args(Role)
ROUND = np.array([0, 1, 2, 1, 2])
"""One round of dealing rows to ROLES: one to calibration, two to evaluation, two to hold-out."""


class DatasetRefused(Exception):
    """A dataset that will not be used; `slug` names the problem, `errors` says where."""

    def __init__(self, detail: str, errors: Sequence[dict[str, Any]] = (), slug: str = "invalid-dataset") -> None:
        super().__init__(f"{slug}: {detail}")
        self.slug, self.detail, self.errors = slug, detail, list(errors)


@dataclass(frozen=True)
class DatasetSpec:
    """How stored numbers become network inputs: (x * scale - mean) / std per channel, moved to channels first.

    `inputs` says it for single arrays. What is said outside goes for `x`, and for arrays of three dimensions or more
    that have no entry of their own: vectors beside a picture are taken as they are. So are ids, always.
    """

    layout: str = "NCHW"
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    inputs: Mapping[str, DatasetSpec] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DatasetSpec:
        """Read the fields the service stores (others are ignored)."""
        return cls(
            data.get("layout") or "NCHW",
            float(data.get("scale") or 1.0),
            tuple(data.get("mean") or ()),
            tuple(data.get("std") or ()),
            {name: cls.from_json(item) for name, item in (data.get("inputs") or {}).items()},
        )

    def of(self, name: str, array: Array) -> DatasetSpec:
        """Return what goes for one array."""
        if name in self.inputs:
            return self.inputs[name]
        return replace(self, inputs={}) if name == ONLY or array.ndim > 2 else DatasetSpec()


@dataclass(frozen=True)
class Dataset:
    """`arrays` as stored, by name, [rows, ...] each; `labels` int64 [rows], or [rows, h, w] for pixels, or None."""

    arrays: Mapping[str, Array]
    labels: Array | None
    spec: DatasetSpec

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def tensor(self, name: str = ONLY, rows: Array | None = None) -> Tensor:
        """Return an array's normalised float32 numbers, channels first, of all or the given rows."""
        return _normalised(self._chosen(name, rows), self.spec.of(name, self.arrays[name]))

    def ids(self, name: str, dtype: str, rows: Array | None = None) -> Tensor:
        """Return an array of ids as they are, in a dtype by torch's name."""
        return torch.from_numpy(self._chosen(name, rows)).to(getattr(torch, dtype))

    def _chosen(self, name: str, rows: Array | None) -> Array:
        array = self.arrays[name]
        return np.ascontiguousarray(array if rows is None else array[rows])

    def input_shape(self, name: str = ONLY) -> tuple[int, ...]:
        """Return the shape of one normalised row of an array."""
        return tuple(self.tensor(name, np.arange(1))[0].shape)

    def records(self) -> dict[str, dict[str, Any]]:
        """Return shape (normalised and as stored) and dtype of each array."""
        return {
            name: {
                "shape": list(self.input_shape(name)),
                "stored": list(array.shape[1:]),
                "dtype": str(array.dtype),
            }
            for name, array in self.arrays.items()
        }

    def info(self) -> dict[str, Any]:
        """Return rows, shape, dtype and classes for the record; shape and dtype are those of the first array."""
        records = self.records()
        first = records[ONLY if ONLY in records else next(iter(records))]
        return {
            "rows": len(self),
            "shape": first["shape"],
            "dtype": first["dtype"],
            "has_labels": self.labels is not None,
            "classes": None if self.labels is None else _named(self.labels) + 1,
            "inputs": records,
            **(
                {"label_shape": list(self.labels.shape[1:])} if self.labels is not None and self.labels.ndim > 1 else {}
            ),
        }


def _normalised(array: Array, spec: DatasetSpec) -> Tensor:
    x = torch.from_numpy(array).float()
    if x.dim() == 3 and spec.layout in ("NCHW", "NHWC", "NHW"):
        x = x.unsqueeze(1)
    elif spec.layout == "NHWC":
        x = x.permute(0, 3, 1, 2)
    x = x * spec.scale
    shape = (1, -1, *[1] * (x.dim() - 2))
    if spec.mean:
        x = x - torch.tensor(spec.mean).reshape(shape)
    if spec.std:
        x = x / torch.tensor(spec.std).reshape(shape)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()


@dataclass(frozen=True)
class RoleData:
    """What one role gives the network: one tensor [rows, ...] per input, and labels where there are any.

    Those are [rows], or [rows, h, w] where every pixel has a class.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor | None = None

    def head(self, count: int) -> RoleData:
        """Return the first `count` rows."""
        inputs = tuple(item[:count] for item in self.inputs)
        return RoleData(inputs, None if self.labels is None else self.labels[:count])

    def batches(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """Return the inputs in batches of at most `size` rows."""
        return zip(*(torch.split(item, size) for item in self.inputs), strict=True)

    def __len__(self) -> int:
        return len(self.inputs[0])


def read_dataset(path: Path, spec: DatasetSpec) -> Dataset:
    """Read and check a dataset file. Raises DatasetRefused naming the first bad row where there is one."""
    data = mapped(path)
    found = _read_npz(path, data) if _format(data) == "npz" else _read_safetensors(data)
    labels = found.pop("y", None)
    arrays = {name: _native(array) for name, array in found.items()}
    if not arrays:
        raise DatasetRefused("no array for the network's input: call it 'x'", [_error("/x", "missing")])
    if ONLY in arrays:  # beside it, whatever can't be an input is somebody's own business
        arrays = {name: item for name, item in arrays.items() if name == ONLY or _is_input(item, len(arrays[ONLY]))}
    for name, array in arrays.items():
        _check_input(name, array)
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise DatasetRefused(f"arrays with different numbers of rows: {rows}", [_error(f"/{min(rows)}", "shape")])
    count = next(iter(rows.values()))
    dataset = Dataset(arrays, None if labels is None else _checked_labels(labels, count), spec)
    _check_spec(dataset)
    return dataset


def _format(data: Buffer) -> str:
    ends = data[: formats.HEAD_BYTES], data[-formats.TAIL_BYTES :]
    try:
        return formats.sniff(ends[0], len(data), "dataset", lambda: directory(data), ends[1])
    except formats.FormatRefused as refusal:
        raise DatasetRefused(refusal.detail, slug=refusal.slug) from refusal


def _is_input(array: Array, rows: int) -> bool:
    return array.dtype.kind in "uif" and array.ndim >= 2 and len(array) == rows and array.size > 0


def _native(array: Array) -> Array:
    """Return the array in this machine's byte order."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_spec(dataset: Dataset) -> None:
    unknown = sorted(set(dataset.spec.inputs) - set(dataset.arrays))
    if unknown:
        raise DatasetRefused(f"no arrays called {unknown}", [_error(f"/spec/inputs/{unknown[0]}", "missing")])
    for name, array in dataset.arrays.items():
        _check_rule(name, array[:1], dataset.spec.of(name, array))


def _check_rule(array_name: str, row: Array, spec: DatasetSpec) -> None:
    """Check what turns one array into an input on its first row."""
    for name, numbers in (("scale", (spec.scale,)), ("mean", spec.mean), ("std", spec.std)):
        if not all(math.isfinite(number) for number in numbers) or (name != "mean" and 0.0 in numbers):
            raise DatasetRefused(
                f"{name} {numbers} can't normalise anything", [_error(f"/spec/{name}", "out-of-range")]
            )
    try:
        channels = _normalised(np.ascontiguousarray(row), replace(spec, mean=(), std=())).shape[1]
    except RuntimeError as error:
        detail = f"{array_name!r} with rows of shape {row.shape[1:]} is not {spec.layout}"
        raise DatasetRefused(detail, [_error("/spec/layout", "shape")]) from error
    for name, numbers in (("mean", spec.mean), ("std", spec.std)):
        if len(numbers) not in (0, 1, channels):
            raise DatasetRefused(
                f"{name} has {len(numbers)} entries for {channels} channels", [_error(f"/spec/{name}", "shape")]
            )


def _read_npz(path: Path, data: Buffer) -> dict[str, Array]:
    try:
        entries = contents(data, (STORED, DEFLATED))
    except ZipRefused as refusal:
        raise DatasetRefused(refusal.detail, slug=refusal.slug) from refusal
    total = sum(entry.expanded for entry, _ in entries.values())
    if total > MAX_EXPANDED:
        raise DatasetRefused(f"{total} bytes expanded; at most {MAX_EXPANDED}", slug="dataset-too-large")
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: array for name in stored.files if (array := _member(stored, name)) is not None}
    except UNREADABLE as error:
        slug = "unsafe-format" if "allow_pickle" in str(error) else "invalid-dataset"
        raise DatasetRefused(f"not a plain npz file: {str(error)[:200]}", slug=slug) from error
    for name, array in found.items():
        if not isinstance(array, np.ndarray):  # numpy hands back the bytes of members that are not arrays
            raise DatasetRefused(f"member {name!r} is not an array", [_error(f"/{name}", "dtype")])
    return found


def _member(stored: Any, name: str) -> Any:
    """Return a member of an npz file; where there is an `x`, what else can't be read is left alone."""
    try:
        found = stored[name]
    except UNREADABLE:
        if ONLY in stored.files and name not in (ONLY, "y"):
            return None
        raise
    aside = ONLY in stored.files and name not in (ONLY, "y")
    return None if aside and not isinstance(found, np.ndarray) else found


def _read_safetensors(data: Buffer) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        check_safetensors(data)
        return dict(load(data[:]))
    except SafetensorsRefused as refusal:
        raise DatasetRefused(refusal.detail, slug=refusal.slug) from refusal
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DatasetRefused(f"tensors that no array can hold: {str(error)[:200]}") from error


def _check_input(name: str, x: Array) -> None:
    if x.dtype.kind not in "uif" or x.dtype.itemsize > 8:
        raise DatasetRefused(f"{name!r} has dtype {x.dtype}; numbers are needed", [_error(f"/{name}", "dtype")])
    if x.ndim < 2 or len(x) == 0 or 0 in x.shape:
        raise DatasetRefused(f"{name!r} has shape {x.shape}; at least one row is needed", [_error(f"/{name}", "shape")])
    if x.dtype.kind == "f":
        largest = min(np.finfo(x.dtype).max, np.finfo(np.float32).max)
        bad = ~(np.abs(x.reshape(len(x), -1)) <= largest).all(1)
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise DatasetRefused(
                f"row {first} of {name!r} is not finite in float32", [_error(f"/{name}/{first}", "not-finite")]
            )


def _checked_labels(y: Array, rows: int) -> Array:
    if y.dtype.kind not in "ui":
        raise DatasetRefused(f"'y' has dtype {y.dtype}; integer classes are needed", [_error("/y", "dtype")])
    if y.shape[:1] != (rows,) or y.ndim not in (1, 3) or y.size == 0:
        wanted = f"({rows},), or one class for every pixel, ({rows}, height, width)"
        raise DatasetRefused(f"'y' has shape {y.shape}; {wanted} is needed", [_error("/y", "shape")])
    if int(y.min()) < 0:
        first = _first(y < 0)
        raise DatasetRefused(f"row {first} of 'y' is negative", [_error(f"/y/{first}", "out-of-range")])
    if int(y.max()) >= MAX_CLASSES:
        first = _first(y == y.max())
        detail = f"row {first} of 'y' names class {y[first].max()}"
        raise DatasetRefused(detail, [_error(f"/y/{first}", "out-of-range")])
    return y.astype(np.int64)


def _first(wrong: Array) -> int:
    """Return the first row in which something is wrong."""
    return int(np.flatnonzero(wrong.reshape(len(wrong), -1).any(1))[0])


def _named(labels: Array) -> int:
    """Return the highest class that labels name; of pixels, those without a class don't count."""
    named = labels if labels.ndim == 1 else labels[labels != IGNORED]
    return int(named.max()) if named.size else 0


def check_against(dataset: Dataset, ports: Sequence[Port], classes: int | None) -> None:
    """Raise DatasetRefused where arrays don't fit the network's inputs, or labels its outputs."""
    try:
        wrong = mismatches(ports, dataset.records())
    except ValueError as error:
        raise DatasetRefused(str(error), [_error(f"/{ports[0].label or ports[0].name}", "missing")]) from error
    if wrong:
        raise DatasetRefused("; ".join(text for _, text in wrong), [_error(f"/{name}", "shape") for name, _ in wrong])
    for port in ports:
        _check_ids(dataset, port, arrays_for(ports, dataset.arrays)[port.name])
    labels = dataset.labels
    if labels is not None and labels.ndim == 1 and classes is not None and int(labels.max()) >= classes:
        first = _first(labels >= classes)
        raise DatasetRefused(
            f"row {first} of 'y' names class {int(labels[first])} of {classes}",
            [_error(f"/y/{first}", "out-of-range")],
        )


def _check_ids(dataset: Dataset, port: Port, name: str) -> None:
    """Raise DatasetRefused naming the first row with an id that the network has no entry for."""
    if not port.is_integer:
        return
    array = dataset.arrays[name].reshape(len(dataset), -1)
    top = torch.iinfo(getattr(torch, port.dtype)).max if port.below is None else port.below - 1
    bad = (array > top).any(1) if port.below is None else ((array < 0) | (array > top)).any(1)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        detail = f"row {first} of {name!r} holds ids outside 0..{top}"
        raise DatasetRefused(detail, [_error(f"/{name}/{first}", "out-of-range")])


def split(dataset: Dataset, seed: int) -> dict[Role, Array]:
    """Return row indices per role: 20 % calibration, 40 % evaluation, 40 % hold-out, stratified by label.

    Rows are dealt out label by label in rounds of five, so the shares hold however few rows a label has. Raises
    DatasetRefused below five rows.
    """
    if len(dataset) < len(ROUND):
        raise DatasetRefused(
            f"{len(dataset)} rows; at least {len(ROUND)} are needed for a split", [_error("/x", "shape")]
        )
    rng = np.random.default_rng(seed)
    single = dataset.labels is not None and dataset.labels.ndim == 1
    labels = dataset.labels if single and dataset.labels is not None else np.zeros(len(dataset), np.int64)
    order = rng.permutation(len(dataset))
    order = order[np.argsort(labels[order], kind="stable")]
    rounds = -(-len(order) // len(ROUND))
    # the first round in a fixed order: even five rows give every role one
    dealt = np.concatenate([ROUND, *(rng.permutation(ROUND) for _ in range(rounds - 1))])[: len(order)]
    return {role: rng.permutation(order[dealt == number]) for number, role in enumerate(ROLES)}


def role_data(dataset: Dataset, ports: Sequence[Port], rows: Array | None = None) -> RoleData:
    """Return what rows (all where None) give the network: one tensor per input, in the network's order, and labels."""
    labels = None
    if dataset.labels is not None:
        labels = torch.from_numpy(dataset.labels if rows is None else dataset.labels[rows])
    names = arrays_for(ports, dataset.arrays)
    return RoleData(
        tuple(
            dataset.ids(names[port.name], port.dtype, rows)
            if port.is_integer
            else dataset.tensor(names[port.name], rows)
            for port in ports
        ),
        labels,
    )


def save_npz(path: Path, x: Array, y: Array | None) -> None:
    """Write a dataset file."""
    buffer = io.BytesIO()
    if y is None:
        np.savez_compressed(buffer, x=x)
    else:
        np.savez_compressed(buffer, x=x, y=y)
    path.write_bytes(buffer.getvalue())


def _error(pointer: str, code: str) -> dict[str, str]:
    return {"pointer": pointer, "code": code, "detail": code}
