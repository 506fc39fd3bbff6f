"""Whole fronts at equal evaluations: accuracy over log2 of the BOPs, from 1/64 to 1/2 of the network with 8 bits."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any

import optuna

from benchmarks.search import ours
from benchmarks.search.arena import Arena, Scored, Spent
from benchmarks.search.rivals import (
    ASKS,
    WORST,
    assignment_of,
    distributions,
    greedy_path,
    sampler,
    uniform,
)
from benchmarks.search.store import code_version

LOW, HIGH = 1 / 64, 1 / 2
POINTS = 16


def tightfit(arena: Arena, seed: int) -> None:
    """Search with the front as the goal."""
    ours.search(arena, seed, ("kl", arena.metric))


def sampled(arena: Arena, name: str, seed: int) -> None:
    """Plain multi-objective sampling: loss and BOPs, both minimised, with the front's range as constraints."""
    space = arena.goal.space
    choices = distributions(space)
    study = optuna.create_study(sampler=sampler(name, seed), directions=["minimize", "minimize"])
    for _ in range(ASKS[name]):
        trial = study.ask(choices)
        assignment = assignment_of(space, trial.params)
        place = math.log2(arena.share(assignment) * HIGH)
        excess = max(place - math.log2(HIGH), math.log2(LOW) - place)
        trial.set_constraint("range", excess)
        study.tell(trial, [WORST if excess > 0 else arena.evaluate(assignment).metrics["kl"], place])


def grid(arena: Arena, seed: int) -> None:
    """Uniform bits and keep ratios inside the range, spread evenly over it where they are too many."""
    found = {item.digest: item for item in uniform(arena.goal.graph, arena.goal.space)}
    inside = sorted((arena.share(item), key, item) for key, item in found.items() if _is_inside(arena.share(item)))
    step = max(1.0, len(inside) / arena.purse)
    for index in range(min(len(inside), arena.purse)):
        arena.evaluate(inside[int(index * step)][2])


def greedy(arena: Arena, seed: int) -> None:
    """Measure every step of the greedy walk to the front's narrow end."""
    for item in greedy_path(arena, LOW / HIGH):
        if _is_inside(arena.share(item)):
            arena.evaluate(item)


def run(arena: Arena, strategy: str, seed: int) -> dict[str, Any]:
    """Run one strategy; return its front's points with hold-out accuracies, and the hypervolumes."""
    start = time.perf_counter()
    with contextlib.suppress(Spent):
        if strategy in ("tpe", "nsga2"):
            sampled(arena, strategy, seed)
        else:
            {"tightfit": tightfit, "grid": grid, "greedy-joint": greedy}[strategy](arena, seed)
    points = [
        {
            "share": arena.share(item.assignment) * HIGH,
            "kl": item.kl,
            "search": item.accuracy,
            "holdout": arena.scorer.score(item.assignment, "holdout", item.repair).metrics["accuracy"],
        }
        for item in spread(arena, arena.scored)
    ]
    return {
        "network": arena.name,
        "budget": "front",
        "strategy": strategy,
        "seed": seed,
        "evaluations": arena.spent,
        "points": points,
        "hypervolume": hypervolume([(p["share"], p["holdout"]) for p in points]),
        "hypervolume_search": hypervolume([(p["share"], p["search"]) for p in points]),
        "evaluation_s": arena.seconds,
        "wall_s": time.perf_counter() - start,
        "code": code_version(),
    }


def spread(arena: Arena, scored: Sequence[Scored]) -> list[Scored]:
    """Return the best by loss under each of `POINTS` evenly spaced limits: equally many looks at the hold-out."""
    found: dict[str, Scored] = {}
    octaves = math.log2(HIGH / LOW)
    for index in range(POINTS + 1):
        limit = LOW * 2 ** (octaves * index / POINTS) / HIGH
        inside = [item for item in scored if arena.share(item.assignment) <= limit * (1 + 1e-9)]
        if inside:
            best = min(inside, key=lambda item: item.kl)
            found[best.assignment.digest] = best
    return list(found.values())


def hypervolume(points: Sequence[tuple[float, float]]) -> float:
    """Return the area under the best accuracy within each share of the BOPs, over log2 shares from `LOW` to `HIGH`
    scaled to 0..1: 1 is a perfect network at 1/64."""
    area, best, place = 0.0, 0.0, 0.0
    octaves = math.log2(HIGH / LOW)
    for share, accuracy in sorted(points):
        position = min(1.0, max(0.0, math.log2(share / LOW) / octaves))
        area += best * (position - place)
        best, place = max(best, accuracy), position
    return area + best * (1.0 - place)


def _is_inside(share: float) -> bool:
    return LOW / HIGH <= share <= 1
