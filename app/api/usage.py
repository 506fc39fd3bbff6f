"""When keys were used: noted at most once a minute per key, beside the requests, so that none of them waits for it."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import sqlalchemy as sa

from app.store.engine import Database
from app.store.tables import ApiKey, now

log = logging.getLogger("tightfit.api")
EVERY_S = 60.0
MAX_KEYS = 10_000


class Usage:
    """Writes `last_used_at`, and the digest that a key is to be stored as from now on."""

    def __init__(self) -> None:
        self._noted: dict[str, float] = {}
        self._lock = threading.Lock()
        self._writer: ThreadPoolExecutor | None = None

    def note(self, database: Database, key_id: str, digest: str | None = None) -> None:
        """Note that a key was used; `digest` is told where it is not the one that is stored."""
        at = time.monotonic()
        with self._lock:
            if at - self._noted.get(key_id, -EVERY_S) < EVERY_S:
                return
            if len(self._noted) >= MAX_KEYS:
                self._noted.clear()
            self._noted[key_id] = at
            if self._writer is None:
                self._writer = ThreadPoolExecutor(1, "key-usage")
            self._writer.submit(_write, database, key_id, digest)

    def close(self) -> None:
        """Wait for what is being written. A request that comes later is noted all the same."""
        with self._lock:
            writer, self._writer = self._writer, None
        if writer is not None:
            writer.shutdown()


def _write(database: Database, key_id: str, digest: str | None) -> None:
    moment = now()
    stale = sa.or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < moment - timedelta(seconds=EVERY_S))
    values = {"last_used_at": moment, **({} if digest is None else {"sha256": digest})}
    change = sa.update(ApiKey).where(ApiKey.id == key_id, stale if digest is None else sa.true()).values(values)
    try:
        with database.writing() as session:
            session.execute(change)
    except sa.exc.SQLAlchemyError as error:  # a read-only or busy database: the key works all the same
        log.warning("last_used_at of %s: %s", key_id, type(error).__name__)
