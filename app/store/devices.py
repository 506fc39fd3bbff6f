"""Device profiles as rows: revisions are added, never changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.domain import ids
from app.store.tables import Device, now


def add_revision(session: Session, profile: Mapping[str, Any], builtin: bool = False) -> Device:
    """Store a profile as the next revision of its name; a built-in one has an id that can be written by hand."""
    name = profile["name"]
    newest = session.scalar(sa.select(sa.func.max(Device.revision)).where(Device.name == name)) or 0
    revision = newest + 1
    builtin_id = name if revision == 1 else f"{name}@{revision}"
    key = builtin_id if builtin else ids.new_id("device")
    row = Device(id=key, name=name, revision=revision, profile=dict(profile), created_at=now())
    row.builtin = builtin
    session.add(row)
    return row
