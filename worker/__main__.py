"""`python -m worker`: one worker process. SIGTERM ends it at once; what it was doing is taken up again from rows."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
from types import FrameType

from app import queue
from app.settings import Settings
from app.store.engine import Database, connect
from app.store.migrate import upgrade
from app.store.runner import beat, silent_workers
from worker import jobs
from worker.engine import default_executor_id, launch

BEAT_S = 5.0
log = logging.getLogger("tightfit.worker")


def main(arguments: list[str] | None = None) -> int:
    """Run until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m worker")
    parser.add_argument("--executor-id", default=default_executor_id(), help="stable id; two workers need two ids")
    parser.add_argument("--concurrency", type=int, default=1, help="searches at a time")
    parser.add_argument("--supervised", action="store_true", help="end when the parent process is gone")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    settings = Settings()
    upgrade(settings.database_url)
    database = connect(settings.database_url)
    jobs.install(settings, database)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    with database.writing() as session:
        beat(session, options.executor_id, socket.gethostname(), os.getpid())
    launch(database, options.executor_id, options.concurrency)
    log.info("worker %s is ready", options.executor_id)
    _watch(database, settings, options.executor_id, os.getppid() if options.supervised else None)
    return 0


def _watch(database: Database, settings: Settings, executor_id: str, parent: int | None) -> None:
    """Beat, and move the work of workers that fell silent; ends with the supervisor `parent`, where there is one.

    A worker that outlived a killed supervisor would share its id with the one the next supervisor starts.
    """
    pause, every_s = threading.Event(), min(BEAT_S, settings.worker_silence_s / 4)
    while not pause.wait(every_s) and parent in (None, os.getppid()):
        try:
            with database.writing() as session:
                beat(session, executor_id, socket.gethostname(), os.getpid())
            with database.reading() as session:
                dead = silent_workers(session, settings.worker_silence_s, executor_id)
            if dead:
                queue.adopt(jobs.context().client, dead)
        except Exception:  # a database that is away for a while must not end the worker
            log.exception("heartbeat failed")


def _stop(_signal: int, _frame: FrameType | None) -> None:
    """Leave at once: workflows stay pending and are recovered from their rows.

    The children see that and end by themselves; killing them here would let their trials be stored as failed.
    """
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
