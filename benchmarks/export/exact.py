"""Trained networks: what ONNX Runtime answers on 10,000 hold-out pictures beside the simulation."""

from __future__ import annotations

from typing import Any

import torch

from app.domain.space import Assignment, widest
from benchmarks.budgets import DEVICE, same_everywhere
from benchmarks.networks import network, pictures
from benchmarks.search.store import stored
from tests.worker.export.written import written
from worker.export.agreement import accuracy, agreement
from worker.export.verify import run_onnx, simulate
from worker.search.evaluate import Evaluator, open_evaluator

MAX_GAP = 0.1
MIN_TOP1 = 0.995
TIGHT = "search-{}-bops-16-tightfit-0"


def measure(name: str) -> dict[str, Any]:
    """Export 8 bits everywhere, 4 bits everywhere, and what the search found at 1/16 of the BOPs, polished."""
    torch.set_num_threads(1)
    opened = network(name)
    evaluator = open_evaluator(opened, pictures(name), DEVICE)
    chosen = {
        "w8a8": (widest(opened.graph, 8), "sequential"),
        "w4a4": (same_everywhere(opened.graph, 4, 4), "sequential"),
    }
    found = stored(TIGHT.format(name))
    if found is not None:
        repair = found.get("polished", found)["repair"]
        chosen["searched at 1/16"] = (Assignment.from_json(found["assignment"]), repair)
    return {"assignments": {label: compared(evaluator, name, *item) for label, item in chosen.items()}}


def compared(evaluator: Evaluator, name: str, assignment: Assignment, repair: str) -> dict[str, float]:
    """Return both accuracies on the hold-out, top-1 agreement and SQNR."""
    holdout = pictures(name)["holdout"]
    net = evaluator.compress(assignment, repair)
    (simulated,), (exported,) = simulate(net, holdout.inputs), run_onnx(written(net), holdout.inputs)
    assert holdout.labels is not None
    labels, found = holdout.labels.numpy(), agreement(simulated, exported)
    return {
        "simulated": accuracy(simulated, labels),
        "exported": accuracy(exported, labels),
        "top1": found.top1,
        "sqnr_db": found.sqnr_db,
    }
