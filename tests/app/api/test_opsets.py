"""Opsets over HTTP: asked for in a search or an export, refused where they can't hold what is written."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.actions import Service
from app.store import runner as rows
from app.store.tables import Candidate
from tests.app.api.test_searches import post

Json = dict[str, Any]


@pytest.mark.parametrize(
    ("export", "slug"),
    [({"opset": 12}, "invalid-request"), ({"opset": 22}, "invalid-request"), ({"opset": 17, "ir": 8}, "unknown-field")],
)
def test_search_when_what_it_asks_of_exports_is_bad_then_refused_by_name(
    client: TestClient, request_body: Json, export: Json, slug: str
) -> None:
    answer = post(client, {**request_body, "export": export})
    assert answer.json()["type"] == f"/problems/{slug}"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.status_code == answer.json()["status"]


def test_search_when_its_opset_can_not_hold_what_the_device_may_choose_then_refused_with_the_lowest_that_can(
    client: TestClient, request_body: Json
) -> None:
    wide = {**request_body, "device_id": "stm32h7", "limits": [{"metric": "bops", "relative": 2}]}
    assert post(client, wide).status_code == 202
    answer = post(client, {**wide, "export": {"opset": 17}})
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/opset-too-low")
    assert answer.json()["errors"][0]["pointer"] == "/export/opset"
    assert "16-bit numbers; the lowest that can is 21" in answer.json()["detail"]
    assert client.post("/v1/searches/preflight", json={**wide, "export": {"opset": 20}}).status_code == 422
    assert post(client, {**wide, "export": {"opset": 21}}).status_code == 202
    narrow = {**wide, "space": {"activation_bits": [8]}, "export": {"opset": 13}}
    made = post(client, narrow)
    assert made.status_code == 202, made.text
    assert client.get(f"/v1/searches/{made.json()['id']}").json()["request"]["export"] == {"opset": 13}


def candidate_of(service: Service, search: str, bits: int, **fields: Any) -> str:
    """Store a candidate, exported as `fields` say."""
    assignment = {"keep": {}, "weight_bits": {"head": 8}, "activation_bits": {"x": bits}}
    costs: Json = {"trial_idx": 1, "rank": 1, "assignment": assignment, "costs": {}, "metrics": {}, "layers": []}
    with service.database.writing() as session:
        key = rows.put_candidate(session, search, {**costs, "budget": [], "feasible": True})
        for name, value in fields.items():
            setattr(session.get_one(Candidate, key), name, value)
    return key


def queued_exports(service: Service, candidate: str) -> list[Any]:
    jobs = service.client.list_workflows(queue_name="control", load_input=True)
    return [list(job.input["args"]) for job in jobs if job.workflow_id.startswith(candidate)]


def test_export_when_no_opset_is_named_then_queued_once_without_one(
    client: TestClient, service: Service, request_body: Json
) -> None:
    search = post(client, request_body).json()["id"]
    key = candidate_of(service, search, 8)
    assert client.post(f"/v1/candidates/{key}/export").status_code == 202
    assert client.post(f"/v1/candidates/{key}/export", json={}).status_code == 202
    assert queued_exports(service, key) == [[key]]
    again = client.post(f"/v1/candidates/{key}/export", json={"opset": 17})
    assert (again.status_code, again.json()["type"]) == (409, "/problems/export-running")


def test_export_when_another_opset_is_named_then_made_anew_and_the_same_one_stays(
    client: TestClient, service: Service, request_body: Json
) -> None:
    search = post(client, request_body).json()["id"]
    key = candidate_of(service, search, 8, export_state="done", report={"opset": 17})
    for body in ({}, {"opset": 17}):
        assert client.post(f"/v1/candidates/{key}/export", json=body).json()["export_state"] == "done"
    assert queued_exports(service, key) == []
    assert client.post(f"/v1/candidates/{key}/export", json={"opset": 21}).json()["export_state"] == "queued"
    assert queued_exports(service, key) == [[key, "21"]]


@pytest.mark.parametrize(
    ("bits", "body", "slug", "status"),
    [
        (16, {"opset": 20}, "opset-too-low", 422),
        (8, {"opset": 12}, "invalid-request", 422),
        (8, {"version": 17}, "unknown-field", 422),
        (16, {"opset": 21}, None, 202),
    ],
)
def test_export_when_the_opset_is_none_on_offer_or_can_not_hold_the_candidate_then_refused_by_name(
    client: TestClient, service: Service, request_body: Json, bits: int, body: Json, slug: str | None, status: int
) -> None:
    key = candidate_of(service, post(client, request_body).json()["id"], bits)
    answer = client.post(f"/v1/candidates/{key}/export", json=body)
    assert answer.status_code == status
    if slug is not None:
        assert answer.json()["type"] == f"/problems/{slug}"
        assert queued_exports(service, key) == []
