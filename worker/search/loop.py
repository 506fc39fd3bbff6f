"""The search as a state machine fed from rows: baseline, probes, allocated seeds, then sampled and fed-back trials.

Nothing is kept that rows do not hold: `SearchLoop.from_rows` continues where a killed process stopped, with the same
trials. A trial's plan depends only on the probes and on the trials of earlier batches. What other searches measured of
the same network enters as rows of kind "known", numbered from 1 on, before anything is planned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from app.domain import pareto
from app.domain.budget import Budget, capacities
from app.domain.candidate import Measurement
from app.domain.cost import METRICS, Costs, count
from app.domain.metrics import HIGHER_IS_BETTER
from app.domain.space import Assignment, widest
from worker.search.frontier import Frontier, Tried, span_of, spread
from worker.search.moves import Moves
from worker.search.probing import Probing
from worker.search.refit import Observation, Posterior
from worker.search.rows import Goal, Round, RowState, Settings, Stop, TrialKind, TrialPlan, TrialRow
from worker.search.sampling import SLACK, SPAN, Asker, Past, Projection, Suggestion, project, stable_seed
from worker.search.sensitivity import SensitivityTable
from worker.search.solver import Solver

OBJECTIVE = "kl"
TARGET = "target"
_ATTEMPTS = 4
_OFFSETS: tuple[Mapping[str, float], ...] = ({}, {"keep": SPAN}, {"weight": SPAN, "activation": SPAN})


Seed = tuple[TrialKind, dict[str, Any], Assignment]


class SearchLoop(Probing):
    """Plans trials and takes their results. Not thread-safe; one per search."""

    def __init__(self, goal: Goal, settings: Settings) -> None:
        super().__init__(goal, settings)
        self._solver = Solver(goal.graph, goal.space, goal.device)
        self._rows: dict[int, TrialRow] = {}
        self._lost: set[int] = set()
        self._costs: dict[str, Costs] = {}
        self._rounds: list[Round] = []
        self._passed = 0
        self._taught: tuple[int, dict[int | None, Posterior | None]] = (0, {})
        self._batch: tuple[int, tuple[int, ...]] = (0, ())

    @classmethod
    def from_rows(
        cls, goal: Goal, settings: Settings, rows: Iterable[TrialRow], probe_results: Mapping[str, float | None]
    ) -> SearchLoop:
        """Rebuild a loop: rows still "running" were lost to a kill and are handed out again, unchanged."""
        loop = cls(goal, settings)
        loop._measured = dict(probe_results)
        loop._rows = {row.idx: row for row in sorted(rows, key=lambda row: row.idx)}
        loop._lost = {row.idx for row in loop._rows.values() if row.state == "running"}
        return loop

    @property
    def rows(self) -> tuple[TrialRow, ...]:
        """Return every trial planned so far, by index."""
        return tuple(self._rows[idx] for idx in sorted(self._rows))

    @property
    def open_from(self) -> int:
        """Return the smallest number of a trial that is not finished or not yet planned."""
        idx = 0
        while idx in self._rows and self._rows[idx].state != "running":
            idx += 1
        return idx

    def row(self, idx: int) -> TrialRow:
        """Return one trial. Raises KeyError where it was never planned."""
        return self._rows[idx]

    def sync(self, rows: Iterable[TrialRow], lost: Iterable[int]) -> None:
        """Take in trials as other runners left them; those in `lost` are running, but nobody's: handed out again."""
        self._rows.update({row.idx: row for row in rows})
        self._lost = set(lost)

    @cached_property
    def projection(self) -> Projection:
        """The sampler's parameters, drawn up from the table."""
        return project(self.goal.space, self.table, self.settings.repairs, self.settings.max_dimensions)

    @cached_property
    def _asker(self) -> Asker:
        return Asker(self.projection, self.settings.sampler)

    # planning

    def next_trials(self, n: int = 1) -> list[TrialPlan]:
        """Return up to `n` trials to run now: lost ones first, then new ones of the batch that is open.

        An empty list means: finish what is in flight (or the probes) first, or `is_done`.
        """
        plans: list[TrialPlan] = [self._rows[idx].plan for idx in sorted(self._lost)[:n]]
        self._lost -= {plan.idx for plan in plans}
        while len(plans) < n and (idx := self._next_index()) is not None:
            plan = self._plan(idx)
            self._rows[idx] = TrialRow.of(plan)
            plans.append(plan)
        return plans

    def tell(self, idx: int, result: Measurement | None) -> TrialRow:
        """Take a trial's measurement (None, or a loss that is not a number: failed). Returns the row to store.

        Raises KeyError for a trial that was never planned and ValueError for one that is finished.
        """
        row = self._rows[idx]
        if row.state != "running":
            raise ValueError(f"trial {idx} is already {row.state}")
        valid = result is not None and math.isfinite(result.metrics.get(OBJECTIVE, math.nan))
        state: RowState = "done" if valid else "failed"
        self._lost.discard(idx)
        self._rows[idx] = replace(row, state=state, metrics=dict(result.metrics) if valid and result else {})
        return self._rows[idx]

    def extend(self, budget: Budget, trials: int, start: int | None = None) -> None:
        """Open a further round of trials, allocated for another budget (what measuring asks for)."""
        self._rounds.append(Round(self.total if start is None else start, trials, budget))

    @property
    def total(self) -> int:
        """Return how many trials there will be, the baseline included."""
        if self._rounds:
            return self._rounds[-1].end
        if not self.pending_probes() and self._seeds[0][0] == "fallback":
            return self._start + 1
        return self._stopped_at(self._start + self.settings.trials)

    def _stopped_at(self, whole: int) -> int:
        """Return the number behind the last trial by the rules to stop: the first batch's end at which one holds."""
        if self.settings.stop == Stop() or self.pending_probes():
            return whole
        while True:
            end = self._start + len(self._fresh_seeds) + self._passed * max(1, self.settings.batch)
            if end >= whole or end > self.open_from:
                return whole
            if self._is_enough(end):
                return end
            self._passed += 1  # what held no rule once never will: its trials are finished

    def _is_enough(self, end: int) -> bool:
        inside = [row for row in self._candidates() if row.idx < end and self.is_feasible(row)]
        stop, best = self.settings.stop, min(inside, key=_merit, default=None)
        if best is None:
            return False
        if stop.patience is not None and self._has_settled(end, best.idx, stop.patience):
            return True
        if stop.target is None:
            return False
        metric, value = stop.target
        sign = 1.0 if metric in HIGHER_IS_BETTER else -1.0
        return any(sign * row.metrics[metric] >= sign * value for row in inside if metric in row.metrics)

    def _has_settled(self, end: int, best: int, patience: int) -> bool:
        """Tell whether the `patience` trials before `end` gained nothing: on the best one, or on the whole front."""
        if self._frontier is None:
            return end - max(best + 1, self._start) >= patience
        volume = self._frontier.volume(self._tried(end))
        return end - patience >= self._start + len(self._fresh_seeds) and volume <= (
            1 + self.settings.stop.growth
        ) * self._frontier.volume(self._tried(end - patience))

    @property
    def _start(self) -> int:
        """Return the number of the first trial that is planned here: behind the baseline and what was known."""
        return 1 + sum(row.kind == "known" for row in self._rows.values())

    @property
    def is_done(self) -> bool:
        """Tell whether every trial is finished."""
        finished = sum(row.state != "running" for row in self._rows.values())
        return not self.pending_probes() and finished >= self.total

    @property
    def progress(self) -> tuple[int, int]:
        """Return (done, total) counting probes and trials."""
        finished = sum(row.state != "running" for row in self._rows.values())
        return len(self._probes) - len(self.pending_probes()) + finished, len(self._probes) + self.total

    def _next_index(self) -> int | None:
        """Return the next trial's index, or None while the batches before its own are unfinished."""
        idx = next(index for index in range(len(self._rows) + 1) if index not in self._rows)
        if idx == 0:
            return 0
        if self.pending_probes() or idx >= self.total:
            return None
        told = all(k in self._rows and self._rows[k].state != "running" for k in range(1, self._batch_start(idx)))
        return idx if told else None

    def _round(self, idx: int) -> Round | None:
        return next((item for item in self._rounds if item.start <= idx < item.end), None)

    def _budget(self, idx: int) -> Budget:
        """Return the budget that a trial is allocated for."""
        found, aim = self._round(idx), self._aim(idx)
        if found is not None:
            return found.budget
        return self.goal.budget if self._frontier is None or aim is None else self._frontier.targets[aim]

    # a front as the goal

    @cached_property
    def _frontier(self) -> Frontier | None:
        """The targets between the floor and the budget, where a front is wanted. Needs the table."""
        costs = [axis for axis in self.settings.axes if axis in METRICS]
        spans = [span_of(metric, self.goal, self._solver, self.table) for metric in costs]
        return Frontier(self.goal.budget, spans) if spans else None

    @cached_property
    def _swept(self) -> list[Seed]:
        """The allocations for the targets that have one, from the whole budget on."""
        found: list[Seed] = []
        for number, target in enumerate(self._frontier.targets if self._frontier else ()):
            found += self._seed("sweep" if number else "seed", {TARGET: number}, target, {})
        return found

    def _aim(self, idx: int) -> int | None:
        """Return the target of a trial behind the seeds (all those of a batch are chosen at once), or None."""
        if self._frontier is None or idx < self._start + len(self._fresh_seeds):
            return None
        start = self._batch_start(idx)
        if self._batch[0] != start:
            among = [params[TARGET] for _, params, _ in self._swept]
            self._batch = start, self._frontier.aims(self._tried(start), max(1, self.settings.batch), among)
        return self._batch[1][idx - start]

    def _tried(self, end: int) -> list[Tried]:
        """Return the finished trials before `end`."""
        rows = [row for row in self.rows if row.idx < end and row.state != "running" and row.kind != "baseline"]
        return [Tried(_study_loss(row), self.costs(row.assignment), row.params.get(TARGET)) for row in rows]

    @cached_property
    def _yardsticks(self) -> list[float]:
        """The least loss inside each target once the seeds are measured: what its trials' losses are divided by."""
        found = self._frontier.least(self._tried(self._start + len(self._fresh_seeds))) if self._frontier else []
        return [loss or 1.0 for loss in found]

    def spread(self, k: int) -> list[TrialRow]:
        """Return up to `k` trials of the wanted front, the one with the least loss first, then far from each other."""
        rows = [row for row in self.front(self.settings.axes) if self.is_feasible(row)]
        if self._frontier is None:
            return []
        points = [self._frontier.point(Tried(_study_loss(row), self.costs(row.assignment))) for row in rows]
        return [rows[index] for index in spread(points, k)]

    def _batch_start(self, idx: int) -> int:
        found = self._round(idx)
        first = self._start + len(self._fresh_seeds) if found is None else found.start
        return self._start if idx < first else idx - (idx - first) % max(1, self.settings.batch)

    def _plan(self, idx: int) -> TrialPlan:
        if idx == 0:
            return TrialPlan(0, "baseline", {}, widest(self.goal.graph, 32), self.settings.fidelity)
        place = idx - self._start
        if place < len(self._fresh_seeds):
            kind, params, assignment = self._fresh_seeds[place]
            return TrialPlan(idx, kind, params, assignment, self.settings.fidelity)
        found = self._round(idx)
        if found is not None and idx == found.start:
            return self._first_of(found) or self._sampled(idx)
        plan, aim = self._refined(idx, place - len(self._fresh_seeds)) or self._sampled(idx), self._aim(idx)
        return plan if aim is None else replace(plan, params={**plan.params, TARGET: aim})

    @cached_property
    def _seeds(self) -> list[Seed]:
        """The allocations that need no trial: at the budget, with leanings, and at scaled budgets for the front.

        They are allocated by the table as known observations correct it.
        """
        target = self._solver.solve(self.goal.budget, self._first_table)
        if target is None:
            return [("fallback", {}, self._solver.least_violating(self.goal.budget, self.table))]
        found = self._swept or self._around(target)
        distinct = {seed[2].digest: seed for seed in reversed(found)}
        kept = [seed for seed in found if distinct[seed[2].digest] is seed]
        return kept[: max(1, self.settings.trials // 2)]

    def _around(self, target: Assignment) -> list[Seed]:
        """Return the allocations for the budget, plain and with leanings, and for the budget scaled."""
        found: list[Seed] = []
        for offset in _OFFSETS:
            params = self.projection.params(offset)
            found += self._seed("seed", params, self.goal.budget, self.projection.multipliers(params))
        for scale in self.settings.sweep:
            found += self._seed("sweep", {"budget_scale": scale}, self._scaled(scale, target), {})
        return found

    @cached_property
    def _first_table(self) -> SensitivityTable:
        """The table as it is before the first trial."""
        known = [row for row in self.rows if row.kind == "known"]
        observed = [Observation(row.assignment, row.metrics[OBJECTIVE]) for row in known]
        return Posterior(self.goal.space, self.table, observed).mean() if observed else self.table

    @cached_property
    def _fresh_seeds(self) -> list[Seed]:
        """The seeds that are not among the known observations."""
        known = {row.assignment.digest for row in self.rows if row.kind == "known" and row.repair is None}
        return [seed for seed in self._seeds if seed[2].digest not in known]

    def _seed(
        self, kind: TrialKind, params: dict[str, Any], budget: Budget, multipliers: Mapping[str, float]
    ) -> list[Seed]:
        assignment = self._solver.solve(budget, self._first_table, multipliers)
        return [] if assignment is None else [(kind, params, assignment)]

    def _scaled(self, scale: float, target: Assignment) -> Budget:
        """Return the budget with its binding limit tightened, or every limit loosened (never the device's room)."""
        limits, costs = self.goal.budget.limits, self.costs(target)
        if scale >= 1 or not limits:
            room = capacities(self.goal.device)
            return Budget({metric: min(limit * scale, room.get(metric, math.inf)) for metric, limit in limits.items()})
        binding = max(limits, key=lambda metric: costs.value(metric) / max(limits[metric], 1e-12))
        return Budget({**limits, binding: limits[binding] * scale})

    def _first_of(self, found: Round) -> TrialPlan | None:
        """Return the allocation for a round's budget, where that is new."""
        assignment = self._solver.solve(found.budget, self.table)
        if assignment is None or (assignment.digest, None) in self._known(found.start):
            return None
        return TrialPlan(found.start, "seed", {"round": found.start}, assignment, self.settings.fidelity)

    def _refined(self, idx: int, place: int) -> TrialPlan | None:
        """Return what the trials so far teach, where it is the turn of that: an allocation or a move."""
        every, moves = self.settings.feedback_every, self.settings.move_every
        if not every or place % every:
            return None
        if moves and place // every % moves == moves - 1:
            return self._moved(idx) or self._fed_back(idx)
        return self._fed_back(idx)

    def _fed_back(self, idx: int) -> TrialPlan | None:
        """Solve the refitted table; where that is known already, tables drawn from its posterior."""
        posterior, known = self._posterior(idx), self._known(idx)
        if posterior is None:
            return None
        for attempt in range(_ATTEMPTS):
            seed = stable_seed(self.settings.seed, idx, "draw", attempt)
            table = posterior.draw(seed) if attempt else posterior.mean()
            assignment = self._solver.solve(self._budget(idx), table)
            if assignment is not None and (assignment.digest, None) not in known:
                return TrialPlan(idx, "feedback", {"draw": attempt}, assignment, self.settings.fidelity)
        return None

    def _moved(self, idx: int) -> TrialPlan | None:
        """Change one of the best assignments of earlier batches in a few places."""
        start, budget = self._batch_start(idx), self._budget(idx)
        done = [row for row in self._candidates() if row.idx < start and budget.is_met(self.costs(row.assignment))]
        parents = _distinct(sorted(done, key=_merit), self.settings.parents)
        posterior = self._posterior(idx)
        if not parents or posterior is None:
            return None
        known = {digest for digest, _ in self._known(idx)}
        moves = Moves(self._solver.costs, budget, posterior.mean(), [_observed(row) for row in parents])
        assignment = moves.best(known, stable_seed(self.settings.seed, idx, "move"))
        if assignment is None:
            return None
        return TrialPlan(idx, "move", {}, assignment, self.settings.fidelity)

    def _posterior(self, idx: int) -> Posterior | None:
        """Return what the trials of earlier batches say of the table near a trial's budget, or None.

        It is kept for the rest of the batch, one for each target.
        """
        start, aim = self._batch_start(idx), self._aim(idx)
        if self._taught[0] != start:
            self._taught = start, {}
        if aim not in self._taught[1]:
            seen = [_observed(row) for row in self._candidates() if 0 < row.idx < start]
            near = None if aim is None or self._frontier is None else self._frontier.least(self._tried(start))[aim]
            self._taught[1][aim] = Posterior(self.goal.space, self.table, seen, near) if seen else None
        return self._taught[1][aim]

    def _sampled(self, idx: int) -> TrialPlan:
        """Allocate the sampler's suggestion; where that is known already, ask again with another seed, then move."""
        past, known = self._past(idx), self._known(idx)
        for attempt in range(_ATTEMPTS):
            seed = stable_seed(self.settings.seed, idx, "ask", attempt)
            suggestion = self._asker.suggest(past, seed)
            assignment = self._allocated(suggestion, self._budget(idx))
            plan = TrialPlan(idx, "sampled", suggestion.params, assignment, self.settings.fidelity, suggestion.sampler)
            if (assignment.digest, plan.repair) not in known:
                return plan
        return (self._moved(idx) if self.settings.move_every else None) or plan

    def _allocated(self, suggestion: Suggestion, budget: Budget) -> Assignment:
        multipliers = self.projection.multipliers(suggestion.params)
        slack = suggestion.params[SLACK]
        tightened = Budget({metric: limit * slack for metric, limit in budget.limits.items()})
        for limits in (tightened, budget):
            found = self._solver.solve(limits, self.table, multipliers)
            if found is not None:
                return found
        return self._seeds[0][2]

    def _known(self, idx: int) -> set[tuple[str, str | None]]:
        """Return what was planned before: assignments with their repair variants."""
        return {(row.assignment.digest, row.repair) for row in self.rows if row.idx < idx}

    def _past(self, idx: int) -> list[Past]:
        """Return the study's trials before `idx`: those of its own batch count as in flight, finished or not.

        After a further round was opened, those of earlier ones may break its limits: constraints say so.
        """
        start, budget = self._batch_start(idx), self._budget(idx)
        rows = [row for row in self.rows if row.idx < idx and SLACK in row.params]
        excess = [budget.violations(self.costs(row.assignment)) if self._rounds else {} for row in rows]
        told = excess if any(max(item.values(), default=0.0) > 0 for item in excess) else [{}] * len(rows)
        losses = [self._relative_loss(row) if row.idx < start else None for row in rows]
        params = [{key: value for key, value in row.params.items() if key != TARGET} for row in rows]
        return [Past(p, loss, r.sampler, e) for p, loss, r, e in zip(params, losses, rows, told, strict=True)]

    def _relative_loss(self, row: TrialRow) -> float:
        """Return a trial's loss for the study: where each has its own target, as a share of what that had before."""
        return _study_loss(row) / (self._yardsticks[row.params[TARGET]] if TARGET in row.params else 1.0)

    # results

    def learned(self) -> SensitivityTable:
        """Return the table as every finished trial corrects it."""
        observed = [Observation(row.assignment, row.metrics[OBJECTIVE]) for row in self._candidates()]
        return Posterior(self.goal.space, self.table, observed).mean() if observed else self.table

    def allocated(self, budget: Budget, table: SensitivityTable) -> Assignment | None:
        """Return the best assignment that a table knows for a budget, or None where none was found."""
        return self._solver.solve(budget, table)

    def measurable(self) -> list[TrialRow]:
        """Return the trials worth timing: done, with distinct assignments, lowest loss first."""
        return _distinct(sorted(self._candidates(), key=_merit), len(self._rows))

    def costs(self, assignment: Assignment) -> Costs:
        """Return what an assignment costs on the goal's device (counted once)."""
        digest = assignment.digest
        if digest not in self._costs:
            self._costs[digest] = count(self.goal.graph, assignment, self.goal.device)
        return self._costs[digest]

    def is_feasible(self, row: TrialRow) -> bool:
        """Tell whether a row keeps every limit."""
        return self.goal.budget.is_met(self.costs(row.assignment))

    def finalists(self, k: int) -> list[TrialRow]:
        """Return the best `k` feasible trials with distinct assignments: lowest loss, then highest accuracy."""
        feasible = [row for row in self._candidates() if self.is_feasible(row)]
        return _distinct(sorted(feasible, key=_merit), k)

    def best_effort(self, k: int = 1) -> list[TrialRow]:
        """Return the `k` trials that break the limits least, for a search without finalists."""
        violation = {row.idx: self.goal.budget.violation(self.costs(row.assignment)) for row in self._candidates()}
        ordered = sorted(self._candidates(), key=lambda row: (violation[row.idx], *_merit(row)))
        return _distinct(ordered, k)

    def front(self, axes: Sequence[str] = (OBJECTIVE, "bops")) -> list[TrialRow]:
        """Return the trials no other beats on every axis (metrics or costs); the baseline is not one of them."""
        rows = [row for row in self._candidates() if all(axis in METRICS or axis in row.metrics for axis in axes)]
        points = [[self._coordinate(row, axis) for axis in axes] for row in rows]
        return [rows[index] for index in pareto.front(points)]

    def _coordinate(self, row: TrialRow, axis: str) -> float:
        if axis in METRICS:
            return self.costs(row.assignment).value(axis)
        return -row.metrics[axis] if axis in HIGHER_IS_BETTER else row.metrics[axis]

    def _candidates(self) -> list[TrialRow]:
        return [row for row in self.rows if row.state == "done" and row.kind != "baseline"]


def _observed(row: TrialRow) -> Observation:
    return Observation(row.assignment, row.metrics[OBJECTIVE])


def _study_loss(row: TrialRow) -> float:
    return row.metrics[OBJECTIVE] if row.state == "done" else math.inf


def _merit(row: TrialRow) -> tuple[float, float, int]:
    return row.metrics[OBJECTIVE], -row.metrics.get("accuracy", 0.0), row.idx


def _distinct(rows: Iterable[TrialRow], k: int) -> list[TrialRow]:
    found: dict[str, TrialRow] = {}
    for row in rows:
        found.setdefault(row.assignment.digest, row)
    return list(found.values())[:k]
