"""How the search grows with depth: sensitivities, allocation under three limits and trials of ResNet-20, 56 and 110.

Weights are random (times do not depend on them), pictures are CIFAR-10's, as many as the service looks at.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from app.domain.budget import Limit, resolve
from app.domain.cost import count
from app.domain.space import build_space, widest
from benchmarks.budgets import DEVICE
from benchmarks.claims import Claim
from benchmarks.graph import DEPTHS, ResNet, archive
from benchmarks.networks import pictures
from worker.job import MAX_PROBES
from worker.job import pictures as looked_at
from worker.search.evaluate import Evaluator, EvaluatorOptions, open_evaluator, open_network
from worker.search.rows import Goal
from worker.search.sensitivity import SensitivityTable, build_table, probes
from worker.search.solver import Solver

LIMITS = (
    Limit("bops", relative=1 / 8),
    Limit("weight_bytes", relative=1 / 4),
    Limit("peak_activation_bytes", relative=1 / 2),
)
LOGITS = 3.0
WITHIN = {20: (30.0, 0.01), 56: (30.0, 0.01), 110: (10.0, 0.02)}
"""By depth: seconds that an allocation may take, and the gap it may leave."""


def measure() -> dict[str, Any]:
    """Measure every depth."""
    torch.set_num_threads(1)
    return {"depths": {str(depth): _depth(depth) for depth in DEPTHS}}


def claims(found: dict[str, Any]) -> list[Claim]:
    """Return what the figures say of each depth."""
    made = []
    for depth, own in found["depths"].items():
        seconds, gap = WITHIN[int(depth)]
        left = own["gap"]
        figures = (
            f"{own['allocation_s']:.2f} s, gap {'-' if left is None else f'{100 * left:.2f} %'}; per layer: "
            f"sensitivity {own['sensitivity_s'] / own['layers']:.3f} s ({own['probes']} probes), allocation "
            f"{own['allocation_s'] / own['layers']:.3f} s, plain solve {own['solve_s'] / own['layers']:.4f} s, "
            f"trial {own['trial_s'] / own['layers']:.4f} s"
        )
        holds = own["allocation_s"] <= seconds and (left is not None and left <= gap)
        text = f"ResNet-{depth}: three limits allocated within {seconds:.0f} s, gap proven <= {100 * gap:.0f} %"
        made.append(Claim(text, holds, figures))
    return made


def _depth(depth: int) -> dict[str, Any]:
    opened = open_network(archive(_settled(depth), 32))
    graph, device = opened.graph, DEVICE
    options = EvaluatorOptions(**looked_at(count(graph, widest(graph, 32), device).macs))
    evaluator = open_evaluator(opened, pictures("resnet8_cifar10"), device, options)
    goal = Goal(graph, build_space(graph, device), device, resolve(LIMITS, graph, device))
    evaluator.float_outputs("screen")
    start = time.perf_counter()
    table, asked = _sensitivities(evaluator, goal)
    sensitivity = time.perf_counter() - start
    solver = Solver(graph, goal.space, device)
    start = time.perf_counter()
    plain = solver.solve(goal.budget, table)
    solve = time.perf_counter() - start
    assert plain is not None
    start = time.perf_counter()
    prove = getattr(solver, "prove", None)
    proven = None if prove is None else prove(goal.budget, table)
    allocation = time.perf_counter() - start
    evaluator.float_outputs("full")
    start = time.perf_counter()
    evaluator.evaluate(plain, "full")
    trial = time.perf_counter() - start
    return {
        "layers": len(graph.layers),
        "probes": asked,
        "sensitivity_s": sensitivity,
        "solve_s": solve,
        "allocation_s": allocation,
        "gap": None if proven is None else proven.gap,
        "trial_s": trial,
        "plain_loss": table.loss(plain),
    }


def _settled(depth: int) -> ResNet:
    """Return a random network whose activations and logits are as large as a trained one's."""
    torch.manual_seed(0)
    net, inputs = ResNet(depth), pictures("resnet8_cifar10")["calibration"].head(64).inputs[0]
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # one pass is the whole average
    with torch.no_grad():
        net(inputs)
        net.head.weight *= LOGITS / net.eval()(inputs).std()
    return net


def _sensitivities(evaluator: Evaluator, goal: Goal) -> tuple[SensitivityTable, int]:
    asked = probes(goal.graph, goal.space, MAX_PROBES)
    base = asked[0].assignment
    found = {probe.key: evaluator.evaluate(probe.assignment, "screen", "fast", base).metrics["kl"] for probe in asked}
    return build_table(goal.graph, goal.space, found, MAX_PROBES), len(asked)
