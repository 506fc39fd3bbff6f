"""Fleets: one request for several devices, whose searches share what they measure."""

from __future__ import annotations

import json

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from app import fleets
from app.actions import Service
from app.api import shapes
from app.api.auth import require
from app.api.conditional import shown
from app.api.deps import Json, KeyDep, ListDep, ServiceDep, body, idempotent, paged
from app.api.resources import accepted, listing, one
from app.api.schemas import FleetIn
from app.store import query
from app.store.tables import Fleet

router = APIRouter(prefix="/v1")


@router.post("/fleets", status_code=202, tags=["fleets"])
async def create_fleet(request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Queue a search per device, or none where one is impossible. The first measures, the others use what it found."""
    require(key, "searches:write")
    wanted = (await body(request, FleetIn)).model_dump(mode="json")

    def act() -> JSONResponse:
        row, members = fleets.create_fleet(service, wanted, key.owner_id)
        return accepted(shapes.fleet(row, members), f"/v1/fleets/{row.id}")

    return await run_in_threadpool(idempotent, request, key, json.dumps(wanted, sort_keys=True).encode(), act)


@router.get("/fleets", tags=["fleets"])
def list_fleets(request: Request, service: ServiceDep, key: KeyDep, paging: ListDep) -> Json:
    """List fleets, newest first."""
    rows, size, last = listing(service, Fleet, paging)
    return paged(request, [_shape(service, row) for row in rows], size, last)


@router.get("/fleets/{id}", tags=["fleets"])
def get_fleet(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Return a fleet with its members' searches: states, progress, best so far, evaluations made."""
    return shown(request, _shape(service, one(service, key.sight, Fleet, id)))


@router.post("/fleets/{id}/cancel", status_code=202, tags=["fleets"])
def cancel_fleet(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Ask every member that is not finished to end."""
    require(key, "searches:write")
    row = one(service, key.sight, Fleet, id)

    def act() -> JSONResponse:
        fleets.cancel_fleet(service, id)
        with service.database.writing() as session:  # the one that is open: what was cancelled is not committed yet
            return JSONResponse(shapes.fleet(row, query.members(session, id)), 202)

    return idempotent(request, key, b"", act)


def _shape(service: Service, row: Fleet) -> Json:
    with service.database.reading() as session:
        return shapes.fleet(row, query.members(session, row.id))
