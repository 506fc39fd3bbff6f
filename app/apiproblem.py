"""What a client raises: a refusal by the service, or a file that is not the one it announced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

Json = dict[str, Any]


class ApiProblem(Exception):
    """A refusal by the service (RFC 9457): `slug` names it, `errors` point at the fields at fault."""

    def __init__(self, slug: str, status: int, detail: str, errors: list[Json] | None = None, **extra: Any) -> None:
        super().__init__(f"{slug}: {detail}" if detail else slug)
        self.slug, self.status, self.detail = slug, status, detail
        self.errors = errors or []
        self.extra = extra

    def to_json(self) -> Json:
        """Return the problem as JSON."""
        return {
            "slug": self.slug,
            "status": self.status,
            "detail": self.detail,
            "errors": self.errors,
            **self.extra,
        }

    @classmethod
    def from_response(cls, response: httpx.Response) -> ApiProblem:
        """Build the problem from an error response, whatever its body is."""
        try:
            body = response.json()
        except ValueError:
            body = {}
        if not isinstance(body, dict):
            body = {"detail": str(body)}
        return cls.from_body(body, response.status_code, response.reason_phrase)

    @classmethod
    def from_body(cls, body: Mapping[str, Any], status: int = 0, reason: str = "") -> ApiProblem:
        """Build the problem from a problem document; the slug is the last part of its `type`, or its `slug`."""
        known = {"type", "slug", "status", "detail", "errors", "title", "instance"}
        slug = body.get("slug") or str(body.get("type") or "").rstrip("/").rpartition("/")[2] or f"http-{status}"
        detail = str(body.get("detail") or body.get("title") or reason)
        extra = {str(key): value for key, value in body.items() if key not in known}
        return cls(str(slug), int(body.get("status") or status), detail, list(body.get("errors") or []), **extra)


class DigestMismatch(Exception):
    """A downloaded file is not the file that the service announced."""
