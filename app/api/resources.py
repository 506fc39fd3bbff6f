"""Models, datasets and devices."""

from __future__ import annotations

import json
import unicodedata
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from app import actions, editing
from app.actions import Service
from app.api import auth, shapes
from app.api.auth import require
from app.api.conditional import check_match, shown
from app.api.deps import (
    Filter,
    Json,
    KeyDep,
    ListDep,
    Listed,
    ServiceDep,
    Since,
    body,
    idempotent,
    paged,
    parse_json,
    validated,
)
from app.api.schemas import DatasetSpecIn, RenameIn
from app.api.uploads import receive
from app.checking import check_ready
from app.domain.owners import Sight
from app.problems import Problem, field_error
from app.store import query
from app.store.tables import Dataset, Model

router = APIRouter(prefix="/v1")
Cascade = Literal["cancel"] | None
MAX_NAME = 200
_BIDI = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def checked_name(name: str) -> str:
    """Return a name or raise Problem invalid-name."""
    bad = any(unicodedata.category(char).startswith("C") or char in _BIDI for char in name)
    if not name.strip() or len(name) > MAX_NAME or bad:
        detail = "1 to 200 printable characters"
        raise Problem("invalid-name", detail, [field_error("/name", detail)])
    return name


def is_id_like(key: str) -> bool:
    """Tell whether a text may be an id: PostgreSQL stores no NUL, and no id is long or exotic."""
    return len(key) <= 64 and key.isascii() and key.isprintable()


def one(service: Service, sight: Sight, table: Any, key: str) -> Any:
    """Return a row by id or raise Problem not-found, for another owner's as for none."""
    with service.database.reading() as session:
        row = query.find(session, table, key, sight) if is_id_like(key) else None
    if row is None:
        raise Problem("not-found", f"no {table.__tablename__} {key[:64]!r}")
    return row


def listing(service: Service, table: Any, paging: Listed, **equal: Any) -> Any:
    """Return one page of rows and the page's (size, last id)."""
    with service.database.reading() as session:
        rows = query.page(session, table, paging.size, paging.before, sight=paging.sight, **equal)
    return rows, paging.size, rows[-1].id if rows else None


def is_stored(service: Service, owner_id: str, sha256: str) -> bool:
    """Tell whether an owner has uploaded a file with these bytes before."""
    with service.database.reading() as session:
        return query.has_file(session, owner_id, sha256)


def accepted(content: Json, location: str, status: int = 202) -> JSONResponse:
    """Return an answer with its Location."""
    return JSONResponse(content, status, {"Location": location})


@router.post("/models", status_code=202, tags=["models"])
async def create_model(
    request: Request, service: ServiceDep, key: KeyDep, name: str = "model", format: str | None = None
) -> Response:
    """Upload a network (raw body: ONNX or torch.export .pt2); it is read in a sandboxed worker."""
    require(key, "models:write")
    checked_name(name)
    sha256, size, found = await receive(request, service, key.owner_id, "network")
    if format is not None and format != found:
        raise Problem("unrecognised-format", f"declared as {format!r}, but the content is {found!r}")

    def act() -> JSONResponse:
        known = is_stored(service, key.owner_id, sha256)
        row = actions.create_model(service, key.owner_id, name, found, sha256, size)
        return accepted({**shapes.model(row), "deduplicated": known}, f"/v1/models/{row.id}")

    return await run_in_threadpool(idempotent, request, key, f"{name}|{sha256}".encode(), act)


@router.post("/models/{id}/weights", status_code=202, tags=["models"])
async def create_weights(
    id: str, request: Request, service: ServiceDep, key: KeyDep, name: str | None = None
) -> Response:
    """Upload new weights of a model (raw body: safetensors, names as in its file): a new model with the same graph."""
    require(key, "models:write")
    if name is not None:
        checked_name(name)
    check_ready(await run_in_threadpool(one, service, key.owner_id, Model, id), "model-not-ready")
    sha256, size, _ = await receive(request, service, key.owner_id, "weights")

    def act() -> JSONResponse:
        row = actions.create_weights(service, key.owner_id, id, name, sha256, size)
        return accepted(shapes.model(row), f"/v1/models/{row.id}")

    return await run_in_threadpool(idempotent, request, key, f"{name}|{sha256}".encode(), act)


async def model_filters(state: Filter = None, base_id: Filter = None, created_after: Since = None) -> Json:
    """Return what a list of models is filtered by."""
    return {"state": state, "base_id": base_id, "created_after": created_after}


async def dataset_filters(state: Filter = None, created_after: Since = None) -> Json:
    """Return what a list of datasets is filtered by."""
    return {"state": state, "created_after": created_after}


@router.get("/models", tags=["models"])
def list_models(
    request: Request,
    service: ServiceDep,
    key: KeyDep,
    paging: ListDep,
    equal: Annotated[Json, Depends(model_filters)],
) -> Json:
    """List models, newest first; `base_id` leaves the weights versions made from that model."""
    rows, size, last = listing(service, Model, paging, **equal)
    return paged(request, [shapes.model(row) for row in rows], size, last)


@router.get("/models/{id}", tags=["models"])
def get_model(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Return a model; `graph` is null until it is ready, `problem` says why it was rejected."""
    return shown(request, shapes.model(one(service, key.sight, Model, id)))


@router.patch("/models/{id}", tags=["models"])
async def rename_model(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Give a model another name (`If-Match` needed)."""
    return await _rename(request, service, key, Model, id)


@router.delete("/models/{id}", status_code=204, tags=["models"])
def delete_model(id: str, request: Request, service: ServiceDep, key: KeyDep, cascade: Cascade = None) -> Response:
    """Delete a model that no search has used and no weights version was made from (`If-Match` needed).

    With `cascade=cancel` its searches are cancelled and deleted too; 202 while some of them still end.
    """
    return _delete(request, service, key, Model, id, cascade)


@router.post("/datasets", status_code=202, tags=["datasets"])
async def create_dataset(request: Request, service: ServiceDep, key: KeyDep, name: str = "dataset") -> Response:
    """Upload a dataset (raw body: npz or safetensors with `x` and optional `y`); the spec is in a header."""
    require(key, "models:write")
    checked_name(name)
    header = request.headers.get("x-tightfit-dataset-spec", "{}")
    spec = validated(DatasetSpecIn, parse_json(header.encode("latin-1"))).model_dump()
    sha256, size, found = await receive(request, service, key.owner_id, "dataset")
    if found not in ("npz", "safetensors"):
        raise Problem("unrecognised-format", f"a dataset is npz or safetensors; the content is {found}")
    fingerprint = f"{name}|{json.dumps(spec, sort_keys=True)}|{sha256}".encode()

    def act() -> JSONResponse:
        known = is_stored(service, key.owner_id, sha256)
        row = actions.create_dataset(service, key.owner_id, name, spec, sha256, size)
        return accepted({**shapes.dataset(row), "deduplicated": known}, f"/v1/datasets/{row.id}")

    return await run_in_threadpool(idempotent, request, key, fingerprint, act)


@router.get("/datasets", tags=["datasets"])
def list_datasets(
    request: Request,
    service: ServiceDep,
    key: KeyDep,
    paging: ListDep,
    equal: Annotated[Json, Depends(dataset_filters)],
) -> Json:
    """List datasets, newest first."""
    rows, size, last = listing(service, Dataset, paging, **equal)
    return paged(request, [shapes.dataset(row) for row in rows], size, last)


@router.get("/datasets/{id}", tags=["datasets"])
def get_dataset(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Return a dataset."""
    return shown(request, shapes.dataset(one(service, key.sight, Dataset, id)))


@router.patch("/datasets/{id}", tags=["datasets"])
async def rename_dataset(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Give a dataset another name (`If-Match` needed)."""
    return await _rename(request, service, key, Dataset, id)


@router.delete("/datasets/{id}", status_code=204, tags=["datasets"])
def delete_dataset(id: str, request: Request, service: ServiceDep, key: KeyDep, cascade: Cascade = None) -> Response:
    """Delete a dataset that no search has used (`If-Match` needed).

    With `cascade=cancel` its searches are cancelled and deleted too; 202 while some of them still end.
    """
    return _delete(request, service, key, Dataset, id, cascade)


Upload = type[Model] | type[Dataset]


def _shape(row: Model | Dataset) -> Json:
    return shapes.model(row) if isinstance(row, Model) else shapes.dataset(row)


async def _rename(request: Request, service: Service, key: auth.Key, table: Upload, id: str) -> Response:
    require(key, "models:write")
    name = (await body(request, RenameIn)).name
    await run_in_threadpool(one, service, key.sight, table, id)
    row = await run_in_threadpool(
        editing.rename, service, table, id, name, lambda row: check_match(request, _shape(row))
    )
    return shown(request, _shape(row))


def _delete(request: Request, service: Service, key: auth.Key, table: Upload, id: str, cascade: Cascade) -> Response:
    require(key, "models:write")
    one(service, key.sight, table, id)
    pending = editing.delete_upload(
        service, table, id, lambda row: check_match(request, _shape(row)), cascade == "cancel"
    )
    if pending:
        return JSONResponse({"cancelling": pending}, 202, {"Retry-After": "1"})
    return Response(status_code=204)
