"""Calibrating a device: a deterministic plan of networks to measure, and the latency table fitted to the times.

The plan holds micro-benchmarks with the shapes of the given networks and randomly pruned and quantized versions of the
networks themselves. Each batch times a reference network too: where that came out slower than before, something else
ran on the machine, and the batch is measured again; what is left of the difference is taken off the whole batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from app.domain.graph import ModelGraph
from app.domain.kernels import kernels
from app.domain.latency import LatencyTable, Work
from app.domain.space import FLOAT_BITS, Assignment, widest
from worker.hardware.dummies import dummy_bench
from worker.hardware.fit import Sample, corrected, fit
from worker.hardware.host import has_saturating_pairs
from worker.hardware.measure import Latency
from worker.hardware.measuring import Bench, Measurer
from worker.hardware.microbench import micro_networks, shapes_in
from worker.hardware.rounds import timed_in_rounds
from worker.search.evaluate import Opened

Progress = Callable[[int, int], None]
"""Called with the number of networks measured and the number of the whole plan."""
INPUT_BITS = 8
WEIGHT_BITS = ((8,), (8, 4, 2), (8, 6, 5, 4, 3, 2))
ACTIVATION_BITS = ((8,), (8,), (8, 6, 4))
MULTIPLES = (1, 1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Effort:
    """How much is measured: micro-benchmarks, versions of each of them and of each network, and the seed."""

    micro: int = 320
    micro_versions: int = 2
    versions: int = 24
    seed: int = 0


QUICK = Effort(micro=120, versions=8)


@dataclass(frozen=True)
class Planned:
    """One network to measure: of which network it is a version, its kind, its kernels, its file, and which version."""

    source: str
    kind: str
    works: tuple[Work, ...]
    bench: Bench
    assignment: Assignment | None = None


def calibrate(
    networks: Mapping[str, Opened], measurer: Measurer, progress: Progress | None = None, effort: Effort = Effort()
) -> LatencyTable:
    """Measure what `plan` says and return the table with error bars and conditions.

    Takes well under two minutes for a few small networks. Raises what the measurer raises.
    """
    planned = plan(networks, effort, has_saturating_pairs(measurer.conditions()))
    return table(planned, measured(planned, measurer, progress), measurer.conditions())


def measured(planned: Sequence[Planned], measurer: Measurer, progress: Progress | None = None) -> dict[str, Latency]:
    """Return the latency of every planned network by its bench's id. Raises what the measurer raises."""
    return timed_in_rounds(measurer, planned, lambda item: item.bench, progress or (lambda done, total: None))


def plan(networks: Mapping[str, Opened], effort: Effort = Effort(), saturating: bool = False) -> tuple[Planned, ...]:
    """Return what to measure, shuffled (the same for the same networks and effort); versions of networks come last.

    Networks with recurrent layers are left out: those compute in float at any assignment. Files are written for a
    device whose pairs of products are `saturating` or not.
    """
    rng = random.Random(effort.seed)
    usable = {name: item for name, item in networks.items() if is_usable(item.graph)}
    shapes = shapes_in(item.graph for item in usable.values())
    micro = micro_networks(shapes, effort.micro, effort.seed)
    small = [*_versions(micro, effort.micro_versions, rng, saturating)]
    whole = [*_versions(usable, effort.versions, rng, saturating)]
    rng.shuffle(small)
    rng.shuffle(whole)
    return (*small, *whole)


def table(planned: Sequence[Planned], found: Mapping[str, Latency], conditions: Mapping[str, Any]) -> LatencyTable:
    """Return the table fitted to measured minima, its errors those on networks left out of a fit."""
    samples = {item.bench.id: Sample(item.works, found[item.bench.id].min_ms) for item in planned}
    whole = [item for item in planned if not item.source.startswith("micro")]
    saturating = has_saturating_pairs(conditions)
    fitted = corrected(fit([*samples.values()], saturating), [samples[item.bench.id] for item in whole])
    held_conditions = {**conditions, "networks": len(planned), "sources": sorted({item.source for item in whole})}
    return replace(fitted, errors=_errors(planned, samples, saturating), conditions=held_conditions)


def random_version(graph: ModelGraph, rng: random.Random) -> Assignment:
    """Return a random assignment: a quarter all float, the others integer, of which a third with some layers float."""
    low, multiple = rng.uniform(0.25, 1.0), rng.choice(MULTIPLES)
    keep = {
        group.id: group.channels
        if group.frozen
        else max(1, min(group.channels, round(group.channels * rng.uniform(low, 1.0) / multiple) * multiple))
        for group in graph.groups
    }
    kind = rng.random()
    if kind < 0.25:
        return replace(widest(graph, FLOAT_BITS), keep=keep)
    weights, activations = rng.choice(WEIGHT_BITS), rng.choice(ACTIVATION_BITS)
    fixed = {"input": INPUT_BITS, "output": FLOAT_BITS}
    weight_bits = {layer.name: rng.choice(weights) for layer in graph.layers}
    if kind < 0.5:
        weight_bits |= {layer.name: FLOAT_BITS for layer in graph.layers if rng.random() < 0.25}
    activation_bits = {item.id: fixed.get(item.role) or rng.choice(activations) for item in graph.activations}
    return Assignment(keep, weight_bits, activation_bits)


def kind_of(assignment: Assignment) -> str:
    """Return "float", "mixed" (some layers float) or "integer"."""
    floats = sum(bits >= FLOAT_BITS for bits in assignment.weight_bits.values())
    return "integer" if not floats else "float" if floats == len(assignment.weight_bits) else "mixed"


def is_usable(graph: ModelGraph) -> bool:
    """Tell whether versions of a network can be made without its data: no layer is part of a recurrent one."""
    return all("." not in layer.name for layer in graph.layers)


def _versions(networks: Mapping[str, Opened], count: int, rng: random.Random, saturating: bool) -> Iterator[Planned]:
    for name, network in networks.items():
        for index in range(count):
            chosen = random_version(network.graph, rng)
            bench = dummy_bench(f"{name}/{index}", network, chosen, saturating)
            yield Planned(name, kind_of(chosen), kernels(network.graph, chosen), bench, chosen)


def _errors(planned: Sequence[Planned], samples: Mapping[str, Sample], saturating: bool) -> dict[str, float]:
    """Return the 90th percentile of relative errors on networks left out of the fit in turn, by kind and for all."""
    errors: dict[str, list[float]] = {}
    sources = sorted({item.source for item in planned if not item.source.startswith("micro")})
    for source in sources:
        held = [item for item in planned if item.source == source]
        rest = [item for item in planned if item.source != source]
        fitted = fit([samples[item.bench.id] for item in rest], saturating)
        for item in held:
            sample = samples[item.bench.id]
            error = abs(fitted.network_ms(sample.works) / sample.ms - 1)
            errors.setdefault("all", []).append(error)
            errors.setdefault(item.kind, []).append(error)
    return {kind: float(np.quantile(values, 0.9)) for kind, values in sorted(errors.items())}
