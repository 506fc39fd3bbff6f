"""Idempotency-Key: what a request did and its answer are kept together, once, on both databases."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app import actions
from app.main import create_app
from app.settings import Settings
from app.store import query
from app.store.tables import Device
from tests.app.store.databases import postgres_url

Json = dict[str, Any]
PROFILE = json.loads((Path(__file__).resolve().parents[3] / "examples" / "device.json").read_text())


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def http(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TestClient]:
    with ExitStack() as stack:
        url = stack.enter_context(postgres_url()) if request.param == "postgresql" else ""
        settings = Settings(data_dir=tmp_path, database_url=url, disk_floor_bytes=0)
        client = stack.enter_context(TestClient(create_app(settings), raise_server_exceptions=False))
        client.headers["Authorization"] = f"Bearer {settings.key_file.read_text().strip()}"
        yield client


def push(http: TestClient, key: str, **change: Any) -> Any:
    return http.post("/v1/devices", json={**PROFILE, **change}, headers={"Idempotency-Key": key})


def revisions(http: TestClient, name: str) -> list[int]:
    with http.app.state.service.database.reading() as session:  # type: ignore[attr-defined]
        return sorted(row.revision for row in query.page(session, Device, 200, name=name))


@pytest.mark.fault(29)
def test_request_when_sent_twenty_times_at_once_then_one_resource_and_twenty_equal_answers(http: TestClient) -> None:
    answers: list[Any] = []
    barrier = threading.Barrier(20)

    def send() -> None:
        barrier.wait()
        answers.append(push(http, "race"))

    threads = [threading.Thread(target=send) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answer.status_code for answer in answers] == [201] * 20
    assert len({answer.text for answer in answers}) == len({answer.headers["location"] for answer in answers}) == 1
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 19
    assert revisions(http, PROFILE["name"]) == [1]


def test_request_when_the_service_dies_before_the_answer_then_a_repeat_makes_it_once(
    http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = actions.push_device

    def make_and_die(*given: Any) -> None:
        made(*given)
        raise RuntimeError("killed between the effect and the answer")

    monkeypatch.setattr(actions, "push_device", make_and_die)
    assert push(http, "again").status_code == 500
    assert revisions(http, PROFILE["name"]) == []
    monkeypatch.undo()
    assert push(http, "again").status_code == 201
    assert revisions(http, PROFILE["name"]) == [1]


def test_refusal_when_repeated_then_the_same_and_nothing_is_stored(http: TestClient) -> None:
    first, second = (push(http, "no", name="generic-npu") for _ in range(2))
    assert first.status_code == second.status_code == 422
    assert first.json()["type"] == second.json()["type"] == "/problems/invalid-device-profile"
    assert second.headers["idempotency-replayed"] == "true"
    assert second.headers["content-type"] == "application/problem+json"
    told = [answer.json().pop("request_id") for answer in (first, second)]
    assert told == [answer.headers["x-request-id"] for answer in (first, second)] and told[0] != told[1]
    assert revisions(http, "generic-npu") == [1]


def test_key_when_reused_with_another_body_then_refused_and_free_for_other_routes(http: TestClient) -> None:
    assert push(http, "k").status_code == 201
    assert push(http, "k", unit="mcu").json()["type"] == "/problems/idempotency-key-reused"
    assert push(http, "other", unit="mcu").status_code == 201
    assert revisions(http, PROFILE["name"]) == [1, 2]
