"""New weights of a known network: a model of its own that points back to its base, under the laws of uploads."""

from __future__ import annotations

import base64
import hashlib
import io
import pickle
import zipfile
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save

from app.actions import Service
from app.domain import ids
from app.store.tables import Model
from worker.graph.errors import unsupported
from worker.job import problem

Json = dict[str, Any]


def weights(value: float = 1.0) -> bytes:
    return save({"stem.weight": np.full((8, 3, 3, 3), value, np.float32)})


def upload(client: TestClient, base: str, data: bytes, name: str | None = None, **headers: str) -> Any:
    params = {} if name is None else {"name": name}
    return client.post(f"/v1/models/{base}/weights", params=params, content=data, headers=headers)


def test_weights_when_uploaded_then_a_new_model_points_back_and_the_base_stays_as_it_was(
    client: TestClient, service: Service, ready: dict[str, str]
) -> None:
    before, data = client.get(f"/v1/models/{ready['model']}").json(), weights(2.0)
    answer = upload(client, ready["model"], data, "net, epoch 9")
    made = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/models/{made['id']}" != before["links"]["self"]
    assert (made["name"], made["state"], made["graph"], made["format"]) == ("net, epoch 9", "inspecting", None, "onnx")
    assert (made["base_id"], made["links"]["base"]) == (ready["model"], f"/v1/models/{ready['model']}")
    assert (made["sha256"], made["bytes"]) == (before["sha256"], before["bytes"])
    assert (made["weights_sha256"], made["weights_bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
    assert service.blobs.read(made["weights_sha256"]) == data
    assert client.get(f"/v1/models/{ready['model']}").json() == before
    assert (before["base_id"], before["weights_sha256"], before["weights_bytes"], before["links"]["base"]) == (
        None,
    ) * 4


def test_weights_when_no_name_is_given_then_the_base_s(client: TestClient, ready: dict[str, str]) -> None:
    assert upload(client, ready["model"], weights()).json()["name"] == "net"


def test_weights_when_of_a_weights_version_then_point_to_it_and_share_the_first_file(
    client: TestClient, service: Service, ready: dict[str, str]
) -> None:
    first = upload(client, ready["model"], weights(3.0)).json()
    with service.database.writing() as session:
        session.get_one(Model, first["id"]).state = "ready"
    second = upload(client, first["id"], weights(4.0)).json()
    assert (second["base_id"], second["sha256"]) == (first["id"], first["sha256"])
    assert second["weights_sha256"] != first["weights_sha256"]


def test_list_when_asked_for_a_base_then_its_versions_newest_first(client: TestClient, ready: dict[str, str]) -> None:
    made = [upload(client, ready["model"], weights(value), "listed").json()["id"] for value in (5.0, 6.0)]
    found = client.get("/v1/models", params={"base_id": ready["model"]}).json()["items"]
    assert [item["id"] for item in found][:2] == made[::-1]
    assert {item["base_id"] for item in found} == {ready["model"]}


def test_base_when_a_version_was_made_from_it_then_not_deleted(client: TestClient, ready: dict[str, str]) -> None:
    made = upload(client, ready["model"], weights(7.0)).json()["id"]
    answer = client.delete(f"/v1/models/{ready['model']}", headers={"If-Match": "*"})
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/in-use")
    assert client.delete(f"/v1/models/{made}", headers={"If-Match": "*"}).status_code == 204


@pytest.mark.parametrize("state", ["inspecting", "rejected"])
def test_weights_when_the_base_is_not_ready_then_refused_and_nothing_is_kept(
    client: TestClient, service: Service, state: str
) -> None:
    base = client.post("/v1/models?name=slow", content=b"\x08" * 40).json()["id"]
    with service.database.writing() as session:
        session.get_one(Model, base).state = state
    data = weights(8.0)
    answer = upload(client, base, data)
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/model-not-ready")
    assert not service.blobs.path(hashlib.sha256(data).hexdigest()).exists()


@pytest.mark.parametrize("base", ["mdl_none", "a" * 500, "%00"])
def test_weights_when_the_base_is_unknown_then_a_typed_404(client: TestClient, base: str) -> None:
    answer = upload(client, base, weights())
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"content")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "slug"),
    [
        (pickle.dumps({"stem.weight": 1}, 2), "unsafe-format"),
        (zipped("net/data.pkl"), "unsafe-format"),
        (zipped("net/models/model.json"), "unrecognised-format"),
        (zipped("x.npy"), "unrecognised-format"),
        (b"\x08\x0a" + b"x" * 100, "unrecognised-format"),
        (b"\x93NUMPY" + b" " * 60, "unsupported-format"),
        (b"", "unrecognised-format"),
    ],
    ids=["pickle", "checkpoint", "pt2", "npz", "onnx", "npy", "empty"],
)
def test_weights_when_the_content_is_something_else_then_refused_with_the_way_to_write_them(
    client: TestClient, service: Service, ready: dict[str, str], data: bytes, slug: str
) -> None:
    answer = upload(client, ready["model"], data)
    assert (answer.status_code, answer.json()["type"]) == (422, f"/problems/{slug}")
    assert len(data) < 16 or "safetensors.torch.save_file(model.state_dict()" in answer.json()["detail"]
    assert not service.blobs.path(hashlib.sha256(data).hexdigest()).exists()


def test_weights_when_the_laws_of_uploads_are_broken_then_refused_by_name(
    client: TestClient, ready: dict[str, str]
) -> None:
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    path = f"/v1/models/{ready['model']}/weights"
    answers = [
        client.post(path, content=iter([weights()])),
        upload(client, ready["model"], weights(9.0), **{"Content-Digest": f"sha-256=:{wrong}:"}),
        upload(client, ready["model"], weights(), "a\x00b"),
        client.get(path),
    ]
    found = [answer.json()["type"].removeprefix("/problems/") for answer in answers]
    assert found == ["length-required", "digest-mismatch", "invalid-name", "method-not-allowed"]


def test_weights_when_the_request_is_repeated_under_its_key_then_one_model(
    client: TestClient, ready: dict[str, str]
) -> None:
    headers = {"Idempotency-Key": "again"}
    first, second = (upload(client, ready["model"], weights(10.0), "once", **headers) for _ in range(2))
    assert first.json() == second.json()
    assert second.headers["idempotency-replayed"] == "true"
    other = upload(client, ready["model"], weights(11.0), "once", **headers)
    assert (other.status_code, other.json()["type"]) == (422, "/problems/idempotency-key-reused")


def test_weights_when_the_key_may_not_write_then_refused(client: TestClient, ready: dict[str, str]) -> None:
    made = client.post("/v1/keys", json={"name": "reader", "scopes": ["artefacts:read"]}).json()
    answer = upload(client, ready["model"], weights(), Authorization=f"Bearer {made['key']}")
    assert (answer.status_code, answer.json()["scope"]) == (403, "models:write")


def test_model_when_a_group_is_frozen_then_the_answer_says_why(client: TestClient, ready: dict[str, str]) -> None:
    groups = client.get(f"/v1/models/{ready['model']}").json()["graph"]["groups"]
    assert all(set(group) == {"id", "channels", "producers", "consumers", "frozen"} for group in groups)
    reasons = [group["frozen"] for group in groups if group["frozen"]]
    assert reasons and len(reasons) < len(groups)
    assert all(len(reason) > 3 for reason in reasons)


def test_models_when_a_refused_file_named_its_nodes_with_half_characters_then_still_listed(
    client: TestClient, service: Service, ready: dict[str, str]
) -> None:
    refusal = unsupported({"\ud800": 1}, [("\udc00\0", "\ud800")])
    with service.database.writing() as session:
        row = Model(
            id=ids.new_id("model"), name="odd", format="pt2", blob_sha=session.get_one(Model, ready["model"]).blob_sha
        )
        row.bytes, row.state, row.problem = 9, "rejected", problem(refusal.slug, refusal.detail, refusal.errors)
        session.add(row)
    answer = client.get("/v1/models")
    assert answer.status_code == 200
    assert answer.json()["items"][0]["problem"]["errors"][0]["detail"] == "?"
