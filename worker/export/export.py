"""One candidate to files: quantized ONNX, packed checkpoint, pruned float files, encodings, config, reports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import fx

from app.domain.artefacts import KINDS
from app.domain.budget import Budget, table, with_measured
from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph
from app.domain.opsets import DEFAULT
from worker.data import RoleData
from worker.export.checkpoint import write_checkpoint
from worker.export.config import config_yaml
from worker.export.onnx_qdq import write_qdq
from worker.export.onnx_skip import NothingToSkip, write_skipping
from worker.export.pruned import write_pruned
from worker.export.report import enriched_manifest, report_json
from worker.export.report_html import render
from worker.export.saturation import guards_pairs
from worker.export.verify import Files, Subject, VerificationReport, verify
from worker.graph.write_onnx import write_float
from worker.quant.network import CompressedNetwork


@dataclass(frozen=True)
class ExportRequest:
    """What to export and what to check it with.

    `folded` is the float network, `pruned` that with the candidate's channels alone, repaired and not quantized;
    `evaluation` holds normalised pictures. `recipe` is what makes the candidate again (see `worker.export.config`).
    """

    network: CompressedNetwork
    graph: ModelGraph
    folded: fx.GraphModule
    pruned: fx.GraphModule
    evaluation: RoleData
    device: DeviceProfile
    budget: Budget
    manifest: Mapping[str, Any]
    measured: Mapping[str, Any] | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    opset: int = DEFAULT  #: of the ONNX files
    told: Mapping[str, Any] | None = None  #: what the report says of the search around it


@dataclass(frozen=True)
class ExportedFile:
    """A file in the output folder: `kind` is one of `app.domain.artefacts`."""

    kind: str
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ExportResult:
    """The files, all written whether or not the verification passed, and what it found."""

    files: tuple[ExportedFile, ...]
    report: VerificationReport

    def to_json(self) -> dict[str, Any]:
        """Return files, verification state and report as JSON."""
        return {
            "files": [asdict(file) for file in self.files],
            "verification": self.report.state.value,
            "report": self.report.to_json(),
        }


def export_all(request: ExportRequest, folder: Path) -> ExportResult:
    """Write and verify all artefacts of one candidate; files appear in `folder` (made if absent).

    Equal requests give the same bytes, but for the report's measured times. Raises OpsetTooLow where the files' opset
    can't hold the network. A network with channel gates has no pruned float files, which could not hold the gates, but
    an ONNX file for one row that leaves out filters that are off, where there are such that can be left out.
    """
    net = request.network
    manifest = enriched_manifest(request.manifest, request.graph, net.assignment, request.device, request.budget)
    rows = table(request.budget, manifest["costs"], {}, request.device)
    manifest["budget"] = [row.to_json() for row in with_measured(rows, request.measured)]
    pruned = None if net.gates else write_pruned(net, request.pruned, request.opset)
    guarded = guards_pairs(request.device)
    onnx, skipping = write_qdq(net, guarded, request.opset), _skipping(net, guarded, request.opset)
    checkpoint, whole = write_checkpoint(net, manifest), write_float(request.folded, request.opset)
    files = Files(onnx, checkpoint, whole, pruned, skipping)
    subject = Subject(
        net, request.graph, request.evaluation, request.device, request.budget, request.measured, request.pruned
    )
    report = verify(subject, files)
    document = {**report_json(report, manifest, request.graph, request.device), **(request.told or {})}
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False).encode()
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"onnx": files.onnx, "checkpoint": files.checkpoint, **({} if pruned is None else pruned.contents)}
    contents |= {} if skipping is None else {"gated-onnx": skipping}
    contents["config"] = config_yaml(request.recipe, contents)
    contents |= {"report": text, "report-html": render(document)}
    return ExportResult(tuple(_written(folder, kind, content) for kind, content in contents.items()), report)


def _skipping(net: CompressedNetwork, saturating: bool, opset: int) -> bytes | None:
    """Return the file that leaves out filters, or None where there is nothing to leave out."""
    try:
        return write_skipping(net, saturating, opset)
    except NothingToSkip:
        return None


def _written(folder: Path, kind: str, content: bytes) -> ExportedFile:
    name = KINDS[kind].file
    (folder / name).write_bytes(content)
    return ExportedFile(kind, name, len(content), hashlib.sha256(content).hexdigest())
