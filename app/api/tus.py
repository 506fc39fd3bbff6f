"""Resumable uploads: the tus 1.0 protocol with creation, checksum, expiration and termination."""

from __future__ import annotations

import base64
import hashlib
from email.utils import format_datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from app import resumable
from app.actions import Service
from app.api.answers import add_headers
from app.api.auth import require
from app.api.deps import Json, KeyDep, ServiceDep, content_type, parse_json, validated
from app.api.resources import checked_name, is_id_like, one
from app.api.schemas import DatasetSpecIn
from app.api.uploads import check_room, format_of
from app.checking import check_ready
from app.domain.formats import HEAD_BYTES
from app.problems import Problem
from app.store.tables import Model, Upload

VERSION = "1.0.0"
EXTENSIONS = "creation,checksum,expiration,termination"
ALGORITHMS = ("sha1", "sha256")
KINDS = {"model": "network", "dataset": "dataset", "weights": "weights"}

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])


def speaks_tus(request: Request) -> None:
    """Raise Problem unsupported-tus-version unless a request speaks this version; the answer does in any case."""
    add_headers(request, {"Tus-Resumable": VERSION})
    if request.headers.get("tus-resumable") != VERSION:
        raise Problem("unsupported-tus-version", f"Tus-Resumable: {VERSION}", headers={"Tus-Version": VERSION})


def upload_of(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Upload:
    """Return the upload of the address, which the key's owner began."""
    speaks_tus(request)
    require(key, "models:write")
    if not is_id_like(id):
        raise Problem("not-found", "no such upload")
    return resumable.find(service, id, key.sight)


UploadDep = Annotated[Upload, Depends(upload_of)]


@router.options("", status_code=204)
def capabilities(service: ServiceDep) -> Response:
    """Tell what of tus is spoken here."""
    return Response(
        status_code=204,
        headers={
            "Tus-Resumable": VERSION,
            "Tus-Version": VERSION,
            "Tus-Extension": EXTENSIONS,
            "Tus-Max-Size": str(service.settings.max_upload_bytes),
            "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
        },
    )


@router.post("", status_code=201)
def create_upload(request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Begin an upload of `Upload-Length` bytes; `Upload-Metadata` says what it becomes.

    kind (model, dataset or weights), name, spec (a dataset's, JSON), model_id (of the base of weights).
    """
    speaks_tus(request)
    require(key, "models:write")
    length = _number(request, "upload-length")
    check_room(service, key.owner_id, length)
    row = resumable.create(service, key.owner_id, key.id, length, _wish(request, service, key.owner_id))
    return Response(status_code=201, headers={"Location": f"/v1/uploads/{row.id}", **_state(row)})


@router.head("/{id}")
def upload_state(service: ServiceDep, row: UploadDep) -> Response:
    """Tell how many bytes have come; the resource that they became is in `Content-Location`."""
    location = _finished(service, row)
    return Response(headers={**_state(row), **location, "Cache-Control": "no-store"})


@router.patch("/{id}", status_code=204)
async def append(request: Request, service: ServiceDep, row: UploadDep) -> Response:
    """Send the next part, at `Upload-Offset`; the last one makes the resource (`Content-Location`)."""
    if content_type(request) != "application/offset+octet-stream":
        told = {"Accept": "application/offset+octet-stream"}
        raise Problem("unsupported-media-type", "a part is application/offset+octet-stream", headers=told)
    offset = _number(request, "upload-offset")
    if offset != row.offset:
        raise Problem("offset-conflict", f"the upload has {row.offset} bytes", extra={"offset": row.offset})
    if row.state == "open":
        await _receive(request, service, row)
    location = await run_in_threadpool(_finished, service, row)
    return Response(status_code=204, headers={**_state(row), **location})


@router.delete("/{id}", status_code=204)
def terminate(service: ServiceDep, row: UploadDep) -> Response:
    """Forget an upload and free its bytes; a resource that it became stays."""
    resumable.remove(service, row)
    return Response(status_code=204)


async def _receive(request: Request, service: Service, row: Upload) -> None:
    """Append a part. What came of one that broke off counts, unless a checksum spoke for the whole part."""
    digest, wanted = _checksum(request)
    begun = row.offset
    with resumable.appending(service, row) as file:
        try:
            async for chunk in request.stream():
                if file.tell() + len(chunk) > row.length:
                    file.truncate(begun)
                    raise Problem("upload-too-large", f"more than the {row.length} bytes that were announced")
                await run_in_threadpool(file.write, chunk)
                if digest is not None:
                    digest.update(chunk)
        except ClientDisconnect:
            if digest is None:
                resumable.keep(service, row, file)
            raise
        if digest is not None and digest.digest() != wanted:
            file.truncate(begun)
            raise Problem("checksum-mismatch", "the part is not the one that Upload-Checksum names; send it again")
        await run_in_threadpool(resumable.keep, service, row, file)


def _finished(service: Service, row: Upload) -> dict[str, str]:
    """Return the address of what a whole upload became; one that is no file of ours is refused and forgotten."""
    if row.offset < row.length:
        return {}
    if row.location is None:
        writer = resumable.whole(service, row)
        with writer:
            try:
                head = writer.peek().open("rb").read(HEAD_BYTES)
                found = format_of(head, writer, row.wish["kind"])
            except Problem:
                resumable.remove(service, row)
                raise
            row.location = resumable.finish(service, row, (writer.commit(), row.length, found))
    return {"Content-Location": row.location}


def _state(row: Upload) -> dict[str, str]:
    expires = {"Upload-Expires": format_datetime(row.expires_at, usegmt=True)} if row.offset < row.length else {}
    return {"Upload-Offset": str(row.offset), "Upload-Length": str(row.length), **expires}


def _number(request: Request, name: str) -> int:
    text = request.headers.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise Problem("malformed-request", f"{name}: a number of bytes is needed")
    return int(text)


def _checksum(request: Request) -> tuple[Any, bytes]:
    header = request.headers.get("upload-checksum")
    if header is None:
        return None, b""
    name, _, text = header.partition(" ")
    try:
        wanted = base64.b64decode(text, validate=True)
    except ValueError:
        name, wanted = "", b""
    if name not in ALGORITHMS:
        raise Problem("malformed-request", f"Upload-Checksum: one of {', '.join(ALGORITHMS)}, then base64")
    return hashlib.new(name, usedforsecurity=False), wanted


def _wish(request: Request, service: Service, owner_id: str) -> Json:
    """Read Upload-Metadata: `key base64, key base64, ...`."""
    told: dict[str, str] = {}
    try:
        for pair in filter(None, (item.strip() for item in request.headers.get("upload-metadata", "").split(","))):
            name, _, value = pair.partition(" ")
            told[name] = base64.b64decode(value, validate=True).decode("utf-8")
    except ValueError as error:
        raise Problem("malformed-request", "Upload-Metadata is pairs of a key and base64 of UTF-8") from error
    kind = KINDS.get(told.get("kind", "model"))
    if kind is None:
        raise Problem("invalid-request", f"kind is one of {', '.join(KINDS)}")
    named = told.get("name", told.get("filename", "model" if kind == "network" else "dataset"))
    wish: Json = {"kind": kind, "name": checked_name(named)}
    if kind == "dataset":
        wish["spec"] = validated(DatasetSpecIn, parse_json(told.get("spec", "{}").encode())).model_dump()
    if kind == "weights":
        check_ready(one(service, owner_id, Model, told.get("model_id", "")), "model-not-ready")
        wish.update(model_id=told["model_id"], name=told.get("name"))
    return wish
