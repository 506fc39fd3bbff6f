"""What one client can't take from others: failed keys, other sites, quotas, disks, event streams, places under way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from croniter import croniter  # type: ignore[import-untyped]
from fastapi.testclient import TestClient

from app.api import auth
from app.api.auth import Attempts
from app.domain import ids
from app.domain.wallclock import is_same_hour_again
from app.main import create_app
from app.settings import Settings
from app.store import events, idempotency
from app.store.tables import ApiKey, Search
from tests.app.api.serving import serving
from tests.app.store.databases import postgres_url

Json = dict[str, Any]
PROFILE = json.loads((Path(__file__).resolve().parents[3] / "examples" / "device.json").read_text())
NETWORK = b"\x08\x0a" + b"n" * 98


def slug(answer: Any) -> str:
    return str(answer.json()["type"]).removeprefix("/problems/")


@contextmanager
def client_of(folder: Path, **settings: Any) -> Iterator[TestClient]:
    """A client of a service with settings of its own."""
    chosen = Settings(data_dir=folder, **{"disk_floor_bytes": 0, **settings})
    with TestClient(create_app(chosen)) as http:
        http.headers["Authorization"] = f"Bearer {chosen.key_file.read_text().strip()}"
        yield http


@pytest.mark.fault(24)
def test_keys_when_ten_are_wrong_then_429_for_that_address_until_a_minute_has_passed(tmp_path: Path) -> None:
    with client_of(tmp_path) as http:
        for number in range(10):
            assert http.get("/v1/models", headers={"Authorization": f"Bearer tf_{number}"}).status_code == 401
        for headers in ({}, {"Authorization": "Bearer tf_again"}):
            answer = http.get("/v1/models", headers=headers)
            assert (answer.status_code, slug(answer), answer.headers["retry-after"]) == (429, "too-many-attempts", "60")
        assert http.get("/healthz", headers={"Authorization": ""}).status_code == 429
        del http.headers["Authorization"]
        assert http.get("/healthz").status_code == 200
        form = http.post("/login", content=b"token=tf_x", headers={"Content-Type": "application/x-www-form-urlencoded"})
        assert form.status_code == 429


def test_attempts_when_many_addresses_failed_long_ago_then_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    attempts = Attempts(2)
    for number in range(auth.MAX_ADDRESSES + 1):
        attempts.failed(f"10.0.0.{number}")
    clock[0] = 61.0
    attempts.failed("10.1.0.1")
    attempts.failed("10.1.0.1")
    assert attempts.is_blocked("10.1.0.1") and len(attempts._failed) == 1


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 201),
        ({"Origin": "http://testserver"}, 201),
        ({}, 201),
    ],
)
def test_form_when_of_another_site_then_403_and_nothing_happens(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    with service.database.reading() as session:
        row = session.query(ApiKey).first()
    cookie = f"{auth.COOKIE}={auth.issue_session(service, auth.Key(row.id, row.owner_id, ()))}"
    name = ids.new_id("key")
    answer = client.post("/v1/keys", json={"name": name}, headers={**headers, "Authorization": "", "Cookie": cookie})
    assert answer.status_code == status
    if status == 403:
        assert slug(answer) == "cross-site-request"
    assert (name in client.get("/v1/keys?limit=200").text) is (status == 201)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def waiting(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TestClient]:
    with ExitStack() as stack:
        url = stack.enter_context(postgres_url()) if request.param == "postgresql" else ""
        yield stack.enter_context(client_of(tmp_path, database_url=url, idempotency_wait_s=0.3))


@pytest.mark.fault(28)
def test_request_when_its_first_is_under_way_then_409_and_once_it_has_ended_its_answer(waiting: TestClient) -> None:
    service, answers = waiting.app.state.service, []  # type: ignore[attr-defined]
    headers = {"Idempotency-Key": "slow"}
    key_id = waiting.get("/v1/keys").json()["items"][0]["id"]
    on_sqlite = service.settings.is_sqlite

    def first() -> None:
        answers.append(waiting.post("/v1/devices", json=PROFILE, headers=headers))

    with service.database.writing() as session:  # what the first one needs is held up
        session.execute(sa.text("SELECT 1"))
        if not on_sqlite:  # by another process's request under the same key
            idempotency.reserve(session, (key_id, "POST /v1/devices", "slow"), "another", 60.0)
            session.flush()
        thread = threading.Thread(target=first)
        thread.start()
        time.sleep(0.15)
        second = waiting.post("/v1/devices", json=PROFILE, headers=headers)
        assert (second.status_code, slug(second), second.headers["retry-after"]) == (409, "request-in-progress", "1")
        session.rollback()
    thread.join(30)
    last = waiting.post("/v1/devices", json=PROFILE, headers=headers)
    assert last.status_code == 201
    if on_sqlite:
        assert answers[0].status_code == 201
        assert (last.json(), last.headers["idempotency-replayed"]) == (answers[0].json(), "true")


@pytest.mark.fault(28)
def test_request_when_the_service_was_started_again_then_its_answer_is_replayed(tmp_path: Path) -> None:
    headers = {"Idempotency-Key": "k"}
    with client_of(tmp_path) as http:
        first = http.post("/v1/devices", json=PROFILE, headers=headers)
    with client_of(tmp_path) as http:
        again = http.post("/v1/devices", json=PROFILE, headers=headers)
        other = http.post("/v1/devices", json={**PROFILE, "unit": "mcu"}, headers=headers)
    assert (again.status_code, again.json(), again.headers["location"]) == (
        201,
        first.json(),
        first.headers["location"],
    )
    assert again.headers["idempotency-replayed"] == "true"
    assert (other.status_code, slug(other)) == (422, "idempotency-key-reused")


@pytest.mark.fault(30)
def test_quota_when_bytes_or_live_searches_are_spent_then_409_with_used_and_limit(
    client: TestClient, request_body: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    made = client.post("/v1/searches", json=request_body).headers["location"]
    with service.database.reading() as session:
        live = session.query(Search).where(Search.state == "queued").count()
    object.__setattr__(service.settings, "max_live_searches", live)
    refused = client.post("/v1/searches", json=request_body)
    assert (refused.status_code, slug(refused)) == (409, "quota-exceeded")
    assert (refused.json()["quota"], refused.json()["used"], refused.json()["limit"]) == ("live_searches", live, live)
    client.post(f"{made}/cancel")
    assert client.post("/v1/searches", json=request_body).status_code == 202
    object.__setattr__(service.settings, "max_live_searches", 1000)
    object.__setattr__(service.settings, "max_stored_bytes", 150)
    client.post("/v1/models", content=NETWORK)
    refused = client.post("/v1/models", content=NETWORK + b"x")
    object.__setattr__(service.settings, "max_stored_bytes", 0)
    assert (refused.status_code, refused.json()["quota"], refused.json()["limit"]) == (409, "stored_bytes", 150)
    assert refused.json()["used"] >= 100


@pytest.mark.fault(55)
def test_upload_when_the_disk_is_below_its_floor_then_507_while_reads_and_cancels_work(
    client: TestClient, request_body: Json
) -> None:
    settings = client.app.state.service.settings  # type: ignore[attr-defined]
    search = client.post("/v1/searches", json=request_body).headers["location"]
    object.__setattr__(settings, "disk_floor_bytes", 1 << 62)
    try:
        answer = client.post("/v1/models", content=NETWORK)
        assert (answer.status_code, slug(answer)) == (507, "insufficient-storage")
        assert client.get("/readyz").status_code == 503
        assert client.get(search).status_code == 200
        assert client.post(f"{search}/cancel").json()["state"] == "cancelled"
    finally:
        object.__setattr__(settings, "disk_floor_bytes", 0)


@pytest.mark.fault(53)
def test_bytes_when_uploaded_again_then_one_file_and_the_answer_says_so(client: TestClient) -> None:
    data = NETWORK + b"again"
    first, second = (client.post("/v1/models", content=data).json() for _ in range(2))
    assert (first["deduplicated"], second["deduplicated"]) == (False, True)
    assert first["sha256"] == second["sha256"] and first["id"] != second["id"]
    assert client.post("/v1/datasets", content=b"PK").json()["status"] == 422


@pytest.mark.fault(65)
def test_search_when_the_network_has_more_layers_than_allowed_then_422(client: TestClient, request_body: Json) -> None:
    settings = client.app.state.service.settings  # type: ignore[attr-defined]
    object.__setattr__(settings, "max_layers", 3)
    try:
        answer = client.post("/v1/searches", json=request_body)
    finally:
        object.__setattr__(settings, "max_layers", 2000)
    assert (answer.status_code, slug(answer)) == (422, "search-space-too-large")


@pytest.mark.fault(72)
@pytest.mark.parametrize("cron", ["* * * * * *", "*/30 * * * * *", "61 * * * *", "0 0 30 2 8", "@every 1s", "x " * 5])
def test_schedule_when_its_cron_is_none_or_fires_within_a_minute_then_422(
    client: TestClient, request_body: Json, cron: str
) -> None:
    body = {"name": "s", "cron": cron, "timezone": "UTC", "search": request_body}
    answer = client.post("/v1/schedules", json=body)
    assert answer.status_code == 422


@pytest.mark.fault(72)
@pytest.mark.parametrize(("day", "night"), [(datetime(2026, 3, 29), "gap"), (datetime(2026, 10, 25), "overlap")])
def test_schedule_when_its_hour_is_skipped_or_comes_twice_then_fires_once_that_day(day: datetime, night: str) -> None:
    zone = ZoneInfo("Europe/Berlin")
    fires = croniter("30 2 * * *", day.replace(tzinfo=zone), second_at_beginning=True)  # as the durable engine asks it
    times = [fires.get_next(datetime) for _ in range(3)]
    kept = [times[0]]
    for moment in times[1:]:
        if not is_same_hour_again(kept[-1], moment, "Europe/Berlin"):
            kept.append(moment)
    assert [moment.astimezone(zone).date().day for moment in kept[:2]] == [day.day, day.day + 1], night
    assert not is_same_hour_again(kept[0], kept[0] + timedelta(days=1), "Europe/Berlin")
    assert not is_same_hour_again(kept[0], kept[0] + timedelta(minutes=30), "Europe/Berlin")


def test_streams_when_a_key_has_too_many_then_429_and_a_closed_one_makes_room(tmp_path: Path) -> None:
    with serving(tmp_path, streams_per_key=2, event_poll_s=0.05) as served:
        search = stored_search(served.service, 0)
        head = served.head("GET", f"/v1/searches/{search}/events")
        with ExitStack() as stack:
            for _ in range(2):
                connection = stack.enter_context(served.connect())
                connection.sendall(head)
                assert b"200 OK" in connection.recv(4096)
            third = served.send(head)
            assert b" 429 " in third and b"too-many-streams" in third and b"retry-after: 5" in third.lower()
        wait_for_streams(served, 0)
        with served.connect() as connection:
            connection.sendall(head)
            assert b"200 OK" in connection.recv(4096)


def test_stream_when_the_service_is_told_to_stop_then_it_ends_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, event_poll_s=0.05) as served:
        search = stored_search(served.service, 0)
        with served.connect() as connection:
            connection.sendall(served.head("GET", f"/v1/searches/{search}/events"))
            assert b"200 OK" in connection.recv(4096)
            begun = time.monotonic()
            served.server.handle_exit(15, None)
            served.thread.join(20)
            assert not served.thread.is_alive() and time.monotonic() - begun < 3


@pytest.mark.fault(87)
def test_stream_when_its_client_reads_nothing_then_left_after_a_while(tmp_path: Path) -> None:
    with serving(tmp_path, event_write_s=1.0, event_poll_s=0.05) as served:
        search = stored_search(served.service, 9_000)
        with served.connect() as connection:
            connection.sendall(served.head("GET", f"/v1/searches/{search}/events"))
            wait_for_streams(served, 1)
            begun = time.monotonic()
            wait_for_streams(served, 0)
            assert time.monotonic() - begun > 0.5


def stored_search(service: Any, told: int) -> str:
    """Store a running search with a number of events of about a kilobyte."""
    key, sha = ids.new_id("search"), service.blobs.put(b"x" * 10)
    from app.store.blobs import record
    from app.store.tables import Event, Model

    with service.database.writing() as session:
        record(session, sha, 10)
        model = Model(id=ids.new_id("model"), name="n", format="onnx", blob_sha=sha, bytes=10, state="ready")
        session.add(model)
        session.flush()
        session.add(Search(id=key, name="n", model_id=model.id, dataset={}, device_id="d", device={}, spec={},
                           limits={}, state="running"))  # fmt: skip
        session.flush()
        events.append(session, key, "state", {"state": "running"})
        rows = [{"search_id": key, "seq": n + 2, "kind": "progress", "payload": {"x": "y" * 1000}} for n in range(told)]
        for row in rows:
            session.add(Event(**row))
    return key


def wait_for_streams(served: Any, count: int) -> None:
    streams = served.server.config.app.state.streams
    deadline = time.monotonic() + 20
    while len(streams) != count:
        assert time.monotonic() < deadline, len(streams)
        time.sleep(0.02)
