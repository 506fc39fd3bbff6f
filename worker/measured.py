"""Searches whose latency limit demands measured evidence: files are timed on the device, and the aim follows.

What was timed lies in rows and is timed again only to confirm what keeps its limit narrowly; what was decided from it
lies in the search's `measured`. A killed worker's successor therefore aims where its predecessor did.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from app.actions import space_spec
from app.domain.budget import Budget, reach
from app.domain.cost import count
from app.domain.demand import (
    Demand,
    Standard,
    Timing,
    float_only,
    integers_slower_by,
    ladder,
    narrow_only,
    narrow_pair,
    runs_floats,
    width_at,
)
from app.domain.device import DeviceProfile, Pair
from app.domain.latency import LatencyTable
from app.domain.space import Assignment, SpaceSpec, build_space, widest
from app.store import runner as rows
from app.store import timings
from worker import own_table
from worker.export.saturation import guards_pairs
from worker.job import GivenUp, Job, Site, problem
from worker.sandbox import ChildDied
from worker.search.loop import SearchLoop
from worker.search.rows import Goal, TrialRow

Json = dict[str, Any]
Call = Callable[[Job, str, Json, float], Json]
Item = tuple[Assignment, str]

LATENCY = "latency_ms"
MODES: dict[str, Callable[[DeviceProfile], DeviceProfile]] = {
    "integers": lambda device: device,
    "narrow": narrow_only,
    "floats": float_only,
}
"""What a search is restricted to when the runtime was measured to run it faster."""
TIMED = 8
CONFIRMED = 3 * TIMED
ROUNDS, CONFIRMING = 60, 200
MAX_EXTRA = 3
NEAR = 1.05  # trials are timed whose expected latency is at most this share of the limit
SAME, TIGHTER = 0.02, 0.93
ABOVE = 1.02  # of the least modelled latency: where an aim lies that the model calls unreachable
USED = 0.94  # a round that reaches this share of the limit needs no looser one after it
WRITE_S, TIME_S = 1200.0, 600.0


class Timer(Protocol):
    """Whoever can time files that lie in a folder: the sandboxed child here, or an agent elsewhere."""

    def __call__(self, folder: Path, files: Sequence[str], inputs: Json, rounds: int) -> dict[str, Json]:
        """Return each file's latency as JSON, all timed against each other in interleaved rounds."""
        ...


class Measured:
    """The measured side of one search."""

    def __init__(self, site: Site, job: Job, call: Call, timer: Timer | None = None) -> None:
        assert job.demand is not None, "a search without a measured limit times nothing"
        self.site, self.job, self._call = site, job, call
        self.demand: Demand = job.demand
        self._timer = timer or self._time_here
        self._float, self._eight = widest(job.goal.graph, 32), widest(job.goal.graph, 8)
        graph, self._profile = job.goal.graph, job.goal.device
        self._plain = build_space(graph, float_only(job.goal.device), SpaceSpec(prune=space_spec(job.spec).prune))
        slow_at_8 = guards_pairs(self._profile) and not self._profile.table  # a table tells the two apart by itself
        narrow = narrow_pair(self._profile) if slow_at_8 else None
        self._bits: dict[str, Pair] = {"integers": (8, 8), **({"narrow": narrow} if narrow else {}), "floats": (32, 32)}
        self._versions: tuple[Assignment, ...] = ()
        self._read()

    def _read(self) -> None:
        with self.site.database.reading() as session:
            self.timings = timings.of_search(session, self.job.search_id)
            self.notes: Json = rows.search_of(session, self.job.search_id).measured or {}

    # before the trials

    def prepare(self) -> Job:
        """Time the references (once); return the job with its space and aim corrected by them."""
        goal = self.job.goal
        ladders = {mode: self._ladder(mode) for mode in self._bits}
        rest = [item for rungs in ladders.values() for item in rungs]
        self.time([(item, "fast") for item in (self._eight, *rest)])
        if any(item.digest not in self.timings for item in (self._float, self._eight, *rest)):
            raise GivenUp(problem("latency-not-measured", "the reference files could not be timed on the device"))
        if not self.notes:
            self._decide(ladders)
        device = MODES[self.notes["mode"]](goal.device)
        if device is not goal.device:
            goal = Goal(goal.graph, build_space(goal.graph, device, space_spec(self.job.spec)), device, goal.budget)
        goal = self._tabled(goal)
        if not self.notes["aims_ms"]:
            rungs = ladders[self.notes["mode"]]
            known = self._known(rungs, lambda item: count(goal.graph, item, goal.device).latency_ms)
            self._note({**self.notes, "aims_ms": [self._reachable(goal, self.standard.aim_ms(known))]})
        if device is not self.job.goal.device:  # the child prunes and verifies by the same rules
            self.job = replace(self.job, opening={**self.job.opening, "device": device.to_json()})
        self.job = replace(self.job, goal=replace(goal, budget=self._budget(goal.budget, self.notes["aims_ms"][0])))
        return self.job

    def _tabled(self, goal: Goal) -> Goal:
        """Return the goal with a latency table of this search's own, where there is none and one can be fitted."""
        if self._profile.table is not None:
            return goal
        graph, wanted = goal.graph, own_table.affordable(self.notes["float_ms"])
        self._versions = own_table.versions(graph, goal.space, wanted)
        rough = self._fitted(goal)
        if rough is not None:
            near = own_table.near((graph, goal.space, rough), self.standard.limit_ms, wanted)
            self._versions = (*self._versions, *near)
        if "table" not in self.notes:
            found = self._fitted(goal)
            self._note({**self.notes, "table": None if found is None else found.to_json()})
        table = self.notes["table"]
        device = goal.device if table is None else replace(goal.device, table=LatencyTable.from_json(table))
        return replace(goal, device=device)

    def _fitted(self, goal: Goal) -> LatencyTable | None:
        """Return the table fitted to this search's versions, timed here where they were not before."""
        self.time([(item, "fast") for item in self._versions])
        timed = [item for item in self._versions if item.digest in self.timings]
        saturating = guards_pairs(goal.device)
        return own_table.fitted(
            goal.graph, [(item, self.standard.value_ms(self.timings[item.digest])) for item in timed], saturating
        )

    def _reachable(self, goal: Goal, aim: float) -> float:
        """Return an aim, or what lies a little above the least the model knows where the aim lies below that.

        Models of tiny networks are too far off to end a search by.
        """
        found = reach(goal.graph, goal.space, goal.device, self._budget(goal.budget, aim))
        if found.feasible or found.nearest is None:
            return aim
        return max(aim, found.nearest[LATENCY] * ABOVE)

    def _ladder(self, mode: str) -> tuple[Assignment, ...]:
        """Return uniform networks without regard to channel multiples: equal widths in every precision."""
        return ladder(self.job.goal.graph, self._plain, self._bits[mode])

    @property
    def _reference(self) -> Assignment:
        return self._eight if self.demand.relative_to == "w8a8" else self._float

    @property
    def standard(self) -> Standard:
        """What timings are held against."""
        return Standard(self.demand, self.timings[self._float.digest], self.timings[self._reference.digest])

    def _decide(self, ladders: dict[str, tuple[Assignment, ...]]) -> None:
        """Settle whether the search is one among floats, and its first aim."""
        timed = {mode: [self.timings[item.digest] for item in rungs] for mode, rungs in ladders.items()}
        integers = [mode for mode in ladders if mode != "floats"]
        relative = {mode: integers_slower_by(timed["floats"], timed[mode]) for mode in integers}
        slower = min(relative.values())
        mode = self._widest_mode(ladders)
        floats = mode == "floats"
        standard = self.standard
        self._note(
            {
                "limit_ms": standard.limit_ms,
                "float_ms": standard.float_file.ms(self.demand.stat),
                "w8a8_ms": standard.value_ms(self.timings[self._eight.digest]),
                "stat": self.demand.stat,
                "where": self.job.spec.get("agent") or "here",
                "integers_slower_by": slower,
                "floats_only": floats,
                "mode": mode,
                "starts": [],
                "aims_ms": [],
            }
        )

    def _widest_mode(self, ladders: dict[str, tuple[Assignment, ...]]) -> str:
        """Return the precision in which the widest uniform network keeps the limit: what keeps most, loses least."""
        whole, standard = sum(group.channels for group in self.job.goal.graph.groups), self.standard
        widths = {
            mode: width_at(
                [(sum(item.keep.values()) / whole, standard.value_ms(self.timings[item.digest])) for item in rungs],
                standard.limit_ms,
            )
            for mode, rungs in ladders.items()
            if mode != "floats" or self._floats_can_serve()
        }
        return max(widths, key=widths.__getitem__)

    def _floats_can_serve(self) -> bool:
        """Tell whether a network of floats alone is allowed by device and request, and can keep the other limits."""
        goal, asked = self.job.goal, self.job.spec.get("space") or {}
        if not runs_floats(goal.device) or any(
            asked.get(key) for key in ("weight_bits", "activation_bits", "fixed_bits", "bits")
        ):
            return False
        device = float_only(goal.device)
        space = build_space(goal.graph, device, space_spec(self.job.spec))
        return reach(goal.graph, space, device, self._others()).feasible

    # between the trials

    def resume(self, loop: SearchLoop) -> None:
        """Open the rounds that were decided before."""
        for aim, start in zip(self.notes["aims_ms"][1:], self.notes["starts"], strict=True):
            self._extend(loop, aim, start)

    def next_round(self, loop: SearchLoop) -> bool:
        """Time the finalists; where that asks for another round of trials, open it and return True."""
        self._time_finalists(loop)
        aim = self._next_aim(loop)
        if aim is None:
            self._confirm(loop)
            return False
        notes = self.notes
        self._note({**notes, "aims_ms": [*notes["aims_ms"], aim], "starts": [*notes["starts"], loop.total]})
        self._extend(loop, aim, loop.total)
        return True

    def _next_aim(self, loop: SearchLoop) -> float | None:
        """Return where another round of trials should aim, or None where there is no use in one."""
        aims, met, goal = self.notes["aims_ms"], self.kept(loop), self.job.goal
        used = max((self._value(row) / self.standard.limit_ms for row in met), default=0.0)
        if used >= USED or len(aims) > MAX_EXTRA:
            return None
        aim = self._reachable(goal, self.standard.aim_ms(self._near(loop)))
        if abs(aim / aims[-1] - 1) < SAME:
            if met:  # what is faster than it need be, is so for another limit's sake
                return None
            aim = self._reachable(goal, aims[-1] * TIGHTER)
        if abs(aim / aims[-1] - 1) < SAME and not self._is_near(loop):
            return None  # the model knows nothing faster, and what is fastest is too slow by far
        return aim if reach(goal.graph, goal.space, goal.device, self._budget(goal.budget, aim)).feasible else None

    def _is_near(self, loop: SearchLoop) -> bool:
        return any(self._value(row) <= self.standard.limit_ms * NEAR for row in self._timed(loop))

    def _extend(self, loop: SearchLoop, aim: float, start: int) -> None:
        loop.extend(self._budget(self.job.goal.budget, aim), max(4, self.job.settings.trials // 4), start)

    def _time_finalists(self, loop: SearchLoop) -> None:
        """Time the best trials that are expected to keep the limit; with what that teaches, once more."""
        hopeful: list[TrialRow] = []
        for _ in range(2):
            ceiling = self.standard.line(self._near(loop)).modelled_ms(self.standard.limit_ms * NEAR)
            expected = [row for row in loop.measurable() if loop.costs(row.assignment).latency_ms <= ceiling]
            hopeful = [row for row in expected if self._others_kept(loop, row)]
            fresh = [row for row in hopeful if row.assignment.digest not in self.timings]
            self.time([(row.assignment, row.repair or "sequential") for row in fresh[:TIMED]])
            if self.kept(loop):
                return
        if not hopeful:  # what comes closest tells how far away it is
            closest = sorted(loop.measurable(), key=lambda row: loop.costs(row.assignment).latency_ms)[:2]
            self.time([(row.assignment, row.repair or "sequential") for row in closest])

    def _confirm(self, loop: SearchLoop) -> None:
        """Time once more, and longer, trials that keep the limit without its margin and are better than any with it."""
        first = {row.idx: self.timings[row.assignment.digest] for row in self._timed(loop)}
        allowed = [row for row in self._timed(loop) if self._others_kept(loop, row)]
        better = itertools.takewhile(lambda row: not self.standard.is_met(first[row.idx]), allowed)
        close = [row for row in better if self.standard.keeps(first[row.idx])]
        if not close or "again" in self.notes:
            return
        found = self._beside([(row.assignment, row.repair or "sequential") for row in close[:CONFIRMED]], CONFIRMING)
        beside = found.pop(self._float.digest, None)
        self._note({**self.notes, "again": {key: {"latency": item, "beside": beside} for key, item in found.items()}})

    def _sessions(self, digest: str) -> list[Timing]:
        """Return a file's timing, and that of the second session where there was one."""
        first, again = self.timings[digest], self.notes.get("again", {}).get(digest)
        return [first, *([] if again is None else [replace(first, latency=again["latency"], beside=again["beside"])])]

    def _is_met(self, digest: str) -> bool:
        """Tell whether a file keeps the limit: with the margin, or narrowly in two sessions."""
        standard, sessions = self.standard, self._sessions(digest)
        return standard.is_met(sessions[0]) or (len(sessions) > 1 and all(map(standard.keeps, sessions)))

    def _near(self, loop: SearchLoop) -> list[Timing]:
        """Return the timings that the model is corrected by: the trials' and the references'."""
        own = [row.assignment for row in self._timed(loop)]
        return self._known([*own, *self._ladder(self.notes["mode"])], lambda item: loop.costs(item).latency_ms)

    def _known(self, items: Sequence[Assignment], modelled: Callable[[Assignment], float]) -> list[Timing]:
        """Return the timings of assignments and of this search's versions beside what the search's model says."""
        distinct = {item.digest: item for item in (*items, *self._versions) if item.digest in self.timings}
        return [replace(self.timings[digest], modelled_ms=modelled(item)) for digest, item in distinct.items()]

    # what was found

    def finalists(self, loop: SearchLoop, k: int) -> list[TrialRow]:
        """Return the best `k` trials that were measured to keep the limit, and keep the others."""
        return self.kept(loop)[:k]

    def best_effort(self, loop: SearchLoop, k: int) -> list[TrialRow]:
        """Return the `k` timed trials that break the limits least."""
        return sorted(self._timed(loop), key=lambda row: self._violation(loop, row))[:k]

    def kept(self, loop: SearchLoop) -> list[TrialRow]:
        """Return the timed trials that keep every limit, lowest loss first."""
        return [
            row for row in self._timed(loop) if self._others_kept(loop, row) and self._is_met(row.assignment.digest)
        ]

    def facts(self, assignment: Assignment) -> Json:
        """Return what a candidate's record says of its measured latency. Raises KeyError where it was not timed."""
        timing, standard = self.timings[assignment.digest], self.standard
        values = [standard.value_ms(item) for item in self._sessions(assignment.digest)]
        return {
            "value_ms": max(values),
            "limit_ms": standard.limit_ms,
            "met": self._is_met(assignment.digest),
            "confirmed": None if len(values) == 1 else {"first_ms": values[0], "again_ms": values[1]},
            "stat": self.demand.stat,
            "predicted_ms": timing.modelled_ms,
            "measured": dict(timing.latency),
            "float": dict(timing.beside),
            "where": self.notes["where"],
            "integers_slower_by": self.notes["integers_slower_by"],
            "floats_only": self.notes["floats_only"],
            "mode": self.notes["mode"],
        }

    def _timed(self, loop: SearchLoop) -> list[TrialRow]:
        return [row for row in loop.measurable() if row.assignment.digest in self.timings]

    def _value(self, row: TrialRow) -> float:
        return max(map(self.standard.value_ms, self._sessions(row.assignment.digest)))

    def _violation(self, loop: SearchLoop, row: TrialRow) -> float:
        excess = max(0.0, self._value(row) / self.standard.limit_ms - 1)
        return excess + self._others().violation(loop.costs(row.assignment))

    def _others_kept(self, loop: SearchLoop, row: TrialRow) -> bool:
        return self._others().is_met(loop.costs(row.assignment))

    def _others(self) -> Budget:
        return Budget({metric: limit for metric, limit in self.job.goal.budget.limits.items() if metric != LATENCY})

    def _predicted(self, assignment: Assignment) -> float:
        """Return what the device's own profile says, whatever this search makes of it."""
        return count(self.job.goal.graph, assignment, self._profile).latency_ms

    def _budget(self, budget: Budget, aim: float) -> Budget:
        return Budget({**budget.limits, LATENCY: aim})

    def _note(self, notes: Json) -> None:
        with self.site.database.writing() as session:
            timings.note(session, self.job.search_id, notes)
        self.notes = notes

    # timing

    def time(self, items: Sequence[Item]) -> None:
        """Time assignments not timed yet, beside the float file; store them. One that can't be written is left out."""
        wanted = {item[0].digest: item for item in items if item[0].digest not in self.timings}
        wanted.pop(self._float.digest, None)
        if not wanted and self._float.digest in self.timings:
            return
        if found := self._beside([*wanted.values()], ROUNDS):
            self._keep(found, {self._float.digest: self._float, **{key: item[0] for key, item in wanted.items()}})

    def _beside(self, items: Sequence[Item], rounds: int) -> dict[str, Json]:
        """Return the latencies of assignments and the float file, all of one session; {} where it can't be written."""
        with tempfile.TemporaryDirectory(prefix="tightfit-timing-") as name:
            inputs, files = self._written(Path(name), [(self._float, "fast"), *items])
            return self._timer(Path(name), files, inputs, rounds) if self._float.digest in files else {}

    def _keep(self, found: dict[str, Json], assignments: dict[str, Assignment]) -> None:
        beside = found[self._float.digest]
        fresh = [
            Timing(digest, self._predicted(assignments[digest]), latency, beside)
            for digest, latency in found.items()
            if digest not in self.timings
        ]
        with self.site.database.writing() as session:
            timings.store(session, rows.search_of(session, self.job.search_id), fresh)
            self.timings = timings.of_search(session, self.job.search_id)

    def _written(self, folder: Path, items: Sequence[Item]) -> tuple[Json, list[str]]:
        """Have the child write the files; where it dies of one of them, one by one. Return inputs and files."""
        try:
            return self._write(folder, items)
        except ChildDied:
            inputs: Json = {}
            files: list[str] = []
            for item in items:
                try:
                    inputs, one = self._write(folder, [item])
                except ChildDied:
                    continue
                files += one
            return inputs, files

    def _write(self, folder: Path, items: Sequence[Item]) -> tuple[Json, list[str]]:
        asked = [{"id": item.digest, "assignment": item.to_json(), "repair": repair} for item, repair in items]
        params = {"folder": str(folder), "items": asked, "opset": self.job.opset}
        answer = self._call(self.job, "write", params, WRITE_S)
        return answer, [item.digest for item, _ in items]

    def _time_here(self, folder: Path, files: Sequence[str], inputs: Json, rounds: int) -> dict[str, Json]:
        params = {**inputs, "folder": str(folder), "files": list(files), "rounds": rounds}
        return self._call(self.job, "time", params, TIME_S)
