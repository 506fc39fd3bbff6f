"""Pausing, resuming, extending and ordering searches over REST, without a worker."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.actions import Service
from app.store.tables import Search

Json = dict[str, Any]


@pytest.fixture
def search(client: TestClient, request_body: Json) -> Json:
    """A queued search."""
    found: Json = client.post("/v1/searches", json=request_body).json()
    return found


def steer(client: TestClient, search: Json, verb: str, body: Json | None = None) -> tuple[int, Json]:
    answer = client.post(f"/v1/searches/{search['id']}/{verb}", json=body)
    return answer.status_code, answer.json()


def waiting(service: Service, search: Json) -> list[tuple[str, int]]:
    """Return the slices of a search on the queue, with their places."""
    found = service.client.list_workflows(status="ENQUEUED", workflow_id_prefix=search["id"])
    return [(item.workflow_id.removeprefix(search["id"]), item.priority or 0) for item in found]


def states(client: TestClient, service: Service, search: Json) -> list[str]:
    from app.store import events

    with service.database.reading() as session:
        return [row.payload["state"] for row in events.after(session, search["id"], 0) if row.kind == "state"]


def put(service: Service, search: Json, **fields: Any) -> None:
    with service.database.writing() as session:
        row = session.get_one(Search, search["id"])
        for name, value in fields.items():
            setattr(row, name, value)


def test_pause_when_queued_then_paused_at_once_and_off_the_queue_until_resumed(
    client: TestClient, service: Service, search: Json
) -> None:
    status, found = steer(client, search, "pause")
    assert (status, found["state"]) == (202, "paused")
    assert found["paused_at"] is not None
    assert waiting(service, search) == []
    assert steer(client, search, "pause")[0] == 200
    status, found = steer(client, search, "resume")
    assert (status, found["state"], found["paused_at"]) == (202, "queued", None)
    assert [name for name, _ in waiting(service, search)] == ["-r0-s2"]
    assert steer(client, search, "resume")[0] == 200
    assert states(client, service, search) == ["queued", "paused", "queued"]


def test_pause_when_running_then_pausing_and_a_resume_calls_it_off(
    client: TestClient, service: Service, search: Json
) -> None:
    put(service, search, state="running")
    assert steer(client, search, "pause")[1]["state"] == "pausing"
    assert steer(client, search, "resume")[1]["state"] == "running"


def test_steer_when_the_search_has_ended_then_refused_by_name(
    client: TestClient, service: Service, search: Json
) -> None:
    put(service, search, state="failed")
    for verb, body in (("pause", None), ("resume", None), ("extend", {"trials": 500}), ("priority", {"priority": 1})):
        status, found = steer(client, search, verb, body)
        assert (status, found["type"]) == (409, "/problems/already-finished")


def test_steer_when_there_is_no_such_search_then_not_found(client: TestClient) -> None:
    for verb, body in (("pause", None), ("resume", None), ("extend", {"trials": 500}), ("priority", {"priority": 1})):
        assert steer(client, {"id": "srh_none"}, verb, body)[0] == 404


def test_cancel_when_paused_then_cancelled_at_once(client: TestClient, search: Json) -> None:
    steer(client, search, "pause")
    assert steer(client, search, "cancel")[1]["state"] == "cancelled"


def test_extend_when_given_more_trials_then_kept_beside_the_request(client: TestClient, search: Json) -> None:
    status, found = steer(client, search, "extend", {"trials": 90})
    assert (status, found["extended"], found["request"]["search"]["trials"]) == (202, {"trials": 90}, 60)
    assert steer(client, search, "extend", {"trials": 120})[1]["extended"] == {"trials": 120}


@pytest.mark.parametrize(
    "body", [{"trials": 60}, {"trials": 10}, {"trials": 99_999}, {"max_wall_s": 10}, {}, {"trials": 0}]
)
def test_extend_when_it_gives_no_more_than_it_has_then_refused(client: TestClient, search: Json, body: Json) -> None:
    status, found = steer(client, search, "extend", body)
    assert (status, found["type"]) == (422, "/problems/invalid-limits")


def test_extend_when_completed_then_queued_again_and_no_longer_finished(
    client: TestClient, service: Service, search: Json
) -> None:
    put(service, search, state="completed", outcome="feasible", finished_at=None)
    found = steer(client, search, "extend", {"trials": 61})[1]
    assert (found["state"], found["outcome"], found["finished_at"]) == ("queued", None, None)
    assert "-r0-s2" in [name for name, _ in waiting(service, search)]


def test_priority_when_changed_then_the_waiting_slice_moves(client: TestClient, service: Service, search: Json) -> None:
    (_, before), *rest = waiting(service, search)
    assert rest == []
    status, found = steer(client, search, "priority", {"priority": 1})
    assert (status, found["priority"]) == (200, 1)
    ((name, after),) = waiting(service, search)
    assert name == "-r0-s2" and after < before
    assert steer(client, search, "priority", {"priority": 6})[0] == 422


def test_search_when_asked_with_a_priority_then_it_has_it_and_knows_its_owner(
    client: TestClient, request_body: Json
) -> None:
    found = client.post("/v1/searches", json={**request_body, "priority": 2}).json()
    assert found["priority"] == found["request"]["priority"] == 2
    assert found["owner_id"] == "default"
