"""What agents are asked to measure: leases, results, endings. Every function is one step in the caller's transaction.

A job belongs to one agent. The process that leases it renews the lease with each heartbeat; once the process is gone
the lease runs out, and the next one goes on with the items that have no result yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.domain import ids
from app.store.tables import Agent, Calibration, Json, Measuring, now

LEASE_S = 15.0
MAX_ATTEMPTS = 3
OPEN = ("queued", "leased")


def ask(session: Session, agent_id: str, kind: str, items: Sequence[Json], rounds: int) -> Measuring:
    """Queue a job for an agent and return it."""
    row = Measuring(id=ids.new_id("measuring"), agent_id=agent_id, kind=kind, items=list(items), rounds=rounds)
    row.state, row.attempt, row.results, row.created_at = "queued", 0, {}, now()
    row.owner_id = session.get_one(Agent, agent_id).owner_id
    session.add(row)
    return row


def asked(session: Session, key: str) -> Measuring | None:
    """Return the job that was asked for under a key."""
    return session.scalar(sa.select(Measuring).where(Measuring.key == key))


def is_waiting(session: Session, agent_id: str) -> bool:
    """Tell whether an agent has a job to lease or to go on with (a cheap look, without a lock)."""
    query = sa.select(Measuring.id).where(Measuring.agent_id == agent_id, Measuring.state.in_(OPEN)).limit(1)
    return session.scalar(query) is not None


def lease(session: Session, agent_id: str, holder: str) -> Measuring | None:
    """Give the agent's oldest open job to a process: one that is queued, its own, or one whose lease has run out."""
    query = (
        sa.select(Measuring)
        .where(Measuring.agent_id == agent_id, Measuring.state.in_(OPEN))
        .order_by(Measuring.id)
        .with_for_update()
    )
    for row in session.scalars(query):
        if row.state == "leased" and row.session != holder and _runs(row):
            continue
        if row.session != holder:
            row.attempt += 1
        if row.attempt > MAX_ATTEMPTS:
            end(row, "failed", _gave_up(row))
            continue
        row.state, row.session, row.lease_until = "leased", holder, now() + timedelta(seconds=LEASE_S)
        return row
    return None


def _runs(row: Measuring) -> bool:
    return row.lease_until is not None and row.lease_until > now()


def _gave_up(row: Measuring) -> Json:
    open_items = [item["id"] for item in row.items if item["id"] not in row.results]
    detail = f"the agent ended {MAX_ATTEMPTS} times in a row while measuring {open_items[:5]}"
    return {"type": "/problems/measuring-failed", "title": "Measuring failed", "status": 409, "detail": detail}


def renew(session: Session, job: Measuring, holder: str, leaving: bool = False) -> bool:
    """Extend the lease of a job, or give it back; return whether `holder` (still) has it."""
    if job.state != "leased" or job.session != holder:
        return False
    job.lease_until = now() + timedelta(seconds=0.0 if leaving else LEASE_S)
    if leaving:
        job.state, job.session, job.attempt = "queued", None, max(0, job.attempt - 1)
    return True


def add_results(job: Measuring, results: Mapping[str, Json], conditions: Json | None) -> None:
    """Keep results of items (the first of an item stays); the last one ends the job."""
    fresh = {key: value for key, value in results.items() if key not in job.results}
    if fresh:
        job.results = {**job.results, **fresh}
        job.attempt, job.lease_until = 0, now() + timedelta(seconds=LEASE_S)
    if conditions is not None:
        job.conditions = conditions
    if len(job.results) == len(job.items):
        end(job, "done")


def end(job: Measuring, state: str, problem: Json | None = None) -> None:
    """End a job."""
    job.state, job.problem, job.finished_at, job.lease_until = state, problem, now(), None


def silence_s(session: Session, agent_id: str) -> float | None:
    """Return the seconds since an agent was heard of; None for one that is gone."""
    row = session.get(Agent, agent_id)
    return None if row is None or row.state != "active" else (now() - row.last_seen_at).total_seconds()


def begin(session: Session, calibration_id: str) -> Calibration | None:
    """Take a calibration up; None where there is nothing (more) to do."""
    row = session.get(Calibration, calibration_id, with_for_update=True)
    if row is None or row.finished_at is not None:
        return None
    if row.desired == "cancel":
        conclude(row, "cancelled")
        return None
    row.state, row.started_at = "running", row.started_at or now()
    return row


def conclude(row: Calibration, state: str, problem: Json | None = None) -> None:
    """End a calibration."""
    row.state, row.problem, row.finished_at, row.stage = state, problem, now(), None
