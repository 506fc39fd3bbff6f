"""Resumable uploads (tus 1.0): offsets, parts that break off, checksums, two at once, and what is abandoned."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from app import resumable
from app.actions import Service
from app.api import auth
from app.store.tables import Upload, now
from tests.app.api.serving import Served, received, serving
from tests.app.api.test_uploads import npz

TUS = {"Tus-Resumable": "1.0.0"}
NETWORK = b"\x08\x0a" + bytes(range(256)) * 40


def slug(answer: Any) -> str:
    return str(answer.json()["type"]).removeprefix("/problems/")


def metadata(**told: str) -> str:
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in told.items())


def begin(client: Any, length: int, **told: str) -> str:
    headers = {**TUS, "Upload-Length": str(length), "Upload-Metadata": metadata(**{"kind": "model", **told})}
    made = client.post("/v1/uploads", headers=headers)
    assert made.status_code == 201 and made.headers["tus-resumable"] == "1.0.0", made.text
    return str(made.headers["location"])


def send(client: Any, path: str, offset: int, data: bytes, **headers: str) -> Any:
    told = {**TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": str(offset), **headers}
    return client.patch(path, content=data, headers=told)


def offset_of(client: Any, path: str) -> int:
    return int(client.head(path, headers=TUS).headers["upload-offset"])


def test_upload_when_sent_in_parts_then_becomes_a_model_once(client: TestClient, service: Service) -> None:
    path = begin(client, len(NETWORK), name="in parts")
    first = send(client, path, 0, NETWORK[:4000])
    assert (first.status_code, first.headers["upload-offset"]) == (204, "4000")
    state = client.head(path, headers=TUS)
    assert (state.headers["upload-offset"], state.headers["upload-length"]) == ("4000", str(len(NETWORK)))
    assert state.headers["cache-control"] == "no-store" and state.headers["upload-expires"].endswith("GMT")
    last = send(client, path, 4000, NETWORK[4000:])
    assert last.status_code == 204 and "upload-expires" not in last.headers
    made = client.get(last.headers["content-location"]).json()
    assert (made["name"], made["sha256"]) == ("in parts", hashlib.sha256(NETWORK).hexdigest())
    assert service.blobs.read(made["sha256"]) == NETWORK
    again = [client.head(path, headers=TUS), send(client, path, len(NETWORK), b"")]
    assert {answer.headers["content-location"] for answer in again} == {last.headers["content-location"]}
    assert not resumable.part(service, path.rsplit("/", 1)[1]).exists()


def test_upload_when_a_dataset_then_its_spec_is_kept(client: TestClient) -> None:
    data = npz()
    path = begin(client, len(data), kind="dataset", name="d", spec=json.dumps({"layout": "NHWC"}))
    made = client.get(send(client, path, 0, data).headers["content-location"]).json()
    assert (made["name"], made["spec"]["layout"]) == ("d", "NHWC")


def test_upload_when_its_content_is_refused_then_the_reason_and_nothing_is_left(
    client: TestClient, service: Service
) -> None:
    path = begin(client, 60)
    answer = send(client, path, 0, b"x" * 60)
    assert (answer.status_code, slug(answer)) == (422, "unrecognised-format")
    assert client.head(path, headers=TUS).status_code == 404
    assert not resumable.part(service, path.rsplit("/", 1)[1]).exists()
    assert list((service.blobs.folder / "tmp").glob("*")) == []


def test_options_when_asked_then_what_is_spoken(client: TestClient) -> None:
    answer = client.options("/v1/uploads")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert answer.headers["tus-extension"] == "creation,checksum,expiration,termination"
    assert answer.headers["tus-checksum-algorithm"] == "sha1,sha256"


def test_request_when_it_breaks_the_protocol_then_refused_by_name(client: TestClient, service: Service) -> None:
    path = begin(client, 100)
    assert (client.head(path).status_code, client.head(path).headers["tus-version"]) == (412, "1.0.0")
    assert slug(client.patch(path, headers={**TUS, "Tus-Resumable": "0.2"})) == "unsupported-tus-version"
    assert slug(client.patch(path, content=b"x", headers={**TUS, "Upload-Offset": "0"})) == "unsupported-media-type"
    assert slug(send(client, path, 0, b"x", **{"Upload-Offset": "-1"})) == "malformed-request"
    wrong = send(client, path, 5, b"x")
    assert (wrong.status_code, slug(wrong), wrong.json()["offset"]) == (409, "offset-conflict", 0)
    assert slug(send(client, path, 0, b"x" * 101)) == "upload-too-large"
    assert offset_of(client, path) == 0
    for length, expected in (("x", 400), (str(service.settings.max_upload_bytes + 1), 413)):
        assert client.post("/v1/uploads", headers={**TUS, "Upload-Length": length}).status_code == expected
    for told in ("kind !", "kind " + base64.b64encode(b"poem").decode()):
        headers = {**TUS, "Upload-Length": "9", "Upload-Metadata": told}
        assert client.post("/v1/uploads", headers=headers).status_code in (400, 422)
    assert client.delete(path, headers=TUS).status_code == 204
    assert client.head(path, headers=TUS).status_code == 404


@pytest.mark.fault(52)
@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_part_when_its_checksum_disagrees_then_460_and_its_bytes_do_not_count(
    client: TestClient, algorithm: str
) -> None:
    path = begin(client, 200)
    data = os.urandom(80)
    good = base64.b64encode(hashlib.new(algorithm, data).digest()).decode()
    wrong = send(client, path, 0, data[::-1], **{"Upload-Checksum": f"{algorithm} {good}"})
    assert (wrong.status_code, slug(wrong), offset_of(client, path)) == (460, "checksum-mismatch", 0)
    assert send(client, path, 0, data, **{"Upload-Checksum": f"{algorithm} {good}"}).headers["upload-offset"] == "80"
    assert slug(send(client, path, 80, data, **{"Upload-Checksum": f"crc {good}"})) == "malformed-request"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("tus")) as running:
        yield running


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {served.key}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}", headers=headers) as client:
        yield client


@pytest.mark.fault(10)
def test_part_when_its_client_dies_then_what_came_counts_and_the_rest_is_sent_later(
    served: Served, http: httpx.Client
) -> None:
    path = begin(http, len(NETWORK))
    head = served.head("PATCH", path, "Tus-Resumable: 1.0.0", "Upload-Offset: 0", f"Content-Length: {len(NETWORK)}",
                       "Content-Type: application/offset+octet-stream")  # fmt: skip
    with served.connect() as connection:
        connection.sendall(head + NETWORK[:3000])
        time.sleep(0.3)
    deadline = time.monotonic() + 20
    while offset_of(http, path) != 3000:
        assert time.monotonic() < deadline, offset_of(http, path)
        time.sleep(0.05)
    assert send(http, path, 3000, NETWORK[3000:]).headers["content-location"].startswith("/v1/models/mdl_")


@pytest.mark.fault(56)
def test_parts_when_two_come_at_one_offset_then_one_204_and_one_409(served: Served, http: httpx.Client) -> None:
    path = begin(http, len(NETWORK))
    head = served.head("PATCH", path, "Tus-Resumable: 1.0.0", "Upload-Offset: 0", "Content-Length: 3000",
                       "Content-Type: application/offset+octet-stream", "Connection: close")  # fmt: skip
    found: list[bytes] = []

    def slowly() -> None:
        with served.connect() as connection:
            connection.sendall(head + NETWORK[:1000])
            time.sleep(1.0)
            connection.sendall(NETWORK[1000:3000])
            found.append(received(connection))

    thread = threading.Thread(target=slowly)
    thread.start()
    time.sleep(0.4)
    second = send(http, path, 0, b"z" * 3000)
    thread.join(20)
    assert (second.status_code, slug(second)) == (409, "offset-conflict")
    assert found[0].startswith(b"HTTP/1.1 204") and offset_of(http, path) == 3000
    made = http.get(send(http, path, 3000, NETWORK[3000:]).headers["content-location"]).json()
    assert made["sha256"] == hashlib.sha256(NETWORK).hexdigest()


@pytest.mark.fault(57)
def test_upload_when_abandoned_then_410_and_its_bytes_are_freed(client: TestClient, service: Service) -> None:
    path = begin(client, 500)
    key = path.rsplit("/", 1)[1]
    send(client, path, 0, b"x" * 300)
    assert resumable.part(service, key).stat().st_size == 300
    with service.database.writing() as session:
        session.get_one(Upload, key).expires_at = now() - timedelta(seconds=1)
    for _ in range(2):
        answer = send(client, path, 300, b"x")
        assert (answer.status_code, slug(answer)) == (410, "upload-expired")
        begin(client, 10)  # sweeps
        assert not resumable.part(service, key).exists()


def test_upload_when_another_owners_key_asks_then_404(client: TestClient, service: Service) -> None:
    path = begin(client, 10)
    for owner, status in (("elsewhere", 404), ("default", 200)):
        _, text = auth.new_key(service, "other", ("models:write",), owner)
        assert client.head(path, headers={**TUS, "Authorization": f"Bearer {text}"}).status_code == status
    assert client.head(path, headers=TUS).status_code == 200


def test_upload_when_the_process_was_killed_within_a_part_then_only_what_counted_stays(
    client: TestClient, service: Service
) -> None:
    path = begin(client, len(NETWORK))
    send(client, path, 0, NETWORK[:1000])
    file: Path = resumable.part(service, path.rsplit("/", 1)[1])
    with file.open("ab") as torn:  # written, but not counted
        torn.write(b"torn")
    made = client.get(send(client, path, 1000, NETWORK[1000:]).headers["content-location"]).json()
    assert made["sha256"] == hashlib.sha256(NETWORK).hexdigest()
