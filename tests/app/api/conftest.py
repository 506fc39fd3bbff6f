"""The real application on a fresh SQLite data folder, spoken to over HTTP in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.actions import Service
from app.domain import ids
from app.main import create_app
from app.settings import Settings
from app.store.blobs import record
from app.store.tables import Dataset, Model
from tests.worker.search.pictures import resnet as resnet8


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client with the administrator's key."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("service"), disk_floor_bytes=0, event_poll_s=0.05)
    with TestClient(create_app(settings)) as http:
        http.headers["Authorization"] = f"Bearer {settings.key_file.read_text().strip()}"
        yield http


@pytest.fixture(scope="module")
def service(client: TestClient) -> Service:
    """What the application's verbs work with."""
    found: Service = client.app.state.service  # type: ignore[attr-defined]
    return found


@pytest.fixture(scope="module")
def ready(service: Service) -> dict[str, str]:
    """Ids of a network and a dataset that are ready (as if a worker had read them)."""
    graph = resnet8()
    sha = service.blobs.put(b"a network")
    info = {"rows": 100, "shape": list(graph.input_shape), "dtype": "uint8", "has_labels": True, "classes": 10}
    with service.database.writing() as session:
        record(session, sha, 9)
        model = Model(id=ids.new_id("model"), name="net", format="onnx", blob_sha=sha, bytes=9, state="ready")
        model.graph = graph.to_json()
        data = Dataset(id=ids.new_id("dataset"), name="data", blob_sha=sha, bytes=9, state="ready", spec={}, info=info)
        session.add_all([model, data])
    return {"model": model.id, "dataset": data.id}


@pytest.fixture
def request_body(ready: dict[str, str]) -> dict[str, Any]:
    """A search request that can be met."""
    return {
        "name": "tight",
        "model_id": ready["model"],
        "dataset": {"all": ready["dataset"]},
        "device_id": "generic-npu",
        "limits": [{"metric": "bops", "relative": 0.125}],
    }


@pytest.fixture
def data_folder(service: Service) -> Path:
    """The service's data folder."""
    return service.settings.data_dir
