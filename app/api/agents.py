"""Agents, what they are asked to measure, and what they answer."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from app import agents
from app.api.agent_schema import EnrolIn, HeartbeatIn, MeasurementIn, PullIn, ResultsIn
from app.api.answers import add_headers
from app.api.auth import require
from app.api.conditional import shown, stored_file
from app.api.deps import Filter, Json, KeyDep, ListDep, ServiceDep, body, idempotent, paged
from app.api.deps import service as service_of
from app.api.resources import accepted, checked_name, is_id_like, listing, one
from app.api.shapes import moment
from app.problems import Problem
from app.store import acting
from app.store.tables import Agent, Measuring

router = APIRouter(prefix="/v1")
POLL_S = 0.5


def agent_of(id: str, request: Request) -> Agent:
    """Return the agent of the address, whose token the request must carry."""
    header = request.headers.get("authorization", "")
    if not header.lower().startswith("bearer "):
        raise Problem("unauthenticated", "an agent's token is needed: Authorization: Bearer tfa_...")
    found = agents.identify(service_of(request), header[7:].strip(), id)
    acting.known(found.id, found.owner_id)
    add_headers(request, request.app.state.rates.take(found.id))
    return found


AgentDep = Annotated[Agent, Depends(agent_of)]


@router.post("/agents/enrolments", status_code=201, tags=["agents"])
def create_enrolment(service: ServiceDep, key: KeyDep) -> Response:
    """Create a one-time code that enrols an agent within 15 minutes; it is in this answer only."""
    require(key, "searches:write")
    text, row = agents.create_code(service, key.owner_id)
    return JSONResponse({"code": text, "expires_at": moment(row.expires_at)}, 201)


@router.post("/agents:enrol", status_code=201, tags=["agents"])
async def enrol(request: Request, service: ServiceDep) -> Response:
    """Turn a code into an agent; its token is in this answer only and reaches that agent's own jobs, nothing else."""
    wanted = await body(request, EnrolIn)
    checked_name(wanted.name)
    row, token = await run_in_threadpool(agents.enrol, service, wanted.code, wanted.name, wanted.host)
    return accepted({**shape(row), "token": token}, f"/v1/agents/{row.id}", 201)


@router.get("/agents", tags=["agents"])
def list_agents(request: Request, service: ServiceDep, key: KeyDep, paging: ListDep) -> Json:
    """List agents that were not removed, newest first, and when they were last heard of."""
    rows, size, last = listing(service, Agent, paging, state="active")
    return paged(request, [shape(row) for row in rows], size, last)


@router.get("/agents/{id}", tags=["agents"])
def get_agent(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Return an agent."""
    return shown(request, shape(one(service, key.sight, Agent, id)))


@router.delete("/agents/{id}", status_code=204, tags=["agents"])
def remove_agent(id: str, service: ServiceDep, key: KeyDep) -> Response:
    """Remove an agent: its token ends to work, its open measurements fail."""
    require(key, "searches:write")
    one(service, key.sight, Agent, id)
    agents.remove_agent(service, id)
    return Response(status_code=204)


@router.post("/agents/{id}/heartbeat", tags=["agents"])
async def heartbeat(request: Request, service: ServiceDep, agent: AgentDep) -> Json:
    """Say that an agent's process lives; `job` comes back while it holds that job's lease, null when it must stop."""
    said = await body(request, HeartbeatIn)
    return await run_in_threadpool(agents.heartbeat, service, agent.id, said.session, said.job, said.leaving)


@router.post("/agents/{id}/jobs:pull", tags=["agents"])
async def pull(request: Request, service: ServiceDep, agent: AgentDep) -> Response:
    """Lease the agent's next job, waiting for one; 204 where none came."""
    wanted = await body(request, PullIn)
    end = time.monotonic() + wanted.wait_s
    while True:
        row = await run_in_threadpool(agents.pull, service, agent.id, wanted.session)
        if row is not None:
            return JSONResponse(job_shape(row))
        if time.monotonic() > end or request.app.state.stopping.is_set() or await request.is_disconnected():
            return Response(status_code=204)
        await asyncio.sleep(POLL_S)


@router.get("/agents/{id}/jobs/{job}/items/{item:path}", tags=["agents"])
def item_content(job: str, item: str, request: Request, service: ServiceDep, agent: AgentDep) -> Response:
    """Download the model of an item of one of the agent's own jobs; the ETag is its SHA-256."""
    path_like(job)
    sha256 = agents.item_digest(service, agent.id, job, item)
    return stored_file(request, service.blobs.path(sha256), sha256)


@router.post("/agents/{id}/jobs/{job}/results", tags=["agents"])
async def results(job: str, request: Request, service: ServiceDep, agent: AgentDep) -> Json:
    """Keep results of some items of a leased job; sending the same again changes nothing."""
    path_like(job)
    given = (await body(request, ResultsIn)).model_dump(mode="json")
    given["results"] = {
        key: {name: value for name, value in item.items() if value is not None}
        for key, item in given["results"].items()
    }
    row = await run_in_threadpool(agents.add_results, service, agent.id, job, given)
    return {"id": row.id, "state": row.state, "done": len(row.results), "total": len(row.items)}


@router.post("/measurements", status_code=202, tags=["measurements"])
async def create_measurement(request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Have exported candidates (ONNX) and uploaded ONNX networks measured against each other on an agent."""
    require(key, "searches:write")
    wanted = (await body(request, MeasurementIn)).model_dump(mode="json")

    def act() -> JSONResponse:
        row = agents.create_measurement(service, key.owner_id, wanted)
        return accepted(measurement(row), f"/v1/measurements/{row.id}")

    return await run_in_threadpool(idempotent, request, key, json.dumps(wanted, sort_keys=True).encode(), act)


@router.get("/measurements", tags=["measurements"])
def list_measurements(
    request: Request, service: ServiceDep, key: KeyDep, paging: ListDep, agent_id: Filter = None
) -> Json:
    """List measurements, newest first."""
    rows, size, last = listing(service, Measuring, paging, agent_id=agent_id)
    return paged(request, [measurement(row) for row in rows], size, last)


@router.get("/measurements/{id}", tags=["measurements"])
def get_measurement(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """Return a measurement: state, results by item so far, conditions."""
    return shown(request, measurement(one(service, key.sight, Measuring, id)))


@router.post("/measurements/{id}/cancel", tags=["measurements"])
def cancel_measurement(id: str, request: Request, service: ServiceDep, key: KeyDep) -> Response:
    """End a measurement; the results so far stay."""
    require(key, "searches:write")
    one(service, key.sight, Measuring, id)

    def act() -> JSONResponse:
        return JSONResponse(measurement(agents.cancel_measurement(service, id)))

    return idempotent(request, key, b"", act)


def path_like(key: str) -> None:
    """Raise Problem not-found for what can't be an id."""
    if not is_id_like(key):
        raise Problem("not-found", "no such measurement")


def shape(row: Agent) -> Json:
    """Return an agent's record (never its token)."""
    return {
        "id": row.id,
        "owner_id": row.owner_id,
        "name": row.name,
        "state": row.state,
        "host": row.host,
        "enrolled_at": moment(row.enrolled_at),
        "last_seen_at": moment(row.last_seen_at),
        "links": {"self": f"/v1/agents/{row.id}"},
    }


def job_shape(row: Measuring) -> Json:
    """Return a job as its agent sees it: the items without result, and how many have one."""
    left = [item for item in row.items if item["id"] not in row.results]
    return {"id": row.id, "kind": row.kind, "rounds": row.rounds, "items": left, "done": len(row.results)}


def measurement(row: Measuring) -> Json:
    """Return a measurement."""
    return {
        "id": row.id,
        "owner_id": row.owner_id,
        "agent_id": row.agent_id,
        "kind": row.kind,
        "state": row.state,
        "rounds": row.rounds,
        "progress": {"done": len(row.results), "total": len(row.items)},
        "results": row.results,
        "conditions": row.conditions,
        "problem": row.problem,
        "created_at": moment(row.created_at),
        "finished_at": moment(row.finished_at),
        "links": {"self": f"/v1/measurements/{row.id}", "agent": f"/v1/agents/{row.agent_id}"},
    }
