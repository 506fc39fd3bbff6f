"""Allocations for many budgets at once: what a search would answer to limits it was not asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from app.domain.budget import Budget, capacities
from app.domain.cost import Costs
from app.domain.metrics import HIGHER_IS_BETTER
from app.domain.space import Assignment
from worker.search.loop import OBJECTIVE, SearchLoop
from worker.search.rows import TrialRow

STEPS = 10
SCALES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0)
AXES = ("bops", "weight_bytes", "latency_ms")
MOST_S = 10.0


@dataclass(frozen=True)
class Predicted:
    """An allocation, what it costs, and the loss (KL in nats), accuracy and value of the search's metric to expect."""

    assignment: Assignment
    costs: Costs
    loss: float
    accuracy: float | None
    quality: float | None = None


def sweep(
    loop: SearchLoop, least: Costs, most: Costs, metric: str = "accuracy", within_s: float = MOST_S
) -> list[Predicted]:
    """Allocate by all that the trials taught: for the search's own limits scaled, and for each common cost alone.

    Costs run geometrically from `least` to `most`. Ends early once `within_s` seconds are over: it is for answers to
    questions nobody may ask.
    """
    end = time.monotonic() + within_s
    table = loop.learned()
    known = [row for row in loop.rows if row.state == "done" and row.kind != "baseline"]
    found: dict[str, Predicted] = {}
    for budget in budgets(loop, least, most):
        if time.monotonic() > end:
            break
        assignment = loop.allocated(budget, table)
        if assignment is not None and assignment.digest not in found:
            loss = table.loss(assignment)
            figures = expected(known, loss), expected(known, loss, metric)
            found[assignment.digest] = Predicted(assignment, loop.costs(assignment), loss, *figures)
    return list(found.values())


def budgets(loop: SearchLoop, least: Costs, most: Costs) -> Iterator[Budget]:
    """Yield the budgets to allocate for; the device's room is a limit in all of them."""
    room = capacities(loop.goal.device)
    for scale in SCALES:
        yield Budget({**{metric: limit * scale for metric, limit in loop.goal.budget.limits.items()}, **room})
    for metric in dict.fromkeys((*loop.goal.budget.limits, *AXES)):
        low, high = least.value(metric), most.value(metric)
        for limit in np.geomspace(max(low, 1e-9), max(high, low, 1e-9), STEPS + 1)[1:]:
            yield Budget({**room, metric: min(float(limit), room.get(metric, np.inf))})


def expected(rows: Sequence[TrialRow], loss: float, metric: str = "accuracy") -> float | None:
    """Return what measured trials of about this loss had of a metric: monotone in the loss, None where none had it."""
    pairs = sorted((row.metrics[OBJECTIVE], row.metrics[metric]) for row in rows if metric in row.metrics)
    if not pairs:
        return None
    losses, values = np.array(pairs).T
    rising = metric not in HIGHER_IS_BETTER
    return float(np.interp(loss, losses, isotonic_regression(values, increasing=rising).x))
