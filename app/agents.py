"""The verbs of agents: enrolment, jobs to measure, results, and calibrations of devices."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app import queue
from app.actions import Service
from app.checking import ready
from app.domain import ids
from app.domain.demand import is_host
from app.domain.graph import ModelGraph
from app.domain.owners import Sight
from app.problems import Problem, field_error
from app.store import measuring, query
from app.store.tables import Agent, Artefact, Calibration, Candidate, Enrolment, Json, Measuring, Model, Search, now

CODE_S = 900.0


def create_code(service: Service, owner_id: str) -> tuple[str, Enrolment]:
    """Create an owner's one-time enrolment code, valid for 15 minutes; its text is returned once and not stored."""
    text = f"tfe_{secrets.token_urlsafe(24)}"
    with service.database.writing() as session:
        session.execute(sa.delete(Enrolment).where(Enrolment.expires_at < now() - timedelta(days=7)))
        made = now()
        row = Enrolment(sha256=ids.digest(text), created_at=made, expires_at=made + timedelta(seconds=CODE_S))
        row.owner_id = owner_id
        session.add(row)
    return text, row


def enrol(service: Service, code: str, name: str, host: Json) -> tuple[Agent, str]:
    """Turn a code into an agent and its token (returned once).

    Raises Problem invalid-enrolment-code, enrolment-code-used or enrolment-code-expired.
    """
    token = f"tfa_{secrets.token_urlsafe(32)}"
    with service.database.writing() as session:
        row = session.get(Enrolment, ids.digest(code), with_for_update=True)
        if row is None:
            raise Problem("invalid-enrolment-code", "the code is not one of ours; make one: tightfit agents enrol")
        if row.used_at is not None:
            raise Problem("enrolment-code-used", "a code enrols one agent; make another: tightfit agents enrol")
        if row.expires_at < now():
            raise Problem("enrolment-code-expired", "the code was valid for 15 minutes; make another")
        row.used_at = now()
        agent = Agent(id=ids.new_id("agent"), name=name, sha256=ids.digest(token), host=host, state="active")
        agent.owner_id, agent.enrolled_at, agent.last_seen_at = row.owner_id, now(), now()
        session.add(agent)
    return agent, token


def identify(service: Service, token: str, agent_id: str) -> Agent:
    """Return the agent whose token this is.

    Raises Problem unauthenticated, agent-gone, wrong-agent, or not-found for an agent that its owner has not.
    """
    with service.database.reading() as session:
        row = session.scalar(sa.select(Agent).where(Agent.sha256 == ids.digest(token)))
        if row is None:
            raise Problem("unauthenticated", "the token is no agent's")
        if row.state != "active":
            raise Problem("agent-gone", "the agent was removed; enrol it anew")
        if row.id != agent_id:
            if query.find(session, Agent, agent_id, row.owner_id) is None:
                raise Problem("not-found", f"no agent {agent_id[:64]!r}")
            raise Problem("wrong-agent", "the token is another agent's")
    return row


def remove_agent(service: Service, agent_id: str) -> None:
    """Remove an agent: its token ends to work and its open jobs fail."""
    with service.database.writing() as session:
        row = session.get(Agent, agent_id, with_for_update=True)
        if row is None:
            raise Problem("not-found", f"no agent {agent_id!r}")
        row.state = "removed"
        gone = Problem("agent-gone", "the agent was removed").to_json()
        open_jobs = sa.select(Measuring).where(Measuring.agent_id == agent_id, Measuring.state.in_(measuring.OPEN))
        for job in session.scalars(open_jobs):
            measuring.end(job, "failed", gone)


def heartbeat(service: Service, agent_id: str, holder: str, job_id: str | None, leaving: bool) -> Json:
    """Note that an agent lives and renew its lease; tell whether it still has its job."""
    with service.database.writing() as session:
        session.get_one(Agent, agent_id).last_seen_at = now()
        job = None if job_id is None else session.get(Measuring, job_id, with_for_update=True)
        held = job is not None and job.agent_id == agent_id and measuring.renew(session, job, holder, leaving)
    return {"job": job_id if held else None}


def pull(service: Service, agent_id: str, holder: str) -> Measuring | None:
    """Lease the agent's next job, where there is one. Raises Problem agent-gone once it is removed."""
    with service.database.reading() as session:
        active(session, agent_id, None)
        if not measuring.is_waiting(session, agent_id):
            return None
    with service.database.writing() as session:
        session.get_one(Agent, agent_id).last_seen_at = now()
        return measuring.lease(session, agent_id, holder)


def own_job(session: Session, agent_id: str, job_id: str, lock: bool = False) -> Measuring:
    """Return a job of an agent. Raises Problem not-found or wrong-agent."""
    row = session.get(Measuring, job_id, with_for_update=lock)
    if row is None or row.owner_id != session.get_one(Agent, agent_id).owner_id:
        raise Problem("not-found", f"no measurement {job_id[:64]!r}")
    if row.agent_id != agent_id:
        raise Problem("wrong-agent", "the measurement is another agent's")
    return row


def item_digest(service: Service, agent_id: str, job_id: str, item_id: str) -> str:
    """Return the SHA-256 of an item's model. Raises Problem not-found or wrong-agent."""
    with service.database.reading() as session:
        items = own_job(session, agent_id, job_id).items
    for item in items:
        if item["id"] == item_id:
            return str(item["sha256"])
    raise Problem("not-found", f"no item {item_id[:64]!r}")


def add_results(service: Service, agent_id: str, job_id: str, given: Json) -> Measuring:
    """Keep results of a leased job. Repeating them changes nothing. Raises Problem lease-lost or not-found."""
    results: dict[str, Json] = given["results"]
    with service.database.writing() as session:
        row = own_job(session, agent_id, job_id, lock=True)
        session.get_one(Agent, agent_id).last_seen_at = now()
        unknown = set(results) - {item["id"] for item in row.items}
        if unknown:
            raise Problem("not-found", f"no item {sorted(unknown)[0][:64]!r}")
        if row.state == "done" and set(results) <= set(row.results):
            return row
        if row.state != "leased" or row.session != given["session"]:
            raise Problem("lease-lost", f"the measurement is {row.state}, and not this process's")
        measuring.add_results(row, results, given["conditions"])
        return row


def create_measurement(service: Service, owner_id: str, request: Json) -> Measuring:
    """Queue the timing of an owner's exported candidates and uploaded ONNX networks on its agent.

    Raises Problem not-found, agent-gone, model-not-ready or unsupported-format.
    """
    with service.database.writing() as session:
        active(session, request["agent_id"], owner_id)
        items = [_artefact_item(session, key, owner_id) for key in request["artefact_ids"]]
        items += [_model_item(session, key, owner_id) for key in request["model_ids"]]
        if not items:
            detail = "name at least one artefact or model"
            raise Problem("invalid-request", detail, [field_error("/artefact_ids", detail)])
        return measuring.ask(session, request["agent_id"], request["kind"], items, request["rounds"])


def active(session: Session, agent_id: str, sight: Sight) -> Agent:
    """Return an agent that is seen. Raises Problem not-found or agent-gone."""
    row: Agent | None = query.find(session, Agent, agent_id, sight)
    if row is None:
        raise Problem("not-found", f"no agent {agent_id[:64]!r}")
    if row.state != "active":
        raise Problem("agent-gone", "the agent was removed")
    return row


def _artefact_item(session: Session, key: str, owner_id: str) -> Json:
    row: Artefact | None = query.find(session, Artefact, key, owner_id)
    if row is None:
        raise Problem("not-found", f"no artefact {key!r}")
    if row.kind != "onnx":
        raise Problem("unsupported-format", f"{key} is a {row.kind}; an ONNX file is needed")
    search = session.get_one(Search, session.get_one(Candidate, row.candidate_id).search_id)
    model = session.get_one(Model, search.model_id)
    return {"id": key, "sha256": row.blob_sha, "inputs": inputs(model.graph or {})}


def _model_item(session: Session, key: str, owner_id: str) -> Json:
    row = ready(session, Model, key, "model-not-ready", owner_id)
    if row.format != "onnx" or row.weights_sha is not None:
        raise Problem("unsupported-format", f"{key} is {row.format}; an ONNX file with its weights is needed")
    return {"id": key, "sha256": row.blob_sha, "inputs": inputs(row.graph or {})}


def inputs(graph: Mapping[str, Any]) -> list[Any]:
    """Return [shape with a batch of one, dtype] of each input."""
    return [[[1, *port.shape], port.dtype] for port in ModelGraph.from_json(graph).inputs]


def cancel_measurement(service: Service, key: str) -> Measuring:
    """End a measurement that is not finished; idempotent."""
    with service.database.writing() as session:
        row = session.get(Measuring, key, with_for_update=True)
        if row is None:
            raise Problem("not-found", f"no measurement {key!r}")
        if row.state in measuring.OPEN:
            measuring.end(row, "cancelled")
        return row


def create_calibration(
    service: Service, owner_id: str, device: str, model_ids: Sequence[str], agent_id: str | None
) -> Calibration:
    """Queue the calibration of a device on an agent, or on the worker's host where the profile is that host's.

    Raises Problem not-found, agent-gone, agent-required or model-not-ready.
    """
    with service.database.writing() as session:
        base = query.device(session, device, owner_id)
        if base is None:
            raise Problem("not-found", f"no device {device[:64]!r}")
        if agent_id is not None:
            active(session, agent_id, owner_id)
        elif not is_host(base.name):
            raise Problem("agent-required", f"{base.name!r} is not the worker's own host: name an agent on the device")
        for key in model_ids:
            ready(session, Model, key, "model-not-ready", owner_id)
        row = Calibration(id=ids.new_id("calibration"), device=base.name, base_id=base.id, model_ids=list(model_ids))
        row.agent_id, row.state, row.desired, row.created_at = agent_id, "queued", "run", now()
        row.owner_id = owner_id
        row.progress_done = row.progress_total = 0
        session.add(row)
        session.flush()
        queue.enqueue(service.client, session, queue.CALIBRATE, f"{row.id}-calibrate", row.id)
        return row


def cancel_calibration(service: Service, key: str) -> Calibration:
    """Ask a calibration to end; idempotent."""
    with service.database.writing() as session:
        row = session.get(Calibration, key, with_for_update=True)
        if row is None:
            raise Problem("not-found", f"no calibration {key!r}")
        if row.finished_at is None:
            row.desired = "cancel"
            if row.state == "queued":
                measuring.conclude(row, "cancelled")
        return row
