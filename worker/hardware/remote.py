"""Measuring on another machine: jobs are rows that an agent works on through the service."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from app.store import blobs, measuring
from app.store.tables import Agent, Measuring
from worker.hardware.measure import Latency
from worker.hardware.measuring import ROUNDS, Bench
from worker.job import Cancelled, GivenUp, Site, problem

Json = dict[str, Any]
POLL_S, SILENT_S = 0.3, 60.0


@dataclass(frozen=True)
class Waiting:
    """How an answer is waited for: whether it is still wanted, seconds for one job, and seconds an agent may be silent.

    `owner` names what measures; asked again after a restart, it gets the jobs that it asked for before.
    """

    owner: str | None = None
    is_cancelled: Callable[[], bool] = lambda: False
    timeout_s: float = 1800.0
    silent_s: float = SILENT_S


class RemoteMeasurer:
    """Measures on the machine of an agent (the protocol `worker.hardware.measuring.Measurer`).

    Raises GivenUp (agent-silent, agent-gone, measuring-failed) where no answer can come, Cancelled where none is
    wanted any more.
    """

    def __init__(self, site: Site, agent_id: str, rounds: int = ROUNDS, waiting: Waiting = Waiting()) -> None:
        self._site, self._agent_id, self._rounds, self._waiting = site, agent_id, rounds, waiting
        self._asked = 0
        self._conditions: Json = {}

    def time(self, benches: Sequence[Bench]) -> dict[str, Latency]:
        """Return the latency of each bench by id."""
        return {key: Latency.from_json(item["latency"]) for key, item in self._measured("time", benches).items()}

    def kernels(self, benches: Sequence[Bench]) -> dict[str, dict[str, float]]:
        """Return by bench id the milliseconds of each kernel by node name."""
        return {key: dict(item["kernels"]) for key, item in self._measured("kernels", benches).items()}

    def conditions(self) -> Json:
        """Return what the figures depend on, as the agent said with its last results."""
        if self._conditions:
            return self._conditions
        with self._site.database.reading() as session:
            return dict(session.get_one(Agent, self._agent_id).host)

    def _measured(self, kind: str, benches: Sequence[Bench]) -> Json:
        job_id = self._ask(kind, benches)
        try:
            row = self._wait(job_id)
        except (GivenUp, Cancelled) as reason:
            self._end(job_id, reason)
            raise
        self._conditions = row.conditions or {}
        results = {bench.id: row.results[str(index)] for index, bench in enumerate(benches)}
        failed = {key: item["problem"]["detail"] for key, item in results.items() if "problem" in item}
        if failed:
            told = "; ".join(f"{key}: {detail}" for key, detail in [*failed.items()][:5])
            raise GivenUp(problem("measuring-failed", f"{len(failed)} of {len(row.items)} networks: {told}"))
        return results

    def _ask(self, kind: str, benches: Sequence[Bench]) -> str:
        """Store the files and queue the job, or find the one asked for before a restart; return its id."""
        items = [self._item(str(index), bench) for index, bench in enumerate(benches)]
        self._asked += 1
        text = json.dumps([self._waiting.owner, self._agent_id, self._asked, kind, self._rounds, items])
        key = hashlib.sha256(text.encode()).hexdigest() if self._waiting.owner else None
        with self._site.database.writing() as session:
            known = None if key is None else measuring.asked(session, key)
            if known is not None:
                return known.id
            for bench, item in zip(benches, items, strict=True):
                blobs.record(session, item["sha256"], len(bench.model))
            row = measuring.ask(session, self._agent_id, kind, items, self._rounds)
            row.key = key
            return row.id

    def _item(self, name: str, bench: Bench) -> Json:
        return {"id": name, "sha256": self._site.blobs.put(bench.model), "inputs": bench.ports}

    def _wait(self, job_id: str) -> Measuring:
        start = time.monotonic()
        while True:
            with self._site.database.reading() as session:
                row = session.get_one(Measuring, job_id)
                silence = measuring.silence_s(session, self._agent_id)
            if row.state == "done":
                return row
            self._check(row, silence, time.monotonic() - start)
            time.sleep(POLL_S)

    def _check(self, row: Measuring, silence: float | None, waited_s: float) -> None:
        if row.state == "cancelled" or self._waiting.is_cancelled():
            raise Cancelled
        if row.state == "failed":
            raise GivenUp(row.problem or problem("measuring-failed", "the measurement failed"))
        if silence is None:
            raise GivenUp(problem("agent-gone", f"agent {self._agent_id} was removed"))
        if silence > self._waiting.silent_s:
            raise GivenUp(problem("agent-silent", f"agent {self._agent_id} was last heard of {silence:.0f} s ago"))
        if waited_s > self._waiting.timeout_s:
            raise GivenUp(problem("measuring-failed", f"not within {self._waiting.timeout_s:.0f} s"))

    def _end(self, job_id: str, reason: GivenUp | Cancelled) -> None:
        """End a job that nobody waits for any more, so that its agent stops too."""
        with self._site.database.writing() as session:
            row = session.get(Measuring, job_id, with_for_update=True)
            if row is not None and row.state in measuring.OPEN:
                lost = reason.problem if isinstance(reason, GivenUp) else None
                measuring.end(row, "failed" if lost else "cancelled", lost)
