"""Trials between the search loop and their rows, and when too many of them fail."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.domain.space import Assignment
from app.store.tables import Trial
from worker.job import GivenUp, problem
from worker.search.rows import TrialPlan, TrialRow

Json = dict[str, Any]
MAX_SAME_FAILURES = 3
BASELINE_TRIES = 3
_KILLED = ("crashed", "out-of-memory")

log = logging.getLogger("tightfit.worker")


@dataclass
class Failures:
    """Counts failures of one class in a row."""

    kind: str = ""
    count: int = 0

    def note(self, kind: str | None) -> None:
        """Take in how a trial ended (None: well). Raises GivenUp at the third of a class in a row."""
        self.count = 0 if kind is None else (self.count + 1 if kind == self.kind else 1)
        self.kind = kind or ""
        if self.count >= MAX_SAME_FAILURES:
            detail = f"{self.count} trials in a row ended as {kind!r}"
            raise GivenUp(problem("trials-keep-failing", detail))


def tried(attempt: Callable[[], Json], times: int) -> Json:
    """Return what an attempt gives, repeated up to so many times where its process was killed.

    For the float network: a search ends without it, and what killed the process may have been the machine.
    """
    for _ in range(times - 1):
        result = attempt()
        if (result.get("failure") or {}).get("kind") not in _KILLED:
            return result
        log.warning("killed, and tried again", extra={"class": result["failure"]["kind"]})
    return attempt()


def logged(result: Json, planned_s: float) -> None:
    """Log how a trial ended, how long it was measured, and how long it took to choose what to measure."""
    failure, times = result.get("failure"), {"seconds": round(result["seconds"], 3), "planned_s": round(planned_s, 3)}
    if failure is None:
        log.info("trial done", extra=times)
    else:
        log.warning("trial failed", extra={**times, "class": failure["kind"]})


def poisoned(attempt: int) -> Json:
    """Return the result of a trial whose worker died each time it was tried."""
    detail = f"the worker died {attempt - 1} times while this trial ran"
    return {"failure": {"kind": "dead", "detail": detail}, "seconds": 0.0}


def plan_json(plan: TrialPlan) -> Json:
    """Return the columns of a plan's row."""
    return {
        "idx": plan.idx,
        "kind": plan.kind,
        "params": {**plan.params, "fidelity": plan.fidelity},
        "assignment": plan.assignment.to_json(),
        "sampler_attrs": dict(plan.sampler),
    }


def row_of(trial: Trial) -> TrialRow:
    """Return a stored trial as the search loop reads it."""
    params = dict(trial.params or {})
    fidelity = params.pop("fidelity", "full")
    return TrialRow(
        idx=trial.idx,
        kind=trial.kind,  # type: ignore[arg-type]
        params=params,
        assignment=Assignment.from_json(trial.assignment or {}),
        fidelity=fidelity,
        sampler=trial.sampler_attrs or {},
        state=trial.state,  # type: ignore[arg-type]
        metrics=trial.metrics or {},
    )
