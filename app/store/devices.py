"""Device profiles as rows: revisions are added, never changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.domain import ids
from app.store.query import seen
from app.store.tables import Device, now


def add_revision(session: Session, profile: Mapping[str, Any], owner_id: str | None) -> Device:
    """Store a profile as the next revision of its name among an owner's and the built-in ones.

    Nobody's (owner None) is built-in: its number follows everybody's, its id can be written by hand.
    """
    name, builtin = profile["name"], owner_id is None
    newest = session.scalar(sa.select(sa.func.max(Device.revision)).where(Device.name == name, *seen(Device, owner_id)))
    revision = (newest or 0) + 1
    builtin_id = name if revision == 1 else f"{name}@{revision}"
    key = builtin_id if builtin else ids.new_id("device")
    row = Device(id=key, name=name, revision=revision, profile=dict(profile), created_at=now())
    row.builtin, row.owner_id = builtin, owner_id
    session.add(row)
    return row
