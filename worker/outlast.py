"""Outlasting a database that is away: its server restarts, its network fails, or another program holds its lock.

Whatever a worker does can be done again from the start (the engine does so after a kill), so work that met such an
error waits and goes on: nothing fails because of it, and nothing is given up.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import sqlalchemy as sa

from app.store.engine import is_away

log = logging.getLogger(__name__)
SHORTEST_S, LONGEST_S = 0.5, 10.0
Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")


def outlasting(act: Callable[Asked, Answer]) -> Callable[Asked, Answer]:
    """Return `act`, called again each time the database was away; it must be safe to repeat."""

    @functools.wraps(act)
    def lasting(*args: Asked.args, **kwargs: Asked.kwargs) -> Answer:
        pause_s = SHORTEST_S
        while True:
            try:
                return act(*args, **kwargs)
            except sa.exc.DBAPIError as error:
                if not is_away(error):
                    raise
                log.warning("the database is away, again in %.1f s: %s", pause_s, error.orig)
            time.sleep(pause_s)
            pause_s = min(LONGEST_S, 2 * pause_s)

    return lasting
