"""The laws of HTTP on a real socket: lengths, headers, bodies that end, go on or crawl, and idle connections."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.app.api.serving import Served, received, serving


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("socket"), upload_window_s=1.0) as running:
        yield running


def status(raw: bytes) -> int:
    return int(raw.split(b" ", 2)[1])


def left_over(served: Served) -> list[str]:
    return [file.name for file in (served.service.blobs.folder / "tmp").glob("*")]


@pytest.mark.fault(9)
@pytest.mark.parametrize(
    "lengths",
    [
        ("Content-Length: -1",),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Content-Length: 0x5",),
        ("Content-Length: +5",),
        ("Transfer-Encoding: chunked, identity",),
    ],
)
def test_request_when_its_lengths_conflict_then_400_and_the_connection_ends(
    served: Served, lengths: tuple[str, ...]
) -> None:
    second = served.head("GET", "/healthz")
    raw = served.send(served.head("POST", "/v1/models", *lengths) + b"0\r\n\r\n" + second)
    assert status(raw) in (400, 501)
    assert raw.count(b"HTTP/1.1 ") == 1, "nothing behind it was taken for a request"
    assert b"connection: close" in raw.lower()


@pytest.mark.fault(14)
@pytest.mark.parametrize(
    "headers",
    [[f"X-Long: {'x' * 17_000}"], [f"X-Long: {'x' * 70_000}"], [f"X-{n}: 1" for n in range(200)]],
    ids=["17 KB", "70 KB", "200"],
)
def test_headers_when_large_or_many_then_refused_and_the_connection_ends(served: Served, headers: list[str]) -> None:
    raw = served.send(served.head("GET", "/v1/models", *headers))
    assert status(raw) in (400, 431)
    assert b"connection: close" in raw.lower()


@pytest.mark.fault(10)
def test_upload_when_its_client_dies_then_nothing_is_stored_and_the_temporary_file_goes(served: Served) -> None:
    before = list(served.service.blobs.folder.rglob("*"))
    with served.connect() as connection:
        connection.sendall(served.head("POST", "/v1/models", "Content-Length: 100000") + b"\x08\x0a" + b"x" * 5000)
        time.sleep(0.3)
        assert left_over(served), "the upload was under way"
    deadline = time.monotonic() + 60
    while left_over(served):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [file for file in served.service.blobs.folder.rglob("*") if file.is_file() and file not in before] == []


@pytest.mark.fault(11)
def test_upload_when_it_goes_on_beyond_its_length_then_the_rest_is_no_part_of_it_and_the_connection_ends(
    served: Served,
) -> None:
    data = b"\x08\x0a" + os.urandom(100)
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    head = served.head("POST", "/v1/models", "Content-Length: 60", f"Content-Digest: sha-256=:{digest}:")
    raw = served.send(head + data)
    assert status(raw) == 422 and b"digest-mismatch" in raw
    assert raw.count(b"HTTP/1.1 ") <= 2 and b"HTTP/1.1 2" not in raw
    assert not served.service.blobs.path(hashlib.sha256(data[:60]).hexdigest()).exists()
    assert left_over(served) == []


@pytest.mark.fault(12)
def test_upload_when_it_crawls_then_408_and_others_are_answered_meanwhile(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(served.head("POST", "/v1/models", "Content-Length: 1000") + b"\x08")
        begun = time.monotonic()
        assert httpx.get(f"http://127.0.0.1:{served.port}/healthz").status_code == 200
        for _ in range(3):
            time.sleep(0.2)
            connection.sendall(b"x")
        raw = received(connection)
    assert status(raw) == 408 and b"upload-too-slow" in raw
    assert 0.9 < time.monotonic() - begun < 5
    assert left_over(served) == []


def test_upload_when_it_comes_in_pieces_but_fast_enough_then_stored(served: Served) -> None:
    data = b"\x08\x0a" + b"z" * 59_998
    with served.connect() as connection:
        connection.sendall(served.head("POST", "/v1/models", f"Content-Length: {len(data)}", "Connection: close"))
        for start in range(0, len(data), 10_000):
            connection.sendall(data[start : start + 10_000])
            time.sleep(0.3)
        assert status(received(connection)) == 202


@pytest.mark.fault(13)
def test_service_when_200_connections_idle_then_a_new_client_is_answered_within_a_second(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(200):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=20))
            if number % 2:
                idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: loc")
        begun = time.monotonic()
        assert httpx.get(f"http://127.0.0.1:{served.port}/healthz").status_code == 200
        assert time.monotonic() - begun < 1


@pytest.mark.fault(19)
def test_host_when_it_is_not_ours_then_421_and_locations_are_relative(client: TestClient, service_folder: str) -> None:
    made = client.post("/v1/models", content=b"\x08\x0a" + b"h" * 40, headers={"Host": "evil.example"})
    assert made.headers["location"].startswith("/v1/models/")
    with TestClient(create_app(Settings(data_dir=service_folder, allowed_hosts="tight.example, localhost"))) as http:
        for host, expected in {"tight.example": 200, "localhost:8765": 200, "evil.example": 421, "": 421}.items():
            answer = http.get("/healthz", headers={"Host": host})
            assert answer.status_code == expected, host
        assert answer.json()["type"] == "/problems/misdirected-request"


@pytest.fixture
def service_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("hosts"))


@pytest.mark.fault(20)
@pytest.mark.parametrize("method", ["OPTIONS", "GET"])
def test_origin_when_another_then_no_header_lets_it_read(client: TestClient, method: str) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = client.request(method, "/v1/models", headers=headers)
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.fault(15)
@pytest.mark.parametrize("path", ["/v1/models/", "/v1//models", "/V1/models"])
def test_address_when_written_otherwise_then_404_and_no_redirect(client: TestClient, path: str) -> None:
    answer = client.get(path, follow_redirects=False)
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")


@pytest.mark.fault(4)
@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b'{"a": [1, NaN]}', "/a/1"),
        (b'{"a": {"b": -Infinity}}', "/a/b"),
        (b'{"c": 1e400}', "/c"),
        (b"NaN", ""),
        (b'{"\\ud800": NaN}', "/?"),
    ],
)
def test_number_when_not_finite_then_422_with_its_place(client: TestClient, body: bytes, pointer: str) -> None:
    answer = client.post("/v1/keys", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-number")
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_body_when_of_another_type_then_the_answer_names_ours(client: TestClient) -> None:
    answer = client.post("/v1/keys", content=b"<x/>", headers={"Content-Type": "text/xml"})
    assert (answer.status_code, answer.headers["accept"]) == (415, "application/json")
