"""Telling formats apart by content, and reading the ones that cannot execute code."""

from __future__ import annotations

import io
import zipfile

from torch import fx

from app.domain import formats
from worker.graph.errors import NetworkRefused
from worker.graph.read_onnx import read_onnx
from worker.graph.read_pt2 import read_pt2
from worker.graph.rewrite import merge_shuffles
from worker.graph.weights import read_weights

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


def sniff(data: bytes) -> str:
    """Return "onnx" or "pt2" from the content; raise NetworkRefused for everything else."""
    try:
        return formats.sniff(
            data[: formats.HEAD_BYTES], len(data), "network", lambda: zipfile.ZipFile(io.BytesIO(data)).namelist()
        )
    except formats.FormatRefused as refusal:
        raise NetworkRefused(refusal.slug, refusal.detail) from refusal


def read_network(data: bytes, format: str | None = None, weights: bytes | None = None) -> fx.GraphModule:
    """Return the canonical graph of an ONNX file or torch.export archive.

    `format` ("onnx" or "pt2") only has to agree with what the content says; `weights`, a safetensors file, takes the
    place of the network's own by name. Raises NetworkRefused.
    """
    found = sniff(data)
    if format is not None and format != found:
        raise NetworkRefused("unrecognised-format", f"declared as {format!r}, but the content is {found!r}")
    try:
        new = None if weights is None else read_weights(weights)
        return merge_shuffles(read_onnx(data, new) if found == "onnx" else read_pt2(data, new))
    except _BROKEN as error:
        raise NetworkRefused("invalid-graph", f"the network is not laid out as expected: {error!r}"[:300]) from error
