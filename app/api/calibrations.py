"""Calibrations: measuring a device to make the next revision of its profile."""

from __future__ import annotations

import json

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from app import agents
from app.api.agent_schema import CalibrationIn
from app.api.auth import require
from app.api.conditional import shown
from app.api.deps import Json, KeyDep, ListDep, ServiceDep, body, idempotent, paged
from app.api.resources import accepted, is_id_like, listing, one
from app.api.shapes import moment
from app.problems import Problem
from app.store.tables import Calibration

router = APIRouter(prefix="/v1")


@router.post("/devices/{name}/calibrations", status_code=202, tags=["calibrations"])
async def create_calibration(name: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Measure a device, on an agent or on the worker's host, and store what was learnt as a new revision."""
    require(key, "searches:write")
    if not is_id_like(name):
        raise Problem("not-found", "no such device")
    wanted = (await body(request, CalibrationIn)).model_dump(mode="json")

    def act() -> JSONResponse:
        row = agents.create_calibration(service, key.owner_id, name, wanted["model_ids"], wanted["agent_id"])
        return accepted(shape(row), f"/v1/calibrations/{row.id}")

    return await run_in_threadpool(idempotent, request, key, json.dumps(wanted, sort_keys=True).encode(), act)


@router.get("/calibrations", tags=["calibrations"])
def list_calibrations(request: Request, service: ServiceDep, key: KeyDep, paging: ListDep) -> Json:
    """List calibrations, newest first."""
    rows, size, last = listing(service, Calibration, paging)
    return paged(request, [shape(row) for row in rows], size, last)


@router.get("/calibrations/{id}", tags=["calibrations"])
def get_calibration(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Return a calibration: state, progress, and at its end the table and the new revision's id."""
    return shown(request, shape(one(service, key.sight, Calibration, id)))


@router.post("/calibrations/{id}/cancel", tags=["calibrations"])
def cancel_calibration(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Ask a calibration to end; the profile stays as it is."""
    require(key, "searches:write")
    one(service, key.sight, Calibration, id)

    def act() -> JSONResponse:
        return JSONResponse(shape(agents.cancel_calibration(service, id)))

    return idempotent(request, key, b"", act)


def shape(row: Calibration) -> Json:
    """Return a calibration."""
    return {
        "id": row.id,
        "owner_id": row.owner_id,
        "device": row.device,
        "base_id": row.base_id,
        "model_ids": row.model_ids,
        "agent_id": row.agent_id,
        "state": row.state,
        "stage": row.stage,
        "progress": {"done": row.progress_done, "total": row.progress_total},
        "table": row.table,
        "report": row.report,
        "device_id": row.device_id,
        "problem": row.problem,
        "created_at": moment(row.created_at),
        "started_at": moment(row.started_at),
        "finished_at": moment(row.finished_at),
        "links": {"self": f"/v1/calibrations/{row.id}"},
    }
