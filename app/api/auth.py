"""API keys and dashboard sessions."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy as sa
from fastapi import Request

from app.actions import Service
from app.api.answers import add_headers
from app.domain import ids, keytext
from app.domain.owners import DEFAULT, Sight
from app.problems import Problem
from app.store import acting
from app.store.tables import ApiKey, now

MAX_ADDRESSES = 10_000
COOKIE = "tightfit_session"
SCOPES = ("models:write", "searches:write", "artefacts:read", "admin")


@dataclass(frozen=True)
class Key:
    """Who asks."""

    id: str
    owner_id: str
    scopes: tuple[str, ...]

    @property
    def sight(self) -> Sight:
        """What it may see: its owner's rows, or an administrator's everything."""
        return None if "admin" in self.scopes else self.owner_id


def new_key(
    service: Service,
    name: str,
    scopes: tuple[str, ...] = SCOPES,
    owner: str = DEFAULT,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Create an owner's key; its text is returned once and not stored."""
    key_id = ids.new_id("key")
    text = keytext.make(key_id)
    with service.database.writing() as session:
        row = ApiKey(id=key_id, name=name, sha256=_digests(service, text)[0], scopes=list(scopes), created_at=now())
        row.owner_id, row.expires_at = owner, expires_at
        session.add(row)
    return row, text


def _digests(service: Service, text: str) -> list[str]:
    return keytext.digests(text, service.settings.key_pepper.get_secret_value())


def ensure_admin_key(service: Service) -> None:
    """At the first start create an administrator's key and leave it in the data folder, readable by the owner only."""
    file = service.settings.key_file
    with service.database.reading() as session:
        known = session.scalar(sa.select(sa.func.count()).select_from(ApiKey))
    if known and file.exists():
        return
    _, text = new_key(service, "first start")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.chmod(0o600)
    file.write_text(text + "\n")


def secret(service: Service) -> bytes:
    """Return the secret that signs sessions and cursors; made at the first use."""
    file = service.settings.secret_file
    if not file.exists():
        _create_secret(file)
    return file.read_text().strip().encode()


def _create_secret(file: Path) -> None:
    """Write the secret whole or not at all: a half-made, empty one would let anybody sign."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent)  # readable by the owner only
    with os.fdopen(descriptor, "w") as handle:
        handle.write(secrets.token_hex(32))
    with contextlib.suppress(FileExistsError):
        os.link(name, file)
    Path(name).unlink()


class Attempts:
    """Counts failed keys per address in the last minute."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self._failed: dict[str, deque[float]] = defaultdict(deque)

    def failed(self, address: str) -> None:
        """Note a failure; addresses that have rested for a minute are forgotten."""
        if len(self._failed) > MAX_ADDRESSES:
            for known in [key for key in self._failed if not self.is_blocked(key) and not self._failed[key]]:
                del self._failed[known]
        self._failed[address].append(time.monotonic())

    def is_blocked(self, address: str) -> bool:
        """Tell whether an address failed too often within a minute."""
        times = self._failed.get(address)
        while times and times[0] < time.monotonic() - 60:
            times.popleft()
        return bool(times) and len(times or ()) >= self.allowed


def authenticate(request: Request) -> Key:
    """Return the key of a request's bearer token or session cookie.

    Raises Problem unauthenticated, too-many-requests or, for a session, cross-site-request.
    """
    service: Service = request.app.state.service
    header = request.headers.get("authorization", "")
    cookie, digest = request.cookies.get(COOKIE), None
    if header.lower().startswith("bearer "):
        key, digest = identified(service, header[7:].strip())
    elif cookie:
        key = check_session(request, service, cookie)
    else:
        raise Problem("unauthenticated", "an API key is needed: Authorization: Bearer tf_...")
    acting.known(key.id, key.owner_id)
    request.app.state.usage.note(service.database, key.id, digest)
    add_headers(request, request.app.state.rates.take(key.id))
    return key


def check_token(service: Service, text: str) -> Key:
    """Return the key that a token's text is. Mistyped, unknown, revoked and expired look alike."""
    return identified(service, text)[0]


def identified(service: Service, text: str) -> tuple[Key, str | None]:
    """Return the key that a text is, and the digest that it is to be stored as, where that is another one now.

    A text that can't be a key is told without a look at the database. Raises Problem unauthenticated.
    """
    row, digests = None, _digests(service, text) if keytext.is_whole(text) else []
    if digests:
        with service.database.reading() as session:
            row = session.scalar(sa.select(ApiKey).where(ApiKey.sha256.in_(digests)))
    if row is None or not _is_valid(row):
        raise Problem("unauthenticated", "the API key is not valid")
    return _of(row), None if row.sha256 == digests[0] else digests[0]


def issue_session(service: Service, key: Key) -> str:
    """Return a signed cookie value for a key."""
    body = f"{key.id}.{int(time.time() + service.settings.session_s)}"
    return f"{body}.{_sign(service, body)}"


def check_session(request: Request, service: Service, cookie: str) -> Key:
    """Return the key behind a cookie; changes from another site are refused."""
    body, _, signature = cookie.rpartition(".")
    key_id, _, until = body.partition(".")
    if not same(signature, _sign(service, body)) or not until.isdigit() or int(until) < time.time():
        raise Problem("unauthenticated", "the session has ended; log in again")
    if request.method not in ("GET", "HEAD") and not from_here(request):
        raise Problem("cross-site-request", "a form of another site can't act here")
    with service.database.reading() as session:
        row = session.get(ApiKey, key_id)
    if row is None or not _is_valid(row):
        raise Problem("unauthenticated", "the session has ended; log in again")
    return _of(row)


def from_here(request: Request) -> bool:
    """Tell whether a page of this service, or no page at all, made a request; `Origin` speaks for older browsers."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


def require(key: Key, scope: str) -> None:
    """Raise Problem missing-scope unless the key has a scope (admin has all)."""
    if scope not in key.scopes and "admin" not in key.scopes:
        raise Problem("missing-scope", f"the key lacks the scope {scope!r}", extra={"scope": scope})


def same(given: str, expected: str) -> bool:
    """Compare two texts in constant time, whatever characters a client sent."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode())


def _of(row: ApiKey) -> Key:
    return Key(row.id, row.owner_id, tuple(row.scopes))


def _is_valid(row: ApiKey) -> bool:
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > now())


def _sign(service: Service, body: str) -> str:
    return hmac.new(secret(service), body.encode(), hashlib.sha256).hexdigest()
