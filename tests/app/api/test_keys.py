"""Keys: how long they last, when they were used, a pepper, mistyped ones, and repeated requests for one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from app.api import usage
from app.main import create_app
from app.settings import Settings
from app.store.tables import ApiKey, Idempotency, now
from tests.app.api.owning import owner, request
from tests.app.store.databases import postgres_url
from tests.app.uploaded import put_ready

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with nullcontext("") if request.param == "sqlite" else postgres_url() as found:
        yield found


@contextmanager
def serving(folder: Path, url: str, **settings: Any) -> Iterator[TestClient]:
    """A service on a data folder, spoken to with the administrator's key."""
    chosen = Settings(data_dir=folder, database_url=url, disk_floor_bytes=0, **settings)
    with TestClient(create_app(chosen)) as http:
        http.headers["Authorization"] = f"Bearer {chosen.key_file.read_text().strip()}"
        yield http


@pytest.fixture
def client(tmp_path: Path, url: str) -> Iterator[TestClient]:
    with serving(tmp_path, url) as http:
        yield http


def rows(client: TestClient) -> dict[str, ApiKey]:
    with client.app.state.service.database.reading() as session:  # type: ignore[attr-defined]
        return {row.id: row for row in session.scalars(sa.select(ApiKey))}


def settled(client: TestClient) -> None:
    """Wait for what is written beside the requests."""
    writer = client.app.state.usage._writer  # type: ignore[attr-defined]
    if writer is not None:
        writer.submit(int).result(20)


def as_key(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


@pytest.mark.fault(21)
def test_key_when_it_has_an_end_then_works_until_then(client: TestClient) -> None:
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    made = client.post("/v1/keys", json={"name": "short", "expires_at": until}).json()
    assert datetime.fromisoformat(made["expires_at"]) == datetime.fromisoformat(until)
    assert client.get("/v1/models", headers=as_key(made["key"])).status_code == 200
    with client.app.state.service.database.writing() as session:  # type: ignore[attr-defined]
        session.get_one(ApiKey, made["id"]).expires_at = now()  # an hour later
    refused = client.get("/v1/models", headers=as_key(made["key"]))
    assert (refused.status_code, refused.json()["type"]) == (401, "/problems/unauthenticated")
    assert client.get("/v1/models").status_code == 200  # without an end


@pytest.mark.parametrize("moment", ["2020-01-01T00:00:00Z", "2031-01-01T00:00:00", "soon", 7])
def test_key_when_its_end_has_passed_or_is_no_moment_then_refused(client: TestClient, moment: Any) -> None:
    answer = client.post("/v1/keys", json={"name": "k", "expires_at": moment})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/expires_at")


def test_key_when_used_then_noted_at_most_once_a_minute(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    bee = owner(client, "bee")
    assert rows(client)[bee.made["keys"]].last_used_at is None
    bee.ask("GET", "/v1/models")
    settled(client)
    first = rows(client)[bee.made["keys"]].last_used_at
    assert first is not None and (now() - first).total_seconds() < 30
    bee.ask("GET", "/v1/models")
    settled(client)
    assert rows(client)[bee.made["keys"]].last_used_at == first
    noted = client.app.state.usage._noted  # type: ignore[attr-defined]
    noted[bee.made["keys"]] -= usage.EVERY_S  # a minute later, by this process's clock: the row says it was just now
    bee.ask("GET", "/v1/models")
    settled(client)
    assert rows(client)[bee.made["keys"]].last_used_at == first
    with client.app.state.service.database.writing() as session:  # type: ignore[attr-defined]
        session.get_one(ApiKey, bee.made["keys"]).last_used_at = LONG_AGO
    noted.clear()
    bee.ask("GET", "/v1/models")
    settled(client)
    assert rows(client)[bee.made["keys"]].last_used_at > first
    assert "last_used_at" in client.get("/v1/keys").json()["items"][0]


def test_key_when_its_use_can_not_be_noted_then_works_all_the_same(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    bee = owner(client, "bee")
    with monkeypatch.context() as broken:
        refusal = sa.exc.OperationalError("update", {}, Exception("read-only"))
        broken.setattr("app.api.usage.now", lambda: (_ for _ in ()).throw(refusal))
        assert bee.ask("GET", "/v1/models").status_code == 200
        settled(client)
    assert rows(client)[bee.made["keys"]].last_used_at is None


def test_key_when_mistyped_then_refused_without_a_look_at_the_database(client: TestClient) -> None:
    service, bee = client.app.state.service, owner(client, "bee")  # type: ignore[attr-defined]
    text = bee.headers["Authorization"][7:]
    typo = text[:20] + ("a" if text[20] != "a" else "b") + text[21:]
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        asked.append(statement)

    sa.event.listen(service.database.read, "before_cursor_execute", note)
    wrong = client.get("/v1/models", headers=as_key(typo))
    assert asked == []
    other = client.get("/v1/models", headers=as_key("tf_" + "0" * 10 + "_" + "a" * 32))  # of the old form: looked for
    assert sum("api_key" in statement for statement in asked) == 1
    assert wrong.status_code == other.status_code == 401
    bodies = [{**answer.json(), "request_id": None} for answer in (wrong, other)]
    assert bodies[0] == bodies[1]


def test_pepper_when_set_then_keys_from_before_work_and_are_stored_under_it(tmp_path: Path, url: str) -> None:
    with serving(tmp_path, url) as client:
        before = client.post("/v1/keys", json={"name": "before"}).json()
        plain = rows(client)[before["id"]].sha256
    with serving(tmp_path, url, key_pepper="a secret") as client:
        assert client.get("/v1/models", headers=as_key(before["key"])).status_code == 200
        settled(client)
        stored = rows(client)[before["id"]]
        assert stored.sha256 != plain and stored.last_used_at is not None
        assert client.get("/v1/models", headers=as_key(before["key"])).status_code == 200
        later = client.post("/v1/keys", json={"name": "later"}).json()
        assert "a secret" not in repr(client.app.state.settings)  # type: ignore[attr-defined]
    with serving(tmp_path, url, key_pepper="another") as client:
        for made in (before, later):
            assert client.get("/v1/models", headers=as_key(made["key"])).status_code == 401


def test_new_key_when_asked_for_twice_under_one_idempotency_key_then_one_and_the_same_text(client: TestClient) -> None:
    told = {"Idempotency-Key": "once"}
    first, second = (client.post("/v1/keys", json={"name": "ci"}, headers=told) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json() and second.headers["idempotency-replayed"] == "true"
    assert first.headers["location"] == second.headers["location"]
    assert client.get("/v1/models", headers=as_key(first.json()["key"])).status_code == 200
    assert [row.name for row in rows(client).values()].count("ci") == 1
    assert client.post("/v1/keys", json={"name": "other"}, headers=told).json()["type"].endswith("key-reused")


def test_new_key_when_its_answer_is_kept_then_its_text_is_in_no_table(client: TestClient) -> None:
    made = client.post("/v1/keys", json={"name": "ci"}, headers={"Idempotency-Key": "hidden"}).json()
    secret = made["key"].rsplit("_", 1)[1]
    with client.app.state.service.database.reading() as session:  # type: ignore[attr-defined]
        kept = session.scalars(sa.select(Idempotency).where(Idempotency.key == "hidden")).one()
        assert kept.body is not None and kept.body["id"] == made["id"]
        assert secret not in str(kept.body) and secret.encode().hex() not in str(kept.body)
        for table in (ApiKey.__table__, Idempotency.__table__):
            assert secret not in str(session.execute(sa.select(table)).all())


def test_new_key_when_repeated_under_another_session_then_its_text_is_not_told(client: TestClient) -> None:
    from app.api import auth

    service = client.app.state.service  # type: ignore[attr-defined]
    row, text = auth.new_key(service, "dashboard")
    told = {"Idempotency-Key": "moved"}
    made = client.post("/v1/keys", json={"name": "ci"}, headers={**told, **as_key(text)}).json()
    cookie = auth.issue_session(service, auth.Key(row.id, row.owner_id, ()))
    headers = {**told, "Authorization": "", "Cookie": f"{auth.COOKIE}={cookie}"}
    again = client.post("/v1/keys", json={"name": "ci"}, headers=headers).json()
    assert again == {**made, "key": None}


def test_cancel_when_repeated_under_one_idempotency_key_then_the_first_answer(client: TestClient) -> None:
    service, ant = client.app.state.service, owner(client, "ant")  # type: ignore[attr-defined]
    ant.made.update(zip(("models", "datasets"), put_ready(service, "ant").values(), strict=True))
    body = request(ant)
    search = ant.ask("POST", "/v1/searches", json=body).json()["id"]
    members = [{"device_id": body.pop("device_id"), "limits": body.pop("limits")}]
    fleet = ant.ask("POST", "/v1/fleets", json={**body, "members": members}).json()["id"]
    paths = [f"/v1/searches/{search}/pause", f"/v1/searches/{search}/cancel", f"/v1/fleets/{fleet}/cancel"]
    for path in paths:
        told = {"Idempotency-Key": "stop"}
        first, second = (ant.ask("POST", path, headers=told) for _ in range(2))
        assert (first.status_code, second.status_code) == (202, 202), path
        assert first.json() == second.json()
        assert "idempotency-replayed" not in first.headers and second.headers["idempotency-replayed"] == "true"
    assert ant.ask("POST", paths[1]).status_code == 200
    shown = ant.ask("GET", f"/v1/fleets/{fleet}").json()
    assert shown["state"] == "cancelled" == shown["members"][0]["state"]


def test_request_when_the_service_is_ending_then_answered_and_noted(client: TestClient) -> None:
    bee = owner(client, "bee")
    bee.ask("GET", "/v1/models")
    client.app.state.usage.close()  # type: ignore[attr-defined]
    ant = owner(client, "ant")
    assert ant.ask("GET", "/v1/models").status_code == 200
    settled(client)
    assert None not in [rows(client)[who.made["keys"]].last_used_at for who in (ant, bee)]


def test_service_when_it_ends_then_the_last_use_is_written(tmp_path: Path, url: str) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(serving(tmp_path, url))
        bee = owner(client, "bee")
        bee.ask("GET", "/v1/models")
    with serving(tmp_path, url) as client:
        assert rows(client)[bee.made["keys"]].last_used_at is not None
