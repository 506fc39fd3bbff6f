"""Random networks of every family with random assignments: does ONNX Runtime follow the simulation?

Whole files are compared by their outputs, kernels by the codes at their sites, both sides computing from the same ones.
What a kernel may do otherwise is said in docs/artefacts.md.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch

from app.client import export_module
from app.domain.device import DeviceProfile, MemoryPool, Throughput
from app.domain.space import Assignment, SearchSpace, build_space
from tests.worker.export.written import written
from tests.zoo import ZOO, Entry
from worker.data import Role, RoleData
from worker.export.agreement import agreement
from worker.export.audit import Deviation, site_deviations
from worker.export.verify import run_onnx, simulate
from worker.graph.ops import op_of
from worker.graph.sites import quantizer_sites
from worker.quant.integer import integer_kernels
from worker.quant.network import CompressedNetwork
from worker.search.evaluate import Evaluator, EvaluatorOptions, open_evaluator, open_network

ASSIGNMENTS = 20
CALIBRATION, ROWS = 64, 256
MIN_SQNR_DB = 30.0
MIN_TOP1 = 0.98
ALLOWED = {"integer": (0.0, 0), "float to 8 bits": (1e-3, 1), "float to 16 bits": (5e-2, 1)}
"""By class of kernel: the largest share of a site's codes that may differ from the simulation's, by how many steps."""
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


def is_below(found: Mapping[str, Any]) -> bool:
    """Tell whether an assignment's file follows the simulation less than is claimed."""
    return bool(found["sqnr_db"] < MIN_SQNR_DB or found["top1"] < MIN_TOP1)


def measure(name: str) -> dict[str, Any]:
    """Compress a network in twenty random ways; return how far each file is from its simulation: the worst output, and
    by kernel the number of sites and their worst codes."""
    torch.set_num_threads(1)
    entry, rng = ZOO[name], random.Random(name)
    evaluator = _evaluator(entry)
    space = build_space(evaluator.graph, DEVICE)
    rows = entry.inputs(ROWS, seed=3)
    return {"assignments": [_compared(evaluator, _drawn(evaluator, space, rng), rows) for _ in range(ASSIGNMENTS)]}


def _evaluator(entry: Entry) -> Evaluator:
    file = export_module(entry.network(), entry.inputs(2))
    data = RoleData(entry.inputs(CALIBRATION, seed=2))
    roles: dict[Role, RoleData] = {"calibration": data, "evaluation": data, "holdout": data}
    return open_evaluator(open_network(file, "pt2"), roles, DEVICE, EvaluatorOptions(calibration=CALIBRATION))


def _drawn(evaluator: Evaluator, space: SearchSpace, rng: random.Random) -> Assignment:
    """Return a legal random assignment: each activation's bits first, then a pair that fits them."""
    acts = {name: rng.choice(options) for name, options in space.activation_bits.items()}
    weights = {}
    for layer in evaluator.graph.layers:
        legal = [w for w in space.weight_bits[layer.name] if (w, acts[layer.input]) in space.pairs[layer.name]]
        weights[layer.name] = rng.choice(legal)
    return Assignment({name: rng.choice(options) for name, options in space.keep.items()}, weights, acts)


def _compared(evaluator: Evaluator, assignment: Assignment, rows: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    net = evaluator.compress(assignment, "fast")
    file, ports = written(net), evaluator.graph.outputs
    pairs = zip(ports, simulate(net, rows), run_onnx(file, rows), strict=True)
    found = [agreement(one, other, port.axis) for port, one, other in pairs]
    worst = {"sqnr_db": min(item.sqnr_db for item in found), "top1": min(item.top1 for item in found)}
    return {**worst, "kernels": _kernels(net, site_deviations(file, net, rows))}


def _kernels(net: CompressedNetwork, deviations: Mapping[str, Deviation]) -> dict[str, dict[str, float]]:
    """Return, by class and operation: sites, the largest share of codes that differ, the most steps."""
    integer, heads = integer_kernels(net, net.module.graph.nodes), quantizer_sites(net.module).sites
    nodes = {node.name: node for node in net.module.graph.nodes}
    found: dict[str, dict[str, float]] = {}
    for site in heads:
        op, item = op_of(net.module, nodes[site.head]), deviations.get(site.id)
        if op is None or item is None:
            continue
        wide = "float to 8 bits" if net.grids[site.id].bits <= 8 else "float to 16 bits"
        key = f"{'integer' if site.head in integer else wide}/{op.name}"
        merge(found, {key: {"sites": 1, "share": item.share, "steps": item.steps}})
    return found


def merge(found: dict[str, dict[str, float]], more: Mapping[str, Mapping[str, float]]) -> None:
    """Add up the sites of kernels; keep their worst codes."""
    for key, item in more.items():
        held = found.setdefault(key, {"sites": 0, "share": 0.0, "steps": 0})
        held["sites"] += item["sites"]
        held["share"], held["steps"] = (max(held[name], item[name]) for name in ("share", "steps"))


def keeps(key: str, item: Mapping[str, float]) -> bool:
    """Tell whether a kernel keeps what is allowed of its class."""
    share, steps = ALLOWED[key.partition("/")[0]]
    return item["share"] <= share and item["steps"] <= steps
