"""What a search's runner reads and writes: every function is one short step inside the caller's transaction.

Trials are finished row first and fenced: only the holder of a trial's owner token can finish it, and a trial that was
left running by a killed worker is claimed again under its own number.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.domain import ids
from app.domain.lifecycle import Outcome, SearchState, TrialState, can_move
from app.store import blobs, events
from app.store.tables import Artefact, Candidate, Dataset, Json, Model, Search, Trial, Worker, now

MAX_ATTEMPTS = 3
NO_ROOM = "insufficient-storage"
"""The problem of searches that paused because the disk is full."""
TOLD = ("stage", "progress_done", "progress_total", "eta_s", "best")


class TrialFinished(RuntimeError):
    """The trial to be claimed is finished: another worker is ahead."""


class TrialHeld(RuntimeError):
    """The trial to be claimed is another runner's, and that one lives."""


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended: `metrics` of a measurement, or a `failure` {kind, detail}; costs and violation either way."""

    metrics: Json | None
    failure: Json | None
    costs: Json
    violation: float
    feasible: bool
    seconds: float


def begin(session: Session, search_id: str) -> Search | None:
    """Take a search up: queued becomes running. Returns None where there is nothing (more) to do."""
    search = locked(session, search_id)
    if search is None or SearchState(search.state).is_finished:
        return None
    if search.desired == "cancel":
        _end(session, search, SearchState.cancelled, None)
        return None
    if search.desired == "pause":
        return None
    if search.state == SearchState.queued:
        search.state, search.started_at = SearchState.running, search.started_at or now()
        events.append(session, search_id, "state", {"state": search.state})
    return search


def model_of(session: Session, search: Search) -> Model:
    """Return the model of a search."""
    return session.get_one(Model, search.model_id)


def datasets_of(session: Session, search: Search) -> dict[str, Dataset]:
    """Return the datasets of a search by role."""
    return {role: session.get_one(Dataset, key) for role, key in search.dataset.items()}


def wish(session: Session, search_id: str) -> str:
    """Return what the user wants of a search: run, pause or cancel; one that is gone is to end."""
    return session.scalar(sa.select(Search.desired).where(Search.id == search_id)) or "cancel"


def asked(search: Search) -> Json:
    """Return a search's request, with the trials and time that it was given later."""
    return {**search.spec, "search": {**(search.spec.get("search") or {}), **(search.extended or {})}}


def release(session: Session, search_id: str, token: str) -> None:
    """Give back the trials that a runner holds: it leaves them well, which is no attempt."""
    held = (Trial.search_id == search_id, Trial.owner_token == token, Trial.state == TrialState.running)
    session.execute(sa.update(Trial).where(*held).values(owner_token=None, attempt=Trial.attempt - 1))


def trials(session: Session, search_id: str, first: int = 0) -> Sequence[Trial]:
    """Return the trials of a search by number, from `first` on."""
    query = sa.select(Trial).where(Trial.search_id == search_id, Trial.idx >= first)
    return session.scalars(query.order_by(Trial.idx)).all()


def claim(session: Session, search_id: str, plan: Json, token: str, alive: Collection[str] = ()) -> Trial:
    """Give a trial to the holder of `token`: a new row, or one that a killed worker left running.

    Raises TrialFinished where the trial is finished already, TrialHeld where one of the tokens `alive` holds it.
    """
    locked(session, search_id)
    row = session.scalar(sa.select(Trial).where(Trial.search_id == search_id, Trial.idx == plan["idx"]))
    if row is None:
        row = Trial(id=ids.new_id("trial"), search_id=search_id, owner_token=token, attempt=1, **plan)
        session.add(row)
    elif row.state != TrialState.running:
        raise TrialFinished(f"trial {plan['idx']} is {row.state}")
    elif row.owner_token != token and row.owner_token in alive:
        raise TrialHeld(f"trial {plan['idx']} is another runner's")
    else:
        row.owner_token, row.attempt = token, row.attempt + 1
    session.flush()
    return row


def warm(session: Session, search_id: str, start: Json, known: Sequence[Json]) -> Json:
    """Settle what a search starts from, once: its trials of kind "known" and the rest; return what was settled."""
    search = locked(session, search_id)
    assert search is not None, "the search is there while it runs"
    if search.warm is None:
        search.warm = start
        moment = now()
        for idx, fields in enumerate(known, start=1):
            row = Trial(id=ids.new_id("trial"), search_id=search_id, idx=idx, kind="known", attempt=0, **fields)
            row.state, row.seconds, row.created_at, row.finished_at = TrialState.done, 0.0, moment, moment
            session.add(row)
        events.append(session, search_id, "known", {"count": len(known), "trials": start["trials"]})
    return search.warm


def finish(session: Session, search_id: str, idx: int, token: str, result: TrialResult) -> bool:
    """Finish a trial if `token` still holds it; return whether it did. The event is in the same transaction."""
    state = TrialState.failed if result.metrics is None else TrialState.done
    changed = session.execute(
        sa.update(Trial)
        .where(
            Trial.search_id == search_id,
            Trial.idx == idx,
            Trial.owner_token == token,
            Trial.state == TrialState.running,
        )
        .values(
            state=state,
            metrics=result.metrics,
            failure=result.failure,
            costs=result.costs,
            violation=result.violation,
            feasible=result.feasible,
            seconds=result.seconds,
            finished_at=now(),
        )
    )
    if changed.rowcount != 1:  # type: ignore[attr-defined]
        return False
    payload = {"idx": idx, "state": state.value, "metrics": result.metrics, "feasible": result.feasible}
    events.append(session, search_id, "trial", payload)
    return True


def progress(session: Session, search_id: str, fields: Json) -> None:
    """Store stage, counts, estimate, baseline, best, sensitivity or slice; tells of stage and counts in an event."""
    session.execute(sa.update(Search).where(Search.id == search_id).values(**fields))
    told = {key: value for key, value in fields.items() if key in TOLD}
    if told:
        events.append(session, search_id, "progress", told)


def put_candidate(session: Session, search_id: str, fields: Mapping[str, Any]) -> str:
    """Store a candidate under (search, trial) once; later calls update it. Returns its id."""
    query = sa.select(Candidate).where(Candidate.search_id == search_id, Candidate.trial_idx == fields["trial_idx"])
    row = session.scalar(query)
    if row is None:
        row = Candidate(id=ids.new_id("candidate"), search_id=search_id, **fields)
        session.add(row)
        events.append(session, search_id, "candidate", {"id": row.id, "rank": row.rank, "feasible": row.feasible})
    else:
        for name, value in fields.items():
            setattr(row, name, value)
    session.flush()
    return row.id


def candidate(session: Session, candidate_id: str) -> Candidate | None:
    """Return a candidate."""
    return session.get(Candidate, candidate_id)


def search_of(session: Session, search_id: str) -> Search:
    """Return a search."""
    return session.get_one(Search, search_id)


def exported(session: Session, candidate_id: str, files: Sequence[Json], outcome: Json) -> None:
    """Store an export's artefacts (replacing earlier ones of a kind), its verification and report."""
    row = session.get_one(Candidate, candidate_id)
    for file in files:
        blobs.record(session, file["sha256"], file["bytes"])
        query = sa.select(Artefact).where(Artefact.candidate_id == candidate_id, Artefact.kind == file["kind"])
        artefact = session.scalar(query)
        if artefact is None:
            artefact = Artefact(id=ids.new_id("artefact"), candidate_id=candidate_id, kind=file["kind"])
            session.add(artefact)
        artefact.blob_sha, artefact.bytes, artefact.filename = file["sha256"], file["bytes"], file["filename"]
        artefact.verification = outcome["verification"]
    row.verification, row.report, row.export_state, row.problem = (
        outcome["verification"],
        outcome["report"],
        "done",
        None,
    )
    if outcome.get("budget"):
        row.budget = outcome["budget"]
    events.append(session, row.search_id, "export", {"candidate_id": row.id, "verification": row.verification})


def export_failed(session: Session, candidate_id: str, problem: Json) -> None:
    """Note that an export could not be made."""
    row = session.get_one(Candidate, candidate_id)
    row.export_state, row.problem, row.verification = "failed", problem, "failed"
    events.append(session, row.search_id, "export", {"candidate_id": row.id, "verification": "failed"})


def complete(session: Session, search_id: str, outcome: Outcome, extended: Json | None = None) -> bool:
    """End a search with what it found; return False where it was given more than `extended` meanwhile: it goes on."""
    search = locked(session, search_id)
    if search is not None and search.extended != extended and not SearchState(search.state).is_finished:
        return False
    if search is not None and can_move(SearchState(search.state), SearchState.completed):
        search.outcome, search.stage = outcome, None
        _end(session, search, SearchState.completed, None)
    return True


def fail(session: Session, search_id: str, error: Json) -> None:
    """End a search with a reason."""
    search = locked(session, search_id)
    if search is not None and can_move(SearchState(search.state), SearchState.failed):
        _end(session, search, SearchState.failed, error)


def halt(session: Session, search_id: str, error: Json) -> None:
    """Let a search pause for a reason that is not the user's wish."""
    search = locked(session, search_id)
    if search is not None and can_move(SearchState(search.state), SearchState.paused):
        search.desired, search.error = "pause", error


def halted(session: Session) -> Sequence[str]:
    """Return the ids of the paused searches that wait for room on the disk."""
    paused = session.execute(sa.select(Search.id, Search.error).where(Search.state == SearchState.paused))
    return [key for key, error in paused if error is not None and error["type"] == f"/problems/{NO_ROOM}"]


def cancelled(session: Session, search_id: str) -> None:
    """End a search that the user cancelled; trials in flight end as failed."""
    search = locked(session, search_id)
    if search is not None and not SearchState(search.state).is_finished:
        _end(session, search, SearchState.cancelled, None)


def _end(session: Session, search: Search, state: SearchState, error: Json | None) -> None:
    search.state, search.error, search.finished_at, search.eta_s = state, error, now(), None
    failure = {"kind": "cancelled", "detail": f"the search is {state.value}"}
    session.execute(
        sa.update(Trial)
        .where(Trial.search_id == search.id, Trial.state == TrialState.running)
        .values(state=TrialState.failed, failure=failure, finished_at=now())
    )
    events.append(session, search.id, "state", {"state": state.value, "outcome": search.outcome, "error": error})


def locked(session: Session, search_id: str) -> Search | None:
    """Return the search's row, locked until the transaction ends (SQLite write transactions exclude each other)."""
    return session.scalar(sa.select(Search).where(Search.id == search_id).with_for_update())


def trial_of(session: Session, search_id: str, idx: int) -> Trial | None:
    """Return one trial of a search."""
    return session.scalar(sa.select(Trial).where(Trial.search_id == search_id, Trial.idx == idx))


def beat(session: Session, executor_id: str, host: str, pid: int, info: Json) -> None:
    """Note that a worker lives, and what it tells of itself."""
    row = session.get(Worker, executor_id)
    if row is None:
        session.add(Worker(executor_id=executor_id, host=host, pid=pid, started_at=now(), last_seen=now(), info=info))
        return
    if row.pid != pid or row.host != host:
        row.started_at = now()
    row.host, row.pid, row.last_seen, row.info = host, pid, now(), info


def others(session: Session, me: str) -> dict[str, datetime]:
    """Return when each other worker gave its last sign (by its own clock)."""
    query = sa.select(Worker.executor_id, Worker.last_seen).where(Worker.executor_id != me)
    return {name: seen for name, seen in session.execute(query)}


def leave(session: Session, executor_id: str) -> None:
    """Forget a worker that ends well; one whose work was not given back stays, and is missed."""
    session.execute(sa.delete(Worker).where(Worker.executor_id == executor_id))
