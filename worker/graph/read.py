"""Telling formats apart by content, and reading the ones that cannot execute code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import fx

from app.domain import formats
from app.domain.zip_laws import Buffer, directory
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


def sniff(data: Buffer, kind: formats.Kind = "network") -> str:
    """Return what the content is: "onnx" or "pt2" for a network; raise NetworkRefused for everything not read."""
    ends = data[: formats.HEAD_BYTES], data[-formats.TAIL_BYTES :]
    try:
        return formats.sniff(ends[0], len(data), kind, lambda: directory(data), ends[1])
    except formats.FormatRefused as refusal:
        raise NetworkRefused(refusal.slug, refusal.detail) from refusal


def read_network(data: Buffer, format: str | None = None, weights: Buffer | None = None) -> fx.GraphModule:
    """Return the canonical graph of an ONNX file or torch.export archive.

    `format` ("onnx" or "pt2") only has to agree with what the content says; `weights`, a safetensors file, takes the
    place of the network's own by name. Raises NetworkRefused.
    """
    found = sniff(data)
    if format is not None and format != found:
        raise NetworkRefused("unrecognised-format", f"declared as {format!r}, but the content is {found!r}")
    if weights is not None:
        sniff(weights, "weights")
    with named_refusals():
        new = None if weights is None else read_weights(weights)
        return merge_shuffles(read_onnx(data, new) if found == "onnx" else read_pt2(data, new))


@contextmanager
def named_refusals() -> Iterator[None]:
    """Turn what a malformed network makes its readers raise into a refusal: invalid-graph, or model-too-large."""
    try:
        yield
    except _BROKEN as error:
        too_large = isinstance(error, RuntimeError) and "allocate memory" in str(error)
        slug = "model-too-large" if too_large else "invalid-graph"
        raise NetworkRefused(slug, f"the network is not laid out as expected: {error!r}"[:300]) from error
