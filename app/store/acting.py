"""Who acts: the request under way and, once it is known, the key behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Actor:
    """Who a request's changes are by; filled in once the key is known, in whatever thread that is."""

    request_id: str
    key_id: str | None = None
    owner_id: str | None = None


_actor: ContextVar[Actor | None] = ContextVar("actor", default=None)


@contextmanager
def request(request_id: str) -> Iterator[None]:
    """Do what is inside on behalf of a request."""
    token = _actor.set(Actor(request_id))
    try:
        yield
    finally:
        _actor.reset(token)


def known(key_id: str, owner_id: str) -> None:
    """Note whose key the request came with."""
    actor = _actor.get()
    if actor is not None:
        actor.key_id, actor.owner_id = key_id, owner_id


def actor() -> Actor | None:
    """Return who acts; None where no request is under way: a worker, the command line."""
    return _actor.get()
