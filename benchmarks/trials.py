"""What a trial costs: the evaluation's forward over the plain float one, repair beside it, and the search's own share.

Both forwards see the same pictures on one thread, each at the best of several batch sizes: the float network as it is
run, BatchNorm folded and channels last, without gradients; the quantized one on pictures whose codes are kept, as an
evaluator keeps them. Times are the processor's, minima of interleaved rounds in one process on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from app.domain.budget import Limit, resolve
from app.domain.graph import ModelGraph
from app.domain.space import Assignment, build_space, widest
from benchmarks.budgets import DEVICE
from benchmarks.cells import cell
from benchmarks.graph import DEPTHS, ResNet, archive
from benchmarks.networks import NETWORKS, available, network, pictures
from worker.quant.compressor import REPAIRS
from worker.quant.integer import exact_bytes
from worker.quant.network import CompressedNetwork
from worker.quant.walk import Value
from worker.search.evaluate import Evaluator, EvaluatorOptions, Opened, open_evaluator, open_network
from worker.search.loop import SearchLoop
from worker.search.rows import Goal, SamplerName, Settings

Key = tuple[str, str]
PICTURES = 256
BATCHES = (16, 32, 64, 128, 256)
WIDTHS = {"dense": 1.0, "half": 0.5}
ROUNDS = 15
TRIALS, SEARCHED = 500, 1000
AIMS = {"dense": 1.0, "half": 0.5, "outside": 0.3}


def run(folder: Path | None = None) -> None:
    """Measure every cell and print the tables."""
    if not available():
        print("trials: the reference data folder (../shared/data) is absent; nothing measured")
        return
    torch.set_num_threads(1)
    table = Table("network", "width", "float ms", "forward ms", "ratio", "aim", *(f"{name} ms" for name in REPAIRS))
    for name in NETWORKS:
        found = cell(f"trials-forward-{name}", lambda n=name: forward(n))  # type: ignore[misc]
        for width in WIDTHS:
            part = found[width]
            times = [f"{found['float']['ms']:.1f}", f"{part['ms']:.1f}", f"{part['ratio']:.2f}"]
            repairs = [f"{part[repair]:.0f}" for repair in REPAIRS]
            table.add_row(name, width, *times, f"<= {AIMS[width]}", *repairs)
    Console().print(table)
    growing = Table("network", "layers", "repair ms a layer", "forward ms a layer")
    for depth in DEPTHS:
        found = cell(f"trials-growth-{depth}", lambda d=depth: growth(d))  # type: ignore[misc]
        figures = [f"{found[name] / found['layers']:.2f}" for name in ("sequential", "forward")]
        growing.add_row(f"ResNet-{depth}", str(found["layers"]), *figures)
    Console().print(growing)
    for sampler in get_args(SamplerName):
        found = cell(f"trials-outside-{sampler}", lambda s=sampler: outside(sampler=s))  # type: ignore[misc]
        share = f"{found['outside']:.1%} of {found['seconds']:.0f} s"
        print(f"{sampler}: {share} outside repair and evaluation over {found['trials']} trials")


def forward(name: str) -> dict[str, Any]:
    """Return one network's forward and repair times in ms, 8-bit weights and activations, dense and at half width."""
    opened = network(name)
    evaluator = open_evaluator(opened, pictures(name), DEVICE)
    x = evaluator.pictures("full").inputs[0][:PICTURES]
    whole = {width: fitted(opened.graph, share) for width, share in WIDTHS.items()}
    nets = {width: evaluator.compress(item, "fast") for width, item in whole.items()}
    ways: dict[Key, Callable[[], object]] = {}
    for batch in BATCHES:
        ways["float", str(batch)] = lambda b=batch: _float(opened, x, b)  # type: ignore[misc]
        for width, net in nets.items():
            ways[width, str(batch)] = lambda n=net, i=_coded(net, x, batch): _simulated(n, i)  # type: ignore[misc]
    for width, item in whole.items():
        for repair in REPAIRS:
            ways[width, repair] = lambda i=item, r=repair: evaluator.compressor.compress(i, r)  # type: ignore[misc]
    times = interleaved(ways)
    best = {kind: min((times[kind, str(batch)], batch) for batch in BATCHES) for kind in ("float", *WIDTHS)}
    found: dict[str, Any] = {kind: {"ms": ms, "batch": batch} for kind, (ms, batch) in best.items()}
    for width in WIDTHS:
        found[width]["ratio"] = best[width][0] / best["float"][0]
        found[width] |= {repair: times[width, repair] for repair in REPAIRS}
    return {"network": name, "pictures": PICTURES, "bytes": exact_bytes(), **found}


def growth(depth: int) -> dict[str, Any]:
    """Return what a trial of a deep ResNet with random weights costs, in ms, beside its number of layers."""
    opened = open_network(archive(ResNet(depth), 32))
    evaluator = open_evaluator(opened, pictures("resnet8_cifar10"), DEVICE, EvaluatorOptions(calibration=128))
    x = evaluator.pictures("full").inputs[0][:PICTURES]
    half = fitted(opened.graph, 0.5)
    net = evaluator.compress(half, "fast")
    batches = _coded(net, x, 64)
    ways: dict[Key, Callable[[], object]] = {
        ("", repair): lambda r=repair: evaluator.compressor.compress(half, r)  # type: ignore[misc]
        for repair in REPAIRS
    }
    ways["", "forward"] = lambda: _simulated(net, batches)
    ways["", "float"] = lambda: _float(opened, x, 64)
    times = interleaved(ways, 3)
    layers = len(opened.graph.layers)
    return {"depth": depth, "layers": layers, "pictures": PICTURES, **{name: ms for (_, name), ms in times.items()}}


def outside(trials: int = TRIALS, **options: Any) -> dict[str, Any]:
    """Return the share of a search's seconds that is neither repair nor evaluation; `options` go to its settings."""
    opened = network("resnet8_cifar10")
    looked_at = EvaluatorOptions(full=SEARCHED)
    evaluator = open_evaluator(opened, pictures("resnet8_cifar10"), DEVICE, looked_at)
    graph = opened.graph
    budget = resolve((Limit("bops", relative=1 / 16),), graph, DEVICE)
    loop = SearchLoop(Goal(graph, build_space(graph, DEVICE), DEVICE, budget), Settings(trials=trials, **options))
    for probe in loop.pending_probes():
        loop.tell_probe(probe.key, evaluator.evaluate(probe.assignment, "screen", "fast").metrics["kl"])
    start, inside = time.perf_counter(), 0.0
    while not loop.is_done:
        for plan in loop.next_trials(1):
            inside += _told(loop, evaluator, plan)
    seconds = time.perf_counter() - start
    return {"trials": trials, "seconds": seconds, "inside": inside, "outside": 1 - inside / seconds, **options}


def _told(loop: SearchLoop, evaluator: Evaluator, plan: Any) -> float:
    start = time.perf_counter()
    measurement = evaluator.evaluate(plan.assignment)
    seconds = time.perf_counter() - start
    loop.tell(plan.idx, measurement)
    return seconds


def fitted(graph: ModelGraph, share: float, bits: int = 8) -> Assignment:
    """Return the assignment of one bit-width whose channel groups keep about a share of their channels."""
    space = build_space(graph, DEVICE)
    wanted = {item.id: item.channels * share for item in graph.groups}
    keep = {name: min(space.keep[name], key=lambda n, w=goal: abs(n - w)) for name, goal in wanted.items()}  # type: ignore[misc]
    return Assignment(keep, widest(graph, bits).weight_bits, {item.id: bits for item in graph.activations})


def interleaved(
    ways: Mapping[tuple[str, str], Callable[[], object]], rounds: int = ROUNDS
) -> dict[tuple[str, str], float]:
    """Return the least ms of each of several things, done in turn."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for key, way in ways.items():
            start = time.process_time()
            way()
            best[key] = min(best[key], 1e3 * (time.process_time() - start))
    return best


def _float(opened: Opened, x: Tensor, batch: int) -> None:
    with torch.no_grad():
        for part in x.split(batch):
            opened.folded(part)


def _coded(net: CompressedNetwork, x: Tensor, batch: int) -> list[tuple[Value, ...]]:
    return [net.encoded(part) for part in x.split(batch)]


def _simulated(net: CompressedNetwork, batches: Sequence[tuple[Value, ...]]) -> None:
    for inputs in batches:
        net.forward(*inputs)
