"""The durable engine's configuration: DBOS on our own SQLite engine (or PostgreSQL), stable worker ids."""

from __future__ import annotations

import logging
import os
import socket

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer

from app import queue
from app.queue import APPLICATION, APPLICATION_VERSION, CONTROL, TRIALS
from app.store.engine import IDLE_S, Database

POLL_S = 0.3
SCHEDULER_POLL_S = 5.0


def default_executor_id() -> str:
    """Return this host's id for a worker that was not given one. Two workers need two ids."""
    return os.environ.get("TIGHTFIT_EXECUTOR_ID") or f"{socket.gethostname()}-0"


def launch(database: Database, executor_id: str, concurrency: int = 1, most: int | None = None) -> None:
    """Start DBOS in this process: our engine on SQLite (limits hold across processes only under BEGIN IMMEDIATE).

    `concurrency` slices of searches run in this process at a time, `most` in all processes together. Workflows must be
    registered before. Migrations ran before; DBOS does not repeat them.
    """
    logging.getLogger("dbos").setLevel(logging.WARNING)
    config = DBOSConfig(
        name=APPLICATION,
        system_database_url=queue.plain(database.url),
        executor_id=executor_id,
        application_version=APPLICATION_VERSION,
        scheduler_polling_interval_sec=SCHEDULER_POLL_S,
        run_migrations=False,
        serializer=DBOSPortableJSONSerializer(),  # as in app.queue: nothing is ever unpickled
        log_level="WARNING",
        sys_db_idle_transaction_timeout_sec=IDLE_S,
    )
    if database.url.startswith("sqlite"):
        config["system_database_engine"] = database.write
    DBOS(config=config)
    DBOS.listen_queues([CONTROL, TRIALS])
    DBOS.launch()
    DBOS.register_queue(CONTROL, worker_concurrency=2, polling_interval_sec=POLL_S)
    DBOS.register_queue(TRIALS, worker_concurrency=concurrency, global_concurrency=most, polling_interval_sec=POLL_S)
