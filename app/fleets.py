"""Fleets: one request for several devices. Its searches share what they measure, so that later ones cost little.

The first member measures as any search does. The others wait for its end, begin with all it measured that is legal on
their devices, take over its sensitivities, and make at most `share` times its evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from app import actions, queue
from app.actions import Member, Service
from app.domain import ids, owners
from app.domain.lifecycle import SearchState
from app.problems import Problem
from app.store import query
from app.store.tables import Fleet, Search, now

Json = dict[str, Any]
COMMON = ("model_id", "dataset", "export_top", "metric", "quality", "polish", "methods", "export", "priority")


def create_fleet(service: Service, request: Json, owner_id: str = owners.DEFAULT) -> tuple[Fleet, Sequence[Search]]:
    """Check every member and queue them all, or none.

    Raises the problems of `actions.create_search`; pointers begin with the member's.
    """
    with service.database.joining() as session:
        fleet = Fleet(id=ids.new_id("fleet"), name=request["name"], spec=request, created_at=now(), owner_id=owner_id)
        session.add(fleet)
        session.flush()
        members = [
            _member(service, Member(fleet.id, place), member_request(request, place), owner_id)
            for place in range(len(request["members"]))
        ]
        return fleet, members


def member_request(request: Json, place: int) -> Json:
    """Return the search request of one member: its own space where it has one, everything else in common."""
    member = request["members"][place]
    return {
        "dataset": None,
        **{key: request[key] for key in COMMON if request.get(key) is not None},
        "name": f"{request['name']}: {member['name'] or member['device_id']}",
        "device_id": member["device_id"],
        "limits": member["limits"],
        "space": request["space"] if member["space"] is None else member["space"],
        "search": {**request["search"], "warm_start": True},
    }


def _member(service: Service, member: Member, request: Json, owner_id: str) -> Search:
    try:
        return actions.create_search(service, request, member=member, owner_id=owner_id)
    except Problem as problem:
        shared = any(
            error["pointer"].startswith(("/model_id", "/dataset", "/search", "/metric", "/quality"))
            for error in problem.errors
        )
        if shared or problem.slug in ("model-not-ready", "dataset-not-ready"):
            raise
        errors = [{**error, "pointer": f"/members/{member.place}{error['pointer']}"} for error in problem.errors]
        raise Problem(problem.slug, f"member {member.place}: {problem.detail}", errors, problem.extra) from problem


def start_members(service: Service, search_id: str) -> list[str]:
    """Queue the members that wait for a fleet's first search, once that has ended; return their ids. Idempotent."""
    with service.database.writing() as session:
        first = session.get(Search, search_id)
        if first is None or first.fleet_id is None or first.place != 0 or not SearchState(first.state).is_finished:
            return []
        waiting = [row for row in query.members(session, first.fleet_id) if _is_waiting(row)]
        for row in waiting:
            for slot in range(actions.runners_of(row.spec)):
                queue.enqueue_slice(service.client, session, row.id, slot)
        return [row.id for row in waiting]


def _is_waiting(row: Search) -> bool:
    """Tell whether a member was never queued: its first slice has no number yet."""
    return row.place != 0 and row.slice == 0 and row.state == SearchState.queued


def cancel_fleet(service: Service, fleet_id: str) -> None:
    """Ask every unfinished member to end. Raises Problem not-found."""
    with service.database.joining() as session:
        if session.get(Fleet, fleet_id) is None:
            raise Problem("not-found", f"no fleet {fleet_id!r}")
        for row in _unfinished(session, fleet_id):
            actions.cancel_search(service, row.id)


def _unfinished(session: Session, fleet_id: str) -> list[Search]:
    return [row for row in query.members(session, fleet_id) if not SearchState(row.state).is_finished]


def state_of(states: Sequence[str]) -> str:
    """Return a fleet's state: running while a member is not finished, then the worst of how they ended."""
    if all(state == "queued" for state in states):
        return "queued"
    if any(not SearchState(state).is_finished for state in states):
        return "running"
    return next((state for state in ("failed", "cancelled") if state in states), "completed")
