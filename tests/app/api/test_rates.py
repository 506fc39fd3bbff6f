"""Token buckets: what a key may send at once and per second, what answers tell of it, and how the client waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api import rates
from app.api.rates import Rates
from app.client import ApiProblem, Client
from app.main import create_app
from app.problems import Problem
from app.settings import Settings
from tests.app.api.owning import enrolled, owner


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    settings = Settings(data_dir=tmp_path, disk_floor_bytes=0, requests_per_s=0.5, request_burst=3)
    with TestClient(create_app(settings)) as http:
        yield http


def test_bucket_when_emptied_then_refused_until_it_has_filled_again() -> None:
    clock = Clock()
    found = Rates(2.0, 4, clock)
    left = [found.take("k")["RateLimit"] for _ in range(4)]
    assert left == ['"key";r=3;t=1', '"key";r=2;t=1', '"key";r=1;t=2', '"key";r=0;t=2']
    with pytest.raises(Problem, match="too-many-requests") as refused:
        found.take("k")
    assert refused.value.headers == {
        "RateLimit-Policy": '"key";q=4;w=2', "RateLimit": '"key";r=0;t=2', "Retry-After": "1",
    }  # fmt: skip
    assert found.take("other")["RateLimit"] == '"key";r=3;t=1'
    clock.at += 0.5
    assert found.take("k")["RateLimit"] == '"key";r=0;t=2'
    with pytest.raises(Problem):
        found.take("k")
    clock.at += 3600.0
    assert found.take("k")["RateLimit"] == '"key";r=3;t=1'  # never more than the burst


def test_refusals_when_a_key_keeps_asking_then_they_cost_it_nothing() -> None:
    clock = Clock()
    found = Rates(1.0, 1, clock)
    found.take("k")
    for _ in range(50):
        with pytest.raises(Problem):
            found.take("k")
    clock.at += 1.0
    found.take("k")


def test_bucket_when_the_rate_is_slow_then_retry_after_is_when_there_will_be_one() -> None:
    found = Rates(0.1, 1, Clock())
    found.take("k")
    with pytest.raises(Problem) as refused:
        found.take("k")
    assert refused.value.headers["Retry-After"] == "10"


def test_bucket_when_there_is_no_limit_then_nothing_is_told() -> None:
    assert Rates(0.0, 1).take("k") == {}


def test_buckets_when_there_are_many_then_full_ones_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MAX_KEYS", 10)
    clock = Clock()
    found = Rates(1.0, 2, clock)
    for number in range(10):
        found.take(f"k{number}")
    clock.at += 1.0
    found.take("k9")
    found.take("k9")
    assert set(found._buckets) == {"k9"}


def test_bucket_when_twenty_threads_take_then_no_more_than_there_are() -> None:
    found, given = Rates(0.001, 10), []

    def take() -> None:
        try:
            given.append(found.take("k"))
        except Problem:
            return

    threads = [threading.Thread(target=take) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(given) == 10


def test_key_when_it_asks_too_fast_then_429_with_the_headers_and_another_key_is_not_affected(
    client: TestClient,
) -> None:
    ant, bee = owner(client, "ant"), owner(client, "bee")
    answers = [ant.ask("GET", "/v1/models?limit=1") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert [answer.headers["ratelimit"][:9] for answer in answers] == ['"key";r=2', '"key";r=1', *['"key";r=0'] * 3]
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"key";q=3;w=6'}
    assert answers[3].json()["type"] == "/problems/too-many-requests"
    assert answers[3].headers["retry-after"] in ("1", "2")
    assert bee.ask("GET", "/v1/models").status_code == 200
    assert "ratelimit" not in client.get("/healthz").headers


def test_agent_when_it_asks_too_fast_then_429_from_a_bucket_of_its_own(client: TestClient) -> None:
    who = owner(client, "ant")
    agent = enrolled(who)
    headers, address = {"authorization": f"Bearer {agent['token']}"}, f"/v1/agents/{agent['id']}/heartbeat"
    answers = [client.post(address, json={"session": "0123abcd"}, headers=headers) for _ in range(8)]
    told = [answer.status_code for answer in answers]
    assert told[:3] == [200, 200, 200] and set(told) == {200, 429}
    refused = answers[told.index(429)]
    assert refused.json()["type"] == "/problems/too-many-requests" and refused.headers["retry-after"] in ("1", "2")
    assert who.ask("GET", "/v1/models").status_code == 200


def test_list_when_it_has_a_next_page_then_both_headers_are_told(client: TestClient) -> None:
    ant = owner(client, "ant")
    for size in range(2):
        ant.ask("POST", "/v1/models", content=b"\x08\x0e" + bytes([size]) * 40)
    answer = ant.ask("GET", "/v1/models?limit=1")
    assert "link" in answer.headers and "ratelimit" in answer.headers


def test_client_when_refused_for_a_moment_then_waits_as_told_and_goes_on(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    moment: Any = time.monotonic

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        client.app.state.rates._buckets.clear()  # type: ignore[attr-defined]

    monkeypatch.setattr("app.client.time.sleep", sleep)
    who = owner(client, "ant")
    found = Client("http://testserver", who.headers["Authorization"][7:], http=client)
    begun = moment()
    for _ in range(4):
        found.get("/v1/models")
    assert waits in ([1.0], [2.0]) and moment() - begun < 30
    monkeypatch.setattr("app.client.time.sleep", lambda seconds: None)
    with pytest.raises(ApiProblem) as refused:
        for _ in range(20):
            found.get("/v1/models")
    assert refused.value.slug == "too-many-requests"
