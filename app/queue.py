"""The only file of the service that knows the durable engine: names, and a client that enqueues in a transaction."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import sqlalchemy as sa
from croniter import croniter  # type: ignore[import-untyped]  # the durable engine's own parser
from dbos import DBOSClient, DBOSPortableJSONSerializer
from sqlalchemy.orm import Session

from app.store import turns
from app.store.engine import Database, is_read_only

APPLICATION = "tightfit"
APPLICATION_VERSION = "1"
CONTROL, TRIALS = "control", "trials"
INSPECT_MODEL, INSPECT_DATASET = "inspect_model", "inspect_dataset"
RUN_SEARCH, EXPORT_CANDIDATE, FIRE_SCHEDULE = "run_search", "export_candidate", "fire_schedule"
CALIBRATE = "calibrate"


def client(database: Database) -> DBOSClient:
    """Return a client on the database's own engine, the one for reads where it can't be written."""
    try:
        return _client(database, database.write)
    except sa.exc.DBAPIError as error:
        if not is_read_only(error):
            raise
        return _client(database, database.read)


def _client(database: Database, engine: sa.Engine) -> DBOSClient:
    return DBOSClient(
        system_database_engine=engine,
        system_database_url=plain(database.url),
        application_name=APPLICATION,
        serializer=DBOSPortableJSONSerializer(),  # the default pickles: who writes the database could run code
    )


def plain(url: str) -> str:
    """Return a database URL without driver name: the engine picks its own."""
    return url.replace("postgresql+psycopg://", "postgresql://")


def enqueue(client: DBOSClient, session: Session, workflow: str, workflow_id: str, *args: str) -> None:
    """Enqueue a workflow in the caller's transaction. Arguments are texts, stored as JSON: nothing is unpickled."""
    client.enqueue_in_transaction(session, _options(workflow, CONTROL, workflow_id), *args)


def _options(workflow: str, queue_name: str, workflow_id: str) -> Any:
    return {
        "workflow_name": workflow,
        "queue_name": queue_name,
        "workflow_id": workflow_id,
        "app_version": APPLICATION_VERSION,
        "serialization_type": "portable",
    }


def enqueue_slice(client: DBOSClient, session: Session, search_id: str, slot: int = 0) -> None:
    """Enqueue the next slice of one of a search's runners under an id of its own: asking twice runs it once."""
    number, place = turns.take(session, search_id)
    options = _options(RUN_SEARCH, TRIALS, f"{search_id}-r{slot}-s{number}")
    options["priority"] = place
    client.enqueue_in_transaction(session, options, search_id, str(slot))


def drop_slices(client: DBOSClient, search_id: str, last: int) -> None:
    """Take a search's waiting slices up to number `last` off the queue; those that run are not touched."""
    waiting = client.list_workflows(
        status="ENQUEUED", workflow_id_prefix=f"{search_id}-r", load_input=False, load_output=False
    )
    old = [item.workflow_id for item in waiting if int(item.workflow_id.rpartition("-s")[2]) <= last]
    if old:
        client.cancel_workflows(old)


def adopt(client: DBOSClient, executors: list[str]) -> list[str]:
    """Put the unfinished work of silent workers back on its queues; return the workflow ids."""
    moved: list[str] = []
    pending = client.list_workflows(status="PENDING", executor_id=executors, load_input=False, load_output=False)
    for item in pending:
        client.resume_workflows([item.workflow_id], queue_name=item.queue_name or CONTROL)
        moved.append(item.workflow_id)
    return moved


def holders(client: DBOSClient) -> set[str]:
    """Return the ids of the workers that hold unfinished work."""
    pending = client.list_workflows(status="PENDING", load_input=False, load_output=False)
    return {item.executor_id for item in pending if item.executor_id is not None}


def is_waiting_or_running(client: DBOSClient, search_id: str) -> bool:
    """Tell whether a slice of a search is on the queue or in a worker's hands."""
    found = client.list_workflows(
        status=["ENQUEUED", "PENDING", "DELAYED"], workflow_id_prefix=f"{search_id}-r", limit=1, load_input=False,
        load_output=False,
    )  # fmt: skip
    return bool(found)


def dead(client: DBOSClient) -> list[tuple[str, str]]:
    """Return (workflow, id of what it was about) of all that was given up after too many deaths of its workers."""
    status = "MAX_RECOVERY_ATTEMPTS_EXCEEDED"
    found = client.list_workflows(status=status, load_input=False, load_output=False)
    return [(item.name, item.workflow_id.split("-")[0]) for item in found]


def depths(client: DBOSClient) -> dict[str, tuple[int, float]]:
    """Return how much waits on each queue, and for how long the oldest of it has (seconds)."""
    found = dict.fromkeys((CONTROL, TRIALS), (0, 0.0))
    for item in client.list_workflows(status="ENQUEUED", queues_only=True, load_input=False, load_output=False):
        if item.queue_name in found:
            count, oldest = found[item.queue_name]
            age_s = max(0.0, time.time() - (item.created_at or 0) / 1e3)
            found[item.queue_name] = (count + 1, max(oldest, age_s))
    return found


def put_schedule(client: DBOSClient, schedule_id: str, cron: str, timezone: str) -> None:
    """Create or replace the cron schedule that fires `fire_schedule` with this id."""
    remove_schedule(client, schedule_id)
    client.create_schedule(
        schedule_name=schedule_id,
        workflow_name=FIRE_SCHEDULE,
        schedule=cron,
        context=schedule_id,
        cron_timezone=timezone,
        queue_name=CONTROL,
    )


def schedules(client: DBOSClient) -> set[str]:
    """Return the ids of the cron schedules."""
    return {item["schedule_name"] for item in client.list_schedules(workflow_name=FIRE_SCHEDULE)}


def check_cron(cron: str, timezone: str) -> None:
    """Raise ValueError for a cron expression (5 fields, or 6 with seconds first) or time zone that is not valid."""
    if not croniter.is_valid(cron, second_at_beginning=True):
        raise ValueError(f"{cron!r} is no cron expression")
    fires = croniter(cron, datetime(2026, 1, 1), second_at_beginning=True)
    times = [fires.get_next(datetime) for _ in range(5)]
    if any(later - earlier < timedelta(minutes=1) for earlier, later in pairwise(times)):
        raise ValueError(f"{cron!r} fires more than once a minute")
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{timezone!r} is no time zone") from error


def remove_schedule(client: DBOSClient, schedule_id: str) -> None:
    """Remove a cron schedule, if it exists."""
    if client.get_schedule(schedule_id) is not None:
        client.delete_schedule(schedule_id)
