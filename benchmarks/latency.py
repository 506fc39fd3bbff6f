"""Predicted against measured latency on this host: networks that the table was not fitted on, batch 1, one thread.

Beside the table, fitted on the same measurements: one constant per MAC, the plain sum of one-layer sessions, and a
roofline. Every version is timed interleaved with its float twin, so that "faster than float" is checked as well.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table
from scipy.optimize import nnls
from scipy.stats import spearmanr

from app.domain.graph import ModelGraph
from app.domain.kernels import kernels
from app.domain.latency import LAYERS, LatencyTable, Work
from app.domain.space import Assignment, widest
from benchmarks.cells import cell
from benchmarks.latency_networks import calibration, development, opened, unseen
from worker.hardware import calibrate as calibration_of
from worker.hardware.calibrate import QUICK, Effort, Planned, kind_of, plan, random_version
from worker.hardware.dummies import dummy_bench
from worker.hardware.measure import Latency
from worker.hardware.measuring import Bench, LocalMeasurer
from worker.hardware.rounds import steadily
from worker.search.evaluate import open_network

VERSIONS, SEED = 4, 7
PREDICTORS = ("table", "sum of layers", "roofline", "MACs")


def run_quick() -> None:
    """Measure a small version: a quick calibration, two versions per network."""
    run(QUICK, 2, "latency-quick")


def run(effort: Effort = Effort(), versions: int = VERSIONS, prefix: str = "latency") -> None:
    """Measure and print the comparison."""
    torch.set_num_threads(1)
    fitted = cell(f"{prefix}-table", lambda: measure_table(effort))
    rows: dict[str, list[dict[str, Any]]] = {"unseen": [], "development": []}
    for part, names in (("unseen", unseen()), ("development", development())):
        for name in names:
            found = cell(
                f"{prefix}-{name}",
                lambda n=name: measure_network(n, versions, fitted, _planned(effort)[-1].bench),  # type: ignore[misc]
            )
            rows[part] += found["versions"]
    for part, items in rows.items():
        _print_errors(part, items)
    _print_networks(rows["unseen"])
    _print_decisions([*rows["unseen"], *rows["development"]])
    print(f"table: {fitted['networks']} sessions, left-one-out p90 {fitted['table']['errors']}")
    print(f"conditions: {fitted['table']['conditions']}")


def measure_table(effort: Effort) -> dict[str, Any]:
    """Calibrate; fit the simple predictors to the same whole networks."""
    planned = _planned(effort)
    measurer = LocalMeasurer()
    found = calibration_of.measured(planned, measurer)
    fitted = calibration_of.table(planned, found, measurer.conditions())
    whole = [(item.works, found[item.bench.id].min_ms) for item in planned if item.source in calibration()]
    return {
        "table": fitted.to_json(),
        "macs": simple_fit(whole, _mac_features),
        "roofline": simple_fit(whole, roof_features),
        "networks": len(planned),
        "reference_ms": found[planned[-1].bench.id].min_ms,
    }


@functools.cache
def _planned(effort: Effort) -> tuple[Planned, ...]:
    return plan({name: opened(name) for name in calibration()}, effort)


def as_calibrated(benches: Sequence[Bench], reference: Bench, reference_ms: float) -> dict[str, Latency]:
    """Time networks beside the calibration's reference; return their times at the speed that the machine had then."""
    found = steadily(LocalMeasurer(), [reference, *benches], [reference_ms])
    return {id: item.scaled(reference_ms / found[reference.id].min_ms) for id, item in found.items()}


def measure_network(name: str, versions: int, fitted: Mapping[str, Any], reference: Bench) -> dict[str, Any]:
    """Time versions of one network, their float twins and their single layers; return times and predictions.

    `reference` is the network that led every batch of the calibration.
    """
    network = opened(name)
    rng = random.Random(f"{SEED}{name}")
    chosen = [random_version(network.graph, rng) for _ in range(versions)]
    twins = [replace(widest(network.graph, 32), keep=item.keep) for item in chosen]
    benches = [dummy_bench(f"v{index}", network, item) for index, item in enumerate(chosen)]
    benches += [dummy_bench(f"f{index}", network, item) for index, item in enumerate(twins)]
    layers = {work: layer_bench(f"l{index}", work) for index, work in enumerate(_layers(network.graph, chosen))}
    times = as_calibrated([*benches, *layers.values()], reference, fitted["reference_ms"])
    table = LatencyTable.from_json(fitted["table"])
    found = []
    for index, (version, twin) in enumerate(zip(chosen, twins, strict=True)):
        works, plain = kernels(network.graph, version), kernels(network.graph, twin)
        found.append(
            {
                "network": name,
                "kind": kind_of(version),
                "ms": times[f"v{index}"].min_ms,
                "float_ms": times[f"f{index}"].min_ms,
                "table float": table.network_ms(plain),
                "table": table.network_ms(works),
                "sum of layers": sum(times[layers[item].id].min_ms for item in _layers_of(works)),
                "roofline": _simple(fitted["roofline"], roof_features(works)),
                "MACs": _simple(fitted["macs"], _mac_features(works)),
                "missing": table.missing(works),
            }
        )
    return {"versions": found}


def layer_bench(id: str, work: Work) -> Bench:
    """Return a network of one layer that has the same kernel."""
    groups = int(work.outs) if work.op == "depthwise" else 1
    ins = int(work.ins) * groups
    size, step, extent = math.isqrt(work.kernel), math.isqrt(work.stride), math.isqrt(work.positions)
    shape = (ins,) if work.op == "linear" else (ins, extent * step, extent * step)
    rng = np.random.default_rng(0)
    weights = (int(work.outs), int(work.ins)) if work.op == "linear" else (int(work.outs), int(work.ins), size, size)
    constants = [
        numpy_helper.from_array(rng.standard_normal(weights, dtype=np.float32), "w"),
        numpy_helper.from_array(np.zeros(weights[0], np.float32), "b"),
    ]
    if work.op == "linear":
        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    else:
        pads = [size // 2] * 4
        node = helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=pads, strides=[step] * 2, group=groups)
    result = (weights[0],) if work.op == "linear" else (weights[0], extent, extent)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *result])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    network = open_network(model.SerializeToString())
    bits = {"float": (32, 32), "uint8": (8, 8)}.get(work.precision, (4, 8))
    chosen = Assignment(
        {group.id: group.channels for group in network.graph.groups},
        {layer.name: bits[0] for layer in network.graph.layers},
        {item.id: bits[1] for item in network.graph.activations},
    )
    return dummy_bench(id, network, chosen)


def simple_fit(
    whole: Sequence[tuple[Sequence[Work], float]], features: Callable[[Sequence[Work]], dict[str, float]]
) -> dict[str, float]:
    """Return non-negative coefficients that fit times best in relative terms."""
    rows = [features(works) for works, _ in whole]
    names = sorted({name for row in rows for name in row})
    scale = {name: max(row.get(name, 0.0) for row in rows) for name in names}
    matrix = [
        [row.get(name, 0.0) / scale[name] / ms for name in names] for row, (_, ms) in zip(rows, whole, strict=True)
    ]
    found, _ = nnls(np.array(matrix), np.ones(len(rows)))
    return {name: float(value) / scale[name] for name, value in zip(names, found, strict=True)}


def roof_features(works: Sequence[Work]) -> dict[str, float]:
    """Return MACs and bytes moved per precision, and 1 per inference."""
    found = {"inference": 1.0}
    for work in _layers_of(works):
        size = 4 if work.precision == "float" else 1
        moved = size * (work.ins * work.kernel * work.outs + work.outs * work.positions * (1 + work.stride))
        for name, value in (("macs", work.macs), ("bytes", moved)):
            found[f"{name} {work.precision}"] = found.get(f"{name} {work.precision}", 0.0) + value
    return found


def _mac_features(works: Sequence[Work]) -> dict[str, float]:
    return {"macs": sum(work.macs for work in _layers_of(works))}


def _simple(coefficients: Mapping[str, float], features: Mapping[str, float]) -> float:
    return sum(coefficients.get(name, 0.0) * value for name, value in features.items())


def _layers_of(works: Sequence[Work]) -> list[Work]:
    return [work for work in works if work.op in LAYERS]


def _layers(graph: ModelGraph, chosen: Sequence[Assignment]) -> list[Work]:
    return list(dict.fromkeys(work for item in chosen for work in _layers_of(kernels(graph, item))))


def _print_errors(part: str, rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(f"{part}: {len(rows)} versions", "median error", "90th percentile", "largest", "rank correlation")
    measured = np.array([row["ms"] for row in rows])
    for name in PREDICTORS:
        predicted = np.array([row[name] for row in rows])
        errors = np.abs(predicted / measured - 1)
        rank = float(spearmanr(predicted, measured).statistic)
        figures = (np.median(errors), np.quantile(errors, 0.9), errors.max())
        table.add_row(name, *(f"{value:.1%}" for value in figures), f"{rank:.3f}")
    Console().print(table)


def _print_networks(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table("network", "kind", "measured ms", *(f"{name} ms" for name in PREDICTORS), "table's error")
    for row in rows:
        figures = (f"{row[name]:.3f}" for name in ("ms", *PREDICTORS))
        table.add_row(row["network"], row["kind"], *figures, f"{row['table'] / row['ms'] - 1:+.1%}")
    Console().print(table)


def _print_decisions(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table("integer versions against their float twins", "versions", "slower than float", "rightly told")
    for label, kinds in (("all integer", ("integer",)), ("some layers float", ("mixed",))):
        chosen = [row for row in rows if row["kind"] in kinds]
        slower = [row["ms"] > row["float_ms"] for row in chosen]
        told = [row["table"] > row["table float"] for row in chosen]
        right = sum(a == b for a, b in zip(slower, told, strict=True))
        table.add_row(label, str(len(chosen)), str(sum(slower)), f"{right / max(1, len(chosen)):.0%}")
    Console().print(table)
