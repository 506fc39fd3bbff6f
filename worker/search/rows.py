"""What the loop reads and writes: its goal, its settings, trial plans and trial rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from app.domain.budget import Budget
from app.domain.candidate import Fidelity
from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph
from app.domain.space import Assignment, SearchSpace
from worker.search.sampling import SamplerName

TrialKind = Literal["baseline", "known", "seed", "sweep", "feedback", "move", "sampled", "fallback"]
RowState = Literal["running", "done", "failed"]


@dataclass(frozen=True)
class Goal:
    """What a search is asked: a network's picture, its space, a device and absolute limits."""

    graph: ModelGraph
    space: SearchSpace
    device: DeviceProfile
    budget: Budget


@dataclass(frozen=True)
class Stop:
    """When a search ends before its trials are spent, looked at between batches.

    `patience`: so many trials in a row did not improve the best one inside the budget. `target`: one inside the budget
    reaches this value of a metric (from below where higher is better, else from above). `growth`: where the goal is a
    front, as a share, the most that so many trials may add to the volume it covers and still count as no gain.
    """

    patience: int | None = None
    target: tuple[str, float] | None = None
    growth: float = 0.01


@dataclass(frozen=True)
class Settings:
    """How a search is run.

    `trials` counts the trials besides the baseline, the probes and the known observations. Trials of one `batch` are
    planned from the batches before it, so that the order in which they finish does not change what follows. Every
    `feedback_every`-th trial after the seeds solves a table refitted to the trials, the others are the sampler's (0:
    all are). Every `move_every`-th of the former changes one of the best `parents` in a few places instead (0: none).
    `sweep` scales the budget for the trials that fill the Pareto front. `axes` (the loss and one or two costs) make the
    whole front over them the goal, the budget its outer bound; without any it is the best assignment inside the budget.
    """

    trials: int = 60
    seed: int = 0
    sampler: SamplerName = "tpe"
    max_probes: int | None = None
    batch: int = 4
    feedback_every: int = 2
    move_every: int = 2
    parents: int = 4
    sweep: tuple[float, ...] = (1.41, 0.71, 2.0, 0.5)
    repairs: tuple[str, ...] = ()
    max_dimensions: int = 24
    fidelity: Fidelity = "full"
    probe_fidelity: Fidelity = "screen"
    stop: Stop = Stop()
    axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrialPlan:
    """One trial to run. `params` and `sampler` are JSON-ready and belong in the trial's row."""

    idx: int
    kind: TrialKind
    params: Mapping[str, Any]
    assignment: Assignment
    fidelity: Fidelity = "full"
    sampler: Mapping[str, Any] = field(default_factory=dict)

    @property
    def repair(self) -> str | None:
        """Return the repair variant asked for, or None for the evaluator's own."""
        return self.params.get("repair")


@dataclass(frozen=True)
class TrialRow(TrialPlan):
    """A trial as stored: its plan, where it stands, and its metrics (empty unless done)."""

    state: RowState = "running"
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: TrialPlan) -> TrialRow:
        """Return the row of a trial that is now running."""
        return cls(**_fields(plan))

    @property
    def plan(self) -> TrialPlan:
        """Return the plan alone."""
        return TrialPlan(**_fields(self))


@dataclass(frozen=True)
class Round:
    """Trials from number `start` on that are allocated for `budget`."""

    start: int
    trials: int
    budget: Budget

    @property
    def end(self) -> int:
        """Return the number behind the last trial's."""
        return self.start + self.trials


def _fields(plan: TrialPlan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in TrialPlan.__dataclass_fields__}
