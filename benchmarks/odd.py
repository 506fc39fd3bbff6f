"""Networks whose channels are odd, fitted to this host: what is delivered must suit the device and not be slower.

A latency table is calibrated here on other networks; each odd network (random weights) is searched at shares of its
float file's predicted latency. Files delivered and float file are timed interleaved, in one process; beside them the
network at its own odd widths in the fitted file's precision, which is what rounding channels up would save, and the
float file a second time: what differs less than these two do is the same.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from app.domain.budget import Limit, reach, resolve
from app.domain.device import DeviceProfile
from app.domain.latency import LatencyTable
from app.domain.space import Assignment, build_space, multiple_violations, widest
from benchmarks.cells import cell
from benchmarks.latency_networks import calibration, odd, opened
from tests.worker.export.written import written
from worker.data import RoleData
from worker.hardware.calibrate import QUICK, calibrate
from worker.hardware.measuring import Bench, LocalMeasurer
from worker.search.evaluate import Evaluator, Opened, open_evaluator
from worker.search.loop import SearchLoop
from worker.search.rows import Goal, Settings, TrialRow

HOST = Path(__file__).resolve().parents[1] / "app" / "devices" / "onnxruntime-cpu.json"
SHARES = (1.0, 0.75, 0.5)
TRIALS, PROBES, DELIVERED, PICTURES, ROUNDS = 8, 32, 3, 128, 100


def run() -> None:
    """Measure every network and print what its fitted files take beside the file before."""
    torch.set_num_threads(1)
    fitted = cell("odd-table", measure_table)
    device = replace(host(), table=LatencyTable.from_json(fitted["table"]))
    table = Table(
        "network",
        "limit",
        "float ms",
        "float again/float",
        "fitted ms",
        "fitted/float",
        "odd widths, same bits",
        "kept of widths",
    )
    ratios, slower, candidates, violations = [], 0, 0, 0
    for name in odd():
        found = cell(f"odd-beside-{name}", lambda n=name: measure(n, device))  # type: ignore[misc]
        candidates, violations = candidates + found["candidates"], violations + found["violations"]
        control = found["again_ms"] / found["float_ms"]
        same = (f"{found['float_ms']:.3f}", f"{control:.3f}")
        for share in sorted(set(SHARES) - {row["share"] for row in found["fitted"]}, reverse=True):
            table.add_row(name, f"{share:.2f}", *same, "none keeps it")
        for row in found["fitted"]:
            ratios.append(row["ms"] / found["float_ms"])
            slower += is_slower(ratios[-1], control)
            times = (*same, f"{row['ms']:.3f}", f"{ratios[-1]:.3f}")
            table.add_row(name, f"{row['share']:.2f}", *times, f"{row['ms'] / row['odd_ms']:.2f}", f"{row['kept']:.0%}")
    Console().print(table)
    print(f"{len(ratios)} fitted files: {slower} slower than before, largest ratio {max(ratios):.3f}")
    print("slower: by more than the float file, timed a second time in the same rounds, differs from itself")
    print(f"{candidates} candidates: {violations} violate the profile's channel multiples")


def is_slower(ratio: float, control: float) -> bool:
    """Tell whether a file takes longer than the float file by more than that file, timed twice, differs from itself."""
    return ratio > max(control, 1 / control)


def host() -> DeviceProfile:
    """Return the built-in profile of ONNX Runtime on a processor."""
    return DeviceProfile.from_json(json.loads(HOST.read_text()))


def measure_table() -> dict[str, Any]:
    """Calibrate this host on networks none of which is odd."""
    return {"table": calibrate({name: opened(name) for name in calibration()}, LocalMeasurer(), effort=QUICK).to_json()}


def measure(name: str, device: DeviceProfile) -> dict[str, Any]:
    """Fit one network at every share; time float file, fitted files and their odd twins against each other."""
    network = opened(name)
    evaluator = open_evaluator(network, _pictures(network), device)
    found = search(evaluator, network, device)
    chosen = {share: rows[0].assignment for share, rows in found.items()}
    files = {"float": widest(network.graph, 32), **{f"{share}": item for share, item in chosen.items()}}
    files |= {f"{share} odd": replace(item, keep=files["float"].keep) for share, item in chosen.items()}
    files["float again"] = files["float"]
    times = LocalMeasurer(ROUNDS).time([_bench(evaluator, id, item) for id, item in files.items()])
    delivered = [row.assignment for rows in found.values() for row in rows]
    return {
        "network": name,
        "float_ms": times["float"].min_ms,
        "again_ms": times["float again"].min_ms,
        "fitted": [
            {
                "share": share,
                "ms": times[f"{share}"].min_ms,
                "odd_ms": times[f"{share} odd"].min_ms,
                "kept": sum(item.keep.values()) / sum(files["float"].keep.values()),
            }
            for share, item in chosen.items()
        ],
        "candidates": len(delivered),
        "violations": sum(bool(multiple_violations(network.graph, item, device)) for item in delivered),
    }


def search(evaluator: Evaluator, network: Opened, device: DeviceProfile) -> dict[float, list[TrialRow]]:
    """Return the finalists at each share of the float file's predicted latency that can be reached.

    Probes are measured once.
    """
    graph, space = network.graph, build_space(network.graph, device)
    probed: dict[str, float | None] = {}
    found = {}
    for share in SHARES:
        budget = resolve((Limit("latency_ms", relative=share, relative_to="float"),), graph, device)
        loop = SearchLoop(Goal(graph, space, device, budget), Settings(trials=TRIALS, max_probes=PROBES))
        for probe in loop.pending_probes():
            if probe.key not in probed:
                screened = evaluator.evaluate(probe.assignment, "screen", "fast", base=loop.reference)
                probed[probe.key] = screened.metrics["kl"]
            loop.tell_probe(probe.key, probed[probe.key])
        if not reach(graph, space, device, budget).feasible:
            continue
        while not loop.is_done:
            for plan in loop.next_trials(1):
                loop.tell(plan.idx, evaluator.evaluate(plan.assignment, repair="fast"))
        if best := loop.finalists(DELIVERED):
            found[share] = best
    return found


def _pictures(network: Opened) -> dict[Any, RoleData]:
    """Return noise: nothing here depends on what is on the pictures."""
    generator = torch.Generator().manual_seed(0)
    shape = network.graph.inputs[0].shape
    roles = ("calibration", "evaluation", "holdout")
    return {role: RoleData((torch.randn(PICTURES, *shape, generator=generator),)) for role in roles}


def _bench(evaluator: Evaluator, id: str, assignment: Assignment) -> Bench:
    shape = (1, *evaluator.graph.inputs[0].shape)
    return Bench(id, written(evaluator.compress(assignment, "fast")), ((shape, "float32"),))
