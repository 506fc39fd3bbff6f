"""The runners of one search: each has a slot, tells that it lives, and leaves the others what is theirs.

A trial belongs to the runner that claimed it for as long as that one lives; so does the search's end. A runner is dead
once its slot is taken by another (its workflow was started again) or nothing has been heard of it for `SILENCE_S`.
Nothing of what is computed depends on who computes it, nor on how many runners there are.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from sqlalchemy.orm import Session

from app.store import runner as rows
from app.store import runners
from app.store.engine import Fenced
from worker.job import Ended, LostTrial, Site

SILENCE_S = 15.0
BEAT_S = 2.0
SHORTEST_S, LONGEST_S = 0.02, 0.25
Item = TypeVar("Item")


class Crew:
    """One runner's place among those of its search."""

    def __init__(self, site: Site, search_id: str, slot: int) -> None:
        self.site, self.search_id, self.slot = site, search_id, slot
        self.size = 1
        self.token = f"{slot}-{uuid.uuid4().hex}"
        self._beaten = 0.0
        self._pause = SHORTEST_S

    @property
    def is_alone(self) -> bool:
        """Tell whether the search has one runner only."""
        return self.size == 1

    def enter(self, size: int) -> int:
        """Take the slot, among `size`; return how often it was taken since anything came of it."""
        self.size = size
        with self.site.database.writing() as session:
            return runners.enter(session, self.search_id, self.slot, self.token)

    def fenced(self) -> Site:
        """Return the site with a database that is written to only while the slot is this runner's.

        A stopped process that wakes up when a successor has its slot raises LostTrial at its first write.
        """
        base = self.site.database
        database = Fenced(base.url, base.write, base.read, self._check_slot)
        return replace(self.site, database=database, progressed=self._progressed)

    def _check_slot(self, session: Session) -> None:
        rows.locked(session, self.search_id)
        if not runners.has_slot(session, self.search_id, self.token):
            raise LostTrial(f"slot {self.slot}")

    def _progressed(self, session: Session) -> None:
        runners.progressed(session, self.search_id, self.token)

    def rest(self, session: Session) -> bool:
        """Leave because the search is to pause; return False where it is no longer."""
        return runners.rest(session, self.search_id, self.slot, SILENCE_S)

    def leave(self) -> None:
        """Free the slot."""
        with self.site.database.writing() as session:
            runners.leave(session, self.search_id, self.token)

    def regain(self) -> None:
        """Give back this runner's trials. Raises LostTrial where its slot was taken, as it was not heard of."""
        with self.site.database.writing() as session:
            self._check_slot(session)
            rows.release(session, self.search_id, self.token)

    def beat(self) -> None:
        """Tell from time to time that this runner lives. Raises LostTrial where its slot was taken."""
        if self.is_alone or time.monotonic() - self._beaten < BEAT_S:
            return
        self._beaten = time.monotonic()
        with self.site.database.writing() as session:
            if not runners.beat(session, self.search_id, self.token):
                raise LostTrial(f"slot {self.slot}")

    def others(self, session: Session) -> frozenset[str]:
        """Return the tokens of the other runners that live; none count where the search has only one runner."""
        return frozenset() if self.is_alone else runners.alive(session, self.search_id, SILENCE_S) - {self.token}

    def check(self, session: Session, what: object) -> None:
        """Lock the search. Raises LostTrial where a successor took this slot, Ended where the search is over."""
        rows.locked(session, self.search_id)
        if runners.is_over(session, self.search_id):
            raise Ended(self.search_id)
        if not runners.has_slot(session, self.search_id, self.token):
            raise LostTrial(what)

    def wait(self) -> None:
        """Wait a moment for the others, longer each time. Raises Ended where the search is over."""
        time.sleep(self._pause)
        self._pause = min(LONGEST_S, 1.5 * self._pause)
        self.beat()
        with self.site.database.reading() as session:
            if runners.is_over(session, self.search_id):
                raise Ended(self.search_id)

    def work(self) -> None:
        """Note that there is something to do: the next wait begins short."""
        self._pause = SHORTEST_S

    def takes_end(self) -> bool:
        """Tell whether this runner is the one to end the search."""
        with self.site.database.writing() as session:
            return runners.take_end(session, self.search_id, self.token, SILENCE_S)

    def turned(self, items: Sequence[Item]) -> list[Item]:
        """Return the items beginning with this runner's share, so that runners meet last where they all go on."""
        start = self.slot * len(items) // self.size % max(1, len(items))
        return [*items[start:], *items[:start]]

    def share(self, items: Sequence[Item], pending: Sequence[Item], largest: int) -> list[Item]:
        """Return the next of the `pending` items for this runner: its own block of `items` first, in order.

        Where that is done it takes over the second half of what the others have left: what they do next is not in it.
        """
        if self.is_alone:
            return list(pending[:largest])
        first, last = (k * len(items) // self.size for k in (self.slot, self.slot + 1))
        own = set(map(id, items[first:last]))
        mine = [item for item in pending if id(item) in own] or list(pending[len(pending) // 2 :])
        return mine[:largest]
