"""`python -m worker`: one worker process. SIGTERM gives its work back to the queue and ends it within two seconds.

What it was doing is taken up again from rows, by itself or another. Workers that fell silent are noticed by the others:
their work moves within a minute. Silence is measured by this process's own monotonic clock, as the time in which a
worker's last sign did not change: clocks that jump or differ requeue nothing.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping

from app import logs, mending, queue
from app.settings import Settings
from app.store.engine import Database, connect
from app.store.migrate import OtherVersion, upgrade
from app.store.notices import prune
from app.store.runner import beat, leave, others
from app.store.sweep import sweep
from worker import jobs
from worker.engine import default_executor_id, launch

BEAT_S = 5.0
NICE = 10
"""How far a worker and its trials give way to the service that they run beside: requests are answered first."""
MEND_S, SWEEP_S, FIRST_SWEEP_S = 60.0, 3600.0, 300.0
INFO = {"jobs": queue.APPLICATION_VERSION}
"""What others are told of this worker: it leaves jobs of other versions alone."""
log = logging.getLogger("tightfit.worker")


def main(arguments: list[str] | None = None) -> int:
    """Run until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m worker")
    parser.add_argument("--executor-id", default=default_executor_id(), help="stable id; two workers need two ids")
    parser.add_argument("--concurrency", type=int, default=1, help="searches at a time")
    parser.add_argument("--supervised", action="store_true", help="end when the parent process is gone")
    options = parser.parse_args(arguments)
    if options.supervised:
        os.nice(NICE)
    settings = Settings()
    logs.configure(settings)
    try:
        upgrade(settings.database_url)
    except OtherVersion as error:
        print(f"worker {options.executor_id} does not start: {error}", file=sys.stderr)
        return 1
    database = connect(settings.database_url)
    jobs.install(settings, database)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with database.writing() as session:
        beat(session, options.executor_id, socket.gethostname(), os.getpid(), INFO)
    launch(database, options.executor_id, options.concurrency, settings.max_running)
    log.info("worker %s is ready for jobs of version %s", options.executor_id, queue.APPLICATION_VERSION)
    watch = Watch(database, settings, options.executor_id, os.getppid() if options.supervised else None)
    watch.run(stopping)
    if stopping.is_set():
        watch.give_back()
    sys.stderr.flush()
    os._exit(0)  # threads of workflows never end by themselves; the children see that and do


class Silence:
    """Tells which workers have given no new sign for a while, by a clock of its own."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._signs: dict[str, tuple[object, float]] = {}

    def of(self, signs: Mapping[str, object], at: float) -> list[str]:
        """Take in the latest sign of each worker at moment `at` (seconds); return those that are silent."""
        kept = {name: self._signs.get(name, (None, at)) for name in signs}
        self._signs = {name: old if old[0] == signs[name] else (signs[name], at) for name, old in kept.items()}
        return sorted(name for name, (_, since) in self._signs.items() if at - since > self._silence_s)


class Watch:
    """Tells that this worker lives, and moves the work of others that do not."""

    def __init__(self, database: Database, settings: Settings, executor_id: str, parent: int | None) -> None:
        self._database, self._settings, self._executor_id, self._parent = database, settings, executor_id, parent
        self._silence = Silence(settings.worker_silence_s)
        self._mend_at, self._sweep_at = time.monotonic() + MEND_S, time.monotonic() + FIRST_SWEEP_S

    def run(self, stopping: threading.Event) -> None:
        """Beat until told to stop, or until the supervisor `parent`, where there is one, is gone.

        A worker that outlived a killed supervisor would share its id with the one the next supervisor starts.
        """
        every_s = min(BEAT_S, self._settings.worker_silence_s / 4)
        while not stopping.wait(every_s) and self._parent in (None, os.getppid()):
            try:
                self._beat()
                self._keep_house()
            except Exception:  # a database that is away for a while must not end the worker
                log.exception("heartbeat failed")
                self._silence = Silence(self._settings.worker_silence_s)  # nor does its absence make others silent

    def _beat(self) -> None:
        with self._database.writing() as session:
            beat(session, self._executor_id, socket.gethostname(), os.getpid(), INFO)
        with self._database.reading() as session:
            signs: dict[str, object] = {**others(session, self._executor_id)}
        unknown = queue.holders(jobs.context().client) - {*signs, self._executor_id}
        signs |= dict.fromkeys(unknown)  # whoever holds work and never gave a sign is silent, too
        silent = self._silence.of(signs, time.monotonic())
        if silent and (moved := queue.adopt(jobs.context().client, silent)):
            log.warning("workers %s are silent: moved %s", silent, moved)

    def _keep_house(self) -> None:
        """Mend once a minute, sweep once an hour."""
        at = time.monotonic()
        if at >= self._mend_at:
            self._mend_at = at + MEND_S
            if mended := mending.mend(jobs.context().service):
                log.warning("mended %s", mended)
        if at >= self._sweep_at:
            self._sweep_at = at + SWEEP_S
            log.info("swept: %s", sweep(self._database, jobs.context().site.blobs, self._settings.data_dir))
            with self._database.writing() as session:
                prune(session, self._settings.notices_s, self._settings.audit_s)

    def give_back(self) -> None:
        """Put this worker's unfinished work back on its queues, as no attempt; a killed worker's is found later."""
        try:
            running = list(jobs.context().running)
            for runner in running:  # before others may begin: a trial that is still held would be an attempt of theirs
                runner.hold()
            moved = queue.adopt(jobs.context().client, [self._executor_id])
            for runner in running:
                runner.crew.leave()
            with self._database.writing() as session:
                leave(session, self._executor_id)
            log.info("worker %s leaves %s to others", self._executor_id, moved)
        except Exception:
            log.exception("the work could not be given back; it is found when this worker is missed")


if __name__ == "__main__":
    sys.exit(main())
