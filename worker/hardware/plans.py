"""A calibration's part inside the sandbox: networks are read here, files to measure written, the table fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.domain.cost import count
from app.domain.device import DeviceProfile
from app.domain.latency import LatencyTable
from worker.files import mapped
from worker.hardware.calibrate import Effort, Planned, plan, table
from worker.hardware.host import has_saturating_pairs
from worker.hardware.measure import Latency
from worker.search.evaluate import Opened, open_network

Json = dict[str, Any]


def opened(models: Mapping[str, Json]) -> dict[str, Opened]:
    """Read the networks by id: {"path", "weights"}. Raises NetworkRefused."""
    found = {}
    for key, item in models.items():
        weights = mapped(Path(item["weights"])) if item.get("weights") else None
        found[key] = open_network(mapped(Path(item["path"])), weights=weights)
    return found


def planned_files(networks: Mapping[str, Opened], params: Json, folder: Path) -> tuple[tuple[Planned, ...], list[Json]]:
    """Return the plan, and what is to be measured as {id, path, inputs}; the files lie in `folder`.

    `params` holds "effort" and "conditions", the measurer's.
    """
    planned = plan(networks, Effort(**params["effort"]), has_saturating_pairs(params["conditions"]))
    told = []
    for index, item in enumerate(planned):
        path = folder / f"{index}.onnx"
        path.write_bytes(item.bench.model)
        told.append({"id": item.bench.id, "path": str(path), "inputs": item.bench.ports})
    return planned, told


def fitted(networks: Mapping[str, Opened], planned: Sequence[Planned], params: Json) -> Json:
    """Return {table, error_p90, report} from {"found": latencies by id, "conditions", "device"}."""
    found = {key: Latency.from_json(item) for key, item in params["found"].items()}
    made = table(planned, found, params["conditions"])
    report = compared(networks, planned, found, DeviceProfile.from_json(params["device"]), made)
    return {"table": made.to_json(), "error_p90": made.error_p90, "report": report}


def compared(
    networks: Mapping[str, Opened],
    planned: Sequence[Planned],
    found: Mapping[str, Latency],
    before: DeviceProfile,
    made: LatencyTable,
) -> Json:
    """Return by kind of version how many networks were measured, and their relative errors' 90th percentile.

    `before` is by the former profile, `after` by the new table on networks that were left out of its fit.
    """
    errors: dict[str, list[float]] = {}
    for item in planned:
        if item.source in networks and item.assignment is not None:
            told = count(networks[item.source].graph, item.assignment, before).latency_ms
            errors.setdefault(item.kind, []).append(abs(told / found[item.bench.id].min_ms - 1))
    errors["all"] = [value for values in errors.values() for value in values]
    return {
        kind: {"networks": len(values), "before": float(np.quantile(values, 0.9)), "after": made.errors.get(kind)}
        for kind, values in sorted(errors.items())
        if values
    }
