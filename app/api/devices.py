"""Device profiles: push, list, look up."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app import actions
from app.api import shapes
from app.api.auth import Key, require
from app.api.conditional import shown
from app.api.deps import (
    Filter,
    Json,
    KeyDep,
    ListDep,
    ServiceDep,
    content_type,
    idempotent,
    paged,
    read_raw,
    strict_json,
)
from app.api.device_schema import checked_profile
from app.api.resources import accepted, listing
from app.api.yaml import MAX_YAML_BYTES, YAML_TYPES, parse_yaml
from app.problems import Problem
from app.store import query, timings
from app.store.tables import Device

router = APIRouter(prefix="/v1", tags=["devices"])


@router.post("/devices", status_code=201)
async def create_device(request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Store a device profile (JSON or YAML): a known name gets its next revision.

    A record that says the same as the newest revision answers that one (200).
    """
    require(key, "searches:write")
    record = await _record(request, service.settings.max_json_bytes)
    profile = await run_in_threadpool(checked_profile, record)
    fingerprint = hashlib.sha256(json.dumps(profile, sort_keys=True).encode()).digest()

    def act() -> JSONResponse:
        row, new = actions.push_device(service, key.owner_id, profile)
        return accepted(shapes.device(row), shapes.device_address(row), 201 if new else 200)

    return await run_in_threadpool(idempotent, request, key, fingerprint, act)


@router.get("/devices")
def list_devices(
    request: Request, service: ServiceDep, key: KeyDep, paging: ListDep, name: Filter = None,
) -> Json:  # fmt: skip
    """List device profiles: built-in ones under their names, users' revisions newest first; `name` leaves one's."""
    rows, size, last = listing(service, Device, paging, name=name)
    return paged(request, [shapes.device(row) for row in rows], size, last)


@router.get("/devices/{id}")
def get_device(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Return a device profile by id, the newest revision of a name, or a certain one (`name@revision`)."""
    with service.database.reading() as session:
        row = device_of(session, key, id)
        accuracy = timings.accuracy(session, row.profile, row.owner_id or key.owner_id)
        return shown(request, {**shapes.device(row), "accuracy": accuracy.to_json()})


@router.post("/devices/{id}:refit", status_code=201)
def refit_device(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Store the profile's next revision, its latencies scaled to what was measured with this one."""
    require(key, "searches:write")

    def act() -> JSONResponse:
        row = actions.refit_device(service, key.owner_id, id)
        return accepted(shapes.device(row), shapes.device_address(row), 201)

    return idempotent(request, key, id.encode(), act)


def device_of(session: Session, who: Key, key: str) -> Device:
    """Return a device profile: the owner's own or a built-in one, then, for administrators, anybody's.

    Raises Problem not-found.
    """
    row = query.device(session, key, who.owner_id) if query.is_device_like(key) else None
    if row is None and who.sight is None and query.is_device_like(key):
        row = query.device(session, key)
    if row is None:
        raise Problem("not-found", f"no device {key[:64]!r}")
    return row


async def _record(request: Request, limit: int) -> Any:
    if content_type(request) in YAML_TYPES:
        raw = await read_raw(request, MAX_YAML_BYTES)
        return await run_in_threadpool(parse_yaml, raw)
    return await strict_json(request, limit)
