"""The pruned network as float files, for those who train on: ONNX with encodings beside, and torch.export's .pt2."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from app.domain.opsets import DEFAULT
from worker.export.encodings import NamedWriter, encodings_json
from worker.graph.write_pt2 import write_pt2
from worker.quant.network import CompressedNetwork


@dataclass(frozen=True)
class PrunedFiles:
    """The files' bytes. Where torch.export can't trace a network there is no `pt2`, and `why` says so."""

    onnx: bytes
    encodings: bytes
    pt2: bytes | None
    why: str = ""

    @property
    def contents(self) -> dict[str, bytes]:
        """Return the files by kind."""
        found = {"pruned-onnx": self.onnx, "encodings": self.encodings}
        return found if self.pt2 is None else {**found, "pruned-pt2": self.pt2}


def write_pruned(net: CompressedNetwork, pruned: fx.GraphModule, opset: int = DEFAULT) -> PrunedFiles:
    """Write a pruned float network, and the grids of the network `net` that was quantized from it.

    Equal networks give equal bytes.
    """
    writer = NamedWriter(pruned, opset)
    onnx = writer.write()
    encodings = encodings_json(net, writer)
    try:
        return PrunedFiles(onnx, encodings, write_pt2(pruned))
    except Exception as error:  # torch.export's exceptions share no base class; the other files are none the worse
        return PrunedFiles(onnx, encodings, None, f"torch.export: {type(error).__name__}: {str(error)[:300]}")
