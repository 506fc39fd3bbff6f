"""What is under way in this process: repeated requests wait for the first one, event streams are counted."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from app.problems import Problem


class Flights:
    """One request at a time per place."""

    def __init__(self) -> None:
        self._places: set[Hashable] = set()
        self._landed = threading.Condition()

    @contextmanager
    def entering(self, place: Hashable, wait_s: float) -> Iterator[None]:
        """Hold a place. Raises Problem request-in-progress where another has held it for `wait_s` seconds."""
        with self._landed:
            if not self._landed.wait_for(lambda: place not in self._places, wait_s):
                raise Problem("request-in-progress", "the first request under this key is still under way")
            self._places.add(place)
        try:
            yield
        finally:
            with self._landed:
                self._places.discard(place)
                self._landed.notify_all()


class Streams:
    """Counts open event streams."""

    def __init__(self, per_key: int, all_keys: int) -> None:
        self._per_key, self._all_keys = per_key, all_keys
        self._open: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._open.total()

    def enter(self, key_id: str) -> Callable[[], None]:
        """Count one more; return what ends it. Raises Problem too-many-streams."""
        if self._open[key_id] >= self._per_key or self._open.total() >= self._all_keys:
            raise Problem("too-many-streams", f"at most {self._per_key} per key and {self._all_keys} in all")
        self._open[key_id] += 1

        def leave() -> None:
            self._open[key_id] -= 1

        return leave


class EventStream(StreamingResponse):
    """Server-sent events, left when the client goes away, or reads nothing for `write_s` seconds."""

    def __init__(self, content: Any, leave: Callable[[], None], write_s: float) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._leave, self._write_s = leave, write_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""

        async def hastily(message: Message) -> None:
            await asyncio.wait_for(send(message), self._write_s)

        try:
            await super().__call__(scope, receive, hastily)
        except (TimeoutError, BaseExceptionGroup) as error:
            if not _is_timeout(error):
                raise
        finally:
            self._leave()


def _is_timeout(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_timeout(item) for item in error.exceptions)
    return isinstance(error, TimeoutError)
