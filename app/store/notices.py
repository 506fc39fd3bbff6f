"""What changes is noted as it is written: for the owner's event stream, and who asked for it in the audit log.

Every write transaction is watched: rows that were added, removed, or changed in a watched column are gathered at each
flush, and noted in the same transaction just before it is committed. So nobody who writes can forget it, and the lock
of the owner's counter is taken last: transactions that wait for each other's rows never hold it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction, UOWTransaction

from app.domain import ids
from app.store import acting, tables
from app.store.records import Audit, Notice

Json = dict[str, Any]
WATCHED: dict[type[Any], tuple[str, tuple[str, ...]]] = {
    tables.Model: ("model", ("state", "name")),
    tables.Dataset: ("dataset", ("state", "name")),
    tables.Device: ("device", ()),
    tables.Search: ("search", ("state", "priority", "extended")),
    tables.Fleet: ("fleet", ()),
    tables.Schedule: ("schedule", ("name", "enabled", "last_search_id", "problem")),
    tables.Candidate: ("candidate", ("export_state",)),
    tables.Calibration: ("calibration", ("state", "desired")),
    tables.Measuring: ("measurement", ("state",)),
    tables.Agent: ("agent", ("state",)),
    tables.Enrolment: ("enrolment", ("used_at",)),
    tables.Upload: ("upload", ("state",)),
    tables.ApiKey: ("key", ("revoked_at",)),
}
"""What an owner's objects are called, and the columns whose change is worth telling; the first may be a state."""
_STATES = ("state", "export_state")
_COUNT = sa.text(
    "INSERT INTO owner (id, seq, created_at) VALUES (:id, :more, :at)"
    " ON CONFLICT (id) DO UPDATE SET seq = owner.seq + :more RETURNING seq"
).bindparams(sa.bindparam("at", type_=tables.Utc()))  # as text: SQLAlchemy compiles its own form anew each time


class Noting(Session):
    """A session whose changes are noted."""


@dataclass(frozen=True)
class Change:
    """One change: `what` is created, state, changed or deleted. What hangs on a search has its owner."""

    noun: str
    what: str
    key: str
    owner_id: str | None
    payload: Json = field(default_factory=dict)
    search_id: str | None = None

    @property
    def kind(self) -> str:
        """Return what it is called."""
        return f"{self.noun}.{self.what}"


def removed(session: Session, noun: str, rows: Iterable[tuple[str, str]]) -> None:
    """Note rows (id, owner) that a statement deletes: the session does not see them go."""
    _changes(session).extend(Change(noun, "deleted", key, owner_id) for key, owner_id in rows)


def after(session: Session, owner_id: str, seq: int, limit: int = 500) -> Sequence[Notice]:
    """Return an owner's notices that follow number `seq`, in order."""
    query = sa.select(Notice).where(Notice.owner_id == owner_id, Notice.seq > seq).order_by(Notice.seq)
    return session.scalars(query.limit(limit)).all()


def prune(session: Session, notices_s: float, audit_s: float) -> int:
    """Forget what is older than so many seconds (0: nothing); return how many rows went."""
    count = 0
    for column, seconds in ((Notice.at, notices_s), (Audit.created_at, audit_s)):
        if seconds:
            old = sa.delete(column.class_).where(column < tables.now() - timedelta(seconds=seconds))
            count += session.execute(old).rowcount  # type: ignore[attr-defined]
    return count


def _changes(session: Session) -> list[Change]:
    found: list[Change] = session.info.setdefault("changes", [])
    return found


@event.listens_for(Noting, "after_flush")
def _flushed(session: Session, _context: UOWTransaction) -> None:
    for what, rows in (("created", session.new), ("changed", session.dirty), ("deleted", session.deleted)):
        for row in rows:
            change = _change(row, what) if type(row) in WATCHED else None
            if change is not None:
                _changes(session).append(change)


def _change(row: Any, what: str) -> Change | None:
    noun, columns = WATCHED[type(row)]
    attributes = sa.inspect(row).attrs
    told = [name for name in columns if what == "created" or attributes[name].history.has_changes()]
    if what == "changed" and not told:
        return None
    if what == "changed" and told[0] in _STATES:
        what = "state"
    payload = {"state" if name in _STATES else name: _plain(getattr(row, name)) for name in told}
    if what == "created":
        payload = {name: value for name, value in payload.items() if value is not None}
    if noun == "search":
        payload["outcome"] = row.outcome
    search_id = row.search_id if noun == "candidate" else None
    owner_id = None if noun == "candidate" else row.owner_id
    key = row.sha256[:16] if noun == "enrolment" else row.id  # a code has no id, and its text is nobody's to know
    return Change(noun, what, key, owner_id, {} if what == "deleted" else payload, search_id)


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


@event.listens_for(Noting, "after_transaction_create")
def _begun(session: Session, transaction: SessionTransaction) -> None:
    if transaction.nested:
        session.info.setdefault("marks", {})[transaction] = len(_changes(session))


@event.listens_for(Noting, "after_soft_rollback")
def _rolled_back(session: Session, transaction: SessionTransaction) -> None:
    """Forget what a savepoint, or the whole transaction, took back."""
    if transaction.nested or transaction.parent is None:
        del _changes(session)[session.info.get("marks", {}).pop(transaction, 0) :]


@event.listens_for(Noting, "before_commit")
def _committing(session: Session) -> None:
    if session.in_nested_transaction():
        return
    session.flush()
    changes = session.info.pop("changes", [])
    if changes:
        _write(session.connection(), changes)


def _write(connection: sa.Connection, changes: Sequence[Change]) -> None:
    moment, owners = tables.now(), _owners(connection, changes)
    by_owner: dict[str, list[Change]] = {}
    for change, owner_id in zip(changes, owners, strict=True):
        if owner_id is not None:
            by_owner.setdefault(owner_id, []).append(change)
    _audit(connection, changes, owners, moment)
    notices: list[Json] = []
    for owner_id in sorted(by_owner):  # in one order, so that no two transactions wait for each other
        first = _count(connection, owner_id, len(by_owner[owner_id])) + 1
        notices += [
            {"owner_id": owner_id, "seq": seq, "kind": item.kind, "object_id": item.key, "payload": item.payload}
            for seq, item in enumerate(by_owner[owner_id], first)
        ]
    if notices:
        connection.execute(sa.insert(Notice), [{**notice, "at": moment} for notice in notices])


def _owners(connection: sa.Connection, changes: Sequence[Change]) -> list[str | None]:
    """Return whose each change is."""
    searches = {change.search_id for change in changes if change.search_id is not None}
    known: dict[str | None, str] = {}
    if searches:
        query = sa.select(tables.Search.id, tables.Search.owner_id).where(tables.Search.id.in_(searches))
        known = {key: owner_id for key, owner_id in connection.execute(query)}
    return [change.owner_id or known.get(change.search_id) for change in changes]


def _count(connection: sa.Connection, owner_id: str, more: int) -> int:
    """Count an owner's notices on, under the lock of its row; return the number before."""
    given = {"id": owner_id, "more": more, "at": tables.now()}
    return int(connection.execute(_COUNT, given).scalar_one()) - more


def _audit(
    connection: sa.Connection, changes: Sequence[Change], owners: Sequence[str | None], moment: datetime
) -> None:
    actor = acting.actor()
    if actor is None:
        return
    by = {"key_id": actor.key_id, "owner_id": actor.owner_id, "request_id": actor.request_id, "created_at": moment}
    rows = [
        {**by, "id": ids.new_id("audit"), "action": change.kind, "object_id": change.key, "object_owner_id": owner_id,
         "detail": change.payload}
        for change, owner_id in zip(changes, owners, strict=True)
    ]  # fmt: skip
    connection.execute(sa.insert(Audit), rows)
