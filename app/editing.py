"""The verbs that change or remove what is there: names, schedules, uploads with the searches on them.

Each takes a `check`, called in the transaction with the row as it is: what it raises leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app import actions, queue
from app.actions import Service
from app.domain.lifecycle import SearchState
from app.problems import Problem
from app.store import notices, query
from app.store.engine import afterwards
from app.store.tables import Candidate, Dataset, Fleet, Model, Schedule, Search

Json = dict[str, Any]
Check = Callable[[Any], None]
NAMED = 100


def _locked(session: Session, table: Any, key: str, check: Check) -> Any:
    row = session.get(table, key, with_for_update=True)
    if row is None:
        raise Problem("not-found", f"no {table.__tablename__} {key[:64]!r}")
    check(row)
    return row


def rename(service: Service, table: type[Model] | type[Dataset], key: str, name: str, check: Check) -> Any:
    """Give a model or dataset another name. Raises Problem not-found."""
    with service.database.writing() as session:
        row = _locked(session, table, key, check)
        row.name = name
        return row


def delete_upload(
    service: Service, table: type[Model] | type[Dataset], key: str, check: Check, cascade: bool = False
) -> list[str]:
    """Delete a model or dataset that no search has used, nor a weights version was made from.

    With `cascade` its searches end and go with it; ids of those that still end are returned, and nothing is deleted
    yet: ask again. Raises Problem not-found or in-use.
    """
    with service.database.joining() as session:
        row = _locked(session, table, key, check)
        versions = [item.id for item in query.page(session, Model, NAMED, base_id=key)] if table is Model else []
        if versions:
            raise _in_use("weights versions were made from it", versions)
        used = _searches(session, table, key)
        if used and not cascade:
            raise _in_use("searches use it", used)
        pending = _ended(service, session, used)
        if not pending:
            _delete_searches(session, used)
            session.delete(row)
        return pending


def _in_use(why: str, ids: Sequence[str]) -> Problem:
    return Problem("in-use", f"{why}: {list(ids[:5])}", extra={"ids": list(ids[:NAMED])})


def _searches(session: Session, table: type[Model] | type[Dataset], key: str) -> list[str]:
    if table is Dataset:
        return query.searches_on(session, key)
    return list(session.scalars(sa.select(Search.id).where(Search.model_id == key).order_by(Search.id.desc())))


def _ended(service: Service, session: Session, ids: Sequence[str]) -> list[str]:
    """Cancel the searches that are not finished; return those that still are not."""
    exporting = sa.select(Candidate.id).where(
        Candidate.search_id.in_(ids), Candidate.export_state.in_(("queued", "running"))
    )
    if busy := list(session.scalars(exporting)):
        raise _in_use("candidates are being exported", busy)
    pending = []
    for row in session.scalars(sa.select(Search).where(Search.id.in_(ids), Search.state.in_(query.LIVE))).all():
        ended, _ = actions.cancel_search(service, row.id)
        if not SearchState(ended.state).is_finished:
            pending.append(row.id)
    return pending


def _delete_searches(session: Session, ids: Sequence[str]) -> None:
    """Delete searches with all that hangs on them, and fleets that have none left."""
    fleets = set(session.scalars(sa.select(Search.fleet_id).where(Search.id.in_(ids), Search.fleet_id.is_not(None))))
    gone = session.execute(
        sa.delete(Search).where(Search.id.in_(ids)).returning(Search.id, Search.owner_id),
        execution_options={"synchronize_session": False},
    )
    notices.removed(session, "search", [(key, owner_id) for key, owner_id in gone])
    left = sa.exists().where(Search.fleet_id == Fleet.id)
    gone = session.execute(
        sa.delete(Fleet).where(Fleet.id.in_(fleets), ~left).returning(Fleet.id, Fleet.owner_id),
        execution_options={"synchronize_session": False},
    )
    notices.removed(session, "fleet", [(key, owner_id) for key, owner_id in gone])


def change_schedule(service: Service, key: str, change: Json, check: Check) -> Schedule:
    """Rename a schedule, or switch it off or on. Raises Problem not-found."""
    with service.database.writing() as session:
        row: Schedule = _locked(session, Schedule, key, check)
        for field, value in change.items():
            setattr(row, field, value)
        if change.get("enabled") is True:
            afterwards(session, lambda: queue.put_schedule(service.client, row.id, row.cron, row.timezone))
        elif change.get("enabled") is False:
            afterwards(session, lambda: queue.remove_schedule(service.client, row.id))
        return row


def delete_schedule(service: Service, key: str, check: Check) -> None:
    """Remove a schedule; its searches stay. Raises Problem not-found."""
    with service.database.writing() as session:
        session.delete(_locked(session, Schedule, key, check))
        afterwards(session, lambda: queue.remove_schedule(service.client, key))
