"""A latency table for one search: fitted to a few timed versions of its own network, in the precision it runs in.

A profile's roofline knows neither the blocks of channels that a runtime computes at once nor what a call costs; in
small networks these are most of the time. Two dozen versions say both of the one network that is searched, within 2 %.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from app.domain.graph import ModelGraph
from app.domain.kernels import kernels
from app.domain.latency import LatencyTable, Work
from app.domain.space import Assignment, SearchSpace
from worker.hardware.fit import Sample, fit

FEWEST, MOST = 12, 20  # with the float file they share one session's rounds
RUN_MS = 250.0  # what one run of every version may take: large networks, for which a roofline does, are not timed so
FOLDS, WORST = 4, 0.15
ATTEMPTS, SPREAD, DRAWN = 20, 0.3, 15
REORDER = "reorder.float"  # within the time of the layer that wants it: allocation asks for whole layers


def affordable(float_ms: float) -> int:
    """Return how many versions are timed of a network whose float file takes `float_ms`; 0 where too few could be."""
    count = min(MOST, int(RUN_MS / float_ms))
    return count if count >= FEWEST else 0


def versions(graph: ModelGraph, space: SearchSpace, count: int) -> tuple[Assignment, ...]:
    """Return up to `count` different random points of a space, from wide to narrow; the same for the same space."""
    rng, found = random.Random(0), dict[str, Assignment]()
    for _ in range(ATTEMPTS * count):
        item = _drawn(graph, space, rng)
        if item is not None and len(found) < count:
            found[item.digest] = item
    return tuple(found.values())


def near(fit_of: tuple[ModelGraph, SearchSpace, LatencyTable], limit_ms: float, count: int) -> tuple[Assignment, ...]:
    """Return the `count` versions, of many more, that a first table (graph, space, table) puts nearest to a limit.

    They differ from those of `versions`.
    """
    graph, space, table = fit_of
    drawn = versions(graph, space, count * (1 + DRAWN))[count:]
    return tuple(
        sorted(drawn, key=lambda item: abs(math.log(table.network_ms(kernels(graph, item)) / limit_ms)))[:count]
    )


def fitted(
    graph: ModelGraph, timed: Sequence[tuple[Assignment, float]], saturating: bool = False
) -> LatencyTable | None:
    """Return the table fitted to timed assignments (milliseconds), with the error on those left out of a fit in turn.

    None where there are fewer than `FEWEST`, or where nine of ten left out are not predicted within `WORST`.
    """
    samples = [Sample(_works(graph, item), ms) for item, ms in timed]
    if len(samples) < FEWEST:
        return None
    errors = [error for fold in range(FOLDS) for error in _left_out(samples, fold, saturating)]
    error = float(np.quantile(errors, 0.9))
    if error > WORST:
        return None
    table = fit(samples, saturating)
    return replace(table, coefficients={**table.coefficients, REORDER: {"calls": 0.0}}, errors={"all": error})


def _works(graph: ModelGraph, assignment: Assignment) -> tuple[Work, ...]:
    return tuple(work for work in kernels(graph, assignment) if f"{work.op}.{work.precision}" != REORDER)


def _left_out(samples: Sequence[Sample], fold: int, saturating: bool) -> list[float]:
    """Return the relative errors on every `FOLDS`-th sample of a table fitted to the others."""
    table = fit([sample for index, sample in enumerate(samples) if index % FOLDS != fold], saturating)
    return [abs(table.network_ms(sample.works) / sample.ms - 1) for sample in samples[fold::FOLDS]]


def _drawn(graph: ModelGraph, space: SearchSpace, rng: random.Random) -> Assignment | None:
    """Return a random point whose groups are all about as narrow; None where its bits fit no layer."""
    level = 1 - rng.random() ** 2  # limits that ask for measuring ask for narrow networks
    keep = {group: _about(choices, level + rng.uniform(-SPREAD, SPREAD)) for group, choices in space.keep.items()}
    activations = {name: rng.choice(choices) for name, choices in space.activation_bits.items()}
    weights = _weights(graph, space, activations, rng)
    return None if weights is None else Assignment(keep, weights, activations)


def _about(choices: Sequence[int], level: float) -> int:
    """Return the choice at a level from 0 (the first) to 1 (the last)."""
    return choices[round(min(max(level, 0.0), 1.0) * (len(choices) - 1))]


def _weights(
    graph: ModelGraph, space: SearchSpace, activations: Mapping[str, int], rng: random.Random
) -> dict[str, int] | None:
    found = {}
    for layer in graph.layers:
        legal = [w for w in space.weight_bits[layer.name] if (w, activations[layer.input]) in space.pairs[layer.name]]
        if not legal:
            return None
        found[layer.name] = rng.choice(legal)
    return found
