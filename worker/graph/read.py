"""Telling formats apart by content, and reading the ones that cannot execute code."""

from __future__ import annotations

import io
import zipfile

from torch import fx

from worker.graph.errors import CONVERSION_HINT, NetworkRefused
from worker.graph.read_onnx import read_onnx
from worker.graph.read_pt2 import read_pt2

PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
)
"""What a malformed file can make a reader raise besides its own refusals: a refusal too, never a crash."""

REFUSED_STARTS = {
    b"\x89HDF": "HDF5 (Keras)",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "GGUF",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}


def sniff(data: bytes) -> str:
    """Return "onnx" or "pt2" from the content; raise NetworkRefused for everything else."""
    if len(data) < 16:
        raise NetworkRefused("unrecognised-format", f"{len(data)} bytes are not a network")
    if data[:2] in PICKLE_STARTS or (data[:1] in (b"(", b"c") and b"\n" in data[:64]):
        raise NetworkRefused("unsafe-format", f"a pickle stream. {CONVERSION_HINT}")
    for start, name in REFUSED_STARTS.items():
        if data.startswith(start):
            raise NetworkRefused("unsupported-format", f"the file is {name}. {CONVERSION_HINT}")
    if data.startswith(b"PK"):
        return _sniff_zip(data)
    if data[:1] not in (b"\x08", b"\x12", b"\x1a", b"\x22", b"\x2a", b"\x32", b"\x3a", b"\x42"):
        raise NetworkRefused("unrecognised-format", f"neither ONNX nor a torch.export archive. {CONVERSION_HINT}")
    return "onnx"


def _sniff_zip(data: bytes) -> str:
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise NetworkRefused("invalid-archive", f"a broken zip archive: {error}") from error
    if any(name.endswith("models/model.json") for name in names):
        return "pt2"
    if any(name.endswith(("data.pkl", "constants.pkl")) or "/code/" in name for name in names):
        raise NetworkRefused("unsafe-format", f"a pickled checkpoint or TorchScript archive. {CONVERSION_HINT}")
    raise NetworkRefused("unrecognised-format", f"a zip archive without models/model.json. {CONVERSION_HINT}")


def read_network(data: bytes, format: str | None = None) -> fx.GraphModule:
    """Return the canonical graph of an ONNX file or torch.export archive.

    `format` ("onnx" or "pt2") only has to agree with what the content says. Raises NetworkRefused.
    """
    found = sniff(data)
    if format is not None and format != found:
        raise NetworkRefused("unrecognised-format", f"declared as {format!r}, but the content is {found!r}")
    try:
        return read_onnx(data) if found == "onnx" else read_pt2(data)
    except _BROKEN as error:
        raise NetworkRefused("invalid-graph", f"the network is not laid out as expected: {error!r}"[:300]) from error


def input_shape(module: fx.GraphModule) -> tuple[int, ...]:
    """Return the input's shape without the batch, as the reader stored it on the placeholder."""
    node = next(node for node in module.graph.nodes if node.op == "placeholder")
    return tuple(node.meta["input_shape"])
