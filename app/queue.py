"""The only file of the service that knows the durable engine: names, and a client that enqueues in a transaction."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import sqlalchemy as sa
from croniter import croniter  # type: ignore[import-untyped]  # the durable engine's own parser
from dbos import DBOSClient, DBOSPortableJSONSerializer
from sqlalchemy.orm import Session

from app.store.engine import Database
from app.store.tables import Search

APPLICATION = "tightfit"
APPLICATION_VERSION = "1"
CONTROL, TRIALS = "control", "trials"
INSPECT_MODEL, INSPECT_DATASET = "inspect_model", "inspect_dataset"
RUN_SEARCH, EXPORT_CANDIDATE, FIRE_SCHEDULE = "run_search", "export_candidate", "fire_schedule"
CALIBRATE = "calibrate"


def client(database: Database) -> DBOSClient:
    """Return a client on the database's own engine (migrations must have run)."""
    return DBOSClient(
        system_database_engine=database.write,
        system_database_url=plain(database.url),
        application_name=APPLICATION,
        serializer=DBOSPortableJSONSerializer(),  # the default pickles: who writes the database could run code
    )


def plain(url: str) -> str:
    """Return a database URL without driver name: the engine picks its own."""
    return url.replace("postgresql+psycopg://", "postgresql://")


def enqueue(client: DBOSClient, session: Session, workflow: str, workflow_id: str, *args: str) -> None:
    """Enqueue a workflow in the caller's transaction. Arguments are texts, stored as JSON: nothing is unpickled."""
    queue_name = TRIALS if workflow == RUN_SEARCH else CONTROL
    options: Any = {
        "workflow_name": workflow,
        "queue_name": queue_name,
        "workflow_id": workflow_id,
        "app_version": APPLICATION_VERSION,
        "serialization_type": "portable",
    }
    client.enqueue_in_transaction(session, options, *args)


def enqueue_slice(client: DBOSClient, session: Session, search_id: str, slot: int = 0) -> None:
    """Enqueue the next slice of one of a search's runners under an id of its own: asking twice runs it once."""
    number = session.execute(
        sa.update(Search).where(Search.id == search_id).values(slice=Search.slice + 1).returning(Search.slice)
    ).scalar_one()
    enqueue(client, session, RUN_SEARCH, f"{search_id}-r{slot}-s{number}", search_id, str(slot))


def adopt(client: DBOSClient, executors: list[str]) -> list[str]:
    """Put the unfinished work of silent workers back on its queues; return the workflow ids."""
    moved: list[str] = []
    pending = client.list_workflows(status="PENDING", executor_id=executors, load_input=False, load_output=False)
    for item in pending:
        client.resume_workflows([item.workflow_id], queue_name=item.queue_name or CONTROL)
        moved.append(item.workflow_id)
    return moved


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
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{timezone!r} is no time zone") from error


def remove_schedule(client: DBOSClient, schedule_id: str) -> None:
    """Remove a cron schedule, if it exists."""
    if client.get_schedule(schedule_id) is not None:
        client.delete_schedule(schedule_id)
