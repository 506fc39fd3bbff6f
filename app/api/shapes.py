"""How rows look outside."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from app.domain.artefacts import title_of
from app.domain.drift import Accuracy
from app.fleets import state_of
from app.store.tables import ApiKey, Artefact, Candidate, Dataset, Device, Fleet, Model, Schedule, Search, Trial, Worker

Json = dict[str, Any]


def moment(value: datetime | None) -> str | None:
    """Return RFC 3339 in UTC."""
    return None if value is None else value.isoformat().replace("+00:00", "Z")


def model(row: Model) -> Json:
    """Return a model; of a weights version the base, and the digest and size of the weights' own file."""
    return {
        "id": row.id,
        "owner_id": row.owner_id,
        "name": row.name,
        "format": row.format,
        "bytes": row.bytes,
        "sha256": row.blob_sha,
        "base_id": row.base_id,
        "weights_sha256": row.weights_sha,
        "weights_bytes": row.weights_bytes,
        "state": row.state,
        "graph": row.graph,
        "warnings": row.warnings or [],
        "problem": row.problem,
        "created_at": moment(row.created_at),
        "links": {"self": f"/v1/models/{row.id}", "base": f"/v1/models/{row.base_id}" if row.base_id else None},
    }


def dataset(row: Dataset) -> Json:
    """Return a dataset."""
    info = row.info or {}
    return {
        "id": row.id,
        "owner_id": row.owner_id,
        "name": row.name,
        "bytes": row.bytes,
        "sha256": row.blob_sha,
        "state": row.state,
        "spec": row.spec,
        **{key: info.get(key) for key in ("rows", "shape", "dtype", "has_labels", "classes")},
        "problem": row.problem,
        "created_at": moment(row.created_at),
        "links": {"self": f"/v1/datasets/{row.id}"},
    }


def device(row: Device) -> Json:
    """Return a device profile."""
    return {
        "id": row.id,
        "owner_id": row.owner_id,
        "name": row.name,
        "revision": row.revision,
        "builtin": row.builtin,
        "profile": row.profile,
        "created_at": moment(row.created_at),
        "links": {"self": device_address(row)},
    }


def device_address(row: Device) -> str:
    """Return the address of one revision of a device profile."""
    return f"/v1/devices/{row.name}@{row.revision}"


def search(row: Search) -> Json:
    """Return a search."""
    base = f"/v1/searches/{row.id}"
    return {
        "id": row.id,
        "name": row.name,
        "model_id": row.model_id,
        "dataset": row.dataset,
        "device_id": row.device_id,
        "schedule_id": row.schedule_id,
        "metric": row.spec.get("metric"),
        "state": row.state,
        "stage": row.stage,
        "outcome": row.outcome,
        "progress": {"done": row.progress_done, "total": row.progress_total},
        "eta_s": row.eta_s,
        "budget": {"limits": row.limits},
        "baseline": row.baseline,
        "best": row.best,
        "measured": row.measured,
        "warm": warm(row),
        "processor": (row.provenance or {}).get("processor"),
        "provenance": row.provenance,
        "request": row.spec,
        "extended": row.extended,
        "priority": row.priority,
        "owner_id": row.owner_id,
        "error": row.error,
        "created_at": moment(row.created_at),
        "started_at": moment(row.started_at),
        "paused_at": moment(row.paused_at),
        "finished_at": moment(row.finished_at),
        "links": {
            "self": base,
            "trials": f"{base}/trials",
            "front": f"{base}/front",
            "candidates": f"{base}/candidates",
            "events": f"{base}/events",
            "page": f"/searches/{row.id}",
        },
    }


def fleet(row: Fleet, members: Sequence[Search]) -> Json:
    """Return a fleet: its state, and each member's search with how many evaluations it made of its own."""
    base = f"/v1/fleets/{row.id}"
    return {
        "id": row.id,
        "owner_id": row.owner_id,
        "name": row.name,
        "state": state_of([item.state for item in members]),
        "share": row.spec["share"],
        "members": [member(item) for item in members],
        "request": row.spec,
        "created_at": moment(row.created_at),
        "links": {"self": base},
    }


def member(row: Search) -> Json:
    """Return a member of a fleet in short; `evaluations` are probes and trials that it measured itself so far."""
    start = row.warm or {"known": 0, "inherited": {}}
    told = ("name", "device_id", "metric", "state", "stage", "outcome", "progress", "budget", "best", "warm", "error")
    found = search(row)
    free = start["known"] + len(start["inherited"])
    return {
        "place": row.place,
        "search_id": row.id,
        **{key: found[key] for key in told},
        "evaluations": max(0, row.progress_done - free),
        "links": {"search": found["links"]["self"], "page": found["links"]["page"]},
    }


def warm(row: Search) -> Json | None:
    """Return what a search started from: known observations, trials of its own, whose table it took over."""
    start = row.warm
    if start is None:
        return None
    return {**{key: start[key] for key in ("known", "trials", "table_of")}, "inherited": len(start["inherited"])}


def trial(row: Trial) -> Json:
    """Return a trial."""
    return {
        "id": row.id,
        "idx": row.idx,
        "kind": row.kind,
        "state": row.state,
        "attempt": row.attempt,
        "params": row.params,
        "assignment": row.assignment,
        "costs": row.costs,
        "metrics": row.metrics,
        "feasible": row.feasible,
        "violation": row.violation,
        "failure": row.failure,
        "seconds": row.seconds,
        "created_at": moment(row.created_at),
        "finished_at": moment(row.finished_at),
    }


def candidate(row: Candidate, artefacts: Sequence[Artefact]) -> Json:
    """Return a candidate with its artefacts."""
    return {
        "id": row.id,
        "search_id": row.search_id,
        "trial_idx": row.trial_idx,
        "rank": row.rank,
        "assignment": row.assignment,
        "costs": row.costs,
        "metrics": row.metrics,
        "layers": row.layers,
        "budget": row.budget,
        "feasible": row.feasible,
        "verification": row.verification,
        "export_state": row.export_state,
        "report": row.report,
        "problem": row.problem,
        "artefacts": [artefact(item) for item in artefacts],
        "created_at": moment(row.created_at),
        "links": {"self": f"/v1/candidates/{row.id}", "search": f"/v1/searches/{row.search_id}"},
    }


def latency(row: Candidate, accuracy: Accuracy) -> Json:
    """Return a candidate's predicted latency with its interval, and the measured figures where there are some."""
    told: Json = row.metrics.get("latency") or {}
    predicted = float(told["predicted_ms"] if told else row.costs["latency_ms"])  # the interval is the profile's
    low, high = accuracy.bounds(predicted)
    found = told.get("measured") or ((row.report or {}).get("latency") or {}).get("compressed")
    return {"predicted_ms": predicted, "low_ms": low, "high_ms": high, "measured": found}


def artefact(row: Artefact) -> Json:
    """Return an artefact's record."""
    return {
        "id": row.id,
        "candidate_id": row.candidate_id,
        "kind": row.kind,
        "title": title_of(row.kind),
        "filename": row.filename,
        "bytes": row.bytes,
        "sha256": row.blob_sha,
        "verification": row.verification,
        "created_at": moment(row.created_at),
        "links": {"self": f"/v1/artefacts/{row.id}", "content": f"/v1/artefacts/{row.id}/content"},
    }


def schedule(row: Schedule) -> Json:
    """Return a schedule."""
    return {
        "id": row.id,
        "owner_id": row.owner_id,
        "name": row.name,
        "cron": row.cron,
        "timezone": row.timezone,
        "search": row.template,
        "enabled": row.enabled,
        "last_fired_at": moment(row.last_fired_at),
        "last_search_id": row.last_search_id,
        "problem": row.problem,
        "created_at": moment(row.created_at),
        "links": {"self": f"/v1/schedules/{row.id}"},
    }


def api_key(row: ApiKey) -> Json:
    """Return a key's record (never its text)."""
    return {
        "id": row.id,
        "owner_id": row.owner_id,
        "name": row.name,
        "scopes": row.scopes,
        "created_at": moment(row.created_at),
        "expires_at": moment(row.expires_at),
        "revoked_at": moment(row.revoked_at),
        "last_used_at": moment(row.last_used_at),
    }


def worker(row: Worker) -> Json:
    """Return a worker."""
    return {
        "executor_id": row.executor_id,
        "host": row.host,
        "pid": row.pid,
        "started_at": moment(row.started_at),
        "last_seen": moment(row.last_seen),
    }
