"""The tables. Alembic alone creates them; the durable engine keeps its own beside them in the same database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from app.domain.owners import DEFAULT

Json = dict[str, Any]
OwnerId = Annotated[str, mapped_column(sa.String(40), default=DEFAULT)]
"""Whose the row is (app.domain.owners)."""

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


class Utc(TypeDecorator[datetime]):
    """A moment in UTC on every database; SQLite, which has no time zones, stores it without one."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC; refuse moments without a time zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment needs a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the moment with its time zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """What all tables share: naming of constraints and the types behind annotations."""

    metadata = sa.MetaData(naming_convention=NAMES)
    type_annotation_map = {
        datetime: Utc,
        dict[str, Any]: sa.JSON(none_as_null=True),
        list[Any]: sa.JSON(none_as_null=True),
        int: sa.BigInteger,
        float: sa.Double,
        str: sa.Text,
    }


class Blob(Base):
    """A stored file, named by its SHA-256."""

    __tablename__ = "blob"
    sha256: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    bytes: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Model(Base):
    """An uploaded network; `graph` is its picture (app.domain.graph) once the sandboxed reader has drawn it.

    A weights version is a row of its own: `base_id` names the model that it was made from, whose file `blob_sha` it
    shares, and `weights_sha` the safetensors file whose tensors take the place of that file's own.
    """

    __tablename__ = "model"
    __table_args__ = (sa.Index(None, "owner_id", "id"),)
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    owner_id: Mapped[OwnerId]
    name: Mapped[str]
    format: Mapped[str]
    blob_sha: Mapped[str] = mapped_column(sa.ForeignKey("blob.sha256"))
    bytes: Mapped[int]
    base_id: Mapped[str | None] = mapped_column(sa.ForeignKey("model.id"), index=True)
    weights_sha: Mapped[str | None] = mapped_column(sa.ForeignKey("blob.sha256"))
    weights_bytes: Mapped[int | None]
    state: Mapped[str] = mapped_column(sa.String(16), default="inspecting")
    graph: Mapped[Json | None]
    warnings: Mapped[list[Any] | None]
    problem: Mapped[Json | None]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Dataset(Base):
    """An uploaded set of pictures; `spec` is declared by the user, `info` was read: rows, shape, dtype, classes."""

    __tablename__ = "dataset"
    __table_args__ = (sa.Index(None, "owner_id", "id"),)
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    owner_id: Mapped[OwnerId]
    name: Mapped[str]
    blob_sha: Mapped[str] = mapped_column(sa.ForeignKey("blob.sha256"))
    bytes: Mapped[int]
    state: Mapped[str] = mapped_column(sa.String(16), default="inspecting")
    spec: Mapped[Json]
    info: Mapped[Json | None]
    problem: Mapped[Json | None]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Device(Base):
    """One revision of a device profile; a built-in one is nobody's, and everybody sees it."""

    __tablename__ = "device"
    __table_args__ = (sa.UniqueConstraint("owner_id", "name", "revision"), sa.Index(None, "owner_id", "id"))
    id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    owner_id: Mapped[str | None] = mapped_column(sa.String(40))
    name: Mapped[str]
    revision: Mapped[int] = mapped_column(default=1)
    builtin: Mapped[bool] = mapped_column(default=False)
    profile: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Search(Base):
    """A search: the request as it was made, snapshots of what it refers to, and how far it is."""

    __tablename__ = "search"
    __table_args__ = (sa.Index(None, "owner_id", "id"),)
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    name: Mapped[str]
    model_id: Mapped[str] = mapped_column(sa.ForeignKey("model.id"), index=True)
    dataset: Mapped[Json]  #: ids by role: {"all": id} or {"calibration": id, "evaluation": id, "holdout": id}
    device_id: Mapped[str] = mapped_column(sa.String(64))
    device: Mapped[Json]  #: the profile as it was when the search was made
    spec: Mapped[Json]  #: the whole request
    limits: Mapped[Json]  #: absolute, by metric
    state: Mapped[str] = mapped_column(sa.String(16), default="queued", index=True)
    stage: Mapped[str | None]
    outcome: Mapped[str | None]
    progress_done: Mapped[int] = mapped_column(default=0)
    progress_total: Mapped[int] = mapped_column(default=0)
    eta_s: Mapped[float | None]
    event_seq: Mapped[int] = mapped_column(default=0)
    baseline: Mapped[Json | None]
    best: Mapped[Json | None]
    sensitivity: Mapped[Json | None]
    measured: Mapped[Json | None]  #: what a measured latency limit came to: milliseconds, aims, whether floats win
    training: Mapped[list[Any] | None]  #: each method's step on each network it was applied to
    desired: Mapped[str] = mapped_column(sa.String(8), default="run")  #: run | pause | cancel
    priority: Mapped[int] = mapped_column(default=3)  #: 1 is served first, 5 last
    turn: Mapped[int | None]  #: its place in the fair order of its priority (app.store.turns)
    owner_id: Mapped[str] = mapped_column(sa.String(40), default=DEFAULT, nullable=True)
    extended: Mapped[Json | None]  #: {trials, max_wall_s} that took the place of those in `spec`
    paused_at: Mapped[datetime | None]
    paused_s: Mapped[float] = mapped_column(default=0.0)  #: seconds it was paused or at an end, all together
    error: Mapped[Json | None]
    slice: Mapped[int] = mapped_column(default=0)
    finisher: Mapped[str | None]  #: the token of the runner that ends the search
    warm: Mapped[Json | None]  #: what it started from: known observations, trials, whose table, which probes of it
    provenance: Mapped[Json | None]  #: seed, digests and versions it was begun with
    reachable: Mapped[Json | None]  #: costs that bound and scale limits: of `least`, `w8a8` and `float`
    fleet_id: Mapped[str | None] = mapped_column(sa.String(40), index=True)
    place: Mapped[int | None]  #: in the fleet: 0 measures first, the others use what it learned
    schedule_id: Mapped[str | None] = mapped_column(sa.String(40), index=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Fleet(Base):
    """One request for several devices: a search per device, which share what they measure."""

    __tablename__ = "fleet"
    __table_args__ = (sa.Index(None, "owner_id", "id"),)
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    owner_id: Mapped[OwnerId]
    name: Mapped[str]
    spec: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Trial(Base):
    """One measured assignment: the truth about a search. Only the holder of `owner_token` may finish it."""

    __tablename__ = "trial"
    __table_args__ = (sa.UniqueConstraint("search_id", "idx"),)
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    search_id: Mapped[str] = mapped_column(sa.ForeignKey("search.id", ondelete="CASCADE"))
    idx: Mapped[int]
    state: Mapped[str] = mapped_column(sa.String(16), default="running")
    attempt: Mapped[int] = mapped_column(default=1)
    owner_token: Mapped[str | None]
    kind: Mapped[str]
    params: Mapped[Json | None]
    assignment: Mapped[Json | None]
    costs: Mapped[Json | None]
    metrics: Mapped[Json | None]
    sampler_attrs: Mapped[Json | None]
    failure: Mapped[Json | None]
    violation: Mapped[float | None]
    feasible: Mapped[bool | None]
    seconds: Mapped[float | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    finished_at: Mapped[datetime | None]


class Prediction(Base):
    """An assignment that a search has not measured, allocated for some budget, with the loss its table predicts."""

    __tablename__ = "prediction"
    search_id: Mapped[str] = mapped_column(sa.ForeignKey("search.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    assignment: Mapped[Json]
    costs: Mapped[Json]
    loss: Mapped[float]
    accuracy: Mapped[float | None]  #: what measured trials of about this loss had
    metrics: Mapped[Json | None]  #: the same of the search's metric, where that is another


class Runner(Base):
    """Who works on a search: one process per slot at a time, known by its token."""

    __tablename__ = "runner"
    search_id: Mapped[str] = mapped_column(sa.ForeignKey("search.id", ondelete="CASCADE"), primary_key=True)
    slot: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    token: Mapped[str]
    starts: Mapped[int] = mapped_column(default=1)  #: how often it was begun since anything came of it
    seen_at: Mapped[datetime] = mapped_column(default=now)


class Evaluation(Base):
    """A measurement that need not be repeated; the key is a SHA-256 of everything it depends on.

    `context` is one of what it shares with other assignments' measurements: network, weights, data, method.
    """

    __tablename__ = "evaluation"
    __table_args__ = (sa.Index(None, "context", "fidelity"),)
    key: Mapped[str] = mapped_column(primary_key=True)
    measurement: Mapped[Json]
    context: Mapped[str | None] = mapped_column(sa.String(64))
    fidelity: Mapped[str | None] = mapped_column(sa.String(16))
    repair: Mapped[str | None] = mapped_column(sa.String(32))
    assignment: Mapped[Json | None]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Timing(Base):
    """One file of a search timed on its device, beside the float file in the same rounds, and what the model said.

    `latency` and `beside` hold min_ms, median_ms, p95_ms and runs; `profile_sha` tells which revision predicted.
    """

    __tablename__ = "timing"
    __table_args__ = (sa.UniqueConstraint("search_id", "digest"),)
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    search_id: Mapped[str] = mapped_column(sa.ForeignKey("search.id", ondelete="CASCADE"))
    digest: Mapped[str] = mapped_column(sa.String(64))
    device_id: Mapped[str] = mapped_column(sa.String(64))
    profile_sha: Mapped[str] = mapped_column(sa.String(64), index=True)
    modelled_ms: Mapped[float]
    latency: Mapped[Json]
    beside: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Candidate(Base):
    """An assignment worth looking at: measured on the hold-out set, with its budget table."""

    __tablename__ = "candidate"
    __table_args__ = (sa.UniqueConstraint("search_id", "trial_idx"),)
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    search_id: Mapped[str] = mapped_column(sa.ForeignKey("search.id", ondelete="CASCADE"))
    trial_idx: Mapped[int]
    rank: Mapped[int]
    assignment: Mapped[Json]
    costs: Mapped[Json]
    metrics: Mapped[Json]
    layers: Mapped[list[Any]]
    budget: Mapped[list[Any]]
    feasible: Mapped[bool]
    verification: Mapped[str] = mapped_column(sa.String(16), default="unverified")
    report: Mapped[Json | None]
    export_state: Mapped[str | None] = mapped_column(sa.String(16))  #: queued | running | done | failed
    problem: Mapped[Json | None]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Artefact(Base):
    """A file that an export produced."""

    __tablename__ = "artefact"
    __table_args__ = (sa.UniqueConstraint("candidate_id", "kind"),)
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    candidate_id: Mapped[str] = mapped_column(sa.ForeignKey("candidate.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(sa.String(16))
    blob_sha: Mapped[str] = mapped_column(sa.ForeignKey("blob.sha256"))
    filename: Mapped[str]
    bytes: Mapped[int]
    verification: Mapped[str] = mapped_column(sa.String(16), default="unverified")
    created_at: Mapped[datetime] = mapped_column(default=now)


class Schedule(Base):
    """A search template that is run again and again."""

    __tablename__ = "schedule"
    __table_args__ = (sa.Index(None, "owner_id", "id"),)
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    owner_id: Mapped[OwnerId]
    name: Mapped[str]
    cron: Mapped[str]
    timezone: Mapped[str]
    template: Mapped[Json]
    enabled: Mapped[bool] = mapped_column(default=True)
    last_fired_at: Mapped[datetime | None]
    last_search_id: Mapped[str | None]
    problem: Mapped[Json | None]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Event(Base):
    """Something that happened to a search; `seq` counts 1, 2, 3, ... within it without gaps."""

    __tablename__ = "event"
    search_id: Mapped[str] = mapped_column(sa.ForeignKey("search.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(sa.String(32))
    payload: Mapped[Json]
    at: Mapped[datetime] = mapped_column(default=now)


class Upload(Base):
    """An upload in parts: how many of its bytes are on disk, and what it becomes once all of them are."""

    __tablename__ = "upload"
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    owner_id: Mapped[OwnerId]
    key_id: Mapped[str] = mapped_column(sa.String(40))
    length: Mapped[int]
    offset: Mapped[int] = mapped_column(default=0)
    wish: Mapped[Json]
    state: Mapped[str] = mapped_column(sa.String(16), default="open")  #: open | done | expired
    location: Mapped[str | None]  #: the address of what it became
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime] = mapped_column(index=True)


class Worker(Base):
    """A worker process and when it was last heard of."""

    __tablename__ = "worker"
    executor_id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    started_at: Mapped[datetime]
    last_seen: Mapped[datetime]
    info: Mapped[Json]


class Agent(Base):
    """A program on another machine that measures there; only the SHA-256 of its token is kept."""

    __tablename__ = "agent"
    __table_args__ = (sa.Index(None, "owner_id", "id"),)
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    owner_id: Mapped[OwnerId]
    name: Mapped[str]
    sha256: Mapped[str] = mapped_column(sa.String(64), unique=True)
    state: Mapped[str] = mapped_column(sa.String(16), default="active")  #: active | removed
    host: Mapped[Json]  #: processor, features, cores, runtime
    enrolled_at: Mapped[datetime] = mapped_column(default=now)
    last_seen_at: Mapped[datetime] = mapped_column(default=now)


class Enrolment(Base):
    """A one-time code that an agent enrols with; only its SHA-256 is kept."""

    __tablename__ = "enrolment"
    sha256: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    owner_id: Mapped[OwnerId]
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class Measuring(Base):
    """Networks to be measured by an agent, and what it has measured so far.

    `items` are {id, sha256, inputs: [[shape, dtype], ...]}; `results` by item id are {latency}, {kernels} or {problem}.
    Whoever holds `session` may add results until `lease_until`. `attempt` counts leases since the last result.
    """

    __tablename__ = "measuring"
    __table_args__ = (sa.Index(None, "owner_id", "id"),)
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    owner_id: Mapped[OwnerId]
    agent_id: Mapped[str] = mapped_column(sa.ForeignKey("agent.id"), index=True)
    kind: Mapped[str] = mapped_column(sa.String(16))  #: time | kernels
    items: Mapped[list[Any]]
    rounds: Mapped[int]
    state: Mapped[str] = mapped_column(sa.String(16), default="queued")  #: queued | leased | done | failed | cancelled
    key: Mapped[str | None] = mapped_column(sa.String(64), unique=True)  #: of what may be asked for again
    session: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    attempt: Mapped[int] = mapped_column(default=0)
    results: Mapped[Json]
    conditions: Mapped[Json | None]
    problem: Mapped[Json | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    finished_at: Mapped[datetime | None]


class Calibration(Base):
    """Measuring a device to make the next revision of its profile; without an agent the worker's host is the device."""

    __tablename__ = "calibration"
    __table_args__ = (sa.Index(None, "owner_id", "id"),)
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    owner_id: Mapped[OwnerId]
    device: Mapped[str]  #: the name of the profile
    base_id: Mapped[str] = mapped_column(sa.String(64))  #: the revision that was calibrated
    model_ids: Mapped[list[Any]]
    agent_id: Mapped[str | None] = mapped_column(sa.ForeignKey("agent.id"), index=True)
    state: Mapped[str] = mapped_column(sa.String(16), default="queued")  #: queued|running|done|failed|cancelled
    desired: Mapped[str] = mapped_column(sa.String(8), default="run")
    stage: Mapped[str | None]
    progress_done: Mapped[int] = mapped_column(default=0)
    progress_total: Mapped[int] = mapped_column(default=0)
    table: Mapped[Json | None]
    report: Mapped[Json | None]  #: per model: milliseconds by the former and the new profile
    device_id: Mapped[str | None] = mapped_column(sa.String(64))  #: the new revision
    problem: Mapped[Json | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class ApiKey(Base):
    """An API key, which acts for its owner; only the SHA-256 of its text is kept."""

    __tablename__ = "api_key"
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    owner_id: Mapped[OwnerId]
    name: Mapped[str]
    sha256: Mapped[str] = mapped_column(sa.String(64), unique=True)
    scopes: Mapped[list[Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class Idempotency(Base):
    """The answer to a POST, kept so that a repeated request gets the same one."""

    __tablename__ = "idempotency"
    key_id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(sa.String(64))
    status: Mapped[int | None]  #: None while the first request is under way
    location: Mapped[str | None]
    body: Mapped[Json | None]
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)
