"""Uploads: stored by content, refused by name."""

from __future__ import annotations

import base64
import hashlib
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.actions import Service


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros((4, 1, 8, 8), np.uint8))
    return buffer.getvalue()


class Marker:
    """Touches a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_model_when_uploaded_then_accepted_with_location_and_stored_by_content(
    client: TestClient, service: Service
) -> None:
    data = b"\x08\x0a" + b"x" * 100
    answer = client.post("/v1/models?name=net", content=data)
    assert answer.status_code == 202
    body = answer.json()
    assert answer.headers["location"] == f"/v1/models/{body['id']}"
    assert (body["state"], body["bytes"], body["format"]) == ("inspecting", 102, "onnx")
    assert body["sha256"] == hashlib.sha256(data).hexdigest()
    assert service.blobs.read(body["sha256"]) == data


@pytest.mark.parametrize(
    ("data", "slug"),
    [
        (b"", "unrecognised-format"),
        (b"abc", "unrecognised-format"),
        (zipped("archive/data.pkl"), "unsafe-format"),
        (zipped("m/code/__torch__.py"), "unsafe-format"),
        (zipped("readme.txt"), "unrecognised-format"),
        (b"PK\x03\x04" + b"0" * 60, "invalid-archive"),
        (b"\x89HDF\r\n\x1a\n" + b"0" * 60, "unsupported-format"),
        (b"\x1f\x8b" + b"0" * 60, "unsupported-format"),
    ],
)
def test_model_when_hostile_then_refused_by_name_and_nothing_is_kept(
    client: TestClient, service: Service, data: bytes, slug: str
) -> None:
    answer = client.post("/v1/models", content=data)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"/problems/{slug}"
    assert not service.blobs.path(hashlib.sha256(data).hexdigest()).exists()
    assert list((service.blobs.folder / "tmp").glob("*")) == []


@pytest.mark.fault(32)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_when_uploaded_under_any_name_then_refused_and_not_run(
    client: TestClient, tmp_path: Path, protocol: int
) -> None:
    marker = tmp_path / "marker"
    data = pickle.dumps(Marker(marker), protocol)
    for path in ("/v1/models?name=model.pt2", "/v1/models?name=model.onnx&format=onnx", "/v1/datasets?name=x.npz"):
        answer = client.post(path, content=data)
        assert answer.json()["type"] == "/problems/unsafe-format"
        assert "torch.export.save" in answer.json()["detail"]
    assert not marker.exists()


@pytest.mark.fault(8)
def test_upload_when_length_is_missing_then_refused(client: TestClient) -> None:
    answer = client.post("/v1/models", content=iter([b"x" * 50]))
    assert (answer.status_code, answer.json()["type"]) == (411, "/problems/length-required")


@pytest.mark.fault(54)
def test_upload_when_larger_than_the_cap_then_refused(client: TestClient, service: Service) -> None:
    size = service.settings.max_upload_bytes + 1
    answer = client.post("/v1/models", content=b"x" * 20, headers={"Content-Length": str(size)})
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/upload-too-large")


@pytest.mark.fault(52)
def test_upload_when_digest_disagrees_then_refused_and_deleted(client: TestClient, service: Service) -> None:
    data = b"\x08\x0b" + b"y" * 64
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    answer = client.post("/v1/models", content=data, headers={"Content-Digest": f"sha-256=:{wrong}:"})
    assert answer.json()["type"] == "/problems/digest-mismatch"
    assert not service.blobs.path(hashlib.sha256(data).hexdigest()).exists()


@pytest.mark.fault(17)
@pytest.mark.parametrize("name", ["a\x00b", "x" * 201, "   ", "ab\u202ecd"])
def test_name_when_not_printable_then_refused(client: TestClient, name: str) -> None:
    answer = client.post("/v1/models", params={"name": name}, content=b"\x08" * 40)
    assert answer.json()["type"] == "/problems/invalid-name"


def test_dataset_when_uploaded_then_keeps_its_spec(client: TestClient) -> None:
    spec = '{"layout": "NHWC", "scale": 0.5, "mean": [0.1], "std": [0.2], "split_seed": 3}'
    answer = client.post("/v1/datasets?name=d", content=npz(), headers={"X-Tightfit-Dataset-Spec": spec})
    assert answer.status_code == 202
    body = answer.json()
    assert body["spec"] == {
        "role": "all", "layout": "NHWC", "scale": 0.5, "mean": [0.1], "std": [0.2], "split_seed": 3, "inputs": {},
    }  # fmt: skip
    assert body["rows"] is None and body["state"] == "inspecting"


@pytest.mark.parametrize(
    ("spec", "slug"),
    [
        ('{"layout": "HWC"}', "invalid-request"),
        ('{"scale": NaN}', "invalid-number"),
        ('{"scale": 1, "scale": 2}', "duplicate-json-key"),
        ('{"colour": "red"}', "unknown-field"),
        ("{", "malformed-json"),
    ],
)
def test_dataset_when_spec_is_bad_then_refused(client: TestClient, spec: str, slug: str) -> None:
    answer = client.post("/v1/datasets", content=npz(), headers={"X-Tightfit-Dataset-Spec": spec})
    assert answer.json()["type"] == f"/problems/{slug}"


def test_same_bytes_when_uploaded_twice_then_two_rows_share_one_file(client: TestClient, service: Service) -> None:
    data = b"\x08\x0c" + b"z" * 64
    first, second = (client.post("/v1/models", content=data).json() for _ in range(2))
    assert first["id"] != second["id"] and first["sha256"] == second["sha256"]
