"""The report that travels with an artefact: one self-contained JSON document."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from app.domain.budget import Budget, table
from app.domain.cost import METRICS, count
from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph
from app.domain.space import Assignment, widest
from worker.export.verify import VerificationReport

WORST = 5
LIBRARIES = ("tightfit", "torch", "onnx", "onnxruntime", "numpy", "safetensors")


def enriched_manifest(
    manifest: Mapping[str, Any], graph: ModelGraph, assignment: Assignment, device: DeviceProfile, budget: Budget
) -> dict[str, Any]:
    """Return the caller's manifest (seeds, digests) with assignment digest, costs, budget table and versions added.

    Only what follows from the inputs goes in, so that equal inputs give equal checkpoints: measured times are in the
    report.
    """
    costs = count(graph, assignment, device).to_json()
    return {
        **manifest,
        "assignment_digest": assignment.digest,
        "device": device.name,
        "costs": costs,
        "budget": [row.to_json() for row in table(budget, costs, {}, device)],
        "versions": versions(),
    }


def report_json(
    verification: VerificationReport, manifest: Mapping[str, Any], graph: ModelGraph, device: DeviceProfile
) -> dict[str, Any]:
    """Return the whole report: verification, manifest, and the costs of the float and W8A8 references beside."""
    references = {"float": widest(graph, 32), "w8a8": widest(graph, 8)}
    costs = {name: count(graph, assignment, device).to_json() for name, assignment in references.items()}
    ratios = {
        name: {metric: verification.costs[metric] / value[metric] if value[metric] else None for metric in METRICS}
        for name, value in costs.items()
        if verification.costs
    }
    found = verification.to_json()
    return {
        "verification": {**found, "worst_layers": worst_layers(found["site_sqnr_db"], graph)},
        "references": costs,
        "ratio_to": ratios,
        "manifest": dict(manifest),
    }


def worst_layers(sqnr: Mapping[str, float], graph: ModelGraph) -> list[dict[str, Any]]:
    """Return the `WORST` sites whose codes follow the simulation's least (decibels, worst first), each with the
    operation it is the output of: a layer, a step between layers, or None where it is an input of the network."""
    makers = {op.output: op.name for op in graph.ops if op.output is not None}
    makers |= {layer.output: layer.name for layer in graph.layers if layer.output is not None}
    lowest = sorted(sqnr.items(), key=lambda item: (item[1], item[0]))[:WORST]
    return [{"site": site, "layer": makers.get(site), "sqnr_db": value} for site, value in lowest]


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide an artefact's bytes."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
