"""Trained networks in OpenVINO, beside ONNX Runtime: how both follow the simulation on 10,000 hold-out pictures."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch

from app.domain.space import Assignment, widest
from benchmarks.budgets import DEVICE, same_everywhere
from benchmarks.networks import network, pictures
from tests.worker.export.written import written
from worker.export.agreement import accuracy, agreement
from worker.export.second_opinion import run_openvino
from worker.export.verify import run_onnx, simulate
from worker.search.evaluate import open_evaluator

TURNS = (8, 4, 5, 3, 6, 7, 2)


def measure(name: str) -> dict[str, Any]:
    """Export 8 bits everywhere, 4-bit weights, weights of every width, half the channels, and 4 bits everywhere."""
    torch.set_num_threads(1)
    opened = network(name)
    evaluator, holdout = open_evaluator(opened, pictures(name), DEVICE), pictures(name)["holdout"]
    wide = widest(opened.graph, 8)
    widths = {layer: TURNS[index % len(TURNS)] for index, layer in enumerate(wide.weight_bits)}
    chosen = {
        "w8a8": wide,
        "w4a8": same_everywhere(opened.graph, 4, 8),
        "w2-8a8": Assignment(wide.keep, widths, wide.activation_bits),
        "half w4a8": same_everywhere(opened.graph, 4, 8, 0.5),
        "w4a4": same_everywhere(opened.graph, 4, 4),
    }
    assert holdout.labels is not None
    labels, found = holdout.labels.numpy(), {}
    for label, assignment in chosen.items():
        net = evaluator.compress(assignment)
        data = written(net)
        (simulated,), (first,) = simulate(net, holdout.inputs), run_onnx(data, holdout.inputs)
        (second,) = run_openvino(data, [item.numpy() for item in holdout.inputs])
        found[label] = {
            "simulated": accuracy(simulated, labels),
            **{
                runtime: {**agreement(simulated, outputs).to_json(), "accuracy": accuracy(outputs, labels)}
                for runtime, outputs in (("onnxruntime", first), ("openvino", second))
            },
        }
    return {"version": importlib.metadata.version("openvino"), "assignments": found}
