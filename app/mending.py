"""Mending: what a kill between two stores, or a queue that gave up, left behind is put right from the rows.

A search that is not finished always has a slice on the queue or in a worker's hands; where it has none it gets one.
What the durable engine gave up after too many deaths ends by name, so that nobody waits for it. Searches that a full
disk made pause go on once there is room.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app import queue, steering
from app.actions import Service, runners_of
from app.domain.lifecycle import ModelState, SearchState
from app.problems import Problem
from app.store import runner as rows
from app.store import runners
from app.store.tables import Candidate, Dataset, Model, Search

UNDER_WAY = (SearchState.queued, SearchState.running, SearchState.pausing, SearchState.cancelling)


def stuck(service: Service) -> dict[str, int]:
    """Return the unfinished searches that nobody works on and no slice on the queue stands for, with their last."""
    with service.database.reading() as session:
        # the first slice of a fleet's later member is enqueued when the first search has ended
        query = sa.select(Search.id, Search.slice).where(Search.state.in_(UNDER_WAY), Search.slice > 0)
        live = [(key, number) for key, number in session.execute(query)]
    return {key: number for key, number in live if not queue.is_waiting_or_running(service.client, key)}


def mend(service: Service) -> list[str]:
    """Enqueue a slice for each slot of every stuck search, and end what was given up; return their ids."""
    mended = []
    for key, number in stuck(service).items():
        with service.database.writing() as session:
            row = rows.locked(session, key)
            if row is None or row.state not in UNDER_WAY or row.slice != number:  # somebody took it up meanwhile
                continue
            for slot in range(runners_of(row.spec)):
                runners.clear(session, key, slot)
                queue.enqueue_slice(service.client, session, key, slot)
            mended.append(key)
    return mended + _end_dead(service) + _resume_halted(service)


def _resume_halted(service: Service) -> list[str]:
    """Let the searches go on that a full disk made pause, once there is room."""
    if service.blobs.free_bytes() < service.settings.disk_floor_bytes:
        return []
    with service.database.reading() as session:
        found = rows.halted(session)
    for key in found:
        steering.resume_search(service, key)
    return list(found)


def _end_dead(service: Service) -> list[str]:
    """End what the durable engine gave up: uploads are rejected, exports and searches fail. Safe to repeat."""
    ended = []
    for workflow, key in queue.dead(service.client):
        with service.database.writing() as session:
            if _ended(session, workflow, key):
                ended.append(key)
    return ended


def _ended(session: Session, workflow: str, key: str) -> bool:
    detail = "its worker died again and again"
    uploads: dict[str, Any] = {queue.INSPECT_MODEL: Model, queue.INSPECT_DATASET: Dataset}
    if workflow in uploads:
        row = session.get(uploads[workflow], key)
        if row is None or row.state != ModelState.inspecting:
            return False
        row.state, row.problem = ModelState.rejected, Problem("inspection-failed", detail).to_json()
    elif workflow == queue.EXPORT_CANDIDATE:
        candidate = session.get(Candidate, key)
        if candidate is None or candidate.export_state not in ("queued", "running"):
            return False
        rows.export_failed(session, key, Problem("export-failed", detail).to_json())
    elif workflow == queue.RUN_SEARCH:
        search = rows.locked(session, key)
        if search is None or SearchState(search.state).is_finished:
            return False
        rows.fail(session, key, Problem("search-dead", detail).to_json())
    return True
