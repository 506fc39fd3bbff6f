"""Hold-out accuracy the search reaches at hard BOPs budgets, beside the best uniform bit-width that fits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from app.domain.budget import Limit, resolve
from app.domain.cost import count
from app.domain.device import DeviceProfile, MemoryPool, Throughput
from app.domain.graph import ModelGraph
from app.domain.space import Assignment, build_space, widest
from benchmarks.cells import cell
from benchmarks.networks import NETWORKS, available, network, pictures
from worker.search.evaluate import Evaluator, open_evaluator
from worker.search.loop import SearchLoop
from worker.search.rows import Goal, Settings

RATIOS = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
TRIALS = 40
BITS = (2, 4, 8)
DEVICE = DeviceProfile(
    name="bops",
    unit="npu",
    pairs={"default": tuple((w, a) for w in BITS for a in BITS)},
    compute=(Throughput(8, 8, 20.0),),
    activation_pool=MemoryPool(None, 10.0),
    weight_store=MemoryPool(None, 10.0),
)


def run(folder: Path | None = None) -> None:
    """Measure every network at every budget and print the table."""
    if not available():
        print("budgets: the reference data folder (../shared/data) is absent; nothing measured")
        return
    torch.set_num_threads(1)
    table = Table("network", "BOPs of W8A8", "float", "uniform", "joint search", "agreement", "seconds")
    for name in NETWORKS:
        for ratio in RATIOS:
            found = cell(f"budgets-{name}-{round(1 / ratio)}", lambda n=name, r=ratio: measure(n, r))  # type: ignore[misc]
            accuracies = [found["float"], found["uniform"], found["joint"], found["agreement"]]
            texts = ["-" if value is None else f"{value:.4f}" for value in accuracies]
            table.add_row(name, f"1/{round(1 / ratio)}", *texts, f"{found['seconds']:.0f}")
    Console().print(table)


def measure(name: str, ratio: float) -> dict[str, Any]:
    """Search one network at one budget; hold-out accuracy of the best by evaluation pictures among the finalists."""
    start = time.perf_counter()
    opened = network(name)
    evaluator = open_evaluator(opened, pictures(name), DEVICE)
    graph = opened.graph
    goal = Goal(graph, build_space(graph, DEVICE), DEVICE, resolve((Limit("bops", relative=ratio),), graph, DEVICE))
    loop = SearchLoop(goal, Settings(trials=TRIALS))
    for probe in loop.pending_probes():
        loop.tell_probe(probe.key, evaluator.evaluate(probe.assignment, "screen", "fast").metrics["kl"])
    while not loop.is_done:
        for plan in loop.next_trials(1):
            loop.tell(plan.idx, evaluator.evaluate(plan.assignment))
    best = loop.finalists(1)[0]
    holdout = evaluator.evaluate(best.assignment, "holdout").metrics
    return {
        "network": name,
        "ratio": ratio,
        "float": evaluator.baseline("holdout").metrics["accuracy"],
        "uniform": uniform(evaluator, goal),
        "joint": holdout["accuracy"],
        "agreement": holdout["agreement"],
        "seconds": time.perf_counter() - start,
        "trials": TRIALS,
    }


def uniform(evaluator: Evaluator, goal: Goal) -> float | None:
    """Return the hold-out accuracy of the widest uniform (weight, activation) pair inside the budget, repaired too."""
    fitting = [
        (w * a, w, a)
        for w in BITS
        for a in BITS
        if goal.budget.is_met(count(goal.graph, same_everywhere(goal.graph, w, a), DEVICE))
    ]
    if not fitting:
        return None
    _, weight, activation = max(fitting)
    return evaluator.evaluate(same_everywhere(goal.graph, weight, activation), "holdout").metrics["accuracy"]


def same_everywhere(graph: ModelGraph, weight: int, activation: int, keep: float = 1.0) -> Assignment:
    """Return the assignment of one pair of bits for all layers and one keep ratio for all channel groups."""
    wide = widest(graph, weight)
    fixed = {"input": DEVICE.input_bits, "output": DEVICE.output_bits}
    bits = {item.id: fixed.get(item.role, activation) for item in graph.activations}
    kept = {g.id: g.channels if g.frozen else max(1, round(keep * g.channels)) for g in graph.groups}
    return Assignment(kept, wide.weight_bits, bits)
