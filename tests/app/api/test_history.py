"""The owner's event stream and the audit log over REST, on both databases."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from app.actions import Service
from app.main import create_app
from app.settings import Settings
from app.store.records import Audit
from app.store.tables import Calibration, Model
from tests.app.api.owning import Owner, fill, owner, request
from tests.app.store.databases import postgres_url
from tests.app.uploaded import put_ready

Json = dict[str, Any]
PROFILE: Json = json.loads((Path(__file__).resolve().parents[3] / "examples" / "device.json").read_text())
NETWORK = b"\x08\x0e" + b"h" * 60


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TestClient]:
    with nullcontext("") if request.param == "sqlite" else postgres_url() as url:
        settings = Settings(
            data_dir=tmp_path, database_url=url, disk_floor_bytes=0, event_stream_s=0.3, event_poll_s=0.05
        )
        with TestClient(create_app(settings)) as http:
            yield http


def service_of(client: TestClient) -> Service:
    found: Service = client.app.state.service  # type: ignore[attr-defined]
    return found


def events(who: Owner, path: str = "/v1/events", **headers: str) -> list[Json]:
    answer = who.ask("GET", path, headers=headers)
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


def audited(who: Owner, **params: Any) -> list[Json]:
    answer = who.ask("GET", "/v1/audit", params=params)
    assert answer.status_code == 200, answer.text
    items: list[Json] = answer.json()["items"]
    return items


def test_events_when_an_owner_acts_then_all_of_its_objects_and_none_of_anothers(client: TestClient) -> None:
    ant, bee = owner(client, "ant"), owner(client, "bee")
    ant.made.update(zip(("models", "datasets"), put_ready(service_of(client), "ant").values(), strict=True))
    search = ant.ask("POST", "/v1/searches", json=request(ant)).json()["id"]
    ant.ask("POST", f"/v1/searches/{search}/cancel")
    model = ant.ask("POST", "/v1/models", content=NETWORK).json()["id"]
    bee.ask("POST", "/v1/models", content=NETWORK)
    with service_of(client).database.writing() as session:  # as a worker does
        session.get_one(Model, model).state = "ready"
    ant.ask("PATCH", f"/v1/models/{model}", json={"name": "other"}, headers={"If-Match": "*"})
    ant.ask("DELETE", f"/v1/models/{model}", headers={"If-Match": "*"})
    found = events(ant)
    assert [item["seq"] for item in found] == list(range(1, len(found) + 1))
    told = [(item["kind"], item["id"]) for item in found if item["id"] in (search, model)]
    assert told == [
        ("search.created", search), ("search.state", search), ("model.created", model), ("model.state", model),
        ("model.changed", model), ("model.deleted", model),
    ]  # fmt: skip
    states = [item["state"] for item in found if item["kind"] in ("search.state", "model.state")]
    assert states == ["cancelled", "ready"]
    assert {item["kind"] for item in events(bee)} == {"key.created", "model.created"}


def test_events_when_replayed_behind_a_number_then_every_one_that_follows(client: TestClient) -> None:
    ant = owner(client, "ant")
    for size in range(4):
        ant.ask("POST", "/v1/models", content=NETWORK + bytes([size]))
    everything = events(ant)
    assert len(everything) == 5  # its key, and four models
    assert events(ant, **{"Last-Event-ID": "3"}) == everything[3:] == events(ant, "/v1/events?after=3")
    assert events(ant, "/v1/events?after=99") == []


def test_events_when_another_owner_is_named_then_404_but_for_administrators(client: TestClient) -> None:
    ant, bee, queen = owner(client, "ant"), owner(client, "bee"), owner(client, "queen", ("admin",))
    ant.ask("POST", "/v1/models", content=NETWORK)
    assert bee.ask("GET", "/v1/events?owner=ant").status_code == 404
    assert events(queen, "/v1/events?owner=ant") == events(ant)
    assert [item["kind"] for item in events(queen)] == ["key.created"]


def test_events_when_uploads_come_at_once_then_a_stream_misses_none(client: TestClient) -> None:
    ant = owner(client, "ant")
    threads = [
        threading.Thread(target=ant.ask, args=("POST", "/v1/models"), kwargs={"content": NETWORK + bytes([size])})
        for size in range(12)
    ]
    for thread in threads:
        thread.start()
    seen: list[Json] = []
    for _ in range(40):
        seen += events(ant, **{"Last-Event-ID": str(seen[-1]["seq"] if seen else 0)})
        if len(seen) == 13:
            break
    for thread in threads:
        thread.join()
    assert [item["seq"] for item in seen] == list(range(1, 14))


def test_events_when_a_key_has_too_many_streams_then_429(client: TestClient) -> None:
    ant, streams = owner(client, "ant"), client.app.state.streams  # type: ignore[attr-defined]
    leave = [streams.enter(ant.made["keys"]) for _ in range(8)]
    assert ant.ask("GET", "/v1/events").status_code == 429
    leave[0]()
    assert ant.ask("GET", "/v1/events").status_code == 200
    assert len(streams) == 7


def test_audit_when_a_key_acts_then_who_what_when_and_under_which_request(client: TestClient) -> None:
    ant, queen = owner(client, "ant"), owner(client, "queen", ("admin",))
    made = ant.ask("POST", "/v1/models", content=NETWORK)
    model = made.json()["id"]
    renamed = queen.ask("PATCH", f"/v1/models/{model}", json={"name": "hers"}, headers={"If-Match": "*"})
    with service_of(client).database.writing() as session:
        session.get_one(Model, model).state = "ready"  # nobody's request
    entries = audited(queen, object_id=model)
    assert [entry["action"] for entry in entries] == ["model.changed", "model.created"]
    assert [entry["key_id"] for entry in entries] == [queen.made["keys"], ant.made["keys"]]
    assert [entry["owner_id"] for entry in entries] == ["queen", "ant"]
    assert [entry["object_owner_id"] for entry in entries] == ["ant", "ant"]
    assert [entry["request_id"] for entry in entries] == [r.headers["x-request-id"] for r in (renamed, made)]
    assert entries[0]["detail"] == {"name": "hers"}
    assert entries[0]["at"] > entries[1]["at"] and entries[0]["at"].endswith("Z")
    assert audited(queen, request_id=made.headers["x-request-id"]) == [entries[1]]
    assert audited(queen, owner="ant", action="model.created") == [entries[1]]


def test_audit_when_read_by_others_than_administrators_then_403(client: TestClient) -> None:
    answer = owner(client, "ant").ask("GET", "/v1/audit")
    assert (answer.status_code, answer.json()["scope"]) == (403, "admin")


def test_audit_when_paged_then_every_entry_once_newest_first(client: TestClient) -> None:
    queen = owner(client, "queen", ("admin",))
    for size in range(5):
        queen.ask("POST", "/v1/models", content=NETWORK + bytes([size]))
    found, cursor = [], None
    while True:
        page = queen.ask("GET", "/v1/audit", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert [item["action"] for item in found] == ["model.created"] * 5
    assert sorted((item["id"] for item in found), reverse=True) == [item["id"] for item in found]


def test_audit_when_a_request_is_refused_or_replayed_then_no_entry_of_it(client: TestClient) -> None:
    queen = owner(client, "queen", ("admin",))
    told = {"Idempotency-Key": "once"}
    for _ in range(2):
        assert queen.ask("POST", "/v1/models", content=NETWORK, headers=told).status_code == 202
    queen.ask("POST", "/v1/models", content=b"x" * 40)
    queen.ask("DELETE", "/v1/models/mdl_none", headers={"If-Match": "*"})
    assert [item["action"] for item in audited(queen)] == ["model.created"]


def test_audit_when_keys_are_made_and_revoked_then_told_without_their_text(client: TestClient) -> None:
    queen = owner(client, "queen", ("admin",))
    made = queen.ask("POST", "/v1/keys", json={"name": "ci", "owner": "ant"}).json()
    queen.ask("DELETE", f"/v1/keys/{made['id']}")
    entries = audited(queen, object_id=made["id"])
    assert [entry["action"] for entry in entries] == ["key.changed", "key.created"]
    assert "revoked_at" in entries[0]["detail"] and entries[1]["object_owner_id"] == "ant"
    with service_of(client).database.reading() as session:
        for row in session.scalars(sa.select(Audit)):
            assert made["key"] not in json.dumps(row.detail)


def test_audit_when_an_agent_enrols_and_acts_then_by_its_own_id(client: TestClient) -> None:
    ant, queen = owner(client, "ant"), owner(client, "queen", ("admin",))
    code = ant.ask("POST", "/v1/agents/enrolments").json()["code"]
    agent = client.post("/v1/agents:enrol", json={"code": code, "name": "board", "host": {}}).json()
    (entry,) = audited(queen, object_id=agent["id"])
    assert (entry["action"], entry["key_id"], entry["object_owner_id"]) == ("agent.created", None, "ant")
    codes = [item for item in audited(queen) if item["action"].startswith("enrolment")]
    assert [item["action"] for item in codes] == ["enrolment.changed", "enrolment.created"]
    assert [item["key_id"] for item in codes] == [None, ant.made["keys"]]
    assert code not in json.dumps(codes) and codes[0]["detail"]["used_at"]


def test_audit_when_a_calibration_is_to_end_then_who_wished_it(client: TestClient) -> None:
    ant, queen = owner(client, "ant"), owner(client, "queen", ("admin",))
    fill(ant, PROFILE)
    key = ant.made["calibrations"]
    with service_of(client).database.writing() as session:
        session.get_one(Calibration, key).state = "running"
    assert ant.ask("POST", f"/v1/calibrations/{key}/cancel").status_code == 200
    (entry,) = audited(queen, object_id=key)
    assert (entry["action"], entry["detail"], entry["key_id"]) == (
        "calibration.changed", {"desired": "cancel"}, ant.made["keys"],
    )  # fmt: skip


def test_cascade_when_searches_go_with_their_model_then_each_is_told(client: TestClient) -> None:
    ant = owner(client, "ant")
    ant.made.update(zip(("models", "datasets"), put_ready(service_of(client), "ant").values(), strict=True))
    search = ant.ask("POST", "/v1/searches", json=request(ant)).json()["id"]
    path = f"/v1/models/{ant.made['models']}?cascade=cancel"
    assert ant.ask("DELETE", path, headers={"If-Match": "*"}).status_code == 204
    gone = {(item["kind"], item["id"]) for item in events(ant) if item["kind"].endswith("deleted")}
    assert gone == {("search.deleted", search), ("model.deleted", ant.made["models"])}
