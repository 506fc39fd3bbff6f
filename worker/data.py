"""Datasets: one npz (no objects) or safetensors file with `x` and optional `y`, read under caps, split by a seed."""

from __future__ import annotations

import io
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from app.domain import formats
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
    """How stored numbers become network inputs: (x * scale - mean) / std per channel, moved to channels first."""

    layout: str = "NCHW"
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DatasetSpec:
        """Read the fields the service stores (others are ignored)."""
        return cls(
            data.get("layout") or "NCHW",
            float(data.get("scale") or 1.0),
            tuple(data.get("mean") or ()),
            tuple(data.get("std") or ()),
        )


@dataclass(frozen=True)
class Dataset:
    """`inputs` as stored [rows, ...]; `labels` int64 [rows] or None."""

    inputs: Array
    labels: Array | None
    spec: DatasetSpec

    def __len__(self) -> int:
        return len(self.inputs)

    def tensor(self, rows: Array | None = None) -> Tensor:
        """Return normalised float32 inputs, channels first, of all or the given rows."""
        chosen = self.inputs if rows is None else self.inputs[rows]
        x = torch.from_numpy(np.ascontiguousarray(chosen)).float()
        if x.dim() == 3 and self.spec.layout in ("NCHW", "NHWC", "NHW"):
            x = x.unsqueeze(1)
        elif self.spec.layout == "NHWC":
            x = x.permute(0, 3, 1, 2)
        x = x * self.spec.scale
        shape = (1, -1, *[1] * (x.dim() - 2))
        if self.spec.mean:
            x = x - torch.tensor(self.spec.mean).reshape(shape)
        if self.spec.std:
            x = x / torch.tensor(self.spec.std).reshape(shape)
        if x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x.contiguous()

    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of one normalised input."""
        return tuple(self.tensor(np.arange(1))[0].shape)

    def info(self) -> dict[str, Any]:
        """Return rows, shape, dtype and classes for the record."""
        return {
            "rows": len(self),
            "shape": list(self.input_shape()),
            "dtype": str(self.inputs.dtype),
            "has_labels": self.labels is not None,
            "classes": None if self.labels is None else int(self.labels.max()) + 1,
        }


@dataclass(frozen=True)
class RoleData:
    """Normalised inputs and labels of one role."""

    inputs: Tensor
    labels: Tensor | None

    def head(self, count: int) -> RoleData:
        """Return the first `count` rows."""
        return RoleData(self.inputs[:count], None if self.labels is None else self.labels[:count])

    def __len__(self) -> int:
        return len(self.inputs)


def read_dataset(path: Path, spec: DatasetSpec) -> Dataset:
    """Read and check a dataset file. Raises DatasetRefused naming the first bad row where there is one."""
    data = mapped(path)
    arrays = _read_npz(path, data) if _format(data) == "npz" else _read_safetensors(data)
    if "x" not in arrays:
        raise DatasetRefused(f"no array named 'x'; found {sorted(arrays)}", [_error("/x", "missing")])
    inputs, labels = _native(arrays["x"]), arrays.get("y")
    _check_inputs(inputs)
    dataset = Dataset(inputs, None if labels is None else _checked_labels(labels, len(inputs)), spec)
    _check_spec(dataset)
    return dataset


def _format(data: Buffer) -> str:
    ends = data[: formats.HEAD_BYTES], data[-formats.TAIL_BYTES :]
    try:
        return formats.sniff(ends[0], len(data), "dataset", lambda: directory(data), ends[1])
    except formats.FormatRefused as refusal:
        raise DatasetRefused(refusal.detail, slug=refusal.slug) from refusal


def _native(array: Array) -> Array:
    """Return the array in this machine's byte order."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_spec(dataset: Dataset) -> None:
    spec = dataset.spec
    for name, numbers in (("scale", (spec.scale,)), ("mean", spec.mean), ("std", spec.std)):
        if not all(math.isfinite(number) for number in numbers) or (name != "mean" and 0.0 in numbers):
            raise DatasetRefused(
                f"{name} {numbers} can't normalise anything", [_error(f"/spec/{name}", "out-of-range")]
            )
    try:
        channels = Dataset(dataset.inputs[:1], None, replace(spec, mean=(), std=())).input_shape()[0]
    except RuntimeError as error:
        raise DatasetRefused(
            f"'x' of shape {dataset.inputs.shape} is not {spec.layout}", [_error("/spec/layout", "shape")]
        ) from error
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
            found = {name: stored[name] for name in stored.files if name in ("x", "y")}
    except UNREADABLE as error:
        slug = "unsafe-format" if "allow_pickle" in str(error) else "invalid-dataset"
        raise DatasetRefused(f"not a plain npz file: {str(error)[:200]}", slug=slug) from error
    for name, array in found.items():
        if not isinstance(array, np.ndarray):  # numpy hands back the bytes of members that are not arrays
            raise DatasetRefused(f"member {name!r} is not an array", [_error(f"/{name}", "dtype")])
    return found


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


def _check_inputs(x: Array) -> None:
    if x.dtype.kind not in "uif" or x.dtype.itemsize > 8:
        raise DatasetRefused(f"'x' has dtype {x.dtype}; numbers are needed", [_error("/x", "dtype")])
    if x.ndim < 2 or len(x) == 0 or 0 in x.shape:
        raise DatasetRefused(f"'x' has shape {x.shape}; at least one row is needed", [_error("/x", "shape")])
    if x.dtype.kind == "f":
        largest = min(np.finfo(x.dtype).max, np.finfo(np.float32).max)
        bad = ~(np.abs(x.reshape(len(x), -1)) <= largest).all(1)
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise DatasetRefused(f"row {first} of 'x' is not finite in float32", [_error(f"/x/{first}", "not-finite")])


def _checked_labels(y: Array, rows: int) -> Array:
    if y.dtype.kind not in "ui":
        raise DatasetRefused(f"'y' has dtype {y.dtype}; integer classes are needed", [_error("/y", "dtype")])
    if y.shape != (rows,):
        raise DatasetRefused(f"'y' has shape {y.shape}; ({rows},) is needed", [_error("/y", "shape")])
    if int(y.min()) < 0:
        first = int(np.flatnonzero(y < 0)[0])
        raise DatasetRefused(f"row {first} of 'y' is negative", [_error(f"/y/{first}", "out-of-range")])
    if int(y.max()) >= MAX_CLASSES:
        first = int(np.argmax(y))
        raise DatasetRefused(f"row {first} of 'y' names class {y[first]}", [_error(f"/y/{first}", "out-of-range")])
    return y.astype(np.int64)


def check_against(dataset: Dataset, input_shape: Sequence[int], classes: int | None) -> None:
    """Raise DatasetRefused where inputs don't fit the model's input or labels its outputs."""
    if dataset.input_shape() != tuple(input_shape):
        raise DatasetRefused(
            f"one input has shape {dataset.input_shape()}, the network takes {tuple(input_shape)}",
            [_error("/x", "shape")],
        )
    if dataset.labels is not None and classes is not None and int(dataset.labels.max()) >= classes:
        first = int(np.flatnonzero(dataset.labels >= classes)[0])
        raise DatasetRefused(
            f"row {first} of 'y' names class {int(dataset.labels[first])} of {classes}",
            [_error(f"/y/{first}", "out-of-range")],
        )


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
    labels = np.zeros(len(dataset), np.int64) if dataset.labels is None else dataset.labels
    order = rng.permutation(len(dataset))
    order = order[np.argsort(labels[order], kind="stable")]
    rounds = -(-len(order) // len(ROUND))
    # the first round in a fixed order: even five rows give every role one
    dealt = np.concatenate([ROUND, *(rng.permutation(ROUND) for _ in range(rounds - 1))])[: len(order)]
    return {role: rng.permutation(order[dealt == number]) for number, role in enumerate(ROLES)}


def role_data(dataset: Dataset, rows: Array | None = None) -> RoleData:
    """Return the normalised inputs and labels of rows (all where None)."""
    labels = None
    if dataset.labels is not None:
        labels = torch.from_numpy(dataset.labels if rows is None else dataset.labels[rows])
    return RoleData(dataset.tensor(rows), labels)


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
