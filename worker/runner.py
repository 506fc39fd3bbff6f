"""Running one search: rows in, a sandboxed child that measures, rows out. Nothing is kept that rows do not hold."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from app import logs
from app.domain.candidate import Measurement
from app.domain.space import Assignment
from app.store import evaluations, turns
from app.store import runner as rows
from app.store.engine import is_away
from app.store.tables import Trial
from worker import predictions, warm
from worker.baseline import baseline_problem, baseline_warnings
from worker.cache import Cache
from worker.crew import Crew
from worker.finish import Finisher, export_candidate
from worker.job import Cancelled, Ended, GivenUp, Job, LostTrial, Paused, Site, load_job, problem
from worker.measured import Measured, Timer
from worker.outlast import outlasting
from worker.room import DiskFull, check_room, is_full
from worker.sandbox import OPEN_S, Child, ChildDied, ChildRefused
from worker.search.loop import SearchLoop
from worker.search.rows import TrialPlan
from worker.stages import network_of
from worker.trials import BASELINE_TRIES, Failures, logged, plan_json, poisoned, row_of, tried
from worker.wishes import Wishes

Json = dict[str, Any]
End = Literal["finished", "again"]

log = logging.getLogger("tightfit.worker")
REPAIR = "sequential"
PROBE_REPAIR = "fast"
PROBE_BATCH = 8
MAX_DEATHS = 3
SHORTEST_S = 20.0
"""A slice does not make way for a more urgent search before it has run so long."""


class Runner:
    """Drives one search for one slice."""

    def __init__(self, site: Site, search_id: str, slot: int = 0) -> None:
        self.site = site
        self.search_id = search_id
        self.crew = Crew(site, search_id, slot)
        self._child: Child | None = None
        self._failures = Failures()
        self._start: warm.Start | None = None
        self._wishes = Wishes(site.database, search_id)
        self._begun = time.monotonic()
        self._door = threading.Lock()  # claims go through it one by one; whoever is to leave keeps it shut

    def run(self) -> End:
        """Work on the search until it is finished or the slice is over."""
        deadline = time.monotonic() + self.site.slice_s
        job = self._load()
        if job is None:
            return self._rested()
        starts = self.crew.enter(job.runners)
        self.site = self.crew.fenced()
        try:
            if starts > MAX_DEATHS:
                detail = f"its worker died {starts - 1} times in a row before anything came of it"
                raise GivenUp(problem("search-dead", detail))
            return self._worked(job, deadline)
        except Paused:
            self.close()
            return self._rested()
        except (DiskFull, OSError, sa.exc.DBAPIError) as error:
            self.close()
            return self._halted(error)
        except Cancelled:
            with self.site.database.writing() as session:
                rows.cancelled(session, self.search_id)
        except GivenUp as reason:
            with self.site.database.writing() as session:
                rows.fail(session, self.search_id, reason.problem)
        except Ended:
            pass
        finally:
            self.close()
            self.crew.leave()
        return "finished"

    def _worked(self, job: Job, deadline: float) -> End:
        """Work on the search; raises what ends it early."""
        predictions.note(self.site, job)
        if job.runners > 1:
            job = load_job(self.site, self.search_id)  # what another runner may have noted first holds for all
        measured = self._measured(job)
        job = job if measured is None else self._prepared(job, measured)
        if job.warm.wanted and measured is None:
            self._start = warm.started(self.site, job)
            job = warm.with_trials(job, self._start)
        loop = self._loop(job)
        if not self._searched(job, loop, measured, deadline) or self._is_extended(job):
            return "again"
        return self._conclude(job, loop, measured)

    def _rested(self) -> End:
        """Leave a search that is to pause (or has ended); it goes on where that was called off meanwhile."""
        with self.crew.site.database.writing() as session:
            rows.release(session, self.search_id, self.crew.token)
            return "finished" if self.crew.rest(session) else "again"

    def _halted(self, error: Exception) -> End:
        """Outlast a database that is away; pause a search that a full disk stops (app.mending resumes it)."""
        if is_away(error):
            outlasting(self.crew.regain)()
            return "again"
        if not isinstance(error, DiskFull) and not is_full(error):
            raise error
        log.warning("search %s pauses: the disk is full: %s", self.search_id, error)
        with self.crew.site.database.writing() as session:
            rows.halt(session, self.search_id, problem(rows.NO_ROOM, f"the disk is full: {error}"))
        return self._rested()

    def hold(self) -> None:
        """Give back the trials that this process holds and claim no more, from another thread: it is about to end, and
        whoever takes its work over begins them as if it had not."""
        self._door.acquire()
        with self.crew.site.database.writing() as session:
            rows.release(session, self.search_id, self.crew.token)

    def close(self) -> None:
        """Kill the child, if there is one."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def export(self, candidate_id: str, trial: Trial, opset: int | None = None) -> None:
        """Export one candidate of the search, whatever the search's state, at its opset or the one named."""
        self._wishes.ignore()  # its search's end, even by cancel, does not end an export that was asked for
        job = load_job(self.site, self.search_id)
        job.opset = opset or job.opset
        job.opening.pop("processor")  # exports are compressed and verified on the CPU
        export_candidate(self.site, job, candidate_id, (trial.params or {}).get("repair"), self._call)

    # what the search is

    def _load(self) -> Job | None:
        with self.site.database.writing() as session:
            if rows.begin(session, self.search_id) is None:
                return None
        return load_job(self.site, self.search_id)

    def _loop(self, job: Job) -> SearchLoop:
        """Rebuild the search from its rows and the stored probe measurements."""
        fresh = SearchLoop(job.goal, job.settings)
        cache = Cache(job)
        inherited = {} if self._start is None else self._start.inherited
        probes = [probe for probe in fresh.pending_probes() if probe.key not in inherited]
        keys = {probe.key: cache.key((probe.assignment, "screen", PROBE_REPAIR)) for probe in probes}
        with self.site.database.reading() as session:
            stored = evaluations.stored(session, list(keys.values()))
            past = [row_of(trial) for trial in rows.trials(session, self.search_id)]
        known = {probe: stored[key]["metrics"].get("kl") for probe, key in keys.items() if key in stored}
        return SearchLoop.from_rows(job.goal, job.settings, past, known)

    # the stages

    def _measured(self, job: Job) -> Measured | None:
        """Return the measured side of a search whose latency limit demands measured evidence."""
        if job.demand is None:
            return None
        agent = job.spec.get("agent")
        return Measured(self.site, job, self._call, None if agent is None else self._remote(agent))

    def _remote(self, agent: str) -> Timer:
        """Return what times files on an agent's machine; after a restart it finds the jobs that were asked for."""
        from worker.hardware.measuring import Bench  # the runtime is loaded only where an agent's answers are read
        from worker.hardware.remote import RemoteMeasurer, Waiting

        def timed(folder: Path, files: Sequence[str], inputs: Json, rounds: int) -> dict[str, Json]:
            benches = [Bench.told(name, (folder / name).read_bytes(), inputs["inputs"]) for name in files]
            measurer = RemoteMeasurer(self.site, agent, rounds, Waiting(self.search_id, self._is_cancelled))
            return {name: found.to_json() for name, found in measurer.time(benches).items()}

        return timed

    def _prepared(self, job: Job, measured: Measured) -> Job:
        """Time the references; a child that was opened for another device's rules is closed."""
        prepared = measured.prepare()
        if prepared.opening != job.opening:
            self.close()
        return prepared

    def _searched(self, job: Job, loop: SearchLoop, measured: Measured | None, deadline: float) -> bool:
        """Run the trials, and the rounds that measuring adds; return False where the slice ended first."""
        if measured is None:
            return self._search(job, loop, deadline)
        measured.resume(loop)
        while self._search(job, loop, deadline):
            self._tell(job, loop, "latency")
            if self._out_of_time(job) or not measured.next_round(loop):
                return True
        return False

    def _search(self, job: Job, loop: SearchLoop, deadline: float) -> bool:
        """Run baseline, probes and trials; return False where the slice ended first."""
        if loop.open_from == 0:
            self._run_trials(job, loop, loop.next_trials(1))
        self._check_baseline(loop)
        self._inherit(job, loop)
        if not self._probed(job, loop, deadline):
            return False
        self._check_baseline(loop)
        while not loop.is_done and not self._out_of_time(job):
            self._refresh(loop)
            self._check_baseline(loop)
            begun = time.perf_counter()
            if plans := loop.next_trials(1):
                self._run_trials(job, loop, plans, time.perf_counter() - begun)
            elif self.crew.is_alone:
                break
            elif not loop.is_done:
                self._wait(loop)
            if (time.monotonic() > deadline or self._makes_way(job)) and not loop.is_done:
                return False
        return True

    def _makes_way(self, job: Job) -> bool:
        """Tell whether a more urgent search waits for a worker."""
        if time.monotonic() - self._begun < SHORTEST_S:
            return False
        with self.site.database.reading() as session:
            return turns.is_urgent(session, rows.search_of(session, self.search_id).priority)

    def _is_extended(self, job: Job) -> bool:
        """Tell whether the search was given more trials or time meanwhile."""
        with self.site.database.reading() as session:
            return rows.search_of(session, self.search_id).extended != job.extended

    def _probed(self, job: Job, loop: SearchLoop, deadline: float) -> bool:
        """Measure the sensitivities, those left that other runners have not; return False where the slice ended."""
        everything = loop.pending_probes()
        while pending := loop.pending_probes():
            self._probe(job, loop, self.crew.share(everything, pending, PROBE_BATCH))
            self._learn(job, loop)
            if time.monotonic() > deadline:
                return False
        return True

    def _inherit(self, job: Job, loop: SearchLoop) -> None:
        """Take over what a fleet's first search says of probes; what they change is measured here."""
        if self._start is None or not self._start.inherited:
            return
        base = next((probe for probe in loop.pending_probes() if probe.kind == "base"), None)
        if base is not None:
            self._probe(job, loop, [base])
        for probe, increment in self._start.inherited.items():
            loop.tell_probe(probe, (loop.base_loss or 0.0) + increment)

    def _learn(self, job: Job, loop: SearchLoop) -> None:
        """Take in the probes that other runners have measured."""
        if self.crew.is_alone:
            return
        cache = Cache(job)
        keys = {probe.key: cache.key((probe.assignment, "screen", PROBE_REPAIR)) for probe in loop.pending_probes()}
        with self.site.database.reading() as session:
            stored = evaluations.stored(session, list(keys.values()))
        for probe, key in keys.items():
            if key in stored:
                loop.tell_probe(probe, stored[key]["metrics"].get("kl"))

    def _refresh(self, loop: SearchLoop, since: int | None = None) -> None:
        """Take in what the other runners planned and finished; trials whose runner died are to be had again."""
        if self.crew.is_alone:
            return
        first = loop.open_from if since is None else min(loop.open_from, since)
        with self.site.database.reading() as session:
            held = {*self.crew.others(session), self.crew.token}
            found = rows.trials(session, self.search_id, first)
        lost = [trial.idx for trial in found if trial.state == "running" and trial.owner_token not in held]
        loop.sync(map(row_of, found), lost)

    def _wait(self, loop: SearchLoop) -> None:
        """Wait a moment for the other runners."""
        self.crew.wait()
        self._wishes.check()
        self._refresh(loop)

    def _check_baseline(self, loop: SearchLoop) -> None:
        if loop.row(0).state == "failed":
            with self.site.database.reading() as session:
                row = rows.trial_of(session, self.search_id, 0)
            raise GivenUp(baseline_problem((row and row.failure) or {}, "evaluation"))

    def _out_of_time(self, job: Job) -> bool:
        return job.wall_s is not None and time.time() - job.started > job.wall_s

    def _probe(self, job: Job, loop: SearchLoop, probes: Sequence[Any]) -> None:
        """Measure a batch of sensitivity probes; those that can't be measured count as unknown."""
        self._go_on()
        items = [(probe.assignment, "screen", PROBE_REPAIR) for probe in probes]
        try:
            results = self.measure(job, items, loop.reference)
        except ChildDied:  # one of them is to blame: find it alone
            results = [self._attempt_item(job, item) for item in items]
        for probe, result in zip(probes, results, strict=True):
            found = result.get("measurement")
            self._failures.note((result.get("failure") or {}).get("kind"))
            loop.tell_probe(probe.key, None if found is None else found["metrics"].get("kl"))
        self._tell(job, loop, "sensitivity")

    def _run_trials(self, job: Job, loop: SearchLoop, plans: Sequence[TrialPlan], planned_s: float = 0.0) -> None:
        for plan in plans:
            self._go_on()
            attempt = self._claim(plan)
            if attempt is None:
                self._refresh(loop)
                continue
            with logs.bind(trial=plan.idx):
                result = self._attempt(job, plan) if attempt <= rows.MAX_ATTEMPTS else poisoned(attempt)
                logged(result, planned_s)
            self._finish(job, loop, plan, result)
            self._failures.note((result.get("failure") or {}).get("kind"))

    def _go_on(self) -> None:
        """Raise what keeps a search from going on: the user's wish, or a disk without room."""
        self._wishes.check()
        check_room(self.site.blobs, self.site.disk_floor_bytes)

    def _claim(self, plan: TrialPlan) -> int | None:
        """Take a trial; return which attempt this is, or None where another runner was faster.

        Raises LostTrial where a successor took this runner's slot.
        """
        self.crew.work()
        with self._door, self.site.database.writing() as session:
            self.crew.check(session, plan.idx)
            others = self.crew.others(session)
            try:
                return rows.claim(session, self.search_id, plan_json(plan), self.crew.token, others).attempt
            except (rows.TrialFinished, rows.TrialHeld) as error:
                if self.crew.is_alone:
                    raise LostTrial(plan.idx) from error
                return None

    def _attempt(self, job: Job, plan: TrialPlan) -> Json:
        start = time.perf_counter()
        item = (plan.assignment, plan.fidelity, plan.repair or REPAIR)
        result = tried(lambda: self._attempt_item(job, item), BASELINE_TRIES if plan.idx == 0 else 1)
        return {**result, "seconds": time.perf_counter() - start}

    def _attempt_item(self, job: Job, item: tuple[Assignment, str, str]) -> Json:
        """Measure one assignment; a child that dies of it is a failure of this assignment alone."""
        try:
            return self.measure(job, [item])[0]
        except ChildDied as death:
            return {"failure": {"kind": death.kind, "detail": death.detail}}

    def _finish(self, job: Job, loop: SearchLoop, plan: TrialPlan, result: Json) -> None:
        found = result.get("measurement")
        self._refresh(loop)
        if loop.row(plan.idx).state != "running":  # this runner was thought dead, and another finished it
            return
        told = loop.tell(plan.idx, None if found is None else Measurement.from_json(found))
        costs, budget = loop.costs(plan.assignment), job.goal.budget
        ending = rows.TrialResult(
            dict(told.metrics) if told.state == "done" else None,
            None
            if told.state == "done"
            else result.get("failure") or {"kind": "not-finite", "detail": "loss not finite"},
            costs.to_json(),
            budget.violation(costs),
            budget.is_met(costs),
            result["seconds"],
        )
        stage = "baseline" if plan.idx == 0 else "search"
        fields = self._progress(job, loop, stage)
        if "baseline" in fields and found is not None:
            fields["baseline"]["warnings"] = baseline_warnings(job, found)
        with self.site.database.writing() as session:
            if rows.finish(session, self.search_id, plan.idx, self.crew.token, ending):
                rows.progress(session, self.search_id, fields)
                self.site.progressed(session)
                return
            self.crew.check(session, plan.idx)
            if self.crew.is_alone:
                raise LostTrial(plan.idx)
        self._refresh(loop, plan.idx)

    def _tell(self, job: Job, loop: SearchLoop, stage: str) -> None:
        with self.site.database.writing() as session:
            rows.progress(session, self.search_id, self._progress(job, loop, stage))

    def _progress(self, job: Job, loop: SearchLoop, stage: str) -> Json:
        done, total = loop.progress
        elapsed = time.time() - job.started
        fields: Json = {
            "stage": stage,
            "progress_done": done,
            "progress_total": total,
            "eta_s": elapsed / done * (total - done) if done else None,
        }
        if stage == "baseline" and (base := loop.row(0)).state == "done":
            fields["baseline"] = {"metrics": dict(base.metrics), "costs": loop.costs(base.assignment).to_json()}
        best = next(iter(loop.finalists(1)), None)
        if best is not None:
            costs = loop.costs(best.assignment).to_json()
            fields["best"] = {"trial_idx": best.idx, "metrics": dict(best.metrics), "costs": costs}
        return fields

    def _conclude(self, job: Job, loop: SearchLoop, measured: Measured | None) -> End:
        """Re-score the best on the hold-out pictures, export and verify them, and end the search (one runner does)."""
        self._go_on()
        finisher = Finisher(self.site, job, loop, self.measure, self._call, measured)
        if not self.crew.is_alone:
            for item in self.crew.turned(finisher.to_score()):
                self._attempt_item(job, item)
            finisher.polish_share(self.crew.slot, self.crew.size)
            if not self.crew.takes_end():
                return "finished"
        self._tell(job, loop, "holdout")
        with self.site.database.writing() as session:
            rows.progress(session, self.search_id, {"sensitivity": loop.table.to_json()})
        outcome = finisher.run()
        predictions.store(self.site, job, loop)
        with self.site.database.writing() as session:
            return "finished" if rows.complete(session, self.search_id, outcome, job.extended) else "again"

    # measuring

    def measure(
        self, job: Job, items: Sequence[tuple[Assignment, str, str]], base: Assignment | None = None
    ) -> list[Json]:
        """Return a measurement or failure per (assignment, fidelity, repair): stored ones, else the child's.

        `base` is what the assignments are changes of, where they are: the child then computes the common part once.
        """
        cache = Cache(job)
        keys = [cache.key(item) for item in items]
        with self.site.database.reading() as session:
            stored = evaluations.stored(session, keys)
        missing = [index for index, key in enumerate(keys) if key not in stored]
        found: dict[int, Json] = {}
        if missing:
            asked = [
                {
                    "assignment": items[i][0].to_json(),
                    "fidelity": items[i][1],
                    "repair": items[i][2],
                    **network_of(self.site, items[i][2]),
                }
                for i in missing
            ]
            timeout = self.site.trial_s * len(missing)
            params = {"items": asked, "base": None if base is None else base.to_json()}
            answers = self._call(job, "evaluate", params, timeout)["results"]
            found = dict(zip(missing, answers, strict=True))
            with self.site.database.writing() as session:
                for index in sorted(found, key=keys.__getitem__):  # one order everywhere: no deadlocks
                    if "measurement" in found[index]:
                        evaluations.store(session, cache.entry(items[index], found[index]["measurement"]))
                self.site.progressed(session)
        return [found.get(i) or {"measurement": stored[key]} for i, key in enumerate(keys)]

    def _call(self, job: Job, method: str, params: Json, timeout_s: float) -> Json:
        self._wishes.check()
        try:
            child = self._opened(job)
            result: Json = child.call(method, params, timeout_s, self._is_cancelled)
        except ChildDied as death:
            self.close()
            if death.kind == "cancelled":
                self._wishes.check()
            raise
        except ChildRefused as refusal:
            raise GivenUp(problem(refusal.slug, refusal.detail, refusal.errors)) from refusal
        return result

    def _opened(self, job: Job) -> Child:
        """Return the child with the network open; a dead one is replaced."""
        if self._child is None or not self._child.alive:
            self.close()
            self._child = Child(self.site.limits)
            self._child.call("open", job.opening, OPEN_S, self._is_cancelled)
        return self._child

    def _is_cancelled(self) -> bool:
        self.crew.beat()
        return self._wishes.end_now
