"""A synthetic evaluator: losses that add up, plus interactions a table of single changes cannot see."""

from __future__ import annotations

import math

import numpy as np

from app.domain.candidate import Measurement
from app.domain.graph import ModelGraph
from app.domain.space import Assignment, SearchSpace
from tests.worker.search.pictures import random_table
from worker.search.loop import SearchLoop


class World:
    """Loss of an assignment: single harms, pairwise interactions, saturation, and noise that depends on it alone."""

    def __init__(self, graph: ModelGraph, space: SearchSpace, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.harm = random_table(space, seed)
        self.names = [(kind, name) for kind, curves in self.harm.curves.items() for name in curves]
        size = len(self.names)
        self.coupling = np.triu(rng.normal(0, 1, (size, size)) * (rng.random((size, size)) < 0.25), 1)
        self.calls = 0

    def loss(self, assignment: Assignment) -> float:
        self.calls += 1
        parts = {"keep": assignment.keep, "weight": assignment.weight_bits, "activation": assignment.activation_bits}
        harms = np.array([self.harm.increment(kind, name, parts[kind][name]) for kind, name in self.names])
        roots = np.sqrt(harms)
        total = max(harms.sum() + 1.2 * roots @ self.coupling @ roots, 0.2 * harms.sum())
        noise = 1 + 0.03 * np.random.default_rng(int(assignment.digest[:8], 16)).normal()
        return float((0.01 + total / (1 + total / 6)) * noise)

    def measure(self, assignment: Assignment) -> Measurement:
        loss = self.loss(assignment)
        return Measurement({"kl": loss, "accuracy": 0.7 * math.exp(-loss)}, "full", 512, 0.03)


def probe(loop: SearchLoop, world: World) -> None:
    for item in loop.pending_probes():
        loop.tell_probe(item.key, world.loss(item.assignment))


def run(loop: SearchLoop, world: World, at_once: int = 4) -> SearchLoop:
    probe(loop, world)
    while not loop.is_done:
        for plan in loop.next_trials(at_once):
            loop.tell(plan.idx, world.measure(plan.assignment))
    return loop
