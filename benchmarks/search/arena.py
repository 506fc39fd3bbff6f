"""The arena every strategy runs in: one network, one budget, one purse of evaluations, the same pictures and repair."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, cast

from app.domain.budget import resolve
from app.domain.candidate import Fidelity, Measurement
from app.domain.cost import Costs, count
from app.domain.device import DeviceProfile
from app.domain.space import Assignment, SpaceSpec, build_space
from benchmarks.networks import network, pictures
from benchmarks.search.plan import EVALUATIONS, Target
from benchmarks.search.store import Evaluations, code_version
from worker.data import Role, RoleData
from worker.quant.compressor import Repair
from worker.search.evaluate import Evaluator, EvaluatorOptions, open_evaluator
from worker.search.rows import Goal

REPAIR = "sequential"
OPTIONS = EvaluatorOptions(calibration=256, full=512)
FINAL = EvaluatorOptions(calibration=512, full=2048)
"""Finalists are repaired again with twice the pictures before they are looked at on others than the search's."""
JUDGED: Mapping[str, Fidelity] = {"rescore": "full", "holdout": "holdout"}
"""Stages behind the search, by the fidelity of the judge that measures them."""
RESCORED = 8
NOT_FINITE = 1e6


class Spent(Exception):
    """The purse is empty."""


@dataclass(frozen=True)
class Scored:
    """One evaluated assignment: its measurement on the search pictures and whether it keeps the budget."""

    assignment: Assignment
    kl: float
    accuracy: float
    feasible: bool
    repair: str = REPAIR


class Scorer:
    """Evaluations of one network on one device, stored; "rescore" looks at evaluation pictures no search has seen."""

    def __init__(self, name: str, device: DeviceProfile) -> None:
        self.name, self.device = name, device
        self._stored = Evaluations()

    @cached_property
    def search(self) -> Evaluator:
        """The evaluator of the search pictures."""
        return open_evaluator(network(self.name), pictures(self.name), self.device, OPTIONS)

    @cached_property
    def judge(self) -> Evaluator:
        """The evaluator of the evaluation pictures behind those, and of the hold-out."""
        seen, data = max(OPTIONS.full, OPTIONS.screen), pictures(self.name)
        item = data["evaluation"]
        labels = None if item.labels is None else item.labels[seen:]
        rest: dict[Role, RoleData] = {
            **data,
            "evaluation": RoleData(tuple(part[seen:] for part in item.inputs), labels),
        }
        return open_evaluator(network(self.name), rest, self.device, FINAL)

    def score(
        self, assignment: Assignment, stage: str, repair: str = REPAIR, base: Assignment | None = None
    ) -> Measurement:
        """Return the measurement of an assignment: `stage` is a fidelity of the search, or "rescore"."""
        options = FINAL if stage in JUDGED else OPTIONS
        looked = f"{options.calibration}+{options.full}"
        key = ":".join((code_version(), self.name, self.device.name, stage, looked, repair, assignment.digest))
        found = self._stored.get(key)
        if found is None:
            try:
                found = self._measured(assignment, stage, repair, base)
            except ArithmeticError:  # outputs that are no numbers: as bad as can be
                found = Measurement({"kl": NOT_FINITE, "accuracy": 0.0}, "full", 0, 0.0)
            self._stored.put(key, found)
        return found

    def _measured(self, assignment: Assignment, stage: str, repair: str, base: Assignment | None) -> Measurement:
        way = cast(Repair, repair)
        if stage in JUDGED:
            return self.judge.evaluate(assignment, JUDGED[stage], way)
        return self.search.evaluate(assignment, cast(Fidelity, stage), way, base)


@cache
def scorer(name: str, device: str) -> Scorer:
    """Return the process's scorer of a network on one of the benchmark's devices."""
    from benchmarks.search.plan import BUDGETS

    return Scorer(name, next(item.device for item in BUDGETS if item.device.name == device))


@dataclass
class Arena:
    """What a strategy may use. Assignments asked for twice cost one evaluation; counting a cost is free."""

    name: str
    target: Target
    spec: SpaceSpec = field(default_factory=SpaceSpec)
    purse: int = EVALUATIONS
    scored: list[Scored] = field(default_factory=list)
    seconds: float = 0.0
    smallest: float = math.inf
    _asked: dict[str, Measurement] = field(default_factory=dict)

    @cached_property
    def goal(self) -> Goal:
        """The network's picture, the space, the device and the absolute budget."""
        graph, device = network(self.name).graph, self.target.device
        return Goal(graph, build_space(graph, device, self.spec), device, resolve((self.target.limit,), graph, device))

    @cached_property
    def scorer(self) -> Scorer:
        """The stored evaluations."""
        return scorer(self.name, self.target.device.name)

    @property
    def spent(self) -> int:
        """Return how many evaluations were used."""
        return len(self._asked)

    @property
    def metric(self) -> str:
        """Return the limited metric."""
        return self.target.limit.metric

    def costs(self, assignment: Assignment) -> Costs:
        """Return what an assignment costs (free)."""
        return count(self.goal.graph, assignment, self.goal.device)

    def share(self, assignment: Assignment) -> float:
        """Return the limited metric as a share of the limit (free), and note the smallest one."""
        share = self.costs(assignment).value(self.metric) / self.goal.budget.limits[self.metric]
        self.smallest = min(self.smallest, share)
        return share

    def evaluate(
        self, assignment: Assignment, stage: str = "full", repair: str = REPAIR, base: Assignment | None = None
    ) -> Measurement:
        """Measure an assignment for one evaluation. Raises Spent where none is left."""
        key = f"{stage}:{repair}:{assignment.digest}"
        if key in self._asked:
            return self._asked[key]
        if self.spent >= self.purse:
            raise Spent
        found = self.scorer.score(assignment, stage, repair, base)
        self._asked[key] = found
        self.seconds += found.seconds
        if stage == "full":
            feasible = self.share(assignment) <= 1
            self.scored.append(
                Scored(assignment, found.metrics["kl"], found.metrics.get("accuracy", 0.0), feasible, repair)
            )
        return found

    def finalists(self) -> list[Scored]:
        """Return the best feasible assignments by the search pictures."""
        feasible = sorted((item for item in self.scored if item.feasible), key=lambda item: item.kl)
        return feasible[:RESCORED]


Strategy = Callable[[Arena, int], None]


def selected(arena: Arena, finalists: Sequence[Scored]) -> dict[str, Any]:
    """Re-score the finalists on pictures no search has seen, choose one, and only then look at the hold-out."""
    rescored = [(item, arena.scorer.score(item.assignment, "rescore", item.repair)) for item in finalists]
    chosen, rescore = min(rescored, key=lambda pair: (-pair[1].metrics["accuracy"], pair[1].metrics["kl"]))
    holdout = arena.scorer.score(chosen.assignment, "holdout", chosen.repair)
    return {
        "search": {"kl": chosen.kl, "accuracy": chosen.accuracy},
        "rescore": dict(rescore.metrics),
        "holdout": dict(holdout.metrics),
        "share": arena.share(chosen.assignment),
        "assignment": chosen.assignment.to_json(),
        "repair": chosen.repair,
    }


def judged(arena: Arena, strategy: Strategy, seed: int) -> dict[str, Any]:
    """Run a strategy until its purse is empty or it ends; return the cell's figures."""
    start = time.perf_counter()
    with contextlib.suppress(Spent):
        strategy(arena, seed)
    found: dict[str, Any] = {
        "network": arena.name,
        "budget": arena.target.name,
        "seed": seed,
        "evaluations": arena.spent,
        "feasible": sum(item.feasible for item in arena.scored),
        "evaluation_s": arena.seconds,
        "code": code_version(),
    }
    finalists = arena.finalists()
    if finalists:
        found |= {"outcome": "found", **selected(arena, finalists)}
    else:
        found |= {"outcome": "impossible", "smallest": arena.smallest * arena.target.relative}
    return {**found, "wall_s": time.perf_counter() - start}


def polished(arena: Arena, found: Mapping[str, Any]) -> dict[str, Any]:
    """Polish the chosen assignment as the service does; return its repair, hold-out metrics and seconds."""
    start, judge = time.perf_counter(), arena.scorer.judge
    assignment = Assignment.from_json(found["assignment"])
    repair = judge.polish(assignment, found["repair"]).repair
    holdout = judge.evaluate(assignment, "holdout", repair).metrics
    return {"repair": repair, "holdout": dict(holdout), "seconds": time.perf_counter() - start}
