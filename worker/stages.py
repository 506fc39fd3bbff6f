"""The methods that a search asks for, applied one after the other to its best networks.

A method is fitted epoch by epoch in the sandboxed child; its state lies beside the blobs, so that another worker goes
on from the last epoch where this one is killed. What it makes is kept only where the evaluation pictures, on which
nothing was fitted, say better by the search's metric. Each step is told in the search's record, kept or not.

A method may bring channels and bits of its own: its network is kept only where they are legal and inside every limit.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from app.domain.cost import count
from app.domain.methods import TRAINED, ChannelGating, JointPruning, LearnedThresholds, Method, to_json, wall_s
from app.domain.metrics import badness
from app.domain.space import Assignment, is_legal
from app.store import blobs, events
from app.store import runner as rows
from worker.job import Job, Site
from worker.methods import NETWORK
from worker.sandbox import ChildDied
from worker.search.rows import TrialRow

Json = dict[str, Any]
Call = Callable[[Job, str, Json, float], Json]
Score = Callable[[TrialRow, str], Json | None]
"""Returns the measurement on the evaluation pictures of a trial's network under a repair's name."""

EPOCH_S = 4 * 3600.0
DEATHS = 2


@dataclass(frozen=True)
class Step:
    """One method on one trial's network: losses by epoch, evaluation metrics before and after, and what came of it.

    `network` is the repair that names the network it made, `assignment` its channels and bits and `costs` what they
    come to where these are not those it started from; `problem` says why there is no network to keep.
    """

    trial: int
    method: Json
    repair: str
    losses: tuple[float, ...] = ()
    seconds: float = 0.0
    before: Json = field(default_factory=dict)
    after: Json | None = None
    kept: bool = False
    network: str | None = None
    problem: str | None = None
    assignment: Json | None = None
    costs: Json | None = None

    def to_json(self) -> Json:
        """Return it as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Tuned:
    """A trial behind all methods: its row with the delivered network's assignment, the repair that names that network,
    and a record of each method."""

    row: TrialRow
    repair: str
    steps: list[Json]


@dataclass(frozen=True)
class Fitted:
    """What the child came to: losses by epoch, seconds, and the channels and bits of the network it stored."""

    losses: tuple[float, ...]
    seconds: float
    assignment: Assignment


class Failed(Exception):
    """A method that made no network to keep; the text says why."""


class Stages:
    """Applies methods; what was done before a kill is read from the search's row."""

    def __init__(self, site: Site, job: Job, call: Call, score: Score) -> None:
        self._site, self._job, self._call, self._score = site, job, call, score
        with site.database.reading() as session:
            self._steps: list[Json] = list(rows.search_of(session, job.search_id).training or [])

    def of(self, row: TrialRow, repair: str) -> Tuned:
        """Return what a trial's network is behind all methods."""
        done = []
        for number, method in enumerate(self._job.methods):
            step = self._step(row, repair, number, method)
            done.append(step)
            if step["kept"]:
                repair = step["network"]
                row = behind(row, step)
        return Tuned(row, repair, done)

    def _step(self, row: TrialRow, repair: str, number: int, method: Method) -> Json:
        told = to_json(method)
        for step in self._steps:
            if (step["trial"], step["repair"], step["method"]) == (row.idx, repair, told):
                return step
        step = self._applied(row, repair, number, method).to_json()
        self._steps.append(step)
        with self._site.database.writing() as session:
            rows.progress(session, self._job.search_id, {"training": self._steps})
        return step

    def _applied(self, row: TrialRow, repair: str, number: int, method: Method) -> Step:
        step = Step(row.idx, to_json(method), repair)
        folder = self._site.blobs.folder / "training" / f"{self._job.search_id}-{row.idx}-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            before = self._measured(row, repair)
            fitted = self._fitted(row, repair, method, folder)
            own = self._own(row, fitted.assignment)
            network = self._stored(folder / NETWORK)
            after = self._measured(replace(row, assignment=fitted.assignment), network)
        except Failed as failure:
            return replace(step, problem=str(failure))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        kept = _badness(after, self._job.metric) < _badness(before, self._job.metric)
        found = {"before": before, "after": after, "kept": kept, "network": network, **own}
        return replace(step, losses=fitted.losses, seconds=fitted.seconds, **found)

    def _own(self, row: TrialRow, assignment: Assignment) -> Json:
        """Return channels, bits and costs that a network brings, where they aren't the trial's.

        Raises Failed for what the device or the space does not allow, or a limit has no room for.
        """
        if assignment == row.assignment:
            return {}
        goal = self._job.goal
        if not is_legal(goal.graph, goal.space, assignment, goal.device):
            raise Failed("its channels and bits are not legal on the device")
        costs = count(goal.graph, assignment, goal.device)
        if not goal.budget.is_met(costs):
            raise Failed("its channels and bits break a limit")
        return {"assignment": assignment.to_json(), "costs": costs.to_json()}

    def _measured(self, row: TrialRow, repair: str) -> Json:
        found = self._score(row, repair)
        if found is None:
            raise Failed("the network could not be measured on the evaluation pictures")
        metrics: Json = found["metrics"]
        return metrics

    def _fitted(self, row: TrialRow, repair: str, method: Method, folder: Path) -> Fitted:
        """Train until the last epoch, or the last that the wall time leaves room for. Raises Failed."""
        method = self._timed(method)
        losses: list[float] = []
        params = {
            "assignment": row.assignment.to_json(),
            "repair": repair,
            **network_of(self._site, repair),
            "method": to_json(method),
            "limits": dict(self._job.goal.budget.limits),
            "space": self._job.goal.space.to_json(),
            "folder": str(folder),
        }
        started, longest = time.monotonic(), 0.0
        while True:
            spent = time.monotonic() - started
            last = _is_last(wall_s(method), spent, longest)
            found = self._epoch({**params, "last": last})
            if found["epoch"] is not None:
                losses.append(found["epoch"]["loss"])
                longest = max(longest, found["epoch"]["seconds"])
                self._tell(row, method, found["epoch"])
            if found["done"]:
                return Fitted(tuple(losses), time.monotonic() - started, Assignment.from_json(found["assignment"]))

    def _timed(self, method: Method) -> Method:
        """Return a method as it may be applied where latencies are measured: channels stay. Raises Failed for one that
        makes a network whose latency would have to be measured."""
        if self._job.demand is None:
            return method
        if isinstance(method, JointPruning):
            raise Failed("it chooses channels and bits anew, and this search keeps to latencies that were measured")
        if isinstance(method, ChannelGating):
            raise Failed("its gates take time of their own, and this search keeps to latencies that were measured")
        return replace(method, cut=False) if isinstance(method, LearnedThresholds) else method

    def _epoch(self, params: Json) -> Json:
        """Train one epoch, again where the child died of it. Raises Failed."""
        for death in range(DEATHS + 1):
            try:
                found = self._call(self._job, "train", params, EPOCH_S)
            except ChildDied as reason:
                if death == DEATHS:
                    raise Failed(f"training died {DEATHS + 1} times: {reason.kind}: {reason.detail}") from reason
                continue
            if "failure" in found:
                raise Failed(f"{found['failure']['kind']}: {found['failure']['detail']}")
            return found
        raise AssertionError("not reached")

    def _tell(self, row: TrialRow, method: Method, epoch: Json) -> None:
        left = epoch["seconds"] * (epoch["of"] - epoch["number"])
        with self._site.database.writing() as session:
            rows.progress(session, self._job.search_id, {"stage": "train", "eta_s": left})
            told = {"trial": row.idx, "method": method.name, **epoch}
            events.append(session, self._job.search_id, "training", told)

    def _stored(self, network: Path) -> str:
        sha256, size = self._site.blobs.put_file(network)
        with self._site.database.writing() as session:
            blobs.record(session, sha256, size)
        return TRAINED + sha256


def behind(row: TrialRow, step: Json) -> TrialRow:
    """Return a row with the assignment of the network that a step made."""
    own = step.get("assignment")
    return row if own is None else replace(row, assignment=Assignment.from_json(own))


def network_of(site: Site, repair: str) -> Json:
    """Return {"network": the path of its checkpoint} for a repair that names a trained network, else nothing."""
    if not repair.startswith(TRAINED):
        return {}
    return {"network": str(site.blobs.path(repair.removeprefix(TRAINED)))}


def _is_last(limit_s: float | None, spent_s: float, longest_s: float) -> bool:
    """Tell whether the next epoch is the last that the wall time leaves room for."""
    return limit_s is not None and spent_s + 2 * longest_s > limit_s


def _badness(metrics: Json, metric: str) -> tuple[float, float]:
    return badness(metrics, metric), float(metrics["kl"])
