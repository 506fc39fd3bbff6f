"""`python -m worker.hardware.agent`: measures networks on this machine for a tightfit service elsewhere.

Needs Python, numpy, onnxruntime and httpx; no torch, no onnx, no open port. The agent pulls jobs, downloads models,
measures them and posts each result as it comes; a killed one goes on with the items that have no result yet.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from worker.hardware.link import Gone, Link, default_file, enrolled
from worker.hardware.measuring import Bench, LocalMeasurer

Json = dict[str, Any]
GROUP = 12
BEAT_S, WAIT_S = 3.0, 20.0
MAX_DETAIL = 1000


class Stopping(BaseException):
    """A signal asks the agent to end."""


class Heart(threading.Thread):
    """Tells the service every few seconds that this process lives; notes when it no longer has its job."""

    def __init__(self, link: Link, session: str) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._link, self._session = link, session
        self._job: str | None = None
        self.lost = threading.Event()
        self.gone = threading.Event()

    def take(self, job: str | None) -> None:
        """Beat for a job from now on (None: for the agent alone)."""
        self.lost.clear()
        self._job = job

    def run(self) -> None:
        """Beat until the process ends."""
        pause = threading.Event()
        while not pause.wait(BEAT_S):
            job = self._job
            try:
                held = self._link.beat(self._session, job)
            except Gone:
                self.gone.set()
                self.lost.set()
                return
            if held is False and job == self._job:
                self.lost.set()

    def leave(self) -> None:
        """Give the job back, so that the next process need not wait for the lease to run out."""
        self._link.beat(self._session, self._job, leaving=True)


class Agent:
    """Works on the jobs of one service, one at a time."""

    def __init__(self, link: Link, say: Any) -> None:
        self._link, self._say = link, say
        self.session = uuid.uuid4().hex
        self.heart = Heart(link, self.session)

    def run(self, once: bool = False) -> None:
        """Pull and work until a signal comes; with `once` until no job came for a while. Raises Gone when removed."""
        self.heart.start()
        while True:
            job = self._link.pull(self.session, WAIT_S)
            if job is not None:
                self.work(job)
            elif once:
                return

    def work(self, job: Json) -> None:
        """Measure a job's items group by group; stop where the job was cancelled or taken by another process."""
        self.heart.take(job["id"])
        done, total = job["done"], job["done"] + len(job["items"])
        for group in groups(job):
            self._say(job, done, total)
            results = self._measured(job, group)
            if self.heart.lost.is_set() or not self._link.post(job["id"], self.session, results):
                break
            done += len(group)
            self._say(job, done, total)
        self.heart.take(None)

    def _measured(self, job: Json, items: Sequence[Json]) -> Json:
        """Return the results of a group and its conditions; where it fails, each item by itself tells which it was."""
        measurer = LocalMeasurer(rounds=job["rounds"])
        try:
            results = measure_items(measurer, job["kind"], [self._bench(job, item) for item in items])
        except Exception as error:  # onnxruntime's exceptions share no public base class
            if len(items) == 1:
                results = {items[0]["id"]: {"problem": {"detail": f"{type(error).__name__}: {error}"[:MAX_DETAIL]}}}
            else:
                results = {}
                for item in items:
                    results |= self._measured(job, [item])["results"]
        return {"results": results, "conditions": measurer.conditions()}

    def _bench(self, job: Json, item: Json) -> Bench:
        return Bench.told(item["id"], self._link.model(job["id"], item["id"], item["sha256"]), item["inputs"])


def groups(job: Json) -> Iterator[Sequence[Json]]:
    """Return a job's items in parts: networks that are timed against each other, or one to be profiled."""
    size = GROUP if job["kind"] == "time" else 1
    for start in range(0, len(job["items"]), size):
        yield job["items"][start : start + size]


def measure_items(measurer: LocalMeasurer, kind: str, benches: Sequence[Bench]) -> Json:
    """Return the result of each bench by id. Raises what onnxruntime raises."""
    if kind == "time":
        return {key: {"latency": found.to_json()} for key, found in measurer.time(benches).items()}
    return {key: {"kernels": found} for key, found in measurer.kernels(benches).items()}


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise Stopping


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tightfit agent", description="Measure networks here for a service elsewhere."
    )
    parser.add_argument("--url", help="address of the service (known once enrolled)")
    parser.add_argument("--code", help="one-time code of: tightfit agents enrol (known once enrolled)")
    parser.add_argument("--name", help="name of this agent (default: the host's)")
    parser.add_argument("--file", type=Path, default=default_file(), help="where the token is kept, mode 0600")
    parser.add_argument("--once", action="store_true", help="end when there is nothing to do")
    return parser.parse_args(given)


def _line(job: Json, done: int, total: int) -> None:
    """Show how far a job is: one line that moves on a terminal, lines elsewhere."""
    text = f"{job['id']}  {job['kind']}  {done}/{total}"
    if sys.stdout.isatty():
        from rich.console import Console

        end = "\n" if done == total else "\r"
        Console(highlight=False).print(text, end=end, soft_wrap=True)
    else:
        print(text, flush=True)


def main(given: Sequence[str] | None = None) -> int:
    """Enrol where needed, then work; return the exit code: 0 ended well, 1 not enrolled or removed."""
    options = _arguments(given)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    agent: Agent | None = None
    try:
        link = enrolled(options.file, options.url, options.code, options.name)
        print(f"agent {link.agent_id} works for {link.url}", flush=True)
        agent = Agent(link, _line)
        agent.run(options.once)
    except Gone as reason:
        print(f"tightfit agent: {reason}", file=sys.stderr)
        return 1
    except Stopping:
        if agent is not None:
            agent.heart.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
