"""Server-sent events from rows that are numbered without gaps: replayed from any number on, for a bounded time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any, NamedTuple

from fastapi import Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from app.api.auth import Key
from app.api.flights import EventStream
from app.api.shapes import moment
from app.settings import Settings

MAX_SEQ_DIGITS = 18
After = Annotated[int | None, Query(ge=0, lt=10**MAX_SEQ_DIGITS)]


class Told(NamedTuple):
    """One event as a stream tells it."""

    seq: int
    kind: str
    at: Any
    payload: dict[str, Any]


Read = Callable[[int], tuple[Sequence[Told], bool]]
"""Returns the events behind a number, and whether there will be no more."""


def stream(request: Request, key: Key, after: int | None, read: Read) -> Response:
    """Return the stream behind `after`, else behind the `Last-Event-ID` header, else of all.

    Raises Problem too-many-streams.
    """
    settings: Settings = request.app.state.settings
    text = request.headers.get("last-event-id", "")
    seen = int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_SEQ_DIGITS else 0
    events = _events(request, settings, seen if after is None else after, read)
    return EventStream(events, request.app.state.streams.enter(key.id), settings.event_write_s)


async def _events(request: Request, settings: Settings, seq: int, read: Read) -> AsyncIterator[str]:
    end, pinged = time.monotonic() + settings.event_stream_s, time.monotonic()
    while time.monotonic() < end and not request.app.state.stopping.is_set():
        rows, finished = await run_in_threadpool(read, seq)
        for row in rows:
            seq = row.seq
            data = {"seq": row.seq, "kind": row.kind, "at": moment(row.at), **row.payload}
            yield f"id: {row.seq}\nevent: {row.kind}\ndata: {json.dumps(data)}\n\n"
        if finished and not rows:
            return
        if time.monotonic() - pinged > settings.event_ping_s:
            pinged = time.monotonic()
            yield ": ping\n\n"
        if not rows:
            await asyncio.sleep(settings.event_poll_s)
