"""One service with two owners: everything that can be made is made by the first, for tests of what the second sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi.testclient import TestClient

from app.actions import Service
from app.api import auth
from app.domain import ids
from app.store.blobs import record
from app.store.tables import Artefact, Calibration, Candidate, Measuring
from tests.app.uploaded import put_ready

Json = dict[str, Any]
SCOPES = ("models:write", "searches:write", "artefacts:read")
TUS = {"Tus-Resumable": "1.0.0"}


@dataclass
class Owner:
    """An owner's key, and what it made: ids by the noun of their addresses."""

    name: str
    http: TestClient
    headers: dict[str, str]
    made: dict[str, str]

    def ask(self, method: str, path: str, **given: Any) -> Any:
        """Send a request with the owner's key."""
        headers = {**self.headers, **given.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **given)


def owner(client: TestClient, name: str, scopes: tuple[str, ...] = SCOPES) -> Owner:
    """Return an owner with a key of its own."""
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    row, text = auth.new_key(service, name, scopes, name)
    return Owner(name, client, {"Authorization": f"Bearer {text}"}, {"keys": row.id})


def fill(who: Owner, profile: Json) -> None:
    """Make one of everything."""
    service: Service = who.http.app.state.service  # type: ignore[attr-defined]
    ready = put_ready(service, who.name)
    who.made.update(models=ready["model"], datasets=ready["dataset"], devices=f"{who.name}-board")
    body = request(who)
    made = {
        "devices": {**profile, "name": who.made["devices"]},
        "searches": body,
        "schedules": {"name": "nightly", "cron": "0 2 * * *", "search": body},
        "fleets": {
            **{key: body[key] for key in ("name", "model_id", "dataset")},
            "members": [{"device_id": "generic-npu", "limits": body["limits"]}],
        },
    }
    for noun, wanted in made.items():
        answer = who.ask("POST", f"/v1/{noun}", json=wanted)
        assert answer.status_code in (201, 202), answer.text
        who.made[noun] = who.made.get(noun) or answer.json()["id"]
    told = {**TUS, "Upload-Length": "9"}
    who.made["uploads"] = who.ask("POST", "/v1/uploads", headers=told).headers["location"].rsplit("/", 1)[1]
    agent = enrolled(who)
    who.made.update(agents=agent["id"], token=agent["token"])
    _rows(service, who)


def enrolled(who: Owner) -> Json:
    """Return an agent of an owner's, its token in it."""
    code = who.ask("POST", "/v1/agents/enrolments").json()["code"]
    made: Json = who.http.post("/v1/agents:enrol", json={"code": code, "name": "board", "host": {}}).json()
    return made


def request(who: Owner) -> Json:
    """Return a search request that can be met."""
    return {
        "name": f"of {who.name}",
        "model_id": who.made["models"],
        "dataset": {"all": who.made["datasets"]},
        "device_id": "generic-npu",
        "limits": [{"metric": "bops", "relative": 0.125}],
    }


def _rows(service: Service, who: Owner) -> None:
    """Store what workers make: a candidate with an artefact, a measurement and a calibration."""
    sha = service.blobs.put(f"file of {who.name}".encode())
    candidate = Candidate(id=ids.new_id("candidate"), search_id=who.made["searches"], trial_idx=1, rank=1, layers=[])
    candidate.assignment, candidate.metrics = {"keep": {}, "weight_bits": {}, "activation_bits": {}}, {}
    candidate.costs, candidate.budget, candidate.feasible = {"latency_ms": 1.0}, [], True
    artefact = Artefact(id=ids.new_id("artefact"), candidate_id=candidate.id, kind="onnx", blob_sha=sha, bytes=9)
    artefact.filename = "net.onnx"
    measuring = Measuring(id=ids.new_id("measuring"), agent_id=who.made["agents"], kind="time", rounds=1, results={})
    measuring.items, measuring.owner_id = [{"id": "i0", "sha256": sha, "inputs": []}], who.name
    calibration = Calibration(id=ids.new_id("calibration"), device="generic-npu", base_id="generic-npu", model_ids=[])
    calibration.owner_id = who.name
    with service.database.writing() as session:
        record(session, sha, 9)
        for row in (candidate, artefact, measuring, calibration):
            session.add(row)
            session.flush()
    who.made.update(candidates=candidate.id, artefacts=artefact.id, measurements=measuring.id)
    who.made["calibrations"] = calibration.id
