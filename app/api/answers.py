"""How a problem is told: `application/problem+json` with the request's id and the headers that belong to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from app.problems import Problem

MEDIA = "application/problem+json"
_HEADERS = {
    "unauthenticated": {"WWW-Authenticate": "Bearer"},
    "too-many-attempts": {"Retry-After": "60"},
    "too-many-requests": {"Retry-After": "1"},
    "too-many-streams": {"Retry-After": "5"},
    "request-in-progress": {"Retry-After": "1"},
    "busy": {"Retry-After": "1"},
    "read-only": {"Retry-After": "60"},
    "unsupported-media-type": {"Accept": "application/json"},
    "malformed-request": {"Connection": "close"},
    "headers-too-large": {"Connection": "close"},
    "upload-too-slow": {"Connection": "close"},
}
"""What a refusal's answer says beside its body, by slug."""


def add_headers(request: Request, headers: Mapping[str, str]) -> None:
    """Have a request's answer say more, whatever it will be."""
    request.state.headers = {**getattr(request.state, "headers", {}), **headers}


class ProblemResponse(JSONResponse):
    """A problem document; halves of characters that a client sent are told as question marks."""

    media_type = MEDIA

    def render(self, content: Any) -> bytes:
        """Return the document as UTF-8."""
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def answer(scope: Mapping[str, Any], problem: Problem) -> JSONResponse:
    """Return the answer to a request (its ASGI scope) that a problem refuses."""
    body = {**problem.to_json(scope["path"]), "request_id": scope.get("state", {}).get("request_id")}
    return ProblemResponse(body, problem.status, {**_HEADERS.get(problem.slug, {}), **problem.headers})
