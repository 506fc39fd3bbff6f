"""What clients may send that no honest one does: every answer is a named problem, and nothing of others is harmed."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app import actions
from app.actions import Service
from app.api import auth
from app.api.deps import parse_json
from app.domain import ids
from app.domain.lifecycle import Outcome
from app.main import start
from app.problems import Problem
from app.settings import Settings
from app.store import blobs, runner
from app.store.tables import ApiKey, Candidate, Dataset, Model, Search, now
from tests.app.store.databases import postgres_url
from tests.worker.search.pictures import resnet as resnet8

Json = dict[str, Any]
TYPED = {"Content-Type": "application/json"}


def slug(answer: Any) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.status_code == answer.json()["status"] < 500
    return str(answer.json()["type"]).removeprefix("/problems/")


def test_cookie_when_it_is_not_ascii_then_401(client: TestClient) -> None:
    headers = {"Authorization": "", "Cookie": "tightfit_session=key_a.99999999999.\u00e9".encode("latin-1")}
    assert slug(client.get("/v1/models", headers=headers)) == "unauthenticated"  # type: ignore[arg-type]


def test_cursor_when_it_is_not_ascii_then_refused(client: TestClient) -> None:
    assert slug(client.get("/v1/models", params={"cursor": "mdl_1.\u00e9"})) == "invalid-cursor"


@pytest.mark.fault(16)
@pytest.mark.parametrize("key", ["a%00b", "%2e%2e%2fetc", "x" * 4000, "%ED%A0%80", "\u0430pi", "a%0Ab"])
@pytest.mark.parametrize("noun", ["models", "datasets", "devices", "searches", "candidates", "artefacts", "schedules"])
def test_id_when_it_can_be_none_then_404(client: TestClient, noun: str, key: str) -> None:
    assert slug(client.get(f"/v1/{noun}/{key}")) == "not-found"


@pytest.mark.fault(16)
@pytest.mark.parametrize("key", ["a%00b", "x" * 4000, "%ED%A0%80", "a%0Ab"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/v1/models/{}"),
        ("DELETE", "/v1/datasets/{}"),
        ("DELETE", "/v1/keys/{}"),
        ("DELETE", "/v1/schedules/{}"),
        ("POST", "/v1/searches/{}/cancel"),
        ("POST", "/v1/candidates/{}/export"),
        ("GET", "/v1/searches/{}/events"),
        ("GET", "/v1/artefacts/{}/content"),
        ("GET", "/searches/{}"),
        ("GET", "/web/searches/{}/status"),
    ],
)
def test_verb_when_its_id_can_be_none_then_404(client: TestClient, method: str, path: str, key: str) -> None:
    assert slug(client.request(method, path.format(key))) == "not-found"


@pytest.mark.parametrize("key", ["a\0b", "\ud800", "x" * 65, ""])
@pytest.mark.parametrize("field", ["model_id", "device_id", "dataset"])
def test_search_when_an_id_in_it_can_be_none_then_refused_with_a_pointer(
    client: TestClient, request_body: Json, field: str, key: str
) -> None:
    value = {"all": key} if field == "dataset" else key
    answer = client.post("/v1/searches", content=json.dumps({**request_body, field: value}), headers=TYPED)
    assert slug(answer) == "invalid-request"
    assert answer.json()["errors"][0]["pointer"].startswith(f"/{field}")


@pytest.mark.parametrize("query", ["state=a%00b", "model_id=%ED%A0%80", f"state={'x' * 65}"])
def test_filter_when_it_can_match_nothing_then_refused(client: TestClient, query: str) -> None:
    assert slug(client.get(f"/v1/searches?{query}")) == "invalid-request"


@pytest.mark.fault(63)
@pytest.mark.parametrize(
    ("space", "pointer"),
    [
        ({"freeze": ["nowhere"]}, "/space/freeze"),
        ({"fixed_bits": {"nowhere*": [8, 8]}}, "/space/fixed_bits"),
        ({"fixed_bits": {"*": [3, 8]}}, "/space/fixed_bits"),
        ({"activation_bits": [5]}, "/space/activation_bits"),
        ({"fixed_bits": {"\ud800": [8, 8]}}, "/space/fixed_bits/\ufffd\ufffd\ufffd/[key]"),
    ],
)
def test_space_when_the_network_or_device_has_no_such_thing_then_refused(
    client: TestClient, request_body: Json, space: Json, pointer: str
) -> None:
    body = json.dumps({**request_body, "space": space})
    answer = client.post("/v1/searches", content=body, headers=TYPED)
    assert slug(answer) == "invalid-search-space"
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_space_when_patterns_fit_then_queued(client: TestClient, request_body: Json) -> None:
    layer = resnet8().layers[3].name
    space = {"freeze": [f"{layer[:2]}*"], "fixed_bits": {layer: [8, 8]}}
    assert client.post("/v1/searches", json={**request_body, "space": space}).status_code == 202


@pytest.mark.parametrize("seen", ["\u00b2", "9" * 30, "9" * 5000, "-1", "1; DROP TABLE event"])
def test_last_event_id_when_it_is_no_number_of_ours_then_replayed_from_the_first(
    client: TestClient, request_body: Json, seen: str
) -> None:
    key = client.post("/v1/searches", json=request_body).json()["id"]
    client.post(f"/v1/searches/{key}/cancel")
    headers = {"Last-Event-ID": seen.encode("latin-1")}
    answer = client.get(f"/v1/searches/{key}/events", headers=headers)  # type: ignore[arg-type]
    assert [line for line in answer.text.splitlines() if line.startswith("id: ")] == ["id: 1", "id: 2"]
    assert slug(client.get(f"/v1/searches/{key}/events?after={'9' * 30}")) == "invalid-request"


def test_json_when_one_key_comes_a_hundred_thousand_times_then_refused_at_once() -> None:
    raw = b"{" + b",".join([b'"a":1'] * 100_000) + b"}"
    begin = time.process_time()
    with pytest.raises(Problem, match="duplicate-json-key"):
        parse_json(raw)
    assert time.process_time() - begin < 1.0


def test_shared_file_when_uploaded_again_with_a_wrong_digest_then_kept(client: TestClient, service: Service) -> None:
    data = b"\x08\x0a" + os.urandom(64)
    sha = client.post("/v1/models", content=data).json()["sha256"]
    wrong = {"Content-Digest": f"sha-256=:{base64.b64encode(bytes(32)).decode()}:"}
    assert slug(client.post("/v1/models", content=data, headers=wrong)) == "digest-mismatch"
    assert service.blobs.read(sha) == data


@pytest.mark.fault(31)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/datasets"])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xf3" + bytes(range(99)), "unrecognised-format"),
        (b"<html>" + b" " * 99, "unrecognised-format"),
        (b"x" * 257 + b"ustar\0" + b"0" * 300, "unsafe-format"),
    ],
)
def test_upload_when_its_first_bytes_are_no_format_then_refused_at_once(
    client: TestClient, path: str, data: bytes, expected: str
) -> None:
    assert slug(client.post(path, content=data)) == expected


def test_upload_when_a_safetensors_header_lies_then_no_network_and_left_to_the_child_as_a_dataset(
    client: TestClient,
) -> None:
    data = (1 << 62).to_bytes(8, "little") + b"{" + b" " * 99
    assert slug(client.post("/v1/models", content=data)) == "unrecognised-format"
    assert client.post("/v1/datasets", content=data).status_code == 202


def test_dataset_when_a_search_of_long_ago_used_it_then_kept(
    client: TestClient, service: Service, request_body: Json
) -> None:
    info = {"rows": 9, "shape": list(resnet8().input_shape), "has_labels": False, "classes": None}
    with service.database.writing() as session:
        sha = session.get_one(Model, request_body["model_id"]).blob_sha
        data = Dataset(id=ids.new_id("dataset"), name="old", blob_sha=sha, bytes=9, state="ready", spec={}, info=info)
        session.add(data)
    made = client.post("/v1/searches", json={**request_body, "dataset": {"all": data.id}}).json()["id"]
    with service.database.writing() as session:
        for _ in range(201):
            session.add(Search(id=ids.new_id("search"), name="n", model_id=request_body["model_id"], dataset={},
                               device_id="d", device={}, spec={}, limits={}, state="completed"))  # fmt: skip
    answer = client.delete(f"/v1/datasets/{data.id}", headers={"If-Match": "*"})
    assert slug(answer) == "in-use" and made in answer.json()["detail"]


def test_schedule_when_killed_between_the_search_and_its_note_then_not_fired_twice(
    client: TestClient, service: Service, request_body: Json
) -> None:
    body = {"name": "s", "cron": "0 2 * * *", "timezone": "UTC", "search": request_body}
    key = client.post("/v1/schedules", json=body).json()["id"]
    actions.create_search(service, client.get(f"/v1/schedules/{key}").json()["search"], key)
    assert actions.fire_schedule(service, key) is None


@pytest.mark.fault(21)
def test_session_when_its_key_expired_then_ended(client: TestClient, service: Service) -> None:
    row, text = auth.new_key(service, "short")
    cookie = {
        "Authorization": "",
        "Cookie": f"{auth.COOKIE}={auth.issue_session(service, auth.Key(row.id, row.owner_id, ()))}",
    }
    assert client.get("/v1/models", headers=cookie).status_code == 200
    with service.database.writing() as session:
        session.get_one(ApiKey, row.id).expires_at = now()
    assert slug(client.get("/v1/models", headers=cookie)) == "unauthenticated"
    assert slug(client.get("/v1/models", headers={"Authorization": f"Bearer {text}"})) == "unauthenticated"


def test_secret_when_many_threads_want_the_first_then_one_whole_secret(tmp_path: Path, service: Service) -> None:
    fresh = actions.Service(Settings(data_dir=tmp_path / "new"), service.database, service.blobs, service.client)
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(auth.secret(fresh))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12 and len(set(found)) == 1 and len(found[0]) == 64
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["secret"]
    assert (tmp_path / "new" / "secret").stat().st_mode & 0o777 == 0o600


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on PostgreSQL, where two transactions really run at once."""
    with postgres_url() as url:
        settings = Settings(data_dir=tmp_path_factory.mktemp("pg"), database_url=url, disk_floor_bytes=0)
        found = start(settings)
        yield found
        found.client.destroy()
        found.database.dispose()


def running_search(service: Service) -> str:
    """Store a search that a worker has taken up."""
    key, sha = ids.new_id("search"), "a" * 64
    with service.database.writing() as session:
        blobs.record(session, sha, 1)
        model = Model(id=ids.new_id("model"), name="n", format="onnx", blob_sha=sha, bytes=1, state="ready")
        session.add(model)
        session.flush()
        session.add(
            Search(id=key, name="n", model_id=model.id, dataset={}, device_id="d", device={}, spec={}, limits={})
        )
    with service.database.writing() as session:
        runner.begin(session, key)
    return key


@pytest.mark.postgres
def test_cancel_when_the_worker_completes_at_the_same_instant_then_the_end_stays(postgres: Service) -> None:
    key, answers = running_search(postgres), []

    def cancel() -> None:
        try:
            answers.append(actions.cancel_search(postgres, key)[0].state)
        except Problem as problem:
            answers.append(problem.slug)

    thread = threading.Thread(target=cancel)
    with postgres.database.writing() as session:
        runner.complete(session, key, Outcome.feasible)
        session.flush()
        thread.start()
        time.sleep(0.3)
    thread.join(20)
    with postgres.database.reading() as session:
        assert (session.get_one(Search, key).state, answers) == ("completed", ["already-finished"])


@pytest.mark.postgres
def test_export_when_eight_clients_ask_at_once_then_one_job(postgres: Service) -> None:
    key = running_search(postgres)
    fields = {"trial_idx": 0, "rank": 0, "assignment": {}, "costs": {}, "metrics": {}, "layers": [], "budget": [],
              "feasible": True}  # fmt: skip
    with postgres.database.writing() as session:
        candidate = runner.put_candidate(session, key, fields)
    threads = [threading.Thread(target=actions.export_candidate, args=(postgres, candidate)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    jobs = postgres.client.list_workflows(queue_name="control", load_input=False)
    assert len([job for job in jobs if job.workflow_id.startswith(candidate)]) == 1
    with postgres.database.reading() as session:
        assert session.get_one(Candidate, candidate).export_state == "queued"
