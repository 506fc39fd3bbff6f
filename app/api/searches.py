"""Searches, trials, the front, events, candidates and artefacts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from app import actions
from app.api import shapes, streaming
from app.api.auth import require
from app.api.conditional import shown, stored_file
from app.api.deps import (
    Filter,
    Json,
    KeyDep,
    ListDep,
    PagingDep,
    ServiceDep,
    Since,
    body,
    idempotent,
    optional_body,
    paged,
)
from app.api.resources import accepted, listing, one
from app.api.schemas import ExportAgainIn, SearchIn, WhatIfIn
from app.api.streaming import After, Told
from app.domain import pareto
from app.domain.cost import METRICS
from app.domain.lifecycle import SearchState
from app.domain.metrics import HIGHER_IS_BETTER
from app.domain.metrics import METRICS as QUALITIES
from app.explaining import cautions_of, why
from app.problems import Problem, field_error
from app.store import events, query, timings
from app.store.tables import Artefact, Candidate, Search, Trial
from app.study import journal
from app.whatif import whatif

router = APIRouter(prefix="/v1")


@router.post("/searches", status_code=202, tags=["searches"])
async def create_search(request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Queue a search. An impossible budget is refused at once, with the smallest reachable values."""
    require(key, "searches:write")
    wanted = (await body(request, SearchIn)).model_dump(mode="json")

    def act() -> JSONResponse:
        row = actions.create_search(service, wanted, owner_id=key.owner_id)
        return accepted({**shapes.search(row), **cautions_of(service, row)}, f"/v1/searches/{row.id}")

    return await run_in_threadpool(idempotent, request, key, json.dumps(wanted, sort_keys=True).encode(), act)


@router.post("/searches/preflight", tags=["searches"])
async def preflight(request: Request, service: ServiceDep, key: KeyDep) -> Json:
    """Count what a search request could reach, without queueing it."""
    wanted = (await body(request, SearchIn)).model_dump(mode="json")
    return await run_in_threadpool(actions.preflight, service, wanted, key.owner_id)


async def search_filters(
    state: Filter = None, model_id: Filter = None, device_id: Filter = None, created_after: Since = None
) -> Json:
    """Return what a list of searches is filtered by."""
    return {"state": state, "model_id": model_id, "device_id": device_id, "created_after": created_after}


@router.get("/searches", tags=["searches"])
def list_searches(
    request: Request,
    service: ServiceDep,
    key: KeyDep,
    paging: ListDep,
    equal: Annotated[Json, Depends(search_filters)],
) -> Json:
    """List searches, newest first."""
    rows, size, last = listing(service, Search, paging, **equal)
    return paged(request, [shapes.search(row) for row in rows], size, last)


@router.get("/searches/{id}", tags=["searches"])
def get_search(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Return a search: state, stage, progress, outcome, best so far; `warnings` say which latencies not to trust."""
    row = one(service, key.sight, Search, id)
    return shown(request, {**shapes.search(row), **cautions_of(service, row)})


@router.post("/searches/{id}/cancel", status_code=202, tags=["searches"])
def cancel_search(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Ask a search to end; its child is killed within a second or two."""
    require(key, "searches:write")
    one(service, key.sight, Search, id)

    def act() -> JSONResponse:
        row, before = actions.cancel_search(service, id)
        return JSONResponse(shapes.search(row), 200 if before else 202)

    return idempotent(request, key, b"", act)


@router.get("/searches/{id}/trials", tags=["searches"])
def list_trials(id: str, request: Request, service: ServiceDep, key: KeyDep, paging: PagingDep) -> Json:
    """List a search's trials by number."""
    one(service, key.sight, Search, id)
    size, after = paging
    with service.database.reading() as session:
        rows = query.trials(session, id, int(after) if after is not None else -1, size)
    return paged(request, [shapes.trial(row) for row in rows], size, str(rows[-1].idx) if rows else None)


@router.get("/searches/{id}/front", tags=["searches"])
def front(id: str, service: ServiceDep, key: KeyDep, axes: str | None = None, feasible: bool = False) -> Json:
    """Return the trials no other beats on every axis (costs and quality metrics, comma-separated).

    Without axes: the search's metric and BOPs.
    """
    search = one(service, key.sight, Search, id)
    asked = f"{search.spec.get('metric') or 'accuracy'},bops" if axes is None else axes
    names = [name.strip() for name in asked.split(",") if name.strip()]
    unknown = [name for name in names if name not in (*METRICS, *QUALITIES)]
    if unknown or not names:
        detail = f"axes are among {[*METRICS, *QUALITIES]}"
        raise Problem("invalid-request", detail, [field_error("/axes", detail)])
    with service.database.reading() as session:
        rows = [row for row in all_trials(session, id) if row.kind != "baseline" and row.metrics]
    names = [
        "kl" if name == "accuracy" and not any("accuracy" in (r.metrics or {}) for r in rows) else name
        for name in names
    ]
    rows = [
        row for row in rows if (row.feasible or not feasible) and all(_coordinate(row, n) is not None for n in names)
    ]
    points = [[float(_coordinate(row, name) or 0.0) for name in names] for row in rows]
    return {"axes": names, "items": [shapes.trial(rows[index]) for index in pareto.front(points)]}


def all_trials(session: Any, search_id: str) -> list[Trial]:
    """Return every trial of a search."""
    found: list[Trial] = []
    while part := query.trials(session, search_id, found[-1].idx if found else -1, 1000):
        found += part
    return found


def _coordinate(row: Trial, name: str) -> float | None:
    value = (row.costs or {}).get(name) if name in METRICS else (row.metrics or {}).get(name)
    return None if value is None else (-value if name in HIGHER_IS_BETTER else value)


@router.post("/searches/{id}/whatif", tags=["searches"])
async def what_if(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Json:
    """Return the best known inside other limits, measured and predicted, without measuring anything."""
    wanted = (await body(request, WhatIfIn)).model_dump(mode="json")
    await run_in_threadpool(one, service, key.sight, Search, id)
    return await run_in_threadpool(whatif, service, id, wanted["limits"])


@router.get("/searches/{id}/study", tags=["searches"])
def study(id: str, service: ServiceDep, key: KeyDep) -> Response:
    """Return the search as an Optuna journal file, which optuna-dashboard opens."""
    row = one(service, key.sight, Search, id)
    with service.database.reading() as session:
        lines = list(journal(row, all_trials(session, id)))
    headers = {"Content-Disposition": f'attachment; filename="{id}.journal"', "X-Content-Type-Options": "nosniff"}
    return Response("".join(lines), media_type="application/x-ndjson", headers=headers)


@router.get("/searches/{id}/candidates", tags=["candidates"])
def list_candidates(id: str, service: ServiceDep, key: KeyDep) -> Json:
    """List a search's candidates by rank on the hold-out set."""
    one(service, key.sight, Search, id)
    with service.database.reading() as session:
        rows = query.candidates(session, id)
        items = [shapes.candidate(row, query.artefacts(session, row.id)) for row in rows]
    return {"items": items, "next_cursor": None}


@router.get("/candidates/{id}", tags=["candidates"])
def get_candidate(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Return a candidate: assignment, costs, metrics, layers, budget table, verification, artefacts."""
    row = one(service, key.sight, Candidate, id)
    with service.database.reading() as session:
        search = session.get_one(Search, row.search_id)
        found = shapes.candidate(row, query.artefacts(session, id))
        found["latency"] = shapes.latency(row, timings.accuracy(session, search.device, search.owner_id))
    return shown(request, {**found, **cautions_of(service, search, row.assignment)})


@router.get("/candidates/{id}/why", tags=["candidates"])
def why_candidate(id: str, service: ServiceDep, key: KeyDep) -> Json:
    """Return what a candidate's time goes to, operation by operation, and the changes that would save most."""
    one(service, key.sight, Candidate, id)
    return why(service, id)


@router.post("/candidates/{id}/export", status_code=202, tags=["candidates"])
async def export_candidate(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Export and verify a candidate, whether or not it keeps the budget (the manifest says).

    A body `{"opset": N}` asks for another ONNX opset than its search; files of another one are made anew.
    """
    require(key, "searches:write")
    opset = (await optional_body(request, ExportAgainIn)).opset
    await run_in_threadpool(one, service, key.sight, Candidate, id)

    def act() -> JSONResponse:
        row = actions.export_candidate(service, id, opset)
        with service.database.reading() as session:
            return accepted(shapes.candidate(row, query.artefacts(session, id)), f"/v1/candidates/{id}")

    fingerprint = id if opset is None else f"{id} {opset}"
    return await run_in_threadpool(idempotent, request, key, fingerprint.encode(), act)


@router.get("/artefacts/{id}", tags=["artefacts"])
def get_artefact(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Return an artefact's record."""
    return shown(request, shapes.artefact(one(service, key.sight, Artefact, id)))


@router.get("/artefacts/{id}/content", tags=["artefacts"])
def artefact_content(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Download an artefact; one range and If-None-Match work, the ETag and the Repr-Digest are its SHA-256."""
    row = one(service, key.sight, Artefact, id)
    return stored_file(request, service.blobs.path(row.blob_sha), row.blob_sha, row.filename)


@router.get("/searches/{id}/events", tags=["searches"])
async def stream(id: str, request: Request, service: ServiceDep, key: KeyDep, after: After = None) -> Response:
    """Server-sent events of a search from the first, or behind `Last-Event-ID` (or `after`); ends with the search."""
    await run_in_threadpool(one, service, key.sight, Search, id)

    def read(seq: int) -> tuple[Sequence[Told], bool]:
        with service.database.reading() as session:
            rows = events.after(session, id, seq)
            state = session.scalar(sa.select(Search.state).where(Search.id == id))
        finished = state is None or SearchState(state).is_finished
        return [Told(row.seq, row.kind, row.at, row.payload) for row in rows], finished

    return streaming.stream(request, key, after, read)
