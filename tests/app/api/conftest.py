"""The real application on a fresh SQLite data folder, spoken to over HTTP in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.actions import Service
from app.main import create_app
from app.settings import Settings
from tests.app.uploaded import put_ready


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
    return put_ready(service)


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
