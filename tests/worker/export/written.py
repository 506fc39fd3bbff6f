"""Files as this machine computes them right: on x86 without VNNI, as a worker there writes them."""

from __future__ import annotations

from app.domain.opsets import DEFAULT
from worker.export.onnx_qdq import write_qdq
from worker.hardware import host
from worker.quant.network import CompressedNetwork

SATURATING = host.has_saturating_pairs(host.describe())


def written(net: CompressedNetwork, opset: int = DEFAULT) -> bytes:
    """Return the ONNX file of a network."""
    return write_qdq(net, SATURATING, opset)
