"""Speed and size of exported files beside the float file, in one interleaved run: one thread, batch 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from app.domain.space import Assignment, widest
from benchmarks.budgets import DEVICE
from benchmarks.cells import cell
from benchmarks.networks import available, network, pictures
from worker.export.onnx_qdq import write_qdq
from worker.graph.write_onnx import write_float
from worker.hardware.measure import measure as measure_latency
from worker.search.evaluate import open_evaluator

VARIANTS = {
    "w8a8": (8, 8, 1.0),
    "w4a8": (4, 8, 1.0),
    "w2a8": (2, 8, 1.0),
    "w4a4": (4, 4, 1.0),
    "half w8a8": (8, 8, 0.5),
}


def run() -> None:
    """Measure and print the table."""
    if not available():
        print("export: the reference data folder (../shared/data) is absent; nothing measured")
        return
    torch.set_num_threads(1)
    table = Table("network", "variant", "bytes", "of float", "ms", "times as fast")
    for name in ("resnet8_cifar10", "vgg7_cifar10"):
        found = cell(f"export-{name}", lambda n=name: measure(n))  # type: ignore[misc]
        base = found["variants"]["float"]
        for variant, item in found["variants"].items():
            ratio = f"{base['ms'] / item['ms']:.2f}"
            table.add_row(
                name, variant, str(item["bytes"]), f"{item['bytes'] / base['bytes']:.2f}", f"{item['ms']:.3f}", ratio
            )
    Console().print(table)


def measure(name: str) -> dict[str, Any]:
    """Export every variant and time all files together."""
    opened = network(name)
    evaluator = open_evaluator(opened, pictures(name), DEVICE)
    files = {"float": write_float(opened.folded)}
    for variant, choice in VARIANTS.items():
        files[variant] = write_qdq(evaluator.compress(_assignment(opened.graph, *choice), "fast"))
    times = measure_latency(files, [np.zeros((1, *opened.graph.input_shape), np.float32)], rounds=200)
    return {
        "network": name,
        "variants": {key: {"bytes": len(data), "ms": times[key].min_ms} for key, data in files.items()},
    }


def _assignment(graph: Any, weight: int, activation: int, keep: float) -> Assignment:
    wide = widest(graph, weight)
    fixed = {"input": DEVICE.input_bits, "output": DEVICE.output_bits}
    bits = {item.id: fixed.get(item.role, activation) for item in graph.activations}
    kept = {g.id: g.channels if g.frozen else max(1, round(keep * g.channels)) for g in graph.groups}
    return Assignment(kept, wide.weight_bits, bits)
