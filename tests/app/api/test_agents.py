"""Agents over REST: enrolment, leases, results, and what a token may not do."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.actions import Service
from app.agents import CODE_S
from app.domain.ids import digest
from app.problems import PROBLEMS
from app.store import measuring
from app.store.tables import Enrolment, Measuring, now

ONE, TWO = "a" * 32, "b" * 32
LATENCY = {"latency": {"min_ms": 1.0, "median_ms": 1.5, "p95_ms": 2.0, "runs": 60}}


def code(client: TestClient) -> str:
    return str(client.post("/v1/agents/enrolments").json()["code"])


def enrol(client: TestClient, name: str = "board") -> tuple[str, dict[str, str]]:
    """Return the id of a fresh agent and its headers."""
    made = client.post("/v1/agents:enrol", json={"code": code(client), "name": name, "host": {"cores": 4}}).json()
    return made["id"], {"Authorization": f"Bearer {made['token']}"}


def queue_job(service: Service, agent_id: str, count: int = 2) -> str:
    sha = service.blobs.put(b"a model")
    items = [{"id": f"i{n}", "sha256": sha, "inputs": [[[1, 3], "float32"]]} for n in range(count)]
    with service.database.writing() as session:
        return measuring.ask(session, agent_id, "time", items, 60).id


def pull(client: TestClient, agent: tuple[str, dict[str, str]], session: str = ONE) -> Any:
    body = {"session": session, "wait_s": 0.0}
    return client.post(f"/v1/agents/{agent[0]}/jobs:pull", json=body, headers=agent[1])


def post(client: TestClient, agent: tuple[str, dict[str, str]], job: str, items: list[str], session: str = ONE) -> Any:
    body = {"session": session, "results": dict.fromkeys(items, LATENCY), "conditions": {"load": 0.1}}
    return client.post(f"/v1/agents/{agent[0]}/jobs/{job}/results", json=body, headers=agent[1])


def refused(answer: Any, slug: str) -> bool:
    return (answer.status_code, answer.json()["type"]) == (PROBLEMS[slug].status, f"/problems/{slug}")


def test_enrol_when_code_is_fresh_then_an_agent_and_its_token_once(client: TestClient, service: Service) -> None:
    agent_id, _ = enrol(client, "pi")
    shown = client.get(f"/v1/agents/{agent_id}").json()
    assert (shown["name"], shown["state"], shown["host"]) == ("pi", "active", {"cores": 4})
    assert "token" not in shown and "sha256" not in shown
    assert agent_id in [item["id"] for item in client.get("/v1/agents").json()["items"]]


def test_enrol_when_code_is_used_twice_then_refused(client: TestClient) -> None:
    text = code(client)
    first = client.post("/v1/agents:enrol", json={"code": text, "name": "a"})
    assert first.status_code == 201
    assert refused(client.post("/v1/agents:enrol", json={"code": text, "name": "b"}), "enrolment-code-used")


def test_enrol_when_code_is_older_than_fifteen_minutes_then_refused(client: TestClient, service: Service) -> None:
    text = code(client)
    with service.database.writing() as session:
        row = session.get_one(Enrolment, digest(text))
        assert (row.expires_at - row.created_at).total_seconds() == CODE_S == 900
        row.expires_at = now() - timedelta(seconds=1)
    assert refused(client.post("/v1/agents:enrol", json={"code": text, "name": "a"}), "enrolment-code-expired")


def test_enrol_when_code_is_made_up_then_refused(client: TestClient) -> None:
    answer = client.post("/v1/agents:enrol", json={"code": "tfe_guess", "name": "a"})
    assert refused(answer, "invalid-enrolment-code")


def test_enrolment_when_key_lacks_the_scope_then_refused(client: TestClient) -> None:
    key = client.post("/v1/keys", json={"name": "reader", "scopes": ["artefacts:read"]}).json()["key"]
    answer = client.post("/v1/agents/enrolments", headers={"Authorization": f"Bearer {key}"})
    assert refused(answer, "missing-scope")


def test_token_when_used_beyond_its_agent_then_refused(client: TestClient, service: Service) -> None:
    mine, other = enrol(client), enrol(client)
    job = queue_job(service, other[0])
    assert refused(client.get("/v1/models", headers=mine[1]), "unauthenticated")
    assert refused(pull(client, (other[0], mine[1])), "wrong-agent")
    assert refused(client.get(f"/v1/agents/{mine[0]}/jobs/{job}/items/i0", headers=mine[1]), "wrong-agent")
    assert refused(post(client, mine, job, ["i0"]), "wrong-agent")


def test_agent_routes_when_asked_with_an_administrators_key_then_refused(client: TestClient) -> None:
    agent_id, _ = enrol(client)
    answer = client.post(f"/v1/agents/{agent_id}/jobs:pull", json={"session": ONE, "wait_s": 0})
    assert refused(answer, "unauthenticated")


def test_pull_when_nothing_waits_then_204(client: TestClient) -> None:
    assert pull(client, enrol(client)).status_code == 204


def test_job_when_pulled_measured_and_posted_then_done_with_every_result(client: TestClient, service: Service) -> None:
    agent = enrol(client)
    job = queue_job(service, agent[0])
    pulled = pull(client, agent).json()
    assert (pulled["id"], pulled["kind"], pulled["rounds"], pulled["done"]) == (job, "time", 60, 0)
    assert [item["id"] for item in pulled["items"]] == ["i0", "i1"]
    assert client.get(f"/v1/agents/{agent[0]}/jobs/{job}/items/i0", headers=agent[1]).content == b"a model"
    assert post(client, agent, job, ["i0"]).json() == {"id": job, "state": "leased", "done": 1, "total": 2}
    assert post(client, agent, job, ["i0"]).json()["done"] == 1
    assert post(client, agent, job, ["i1"]).json()["state"] == "done"
    assert post(client, agent, job, ["i1"]).json()["state"] == "done", "a repeated last result is no fault"
    shown = client.get(f"/v1/measurements/{job}").json()
    assert shown["results"] == {"i0": LATENCY, "i1": LATENCY} and shown["conditions"] == {"load": 0.1}


def test_pull_when_another_process_holds_the_lease_then_nothing_until_it_runs_out(
    client: TestClient, service: Service
) -> None:
    agent = enrol(client)
    job = queue_job(service, agent[0])
    assert pull(client, agent).json()["id"] == job
    post(client, agent, job, ["i0"])
    assert pull(client, agent, TWO).status_code == 204
    with service.database.writing() as session:
        session.get_one(Measuring, job).lease_until = now() - timedelta(seconds=1)
    resumed = pull(client, agent, TWO).json()
    assert ([item["id"] for item in resumed["items"]], resumed["done"]) == (["i1"], 1)
    assert refused(post(client, agent, job, ["i1"]), "lease-lost")
    assert post(client, agent, job, ["i1"], TWO).json()["state"] == "done"


def test_job_when_its_agent_ends_three_times_in_a_row_then_it_fails(client: TestClient, service: Service) -> None:
    agent = enrol(client)
    job = queue_job(service, agent[0])
    for number in range(3):
        assert pull(client, agent, f"{number}" * 32).json()["id"] == job
        with service.database.writing() as session:
            session.get_one(Measuring, job).lease_until = now() - timedelta(seconds=1)
    assert pull(client, agent, "f" * 32).status_code == 204
    shown = client.get(f"/v1/measurements/{job}").json()
    assert (shown["state"], shown["problem"]["type"]) == ("failed", "/problems/measuring-failed")


def test_heartbeat_when_job_is_cancelled_then_the_process_learns_it(client: TestClient, service: Service) -> None:
    agent = enrol(client)
    job = queue_job(service, agent[0])
    pull(client, agent)
    beat = {"session": ONE, "job": job}
    address = f"/v1/agents/{agent[0]}/heartbeat"
    assert client.post(address, json=beat, headers=agent[1]).json() == {"job": job}
    assert client.post(f"/v1/measurements/{job}/cancel").json()["state"] == "cancelled"
    assert client.post(address, json=beat, headers=agent[1]).json() == {"job": None}
    assert refused(post(client, agent, job, ["i0"]), "lease-lost")


def test_heartbeat_when_process_leaves_then_the_next_one_gets_the_job_at_once(
    client: TestClient, service: Service
) -> None:
    agent = enrol(client)
    job = queue_job(service, agent[0])
    pull(client, agent)
    body = {"session": ONE, "job": job, "leaving": True}
    client.post(f"/v1/agents/{agent[0]}/heartbeat", json=body, headers=agent[1])
    assert pull(client, agent, TWO).json()["id"] == job


def test_agent_when_removed_then_its_token_is_refused_and_its_jobs_fail(client: TestClient, service: Service) -> None:
    agent = enrol(client)
    job = queue_job(service, agent[0])
    assert client.delete(f"/v1/agents/{agent[0]}").status_code == 204
    assert refused(pull(client, agent), "agent-gone")
    assert client.get(f"/v1/measurements/{job}").json()["problem"]["type"] == "/problems/agent-gone"
    assert agent[0] not in [item["id"] for item in client.get("/v1/agents").json()["items"]]
    answer = client.post("/v1/measurements", json={"agent_id": agent[0], "model_ids": ["x"]})
    assert refused(answer, "agent-gone")


@pytest.mark.parametrize(
    "result", [{}, {"latency": {"min_ms": -1, "median_ms": 1, "p95_ms": 1, "runs": 1}}, {**LATENCY, "kernels": {}}]
)
def test_results_when_no_measurement_then_refused(client: TestClient, service: Service, result: Any) -> None:
    agent = enrol(client)
    job = queue_job(service, agent[0])
    pull(client, agent)
    body = {"session": ONE, "results": {"i0": result}}
    answer = client.post(f"/v1/agents/{agent[0]}/jobs/{job}/results", json=body, headers=agent[1])
    assert refused(answer, "invalid-request")


def test_measurement_when_asked_for_a_ready_network_then_queued_with_its_inputs(
    client: TestClient, service: Service, ready: dict[str, str]
) -> None:
    agent = enrol(client)
    made = client.post("/v1/measurements", json={"agent_id": agent[0], "model_ids": [ready["model"]]})
    assert (made.status_code, made.json()["state"], made.json()["progress"]) == (202, "queued", {"done": 0, "total": 1})
    assert pull(client, agent).json()["items"][0]["inputs"] == [[[1, 3, 32, 32], "float32"]]


def test_calibration_when_device_is_not_the_host_and_no_agent_is_named_then_refused(
    client: TestClient, ready: dict[str, str]
) -> None:
    body = {"model_ids": [ready["model"]]}
    assert refused(client.post("/v1/devices/generic-npu/calibrations", json=body), "agent-required")
    assert refused(client.post("/v1/devices/no-such/calibrations", json=body), "not-found")


def test_calibration_when_cancelled_before_it_began_then_cancelled(client: TestClient, ready: dict[str, str]) -> None:
    made = client.post("/v1/devices/onnxruntime-cpu/calibrations", json={"model_ids": [ready["model"]]})
    assert (made.status_code, made.json()["state"]) == (202, "queued")
    address = made.headers["location"]
    assert client.post(f"{address}/cancel").json()["state"] == "cancelled"
    assert client.get(address).json()["device_id"] is None
