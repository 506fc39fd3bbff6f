"""Random networks of every family with random assignments: does ONNX Runtime follow the simulation?"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch

from app.client import export_module
from app.domain.device import DeviceProfile, MemoryPool, Throughput
from app.domain.space import Assignment, SearchSpace, build_space
from tests.zoo import ZOO, Entry
from worker.data import RoleData
from worker.export.agreement import agreement
from worker.export.onnx_qdq import write_qdq
from worker.export.verify import run_onnx, simulate
from worker.search.evaluate import Evaluator, EvaluatorOptions, open_evaluator, open_network

ASSIGNMENTS = 20
CALIBRATION, ROWS = 64, 256
MIN_SQNR_DB = 30.0
MIN_TOP1 = 0.98
POOL = MemoryPool(None, 10.0)
DEVICE = DeviceProfile(
    name="any-bits",
    unit="cpu",
    pairs={"default": tuple((w, a) for w in (2, 3, 4, 5, 6, 7, 8, 16) for a in (4, 8, 16))},
    compute=(Throughput(8, 8, 40.0), Throughput(16, 16, 20.0), Throughput(32, 32, 20.0)),
    activation_pool=POOL,
    weight_store=POOL,
)


def names() -> list[str]:
    """Return the networks' names."""
    return list(ZOO)


def is_below(found: Mapping[str, float]) -> bool:
    """Tell whether an assignment's file follows the simulation less than is claimed."""
    return found["sqnr_db"] < MIN_SQNR_DB or found["top1"] < MIN_TOP1


def measure(name: str) -> dict[str, Any]:
    """Compress a network in twenty random ways; return how far each file is from its simulation, the worst output."""
    torch.set_num_threads(1)
    entry, rng = ZOO[name], random.Random(name)
    evaluator = _evaluator(entry)
    space = build_space(evaluator.graph, DEVICE)
    rows = entry.inputs(ROWS, seed=3)
    return {"assignments": [_compared(evaluator, _drawn(evaluator, space, rng), rows) for _ in range(ASSIGNMENTS)]}


def _evaluator(entry: Entry) -> Evaluator:
    file = export_module(entry.network(), entry.inputs(2))
    data = RoleData(entry.inputs(CALIBRATION, seed=2))
    roles = {"calibration": data, "evaluation": data, "holdout": data}
    return open_evaluator(open_network(file, "pt2"), roles, DEVICE, EvaluatorOptions(calibration=CALIBRATION))


def _drawn(evaluator: Evaluator, space: SearchSpace, rng: random.Random) -> Assignment:
    """Return a legal random assignment: each activation's bits first, then a pair that fits them."""
    acts = {name: rng.choice(options) for name, options in space.activation_bits.items()}
    weights = {}
    for layer in evaluator.graph.layers:
        legal = [w for w in space.weight_bits[layer.name] if (w, acts[layer.input]) in space.pairs[layer.name]]
        weights[layer.name] = rng.choice(legal)
    return Assignment({name: rng.choice(options) for name, options in space.keep.items()}, weights, acts)


def _compared(evaluator: Evaluator, assignment: Assignment, rows: tuple[torch.Tensor, ...]) -> dict[str, float]:
    net = evaluator.compress(assignment, "fast")
    ports = evaluator.graph.outputs
    pairs = zip(ports, simulate(net, rows), run_onnx(write_qdq(net), rows), strict=True)
    found = [agreement(one, other, port.axis) for port, one, other in pairs]
    return {"sqnr_db": min(item.sqnr_db for item in found), "top1": min(item.top1 for item in found)}
