"""The verbs that steer a search on its way: pause, resume, extend, put in order. What was measured is always kept.

Each is one transaction on the search's locked row. Runners read what is wanted at every trial.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from app import fleets, queue
from app.actions import Service, runners_of
from app.domain.demand import demand_of
from app.domain.lifecycle import SearchState
from app.problems import Problem, field_error
from app.store import events, query, runners
from app.store.engine import afterwards
from app.store.tables import Search, now

Json = dict[str, Any]


def pause_search(service: Service, search_id: str) -> tuple[Search, bool]:
    """Ask a search to pause; return it and whether it was paused (or about to be) before. Idempotent.

    Raises Problem not-found or already-finished.
    """
    with service.database.writing() as session:
        row = _open(session, search_id)
        if row.state in (SearchState.pausing, SearchState.paused):
            row.error = None  # whatever else it pauses for, it now waits for the user
            return row, True
        row.desired = "pause"
        if row.state == SearchState.queued:
            runners.pause(row)
        else:
            row.state = SearchState.pausing
        _told(session, row)
        before = row.slice
        afterwards(session, lambda: queue.drop_slices(service.client, search_id, before))
        return row, False


def resume_search(service: Service, search_id: str) -> tuple[Search, bool]:
    """Let a paused search go on; return it and whether it was going on anyway. Idempotent.

    Raises Problem not-found or already-finished.
    """
    with service.database.joining() as session:
        row = _open(session, search_id)
        if row.state not in (SearchState.pausing, SearchState.paused):
            return row, True
        row.desired, row.error = "run", None
        if row.state == SearchState.paused:
            row.state = SearchState.queued
            _rest(row, row.paused_at)
        else:
            row.state = SearchState.running
        _told(session, row)
        _enqueue(service, session, row)
        return row, False


def extend_search(service: Service, search_id: str, trials: int | None, max_wall_s: float | None) -> Search:
    """Give a search more trials or time, as new totals; one that is completed goes on.

    Raises Problem not-found, already-finished (failed or cancelled) or invalid-limits.
    """
    with service.database.joining() as session:
        row = _row(session, search_id)
        if row.state in (SearchState.failed, SearchState.cancelled, SearchState.cancelling):
            raise Problem("already-finished", f"the search is {row.state}")
        row.extended = _extension(service, row, trials, max_wall_s)
        events.append(session, row.id, "extended", row.extended)
        if row.state == SearchState.completed:
            row.state, row.desired, row.outcome, row.finisher = SearchState.queued, "run", None, None
            _rest(row, row.finished_at)
            row.finished_at = None
            _told(session, row)
            _enqueue(service, session, row)
        return row


def prioritise_search(service: Service, search_id: str, priority: int) -> Search:
    """Put a search into another priority, 1 (served first) to 5. Raises Problem not-found or already-finished."""
    with service.database.joining() as session:
        row = _open(session, search_id)
        if row.priority != priority:
            row.priority, row.turn = priority, None
            events.append(session, row.id, "priority", {"priority": priority})
            if row.state in (SearchState.queued, SearchState.running):
                before = row.slice
                _enqueue(service, session, row)
                afterwards(session, lambda: queue.drop_slices(service.client, search_id, before))
        return row


def _row(session: Session, search_id: str) -> Search:
    row = session.get(Search, search_id, with_for_update=True)
    if row is None:
        raise Problem("not-found", f"no search {search_id[:64]!r}")
    return row


def _open(session: Session, search_id: str) -> Search:
    """Return a search that can still be steered."""
    row = _row(session, search_id)
    if SearchState(row.state).is_finished or row.state == SearchState.cancelling:
        raise Problem("already-finished", f"the search is {row.state}")
    return row


def _told(session: Session, row: Search) -> None:
    session.flush()
    events.append(session, row.id, "state", {"state": row.state})


def _rest(row: Search, since: datetime | None) -> None:
    """Count the time since a search rested as time it was not under way."""
    row.paused_s += max(0.0, (now() - since).total_seconds()) if since is not None else 0.0
    row.paused_at, row.turn = None, None


def _enqueue(service: Service, session: Session, row: Search) -> None:
    """Enqueue a slice for every slot that nobody works at. A fleet's member waits for the first search as before."""
    session.flush()
    if row.place and row.slice == 0:
        first = next((item for item in query.members(session, row.fleet_id or "") if item.place == 0), None)
        if first is not None:
            fleets.start_members(service, first.id)
        return
    taken = runners.slots(session, row.id)
    for slot in range(runners_of(row.spec)):
        if slot not in taken:
            queue.enqueue_slice(service.client, session, row.id, slot)


def _extension(service: Service, row: Search, trials: int | None, max_wall_s: float | None) -> Json:
    """Return a search's new totals. Raises Problem invalid-limits where they are not more than it has."""
    asked = {**(row.spec.get("search") or {}), **(row.extended or {})}
    faults = []
    if trials is None and max_wall_s is None:
        faults.append(("", "say trials, max_wall_s or both"))
    if trials is not None:
        now_has, most = int(asked.get("trials") or 60), service.settings.max_trials
        if demand_of(row.spec) is not None:
            faults.append(("/trials", "a search that measures latency makes the trials it needs"))
        elif not now_has < trials <= most:
            faults.append(("/trials", f"{trials} trials; more than the {now_has} it has, at most {most}"))
    if max_wall_s is not None:
        wall_s = asked.get("max_wall_s")
        if wall_s is None or max_wall_s <= wall_s:
            faults.append(
                ("/max_wall_s", f"{max_wall_s:g} s; it has {'no limit' if wall_s is None else f'{wall_s:g} s'}")
            )
    if faults:
        detail = "; ".join(text for _, text in faults)
        raise Problem("invalid-limits", detail, [field_error(pointer, text) for pointer, text in faults])
    given = {"trials": trials, "max_wall_s": max_wall_s}
    return {**(row.extended or {}), **{key: value for key, value in given.items() if value is not None}}
