"""Fleets over HTTP: all members or none, the others wait for the first, one answer for all."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from app import fleets
from app.actions import Service
from app.domain.lifecycle import Outcome
from app.store import query
from app.store import runner as rows
from app.store.tables import Fleet

Json = dict[str, Any]
BOPS = [{"metric": "bops", "relative": 0.125}]


@pytest.fixture
def fleet_body(ready: dict[str, str]) -> Json:
    """A fleet of two devices whose budgets can be met."""
    members = [{"device_id": "generic-npu", "limits": BOPS}, {"device_id": "stm32h7", "limits": BOPS, "name": "board"}]
    return {"name": "boards", "model_id": ready["model"], "dataset": {"all": ready["dataset"]}, "members": members,
            "search": {"trials": 20, "runners": 2}}  # fmt: skip


def jobs(service: Service, search_id: str) -> int:
    found = service.client.list_workflows(queue_name="trials", load_input=False)
    return sum(job.workflow_id.startswith(search_id) for job in found)


def test_fleet_when_possible_then_one_answer_and_only_the_first_is_queued(
    client: TestClient, service: Service, fleet_body: Json
) -> None:
    answer = client.post("/v1/fleets", json=fleet_body)
    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert answer.headers["location"] == f"/v1/fleets/{body['id']}"
    assert client.get(answer.headers["location"]).json() == body
    assert (body["state"], body["share"]) == ("queued", 0.2)
    assert [(m["place"], m["device_id"], m["name"], m["state"], m["evaluations"]) for m in body["members"]] == [
        (0, "generic-npu", "boards: generic-npu", "queued", 0),
        (1, "stm32h7", "boards: board", "queued", 0),
    ]
    assert [jobs(service, member["search_id"]) for member in body["members"]] == [2, 0]
    search = client.get(body["members"][1]["links"]["search"]).json()
    assert search["request"]["search"]["warm_start"] is True
    assert body["id"] in [item["id"] for item in client.get("/v1/fleets").json()["items"]]


def test_fleet_when_an_opset_is_named_then_every_members_files_have_it_and_one_that_can_not_is_refused(
    client: TestClient, fleet_body: Json
) -> None:
    answer = client.post("/v1/fleets", json={**fleet_body, "export": {"opset": 17}})
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/opset-too-low")
    assert answer.json()["detail"].startswith("member 1: opset 17 can't hold 16-bit numbers")
    fleet_body["members"][1]["space"] = {"activation_bits": [8]}
    made = client.post("/v1/fleets", json={**fleet_body, "export": {"opset": 17}}).json()
    searches = [client.get(member["links"]["search"]).json() for member in made["members"]]
    assert [search["request"]["export"] for search in searches] == [{"opset": 17}] * 2


def test_fleet_when_methods_are_named_and_there_are_no_data_then_every_member_has_both(
    client: TestClient, fleet_body: Json
) -> None:
    asked = [{"name": "bias-correction", "mode": "analytic"}, {"name": "straight-through", "training": {"epochs": 2}}]
    made = client.post("/v1/fleets", json={**fleet_body, "dataset": None, "methods": asked})
    assert made.status_code == 202, made.text
    for member in made.json()["members"]:
        request = client.get(member["links"]["search"]).json()["request"]
        assert request["dataset"] is None
        assert [method["name"] for method in request["methods"]] == ["bias-correction", "straight-through"]
        assert (request["methods"][0]["mode"], request["methods"][1]["training"]["epochs"]) == ("analytic", 2)


def test_fleet_when_the_first_has_ended_then_the_others_are_queued_once(
    client: TestClient, service: Service, fleet_body: Json
) -> None:
    first, second = (m["search_id"] for m in client.post("/v1/fleets", json=fleet_body).json()["members"])
    assert fleets.start_members(service, first) == []
    with service.database.writing() as session:
        rows.begin(session, first)
        rows.complete(session, first, Outcome.feasible)
    assert fleets.start_members(service, second) == []
    assert fleets.start_members(service, first) == [second]
    assert fleets.start_members(service, first) == []
    assert jobs(service, second) == 2


def test_fleet_when_one_member_is_impossible_then_none_is_queued_and_it_is_named(
    client: TestClient, service: Service, fleet_body: Json
) -> None:
    with service.database.reading() as session:
        before = [len(query.page(session, table, 500)) for table in (Fleet,)]
    fleet_body["members"][1]["limits"] = [{"metric": "bops", "relative": 1e-9}]
    answer = client.post("/v1/fleets", json=fleet_body)
    body = answer.json()
    assert (answer.status_code, body["type"]) == (422, "/problems/budget-unreachable")
    assert body["errors"][0]["pointer"] == "/members/1/limits"
    assert body["detail"].startswith("member 1: bops can't go below")
    with service.database.reading() as session:
        assert [len(query.page(session, table, 500)) for table in (Fleet,)] == before


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"members": []}, "/members"),
        ({"share": 1.5}, "/share"),
        ({"search": {"warm_start": False}}, "share evaluations"),
        ({"members": [{"device_id": "generic-npu", "limits": [
            {"metric": "latency_ms", "max": 1, "evidence": "measured"}]}]}, "not timings"),
        ({"members": [{"device_id": "toaster", "limits": BOPS}]}, "toaster"),
        ({"model_id": "mdl_none"}, "mdl_none"),
    ],
)  # fmt: skip
def test_fleet_when_the_request_is_wrong_then_refused_with_the_reason(
    client: TestClient, fleet_body: Json, change: Json, text: str
) -> None:
    answer = client.post("/v1/fleets", json={**fleet_body, **change})
    assert 400 <= answer.status_code < 500
    assert text in answer.text


def test_fleet_when_cancelled_then_every_member_is(client: TestClient, service: Service, fleet_body: Json) -> None:
    made = client.post("/v1/fleets", json=fleet_body).json()
    answer = client.post(f"/v1/fleets/{made['id']}/cancel")
    assert answer.status_code == 202
    assert (answer.json()["state"], {m["state"] for m in answer.json()["members"]}) == ("cancelled", {"cancelled"})
    assert fleets.start_members(service, made["members"][0]["search_id"]) == []
    assert client.post("/v1/fleets/flt_none/cancel").status_code == 404


def test_fleet_when_repeated_under_its_key_then_the_same_fleet(client: TestClient, fleet_body: Json) -> None:
    headers = {"Idempotency-Key": "fleet-1"}
    first, again = (client.post("/v1/fleets", json=fleet_body, headers=headers).json() for _ in range(2))
    assert first["id"] == again["id"]


@pytest.mark.parametrize(
    ("states", "whole"),
    [
        (["queued", "queued"], "queued"),
        (["completed", "queued"], "running"),
        (["running", "queued"], "running"),
        (["completed", "cancelling"], "running"),
        (["completed", "completed"], "completed"),
        (["completed", "failed", "cancelled"], "failed"),
        (["completed", "cancelled"], "cancelled"),
    ],
)
def test_state_of_when_members_are_mixed_then_the_worst_once_all_are_finished(states: list[str], whole: str) -> None:
    assert fleets.state_of(states) == whole
