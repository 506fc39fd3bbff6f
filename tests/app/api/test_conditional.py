"""ETags, preconditions, ranges, cursors, and deleting with what depends on it."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.actions import Service
from app.domain import ids
from app.store.blobs import record
from app.store.tables import Artefact, Candidate, Fleet, Search

Json = dict[str, Any]
ANY = {"If-Match": "*"}


def slug(answer: Any) -> str:
    return str(answer.json()["type"]).removeprefix("/problems/")


def uploaded(client: TestClient, name: str = "net") -> str:
    made = client.post(f"/v1/models?name={name}", content=b"\x08\x0a" + name.encode() * 30)
    return str(made.json()["id"])


@pytest.mark.parametrize("noun", ["models", "datasets", "devices", "searches", "schedules", "calibrations", "fleets"])
def test_resource_when_the_client_has_its_state_then_304_until_it_changes(
    client: TestClient, request_body: Json, ready: dict[str, str], noun: str
) -> None:
    made = {
        "models": lambda: f"/v1/models/{ready['model']}",
        "datasets": lambda: f"/v1/datasets/{ready['dataset']}",
        "devices": lambda: "/v1/devices/generic-npu",
        "searches": lambda: client.post("/v1/searches", json=request_body).headers["location"],
        "schedules": lambda: client.post(
            "/v1/schedules", json={"name": "s", "cron": "0 2 * * *", "search": request_body}
        ).headers["location"],
        "calibrations": lambda: client.post(
            "/v1/devices/onnxruntime-cpu/calibrations", json={"model_ids": [ready["model"]]}
        ).headers["location"],
        "fleets": lambda: client.post(
            "/v1/fleets",
            json={
                **{k: v for k, v in request_body.items() if k not in ("device_id", "limits")},
                "members": [{"device_id": "generic-npu", "limits": request_body["limits"]}],
            },
        ).headers["location"],
    }[noun]()
    first = client.get(made)
    tag = first.headers["etag"]
    assert tag.startswith('"') and len(tag) == 34
    assert client.get(made).headers["etag"] == tag
    for header in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        again = client.get(made, headers={"If-None-Match": header})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get(made, headers={"If-None-Match": '"other"'}).json() == first.json()
    if noun == "searches":
        client.post(f"{made}/cancel")
        changed = client.get(made, headers={"If-None-Match": tag})
        assert (changed.status_code, changed.json()["state"]) == (200, "cancelled")


@pytest.mark.fault(27)
@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_change_when_its_etag_is_stale_or_absent_then_refused_and_nothing_happens(
    client: TestClient, method: str
) -> None:
    path = f"/v1/models/{uploaded(client)}"
    body = {"json": {"name": "mine"}} if method == "PATCH" else {}
    seen = client.get(path).headers["etag"]
    absent = client.request(method, path, **body)
    assert (absent.status_code, slug(absent)) == (428, "precondition-required")
    assert client.patch(path, json={"name": "theirs"}, headers={"If-Match": seen}).status_code == 200
    for header in (seen, f"W/{client.get(path).headers['etag']}", "x", ""):
        stale = client.request(method, path, headers={"If-Match": header}, **body)
        assert (stale.status_code, slug(stale)) == (412, "stale-etag"), header
    assert client.get(path).json()["name"] == "theirs"
    fresh = client.get(path).headers["etag"]
    assert client.request(method, path, headers={"If-Match": f'"a", {fresh}'}, **body).status_code in (200, 204)


def test_name_when_patched_then_only_it_changes_and_laws_of_names_hold(client: TestClient) -> None:
    path = f"/v1/models/{uploaded(client)}"
    before = client.get(path).json()
    after = client.patch(path, json={"name": "other"}, headers=ANY)
    assert after.json() == {**before, "name": "other"} and after.headers["etag"] == client.get(path).headers["etag"]
    for body, expected in (({"name": "a\0b"}, "invalid-name"), ({"name": "x", "format": "onnx"}, "unknown-field")):
        assert slug(client.patch(path, json=body, headers=ANY)) == expected
    assert slug(client.patch("/v1/models/mdl_none", json={"name": "x"}, headers=ANY)) == "not-found"


def test_schedule_when_switched_off_and_on_then_the_engine_follows(
    client: TestClient, service: Service, request_body: Json
) -> None:
    from app import queue

    body = {"name": "s", "cron": "0 2 * * *", "timezone": "UTC", "search": request_body}
    path = client.post("/v1/schedules", json=body).headers["location"]
    key = path.rsplit("/", 1)[1]
    for enabled in (False, True):
        changed = client.patch(path, json={"enabled": enabled}, headers={"If-Match": client.get(path).headers["etag"]})
        assert changed.json()["enabled"] is enabled
        assert (key in queue.schedules(service.client)) is enabled


@pytest.fixture(scope="module")
def artefact(client: TestClient, service: Service, ready: dict[str, str]) -> str:
    """The address of a file of 1,000 bytes."""
    data = bytes(range(250)) * 4
    sha = service.blobs.put(data)
    with service.database.writing() as session:
        record(session, sha, len(data))
        search = Search(id=ids.new_id("search"), name="n", model_id=ready["model"], dataset={}, device_id="d",
                        device={}, spec={}, limits={}, state="completed")  # fmt: skip
        session.add(search)
        session.flush()
        candidate = Candidate(id=ids.new_id("candidate"), search_id=search.id, trial_idx=0, rank=0, assignment={},
                              costs={}, metrics={}, layers=[], budget=[], feasible=True)  # fmt: skip
        session.add(candidate)
        session.flush()
        row = Artefact(id=ids.new_id("artefact"), candidate_id=candidate.id, kind="onnx", blob_sha=sha,
                       filename="net.onnx", bytes=len(data))  # fmt: skip
        session.add(row)
    return f"/v1/artefacts/{row.id}/content"


@pytest.mark.parametrize(
    ("header", "status", "first", "last"),
    [
        ("bytes=0-9", 206, 0, 10),
        ("bytes=990-", 206, 990, 1000),
        ("bytes=-10", 206, 990, 1000),
        ("bytes=-5000", 206, 0, 1000),
        ("bytes=500-5000", 206, 500, 1000),
        ("bytes=0-0", 206, 0, 1),
        ("bytes=0-1,5-6", 200, 0, 1000),
        ("lines=1-2", 200, 0, 1000),
        ("bytes=", 200, 0, 1000),
        ("bytes=-", 200, 0, 1000),
        ("bytes=x-y", 200, 0, 1000),
        ("bytes=1000-", 416, 0, 0),
        ("bytes=9-8", 200, 0, 1000),
        ("bytes=-0", 416, 0, 0),
    ],
)
def test_artefact_when_a_range_is_asked_for_then_those_bytes_all_or_416(
    client: TestClient, artefact: str, header: str, status: int, first: int, last: int
) -> None:
    data = bytes(range(250)) * 4
    answer = client.get(artefact, headers={"Range": header})
    assert answer.status_code == status
    if status == 416:
        assert (slug(answer), answer.headers["content-range"]) == ("range-not-satisfiable", "bytes */1000")
        return
    assert answer.content == data[first:last]
    assert answer.headers.get("content-range") == (f"bytes {first}-{last - 1}/1000" if status == 206 else None)
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert answer.headers["accept-ranges"] == "bytes" and answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == 'attachment; filename="net.onnx"'


def test_artefact_when_its_etag_is_known_then_304_and_if_range_of_another_gets_all(
    client: TestClient, artefact: str
) -> None:
    tag = client.get(artefact).headers["etag"]
    assert tag == f'"{hashlib.sha256(bytes(range(250)) * 4).hexdigest()}"'
    assert client.get(artefact, headers={"If-None-Match": f'"x", {tag}'}).status_code == 304
    assert client.get(artefact, headers={"Range": "bytes=0-9", "If-Range": tag}).status_code == 206
    for header in ("bytes=0-9", "bytes=5000-"):
        whole = client.get(artefact, headers={"Range": header, "If-Range": '"other"'})
        assert (whole.status_code, len(whole.content)) == (200, 1000)


@pytest.mark.fault(26)
def test_cursor_when_tampered_of_another_list_or_another_filter_then_refused(client: TestClient) -> None:
    for number in range(4):
        uploaded(client, f"c{number}")
    page = client.get("/v1/models?limit=2&state=inspecting")
    cursor = page.json()["next_cursor"]
    following = client.get(page.links["next"]["url"])
    assert page.links["next"]["url"].startswith("/v1/models?")
    assert following.status_code == 200 and len(following.json()["items"]) == 2
    assert not {item["id"] for item in following.json()["items"]} & {item["id"] for item in page.json()["items"]}
    assert client.get("/v1/models", params={"state": "inspecting", "cursor": cursor}).status_code == 200
    foreign = [
        client.get("/v1/models", params={"cursor": cursor}),
        client.get("/v1/models", params={"cursor": cursor, "state": "ready"}),
        client.get("/v1/datasets", params={"cursor": cursor, "state": "inspecting"}),
    ]
    torn = [cursor[:-1], cursor[1:], f"x{cursor}", ".", "", "x" * 300, cursor.upper()]
    for answer in [*foreign, *(client.get("/v1/models", params={"cursor": c, "state": "inspecting"}) for c in torn)]:
        assert (answer.status_code, slug(answer)) == (400, "invalid-cursor")
    for limit in (0, -1, 10**9):
        assert slug(client.get("/v1/models", params={"limit": limit})) == "invalid-limit"


def test_list_when_filtered_by_moment_or_device_then_only_those(client: TestClient, request_body: Json) -> None:
    made = client.post("/v1/searches", json=request_body).json()
    assert client.get("/v1/searches", params={"created_after": made["created_at"]}).json()["items"] == []
    found = client.get("/v1/searches", params={"device_id": made["device_id"], "created_after": "2020-01-01T00:00:00Z"})
    assert made["id"] in [item["id"] for item in found.json()["items"]]
    assert client.get("/v1/searches?device_id=dev_none").json()["items"] == []
    assert slug(client.get("/v1/searches?created_after=yesterday")) == "invalid-request"


@pytest.mark.fault(58)
def test_model_when_a_search_uses_it_then_refused_with_ids_and_cascade_cancels_first(
    client: TestClient, service: Service, request_body: Json
) -> None:
    model = uploaded(client, "used")
    with service.database.writing() as session:
        fleet = Fleet(id=ids.new_id("fleet"), name="f", spec={})
        session.add(fleet)
        rows = [
            Search(id=ids.new_id("search"), name="n", model_id=model, dataset={}, device_id="d", device={}, spec={},
                   limits={}, state=state, fleet_id=fleet.id, place=place)
            for place, state in enumerate(("running", "queued", "completed"))
        ]  # fmt: skip
        session.add_all(rows)
    running, queued, completed = (row.id for row in rows)
    path = f"/v1/models/{model}"
    refused = client.delete(path, headers=ANY)
    assert (refused.status_code, slug(refused)) == (409, "in-use")
    assert set(refused.json()["ids"]) == {running, queued, completed}
    waiting = client.delete(path, params={"cascade": "cancel"}, headers=ANY)
    assert (waiting.status_code, waiting.json(), waiting.headers["retry-after"]) == (
        202,
        {"cancelling": [running]},
        "1",
    )
    states = {key: client.get(f"/v1/searches/{key}").json()["state"] for key in (running, queued, completed)}
    assert states == {running: "cancelling", queued: "cancelled", completed: "completed"}
    with service.database.writing() as session:  # as the worker does, a second later
        session.get_one(Search, running).state = "cancelled"
    assert client.delete(path, params={"cascade": "cancel"}, headers=ANY).status_code == 204
    gone = [path, *(f"/v1/searches/{key}" for key in states), f"/v1/fleets/{fleet.id}"]
    assert {client.get(address).status_code for address in gone} == {404}


def test_model_when_a_candidate_is_being_exported_then_cascade_waits_for_it(
    client: TestClient, service: Service, artefact: str, ready: dict[str, str]
) -> None:
    record_of = client.get(artefact.removesuffix("/content")).json()
    with service.database.writing() as session:
        session.get_one(Candidate, record_of["candidate_id"]).export_state = "running"
    path = f"/v1/models/{ready['model']}"
    refused = client.delete(path, params={"cascade": "cancel"}, headers=ANY)
    assert (refused.status_code, refused.json()["ids"]) == (409, [record_of["candidate_id"]])
    assert slug(client.delete(path, params={"cascade": "all"}, headers=ANY)) == "invalid-request"
