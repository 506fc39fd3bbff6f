"""Answers that hold a secret, as they are kept for a repeated request: readable only for who asked.

The text of a new key is in no table. Where an answer with one is kept under an Idempotency-Key, the text is covered by
a pad made from the asking key's own text, of which the service has but a digest: only that key's next request opens it.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from fastapi import Request

from app.domain import keytext

Json = dict[str, Any]


class Seal:
    """Covers and uncovers the `key` of an answer for one request's credential."""

    def __init__(self, request: Request) -> None:
        self._credential = request.headers.get("authorization", "") or request.headers.get("cookie", "")

    def close(self, body: Json) -> Json:
        """Return an answer as it is kept."""
        return {**body, "key": self._covered(body["id"], body["key"].encode()).hex()}

    def open(self, body: Json) -> Json:
        """Return an answer as it was; `key` is null for another credential than the one that asked first."""
        text = self._covered(body["id"], bytes.fromhex(body["key"])).decode("utf-8", "replace")
        return {**body, "key": text if keytext.is_whole(text) else None}

    def _covered(self, key_id: str, data: bytes) -> bytes:
        """Exclude-or data of at most 64 bytes with a pad that is used for this key's text alone."""
        pad = hmac.new(self._credential.encode(), key_id.encode(), hashlib.sha512).digest()
        return bytes(one ^ other for one, other in zip(data, pad, strict=False))
