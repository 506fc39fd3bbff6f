"""What happened: an owner's event stream, and the audit log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from app.api.auth import require
from app.api.deps import Filter, Json, KeyDep, ListDep, ServiceDep, Since, Whose, owner_of, paged
from app.api.resources import listing
from app.api.shapes import moment
from app.api.streaming import After, Told, stream
from app.store import notices
from app.store.records import Audit

router = APIRouter(prefix="/v1", tags=["history"])


@router.get("/events")
async def events(
    request: Request, service: ServiceDep, key: KeyDep, after: After = None, owner: Whose = None
) -> Response:
    """Server-sent events of all that changes of an owner's objects, behind `Last-Event-ID` (or `after`).

    `kind` is what of (`search.state`, `model.created`, `schedule.deleted`), `id` whose; read the object for the rest.
    """
    owner_id = owner_of(key, owner) or key.owner_id

    def read(seq: int) -> tuple[Sequence[Told], bool]:
        with service.database.reading() as session:
            rows = notices.after(session, owner_id, seq)
        return [Told(row.seq, row.kind, row.at, {"id": row.object_id, **row.payload}) for row in rows], False

    return stream(request, key, after, read)


async def audit_filters(
    key_id: Filter = None, object_id: Filter = None, action: Filter = None, request_id: Filter = None,
    created_after: Since = None,
) -> Json:  # fmt: skip
    """Return what the audit log is filtered by."""
    equal = {"key_id": key_id, "object_id": object_id, "action": action, "request_id": request_id}
    return {**equal, "created_after": created_after}


@router.get("/audit")
def audit(
    request: Request, service: ServiceDep, key: KeyDep, paging: ListDep, equal: Annotated[Json, Depends(audit_filters)]
) -> Json:
    """List who changed what, newest first: administrators only. `owner` filters by whom the key acted for."""
    require(key, "admin")
    rows, size, last = listing(service, Audit, paging, **equal)
    return paged(request, [entry(row) for row in rows], size, last)


def entry(row: Audit) -> dict[str, Any]:
    """Return an entry of the audit log."""
    return {
        "id": row.id,
        "at": moment(row.created_at),
        "key_id": row.key_id,
        "owner_id": row.owner_id,
        "request_id": row.request_id,
        "action": row.action,
        "object_id": row.object_id,
        "object_owner_id": row.object_owner_id,
        "detail": row.detail,
    }
