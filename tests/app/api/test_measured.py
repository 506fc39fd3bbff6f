"""What was measured, over REST: drift and its warning, refits, candidates' files measured on an agent."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.actions import Service
from app.domain import ids
from app.domain.cost import count
from app.domain.demand import Timing
from app.domain.device import DeviceProfile
from app.domain.space import widest
from app.store import timings
from app.store.blobs import record
from app.store.tables import Artefact, Candidate, Search
from tests.app.api.test_agents import enrol, post, pull, refused
from tests.worker.search.pictures import resnet

Json = dict[str, Any]
FACTOR, PAIRS = 2.5, 8


@pytest.fixture(scope="module")
def searched(client: TestClient, ready: dict[str, str]) -> Json:
    """A search on a profile of its own, whose files took 2.5 times what the profile says."""
    profile = client.get("/v1/devices/generic-npu").json()["profile"] | {"name": "drifting-npu"}
    device = client.post("/v1/devices", json=profile).json()
    body = {
        "name": "drift",
        "model_id": ready["model"],
        "dataset": {"all": ready["dataset"]},
        "device_id": device["id"],
        "limits": [{"metric": "bops", "relative": 0.125}],
    }
    made: Json = client.post("/v1/searches", json=body).json()
    return {**made, "body": body}


def measure(service: Service, search_id: str, count: int) -> None:
    """Store what `count` files took on the device."""
    found = [
        Timing(f"{n:064d}", 1.0 + n, {"min_ms": FACTOR * (1.0 + n), "median_ms": 9.0, "p95_ms": 9.0, "runs": 60}, {})
        for n in range(count)
    ]
    with service.database.writing() as session:
        timings.store(session, session.get_one(Search, search_id), found)


def test_device_when_measured_far_from_its_profile_then_warned_and_refitted(
    client: TestClient, service: Service, searched: Json
) -> None:
    address = f"/v1/searches/{searched['id']}"
    assert client.get(address).json()["warnings"] == []
    measure(service, searched["id"], 4)
    assert refused(client.post("/v1/devices/drifting-npu:refit"), "not-enough-measurements")
    measure(service, searched["id"], PAIRS)
    before = client.get("/v1/devices/drifting-npu").json()
    assert (before["accuracy"]["verdict"], before["accuracy"]["pairs"]) == ("stale", PAIRS)
    assert before["accuracy"]["bias"] == pytest.approx(FACTOR)
    assert client.get(address).json()["warnings"] == ["profile-stale"]
    assert client.post("/v1/searches/preflight", json=searched["body"]).json()["warnings"] == ["profile-stale"]
    made = client.post("/v1/devices/drifting-npu:refit")
    after = made.json()
    assert (made.status_code, after["revision"]) == (201, before["revision"] + 1)
    assert made.headers["location"] == f"/v1/devices/drifting-npu@{after['revision']}"
    graph = resnet()
    slow, fast = (count(graph, widest(graph, 8), DeviceProfile.from_json(one["profile"])) for one in (after, before))
    assert slow.latency_ms / fast.latency_ms == pytest.approx(FACTOR)
    again = client.post("/v1/searches/preflight", json={**searched["body"], "device_id": after["id"]}).json()
    assert again["warnings"] == []
    assert client.get(address).json()["warnings"] == ["profile-stale"], "an earlier search keeps its revision"


def test_measurement_when_asked_for_a_candidates_file_then_the_agent_gets_it_with_the_networks_inputs(
    client: TestClient, service: Service, searched: Json
) -> None:
    held = {kind: exported(service, searched["id"], kind) for kind in ("onnx", "checkpoint")}
    agent = enrol(client)
    body = {"agent_id": agent[0], "artefact_ids": [held["onnx"]], "rounds": 7}
    made = client.post("/v1/measurements", json=body)
    assert (made.status_code, made.json()["state"]) == (202, "queued")
    job = pull(client, agent).json()
    assert (job["id"], job["rounds"]) == (made.json()["id"], 7)
    assert [(item["id"], item["inputs"]) for item in job["items"]] == [(held["onnx"], [[[1, 3, 32, 32], "float32"]])]
    file = client.get(f"/v1/agents/{agent[0]}/jobs/{job['id']}/items/{held['onnx']}", headers=agent[1])
    assert file.content == b"an exported onnx"
    assert post(client, agent, job["id"], [held["onnx"]]).json()["state"] == "done"
    shown = client.get(f"/v1/measurements/{job['id']}").json()
    assert shown["results"][held["onnx"]]["latency"]["min_ms"] == 1.0
    wrong = client.post("/v1/measurements", json={"agent_id": agent[0], "artefact_ids": [held["checkpoint"]]})
    assert refused(wrong, "unsupported-format")
    unknown = client.post("/v1/measurements", json={"agent_id": agent[0], "artefact_ids": ["art_none"]})
    assert refused(unknown, "not-found")
    assert refused(client.post("/v1/measurements", json={"agent_id": agent[0]}), "invalid-request")


def exported(service: Service, search_id: str, kind: str) -> str:
    """Store a candidate with one exported file; return the artefact's id."""
    content = f"an exported {kind}".encode()
    sha = service.blobs.put(content)
    candidate = Candidate(id=ids.new_id("candidate"), search_id=search_id, trial_idx=len(kind), rank=0, feasible=True)
    candidate.assignment, candidate.costs, candidate.metrics, candidate.layers, candidate.budget = {}, {}, {}, [], []
    artefact = Artefact(id=ids.new_id("artefact"), candidate_id=candidate.id, kind=kind, blob_sha=sha)
    artefact.filename, artefact.bytes = f"net.{kind}", len(content)
    with service.database.writing() as session:
        record(session, sha, len(content))
        session.add(candidate)
        session.flush()
        session.add(artefact)
    return artefact.id


def test_calibration_when_the_profile_is_derived_from_the_hosts_then_no_agent_is_needed(
    client: TestClient, ready: dict[str, str]
) -> None:
    profile = client.get("/v1/devices/onnxruntime-cpu").json()["profile"]
    body = {"model_ids": [ready["model"]]}
    for name, asked in (("onnxruntime-cpu-mine", 202), ("onnxruntime-cpus", 422)):
        client.post("/v1/devices", json={**profile, "name": name})
        answer = client.post(f"/v1/devices/{name}/calibrations", json=body)
        assert answer.status_code == asked
