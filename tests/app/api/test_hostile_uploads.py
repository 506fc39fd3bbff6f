"""Hostile uploads over HTTP: what leading bytes and a zip's directory give away is refused at once, under its name."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.actions import Service
from app.store.tables import Dataset, Model
from tests.hostile import Case, cases, marker

AT_ONCE = {"noise", "pickle", "checkpoint", "foreign format", "polyglot"}
MAX_S = 0.2
HASHED_PER_S = 40 << 20
PATHS = {"network": "/v1/models", "dataset": "/v1/datasets", "weights": "/v1/models/{}/weights"}


def posted(client: TestClient, path: str, data: bytes) -> tuple[Any, float]:
    """Return the answer and the CPU seconds that this process spent on it."""
    start = time.process_time()
    answer = client.post(path, content=data)
    return answer, time.process_time() - start


@pytest.mark.fault(31, 32, 33, 45, 50)
@pytest.mark.parametrize("case", cases(), ids=str)
def test_upload_when_hostile_then_refused_at_once_or_left_to_the_sandbox(
    client: TestClient, service: Service, ready: dict[str, str], case: Case
) -> None:
    data, path = case.make(), PATHS[case.kind].format(ready["model"])
    limit = MAX_S + len(data) / HASHED_PER_S
    answer, seconds = posted(client, path, data)
    if answer.status_code != 202 and seconds >= limit:
        answer, seconds = posted(client, path, data)  # a collection of the whole process's garbage fell into the first
    stored = service.blobs.path(hashlib.sha256(data).hexdigest()).exists()
    assert not marker().exists()
    if answer.status_code == 202:
        assert case.attack not in AT_ONCE or case.name.startswith("safetensors")
        assert stored
        return
    assert (answer.status_code, answer.json()["type"]) == (422, f"/problems/{case.slug}")
    assert seconds < limit
    assert not stored
    assert list((service.blobs.folder / "tmp").glob("*")) == []


@pytest.mark.fault(41)
@pytest.mark.parametrize(
    ("warnings", "status"),
    [(None, 202), ([], 202), (["non-finite-weights"], 202), (["non-finite-weights", "non-finite-outputs"], 409)],
)
def test_search_when_outputs_are_not_finite_then_refused_by_name(
    client: TestClient, service: Service, request_body: dict[str, Any], warnings: list[str] | None, status: int
) -> None:
    with service.database.writing() as session:
        session.get_one(Model, request_body["model_id"]).warnings = warnings
    shown = client.get(f"/v1/models/{request_body['model_id']}").json()["warnings"]
    answers = [client.post("/v1/searches", json=request_body)]
    answers.append(client.post("/v1/searches/preflight", json=request_body))
    with service.database.writing() as session:
        session.get_one(Model, request_body["model_id"]).warnings = None
    assert shown == (warnings or [])
    if status == 202:
        assert answers[0].status_code == 202
    else:
        assert {(a.status_code, a.json()["type"]) for a in answers} == {(409, "/problems/non-finite-weights")}


@pytest.mark.fault(51)
@pytest.mark.parametrize(("rows", "status"), [(1, 422), (4, 422), (5, 202)])
def test_search_when_a_dataset_has_too_few_rows_to_split_then_refused(
    client: TestClient, service: Service, request_body: dict[str, Any], rows: int, status: int
) -> None:
    with service.database.writing() as session:
        good = session.get_one(Dataset, request_body["dataset"]["all"])
        few = Dataset(id=f"dst_{rows}", name="few", blob_sha=good.blob_sha, bytes=9, state="ready", spec={})
        few.info = {**(good.info or {}), "rows": rows}
        session.add(few)
    answer = client.post("/v1/searches", json={**request_body, "dataset": {"all": f"dst_{rows}"}})
    assert answer.status_code == status
    if status == 422:
        assert (answer.json()["type"], answer.json()["errors"][0]["pointer"]) == (
            "/problems/invalid-dataset",
            "/dataset/all",
        )
