"""What the user wants of a running search, asked of its row once a second."""

from __future__ import annotations

import math
import time

from app.store import runner as rows
from app.store.engine import Database
from worker.job import Cancelled, Paused

POLL_S = 1.0
GRACE_S = 30.0
"""A trial in flight may end within so many seconds of a pause; a longer one is measured again when it goes on."""


class Wishes:
    """The latest wish about one search: run, pause or cancel."""

    def __init__(self, database: Database, search_id: str, grace_s: float = GRACE_S) -> None:
        self._database, self._search_id, self._grace_s = database, search_id, grace_s
        self._asked = -math.inf
        self._wish, self._since = "run", time.monotonic()

    def ignore(self) -> None:
        """Ask no more: whatever is wished, the work goes on."""
        self._asked = math.inf

    @property
    def wish(self) -> str:
        """Return what is wished; a search whose row is gone is cancelled."""
        if time.monotonic() - self._asked > POLL_S:
            self._asked = time.monotonic()
            with self._database.reading() as session:
                found = rows.wish(session, self._search_id)
            if found != self._wish:
                self._wish, self._since = found, time.monotonic()
        return self._wish

    @property
    def end_now(self) -> bool:
        """Tell whether what is under way is to be given up: at once for a cancel, after a while for a pause."""
        wish = self.wish
        return wish == "cancel" or (wish == "pause" and time.monotonic() - self._since > self._grace_s)

    def check(self) -> None:
        """Raise Cancelled or Paused where that is wished."""
        if self.wish == "cancel":
            raise Cancelled
        if self.wish == "pause":
            raise Paused
