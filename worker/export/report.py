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
    return {
        "verification": verification.to_json(),
        "references": costs,
        "ratio_to": ratios,
        "manifest": dict(manifest),
    }


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide an artefact's bytes."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
