"""Stored gates as records of a checkpoint's graph and tensors beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import fx

from worker.export.archive import CheckpointRefused, Tensors
from worker.quant.gates import ALWAYS_ON, StoredGate

PARTS = ("squeeze", "squeeze_bias", "excite", "excite_bias")


def gate_tensors(gates: Mapping[str, StoredGate]) -> Tensors:
    """Return the gates' weights, called <site>.gate.<part>."""
    return {f"{site}.gate.{part}": getattr(gate, part) for site, gate in gates.items() for part in PARTS}


def gate_record(gate: StoredGate) -> dict[str, Any]:
    """Return what a gate's tensors do not say, as JSON."""
    return {
        "group": gate.group,
        "reads": gate.reads,
        "owner": list(gate.owner),
        "read_axis": gate.read_axis,
        "axis": gate.axis,
    }


def read_gates(records: Mapping[str, Any], left: Tensors) -> dict[str, StoredGate]:
    """Return the gates by site, and take their tensors out of `left`. Raises CheckpointRefused for one that is none."""
    return {site: _gate(site, record, left) for site, record in records.items()}


def _gate(site: str, record: Mapping[str, Any], left: Tensors) -> StoredGate:
    parts = {part: left.pop(f"{site}.gate.{part}") for part in PARTS}
    if any(part.dtype != np.float32 or not np.isfinite(part).all() for part in parts.values()):
        raise CheckpointRefused(f"{site}: a gate's tensors are not finite float32", "invalid-tensor")
    (hidden, channels), (gates, _) = parts["squeeze"].shape, parts["excite"].shape
    wanted = ((hidden, channels), (hidden,), (gates, hidden), (gates,))
    owner = tuple(int(item) for item in record["owner"])
    fits = tuple(parts[part].shape for part in PARTS) == wanted
    if not fits or not set(range(gates)) <= set(owner) <= {ALWAYS_ON, *range(gates)}:
        raise CheckpointRefused(f"{site}: a gate's tensors do not fit each other", "invalid-tensor")
    return StoredGate(
        str(record["group"]),
        str(record["reads"]),
        **parts,
        owner=owner,
        read_axis=int(record["read_axis"]),
        axis=int(record["axis"]),
    )


def check_places(gates: Mapping[str, StoredGate], module: fx.GraphModule) -> None:
    """Raise CheckpointRefused where a gate does not read a node ahead of the one that it acts on."""
    order = {node.name: step for step, node in enumerate(module.graph.nodes) if node.op not in ("get_attr", "output")}
    for site, gate in gates.items():
        if not order.get(gate.reads, len(order)) < order.get(site, -1):
            raise CheckpointRefused(
                f"{site}: its gate reads {gate.reads!r}, which is no node before it", "invalid-graph"
            )
