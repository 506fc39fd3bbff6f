"""Conditional requests (RFC 9110): strong ETags, 304, 412 and 428; files in ranges with their digest (RFC 9530)."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from app.problems import Problem

Json = dict[str, Any]
_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e]*)"')
_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))")


def etag_of(content: Json) -> str:
    """Return the strong ETag of a resource's JSON."""
    return _etag(JSONResponse(content))


def _etag(answer: Response) -> str:
    return f'"{hashlib.sha256(bytes(answer.body)).hexdigest()[:32]}"'


def names(header: str, etag: str, weakly: bool) -> bool:
    """Tell whether a header's list of ETags has this one; a weak one counts only where `weakly` says so."""
    if header.strip() == "*":
        return True
    return any(f'"{tag}"' == etag and (weakly or not weak) for weak, tag in _TAG.findall(header))


def shown(request: Request, content: Json) -> Response:
    """Return a resource with its ETag, or 304 where the client has this very state."""
    answer = JSONResponse(content)
    etag = _etag(answer)
    if names(request.headers.get("if-none-match", ""), etag, weakly=True):
        return Response(status_code=304, headers={"ETag": etag})
    answer.headers["ETag"] = etag
    return answer


def check_match(request: Request, content: Json) -> None:
    """Refuse a change to a state that the client has not seen: precondition-required, or stale-etag.

    `If-Match: *` changes whatever the state is.
    """
    header = request.headers.get("if-match")
    if header is None:
        raise Problem("precondition-required", "send If-Match with the ETag that you have seen, or `*` for any")
    if not names(header, etag_of(content), weakly=False):
        raise Problem("stale-etag", "the resource has changed since that ETag; read it again")


class Ranged(FileResponse):
    """A file, whole or in one range; what asks for several, or for something else, gets all of it (RFC 9110, 14.2)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        if _range(Headers(scope=scope).get("range", "")) is None:
            scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"range"]}
        await super().__call__(scope, receive, send)


def stored_file(request: Request, path: Path, sha256: str, filename: str | None = None) -> Response:
    """Return a stored file: the ETag is its SHA-256, ranges work, the name is ours.

    Raises Problem blob-corrupt where it is gone, range-not-satisfiable where it ends before the range begins.
    """
    if not path.exists():
        raise Problem("blob-corrupt", "the stored file is gone")
    etag = f'"{sha256}"'
    if names(request.headers.get("if-none-match", ""), etag, weakly=True):
        return Response(status_code=304, headers={"ETag": etag})
    if request.headers.get("if-range", etag) == etag:
        _check_range(request.headers.get("range", ""), path.stat().st_size)
    headers = {
        "ETag": etag,
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:",
        "X-Content-Type-Options": "nosniff",
    }
    return Ranged(path, media_type="application/octet-stream", filename=filename, headers=headers)


def _range(header: str) -> tuple[int | None, int | None] | None:
    """Return (first, last) of a header that asks for one range: (None, n) for the last n bytes."""
    found = _RANGE.fullmatch(header)
    if found is None:
        return None
    first, last = (int(found[1]), int(found[2]) if found[2] else None) if found[1] else (None, int(found[3]))
    return None if first is not None and last is not None and last < first else (first, last)


def _check_range(header: str, size: int) -> None:
    found = _range(header)
    if found is None:
        return
    first, last = found
    if (first is not None and first >= size) or (first is None and (last == 0 or size == 0)):
        told = {"Content-Range": f"bytes */{size}"}
        raise Problem("range-not-satisfiable", f"the file has {size} bytes", headers=told)
