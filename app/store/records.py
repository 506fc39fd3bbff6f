"""The tables of what happened: an owner's notices, which its streams read, and the audit log."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.store.tables import Base, Json, now


class Owner(Base):
    """How far an owner's notices have been counted; its row is their lock."""

    __tablename__ = "owner"
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    seq: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Notice(Base):
    """One change of an owner's objects; `seq` counts 1, 2, 3, ... within the owner without gaps."""

    __tablename__ = "notice"
    owner_id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(sa.String(32))  #: what of: `search.state`, `model.created`, `schedule.deleted`
    object_id: Mapped[str] = mapped_column(sa.String(64))
    payload: Mapped[Json]
    at: Mapped[datetime] = mapped_column(default=now, index=True)


class Audit(Base):
    """Who did what to which object: a row per change that a request made. The database refuses to change one."""

    __tablename__ = "audit"
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)
    key_id: Mapped[str | None] = mapped_column(sa.String(40))  #: an API key's or an agent's; None: an enrolment code
    owner_id: Mapped[str | None] = mapped_column(sa.String(40))  #: whom the key acts for
    request_id: Mapped[str] = mapped_column(sa.String(40))
    action: Mapped[str] = mapped_column(sa.String(32))
    object_id: Mapped[str] = mapped_column(sa.String(64), index=True)
    object_owner_id: Mapped[str | None] = mapped_column(sa.String(40))  #: None: everybody's
    detail: Mapped[Json]
