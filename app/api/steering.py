"""Steering a search: pause, resume, extend, priority."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from app import steering
from app.api import shapes
from app.api.auth import require
from app.api.deps import KeyDep, ServiceDep, body, idempotent
from app.api.resources import one
from app.api.schemas import ExtendIn, PriorityIn
from app.store.tables import Search

router = APIRouter(prefix="/v1", tags=["searches"])


@router.post("/searches/{id}/pause", status_code=202)
def pause_search(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Ask a search to pause: it ends the trial in flight (one that takes longer than 30 s is measured again later)."""
    require(key, "searches:write")
    one(service, key.sight, Search, id)

    def act() -> JSONResponse:
        row, before = steering.pause_search(service, id)
        return JSONResponse(shapes.search(row), 200 if before else 202)

    return idempotent(request, key, b"", act)


@router.post("/searches/{id}/resume", status_code=202)
def resume_search(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Let a paused search go on, with the trials that it would have made without the pause."""
    require(key, "searches:write")
    one(service, key.sight, Search, id)

    def act() -> JSONResponse:
        row, before = steering.resume_search(service, id)
        return JSONResponse(shapes.search(row), 200 if before else 202)

    return idempotent(request, key, b"", act)


@router.post("/searches/{id}/extend", status_code=202)
async def extend_search(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Give a search more trials or time, as new totals: asking twice changes nothing. One that is completed goes on."""
    require(key, "searches:write")
    wanted = await body(request, ExtendIn, "invalid-limits")
    await run_in_threadpool(one, service, key.sight, Search, id)

    def act() -> JSONResponse:
        return JSONResponse(shapes.search(steering.extend_search(service, id, wanted.trials, wanted.max_wall_s)), 202)

    return await run_in_threadpool(idempotent, request, key, wanted.model_dump_json().encode(), act)


@router.post("/searches/{id}/priority")
async def prioritise_search(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Put a search into another priority: 1 is served first, 5 last."""
    require(key, "searches:write")
    wanted = await body(request, PriorityIn)
    await run_in_threadpool(one, service, key.sight, Search, id)

    def act() -> JSONResponse:
        return JSONResponse(shapes.search(steering.prioritise_search(service, id, wanted.priority)))

    return await run_in_threadpool(idempotent, request, key, wanted.model_dump_json().encode(), act)
