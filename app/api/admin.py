"""Schedules, keys, workers, health and metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.concurrency import run_in_threadpool

from app import actions, editing
from app.actions import Service
from app.api import shapes
from app.api.auth import new_key, require
from app.api.conditional import check_match, shown
from app.api.deps import Json, KeyDep, ListDep, ServiceDep, body, idempotent, paged
from app.api.resources import accepted, listing, one
from app.api.schemas import KeyIn, ScheduleChangeIn, ScheduleIn
from app.api.sealing import Seal
from app.metrics import Tables
from app.problems import PROBLEMS, Problem
from app.store import query
from app.store.engine import is_read_only
from app.store.migrate import VERSION_TABLE, revisions
from app.store.tables import ApiKey, Schedule, now

router = APIRouter()


@router.post("/v1/schedules", status_code=201, tags=["schedules"])
async def create_schedule(request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Run a search again and again by a cron expression."""
    require(key, "searches:write")
    wanted = (await body(request, ScheduleIn)).model_dump(mode="json")

    def act() -> JSONResponse:
        row = actions.create_schedule(service, key.owner_id, wanted)
        return accepted(shapes.schedule(row), f"/v1/schedules/{row.id}", 201)

    return await run_in_threadpool(idempotent, request, key, json.dumps(wanted, sort_keys=True).encode(), act)


@router.get("/v1/schedules", tags=["schedules"])
def list_schedules(request: Request, service: ServiceDep, key: KeyDep, paging: ListDep) -> Json:
    """List schedules, newest first."""
    rows, size, last = listing(service, Schedule, paging)
    return paged(request, [shapes.schedule(row) for row in rows], size, last)


@router.get("/v1/schedules/{id}", tags=["schedules"])
def get_schedule(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Return a schedule."""
    return shown(request, shapes.schedule(one(service, key.sight, Schedule, id)))


@router.patch("/v1/schedules/{id}", tags=["schedules"])
async def change_schedule(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Rename a schedule, or switch it off or on (`If-Match` needed)."""
    require(key, "searches:write")
    change = (await body(request, ScheduleChangeIn)).model_dump(exclude_none=True)
    await run_in_threadpool(one, service, key.sight, Schedule, id)
    row = await run_in_threadpool(editing.change_schedule, service, id, change, _as_seen(request))
    return shown(request, shapes.schedule(row))


@router.delete("/v1/schedules/{id}", status_code=204, tags=["schedules"])
def delete_schedule(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Remove a schedule; its searches stay (`If-Match` needed)."""
    require(key, "searches:write")
    one(service, key.sight, Schedule, id)
    editing.delete_schedule(service, id, _as_seen(request))
    return Response(status_code=204)


def _as_seen(request: Request) -> Callable[[Schedule], None]:
    return lambda row: check_match(request, shapes.schedule(row))


@router.post("/v1/keys", status_code=201, tags=["keys"])
async def create_key(request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Create an API key; its text is in this answer only.

    Repeated under its Idempotency-Key with the same credential the request gets the same text.
    """
    require(key, "admin")
    wanted = await body(request, KeyIn)

    def act() -> JSONResponse:
        owner = wanted.owner or key.owner_id
        row, text = new_key(service, wanted.name, tuple(wanted.scopes), owner, wanted.expires_at)
        return accepted({**shapes.api_key(row), "key": text}, f"/v1/keys/{row.id}", 201)

    fingerprint = wanted.model_dump_json().encode()
    return await run_in_threadpool(idempotent, request, key, fingerprint, act, Seal(request))


@router.get("/v1/keys", tags=["keys"])
def list_keys(request: Request, service: ServiceDep, key: KeyDep, paging: ListDep) -> Json:
    """List keys, without their texts."""
    require(key, "admin")
    rows, size, last = listing(service, ApiKey, paging)
    return paged(request, [shapes.api_key(row) for row in rows], size, last)


@router.delete("/v1/keys/{id}", status_code=204, tags=["keys"])
def revoke_key(id: str, service: ServiceDep, key: KeyDep) -> Response:
    """Revoke a key."""
    require(key, "admin")
    with service.database.writing() as session:
        row = session.get(ApiKey, id)
        if row is None:
            raise Problem("not-found", f"no key {id[:64]!r}")
        row.revoked_at = row.revoked_at or now()
    return Response(status_code=204)


@router.get("/v1/workers", tags=["health"])
def list_workers(service: ServiceDep, key: KeyDep) -> Json:
    """List workers and when they were last heard of."""
    with service.database.reading() as session:
        return {"items": [shapes.worker(row) for row in query.workers(session)], "next_cursor": None}


@router.get("/healthz", tags=["health"])
def healthz() -> Json:
    """Tell that the process runs."""
    return {"status": "ok", "version": version("tightfit")}


@router.get("/readyz", tags=["health"])
def readyz(service: ServiceDep) -> Response:
    """Tell whether requests can be served: database, schema, disk; says how many workers live."""
    facts = readiness(service)
    ok = all(facts[name] for name in ("database", "schema", "disk"))
    return JSONResponse({"status": "ok" if ok else "unavailable", **facts}, 200 if ok else 503)


def readiness(service: Service) -> Json:
    """Return what readiness depends on."""
    facts: Json = {"database": False, "schema": False, "workers": 0}
    try:
        with service.database.write.connect() as connection:
            at, needed = revisions(connection)
            facts["schema"] = at == needed
            connection.execute(
                sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '' WHERE 1 = 0")
            )  # may it be written?
            facts["database"] = True
        with service.database.reading() as session:
            facts["workers"] = sum(alive(service, row.last_seen) for row in query.workers(session))
    except sa.exc.SQLAlchemyError as error:
        facts["reason"] = "read-only" if is_read_only(error) else type(error).__name__
    facts["disk"] = service.blobs.free_bytes() > service.settings.disk_floor_bytes
    return facts


def alive(service: Service, last_seen: object) -> bool:
    """Tell whether a worker was heard of lately."""
    return (now() - last_seen).total_seconds() < service.settings.worker_silence_s  # type: ignore[operator,no-any-return]


@router.get("/metrics", tags=["health"])
def metrics(request: Request, service: ServiceDep) -> Response:
    """Prometheus metrics: read from the tables, and how long this process's requests took."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Tables(service))
    told = generate_latest(registry) + generate_latest(request.app.state.registry)
    return Response(told, media_type=CONTENT_TYPE_LATEST)


@router.get("/problems/{slug}", tags=["problems"])
def problem(slug: str) -> Response:
    """Explain a problem type."""
    kind = PROBLEMS.get(slug)
    if kind is None:
        raise Problem("not-found", f"no problem type {slug[:64]!r}")
    return PlainTextResponse(f"{kind.title} ({kind.status})\n\n{kind.meaning}\n")
