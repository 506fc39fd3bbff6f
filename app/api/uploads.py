"""Raw-body uploads: counted, hashed, capped and looked at by their first bytes; nothing is parsed here."""

from __future__ import annotations

import mmap
from pathlib import Path

from fastapi import Request

from app.actions import Service
from app.checking import check_quota
from app.domain.formats import HEAD_BYTES, TAIL_BYTES, FormatRefused, Kind, sniff
from app.domain.zip_laws import Entry, directory
from app.problems import Problem
from app.store import query
from app.store.blobs import BlobWriter


async def receive(request: Request, service: Service, owner_id: str, what: Kind) -> tuple[str, int, str]:
    """Store a request's body as a blob, on an owner's quota.

    Returns (sha256, bytes, format by content: onnx, pt2, npz, safetensors).
    """
    declared = _length(request, service, owner_id)
    with service.blobs.writer() as writer:
        head = await _drain(request, writer, declared)
        found = format_of(head, writer, what)
        _check_digest(request, writer.sha256)
        return writer.commit(), declared, found


def _length(request: Request, service: Service, owner_id: str) -> int:
    text = request.headers.get("content-length")
    if text is None or not text.isdigit():
        raise Problem("length-required", "an upload needs a Content-Length")
    declared = int(text)
    check_room(service, owner_id, declared)
    return declared


def check_room(service: Service, owner_id: str, declared: int) -> None:
    """Raise Problem upload-too-large, quota-exceeded or insufficient-storage for an owner's file of so many bytes."""
    if declared > service.settings.max_upload_bytes:
        raise Problem("upload-too-large", f"{declared} bytes; at most {service.settings.max_upload_bytes}")
    if service.settings.max_stored_bytes:
        with service.database.reading() as session:
            used = query.stored_bytes(session, owner_id)
        check_quota("stored_bytes", used, service.settings.max_stored_bytes, declared)
    if service.blobs.free_bytes() - declared < service.settings.disk_floor_bytes:
        raise Problem("insufficient-storage", "the disk is nearly full")


async def _drain(request: Request, writer: BlobWriter, declared: int) -> bytes:
    head = b""
    async for chunk in request.stream():
        if len(head) < HEAD_BYTES:
            head += chunk[: HEAD_BYTES - len(head)]
        writer.write(chunk)
        if writer.bytes > declared:
            raise Problem("incomplete-upload", "more bytes than declared")
    if writer.bytes != declared:
        raise Problem("incomplete-upload", f"{writer.bytes} of {declared} bytes came")
    return head


def format_of(head: bytes, writer: BlobWriter, what: Kind) -> str:
    """Return the format of what was written, by content. Raises Problem by the name of what it is instead."""
    path = writer.peek()
    try:
        return sniff(head, writer.bytes, what, lambda: _entries(path), _tail(path))
    except FormatRefused as refusal:
        raise Problem(refusal.slug, refusal.detail) from refusal


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read(TAIL_BYTES)


def _entries(path: Path) -> list[Entry]:
    """List a zip's entries: only its directory, of bounded size, is read."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return directory(data)


def _check_digest(request: Request, sha256: str) -> None:
    """Hold the bytes against a `Content-Digest: sha-256=:...:` header, where there is one.

    Called before the file gets its name: one with the same content may be in use under it already.
    """
    import base64

    header = request.headers.get("content-digest", "")
    if not header.startswith("sha-256=:"):
        return
    wanted = header.removeprefix("sha-256=:").rstrip(":")
    if base64.b64encode(bytes.fromhex(sha256)).decode() != wanted:
        raise Problem("digest-mismatch", "the bytes are not those the Content-Digest names")
