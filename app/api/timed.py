"""How long requests take, by route and status, and a line per request in the log."""

from __future__ import annotations

import logging
import time

from prometheus_client import CollectorRegistry, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.logs import bind

log = logging.getLogger("tightfit.access")
BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0)
UNKNOWN = "-"


class Timed:
    """Measures until the first byte of the answer: streams and downloads last as long as their clients like."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        self._seconds = Histogram(
            "tightfit_request_seconds",
            "seconds from a request's headers to the first byte of its answer",
            ["method", "route", "status"],
            buckets=BUCKETS,
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._note(scope, message["status"], time.perf_counter() - begun)
            await send(message)

        with bind(request_id=scope.get("state", {}).get("request_id")):
            await self._app(scope, receive, told)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", UNKNOWN)  # never the address itself: there are too many
        self._seconds.labels(scope["method"], route, str(status)).observe(seconds)
        log.info(
            "request",
            extra={"method": scope["method"], "route": route, "status": status, "ms": round(1e3 * seconds, 1)},
        )
