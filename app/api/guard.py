"""What holds for every request before a route sees it: header laws, hosts, failed keys, and bodies that don't crawl."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.answers import answer
from app.api.auth import Attempts
from app.problems import Problem
from app.settings import Settings
from app.store import acting

MAX_PATH = 512
MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 * 1024


def is_plain(path: str) -> bool:
    """Tell whether an address can be one of ours: short, printable ASCII. Others never reach a query or file name."""
    return len(path) <= MAX_PATH and path.isascii() and path.isprintable()


def check_headers(raw: Iterable[tuple[bytes, bytes]]) -> None:
    """Raise Problem headers-too-large or malformed-request for headers that two readers could read differently."""
    pairs = list(raw)
    if len(pairs) > MAX_HEADERS or sum(len(name) + len(value) + 4 for name, value in pairs) > MAX_HEADER_BYTES:
        raise Problem("headers-too-large", f"at most {MAX_HEADERS} headers in {MAX_HEADER_BYTES} bytes")
    lengths = [value for name, value in pairs if name == b"content-length"]
    if lengths and any(name == b"transfer-encoding" for name, _ in pairs):
        raise Problem("malformed-request", "Content-Length and Transfer-Encoding exclude each other")
    if len(lengths) > 1 or any(not value.isdigit() for value in lengths):
        raise Problem("malformed-request", "Content-Length is one number of bytes")


def check_host(headers: Headers, allowed: frozenset[str]) -> None:
    """Raise Problem misdirected-request for a host that is not among those of the settings (none: every host)."""
    name = headers.get("host", "").rsplit(":", 1)[0].strip("[]").lower()
    if allowed and name not in allowed:
        raise Problem("misdirected-request", "this service does not answer for that host")


class Pace:
    """A request's body as it comes in; one that crawls is refused.

    Only the time spent waiting for the client counts: a slow disk is not its fault.
    """

    def __init__(self, receive: Receive, settings: Settings) -> None:
        self._receive = receive
        self._window_s, self._rate = settings.upload_window_s, settings.upload_bytes_per_s
        self._waited = 0.0
        self._bytes = 0
        self._done = False

    async def __call__(self) -> Message:
        """Return the next message. Raises Problem upload-too-slow."""
        while not self._done:
            begun = time.monotonic()
            try:
                message = await asyncio.wait_for(self._receive(), max(0.0, self._window_s - self._waited))
            except TimeoutError:
                self._turn()
                continue
            self._waited += time.monotonic() - begun
            self._bytes += len(message.get("body", b""))
            self._done = message["type"] != "http.request" or not message.get("more_body", False)
            if self._waited >= self._window_s and not self._done:
                self._turn()
            return message
        return await self._receive()

    def _turn(self) -> None:
        """Begin another window, if enough came in this one."""
        if self._bytes < self._rate * self._window_s:
            self._done = True
            raise Problem("upload-too-slow", f"fewer than {self._rate} bytes per second over {self._window_s:g} s")
        self._waited, self._bytes = 0.0, 0


class Guard:
    """Gives each request an id, refuses what breaks the laws, counts failed keys per address, and says nosniff."""

    def __init__(self, app: ASGIApp, settings: Settings, attempts: Attempts) -> None:
        self._app, self._settings, self._attempts = app, settings, attempts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope.setdefault("state", {})["request_id"] = uuid.uuid4().hex
        headers = Headers(scope=scope)
        address = scope["client"][0] if scope.get("client") else "-"

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                found["X-Request-Id"] = request_id
                for name, value in scope["state"].get("headers", {}).items():
                    found[name] = value
                found.setdefault("X-Content-Type-Options", "nosniff")
                if message["status"] == 401 and "authorization" in headers:
                    self._attempts.failed(address)
            await send(message)

        try:
            self._check(scope, headers, address)
        except Problem as problem:
            await answer(scope, problem)(scope, receive, told)
            return
        with acting.request(request_id):
            await self._app(scope, Pace(receive, self._settings), told)

    def _check(self, scope: Scope, headers: Headers, address: str) -> None:
        check_headers(scope["headers"])
        check_host(headers, self._settings.hosts)
        if not is_plain(scope["path"]):
            raise Problem("not-found", "no address has such characters, or is that long")
        if "authorization" in headers and self._attempts.is_blocked(address):
            raise Problem("too-many-attempts", "too many wrong keys from this address; wait a minute")
