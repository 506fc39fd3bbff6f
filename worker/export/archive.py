"""The checkpoint's container: a zip of stored entries with fixed time stamps: equal contents give equal bytes.

Reading trusts nothing: only the known entries, stored, each under a cap and of the digest that the archive names, read
without executing anything. No byte is left over: what comes back would be written as the same file.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from worker.files import stored_zip

WEIGHTS, GRAPH, MANIFEST, SUMS = "weights.safetensors", "graph.json", "manifest.json", "SHA256SUMS"
CAPS = {WEIGHTS: 1 << 30, GRAPH: 16 << 20, MANIFEST: 4 << 20, SUMS: 1 << 10}

Tensors = dict[str, NDArray[Any]]


class CheckpointRefused(ValueError):
    """A file that is not a sound checkpoint. `slug` names the reason, the text says what was found."""

    def __init__(self, detail: str, slug: str = "invalid-archive") -> None:
        super().__init__(detail)
        self.slug = slug


def write_archive(tensors: Tensors, graph: Mapping[str, Any], manifest: Mapping[str, Any]) -> bytes:
    """Return the archive as bytes; the same contents always give the same bytes."""
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in sorted(tensors.items())}
    entries = {WEIGHTS: save_tensors(contiguous), GRAPH: _json(graph), MANIFEST: _json(manifest)}
    return stored_zip([*entries.items(), (SUMS, _sums(entries))])


def read_archive(data: bytes) -> tuple[Tensors, dict[str, Any], dict[str, Any]]:
    """Return tensors, graph and manifest. Raises CheckpointRefused for anything but a sound archive.

    Its slug is digest-mismatch where an entry is not the one that was written, invalid-archive where the container
    isn't.
    """
    entries = _entries(data)
    _check_digests(entries)
    if stored_zip(entries.items()) != data:
        raise CheckpointRefused("the archive around its entries is not as it was written")
    weights, graph, manifest = (entries[name] for name in (WEIGHTS, GRAPH, MANIFEST))
    return _tensors(weights), _object(graph, GRAPH), _object(manifest, MANIFEST)


def _entries(data: bytes) -> dict[str, bytes]:
    """Return the entries' bytes in the order of writing."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check_entries(archive.infolist())
            return {name: archive.read(name) for name in CAPS}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, ValueError) as error:
        if isinstance(error, CheckpointRefused):
            raise
        slug = "digest-mismatch" if "CRC" in str(error) else "invalid-archive"
        raise CheckpointRefused(f"the file is not a sound zip archive: {error}", slug) from error


def _check_digests(entries: Mapping[str, bytes]) -> None:
    lines, wanted = entries[SUMS].splitlines(), _sums(entries).splitlines()
    if entries[SUMS] == _sums(entries):
        return
    changed = [line.split()[1].decode() for line in wanted if line not in lines]
    raise CheckpointRefused(f"SHA256SUMS names other bytes than those of {changed or 'the entries'}", "digest-mismatch")


def _sums(entries: Mapping[str, bytes]) -> bytes:
    """Return the digests of the three entries, as `sha256sum` writes and checks them."""
    lines = [f"{hashlib.sha256(entries[name]).hexdigest()}  {name}\n" for name in (WEIGHTS, GRAPH, MANIFEST)]
    return "".join(lines).encode()


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    names = sorted(entry.filename for entry in entries)
    if names != sorted(CAPS):
        raise CheckpointRefused(f"the archive holds {names[:8]}, not exactly {sorted(CAPS)}")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise CheckpointRefused(f"entry {entry.filename} is compressed; entries must be stored")
        if entry.file_size > CAPS[entry.filename]:
            raise CheckpointRefused(f"entry {entry.filename} has {entry.file_size} bytes", "model-too-large")


def _tensors(data: bytes) -> Tensors:
    try:
        return dict(load_tensors(data))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointRefused(f"{WEIGHTS} is not a sound safetensors file: {error}", "invalid-tensor") from error


def _object(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointRefused(f"{name} is not sound JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointRefused(f"{name} holds no JSON object")
    return value


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")
